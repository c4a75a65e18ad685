"""request_id: the same write again, after a lost answer, is made once and answered twice."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails, invalid
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    PersistWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
    WorkflowInstance,
    WorkflowPatch,
)

Make = Callable[[WorkflowInstance, str, int | None], Any]


def _persist(instance: WorkflowInstance, request_id: str, expected: int | None) -> Message:
    return PersistWorkflowRequest(
        instance=instance, request_id=request_id, expected_revision=expected
    )


def _persist_with_subscriptions(
    instance: WorkflowInstance, request_id: str, expected: int | None
) -> Message:
    return PersistWorkflowWithSubscriptionsRequest(
        instance=instance,
        request_id=request_id,
        expected_revision=expected,
        subscriptions=[make.subscription(id="", event_key=instance.id)],
    )


def _commit(instance: WorkflowInstance, request_id: str, expected: int | None) -> Message:
    return CommitWorkflowRequest(
        instance=instance,
        request_id=request_id,
        expected_revision=expected,
        create_subscriptions=[make.subscription(id="", event_key=instance.id)],
        create_events=[make.event(id="", event_key=instance.id)],
        errors=[make.error(workflow_id=instance.id)],
    )


def _commit_alone(instance: WorkflowInstance, request_id: str, expected: int | None) -> Message:
    return CommitWorkflowRequest(
        instance=instance, request_id=request_id, expected_revision=expected
    )


def _patch(instance: WorkflowInstance, request_id: str, expected: int | None) -> Message:
    return CommitWorkflowRequest(
        patch=WorkflowPatch(id=instance.id, execution_pointers=[make.pointer("new")]),
        request_id=request_id,
        expected_revision=expected or instance.revision,
    )


WRITES: list[Make] = [_persist, _persist_with_subscriptions, _commit, _commit_alone, _patch]
every_write = pytest.mark.parametrize("write", WRITES, ids=[w.__name__[1:] for w in WRITES])


async def send(api: Api, request: Any) -> Any:
    name = type(request).__name__.removesuffix("Request")
    call: Callable[[Any], Awaitable[Any]] = getattr(api.workflows, name)
    return await call(request)


async def _stored(api: Api) -> WorkflowInstance:
    instance = make.full_instance()
    await api.create(instance)
    return instance


async def _effects(api: Api, instance: WorkflowInstance) -> list[Any]:
    key = {"event_name": "order.paid", "event_key": instance.id}
    return [
        await api.get_workflow_instance(instance.id),
        await api.get_subscriptions(**key),
        await api.get_events(**key),
        await api.list_errors(workflow_id=instance.id),
    ]


@every_write
@pytest.mark.parametrize("guarded", [False, True])
async def test_the_second_arrival_changes_nothing_and_is_answered_the_same(
    api: Api, write: Make, guarded: bool
) -> None:
    instance = await _stored(api)
    request = write(instance, str(uuid.uuid4()), instance.revision if guarded else None)
    first = await send(api, request)
    assert first.revision == instance.revision + 1
    effects = await _effects(api, instance)
    assert await send(api, request) == first
    assert await _effects(api, instance) == effects


@every_write
async def test_also_after_others_have_written(api: Api, write: Make) -> None:
    instance = await _stored(api)
    request = write(instance, str(uuid.uuid4()), instance.revision)
    first = await send(api, request)
    later = make.instance(id=instance.id, data_json='"later"')
    assert await api.persist_workflow(later) == instance.revision + 2
    effects = await _effects(api, instance)
    assert await send(api, request) == first
    assert await _effects(api, instance) == effects


@every_write
async def test_many_arrivals_at_once_are_one_write(api: Api, write: Make) -> None:
    instance = await _stored(api)
    request = write(instance, str(uuid.uuid4()), None)
    answers = await asyncio.gather(*(send(api, request) for _ in range(10)))
    assert all(answer == answers[0] for answer in answers)
    stored, subscriptions, events, errors = await _effects(api, instance)
    assert stored.revision == instance.revision + 1
    for found in (subscriptions.subscriptions, events.event_ids, errors.errors):
        assert len(found) <= 1


@every_write
async def test_another_content_under_the_same_id_is_refused(api: Api, write: Make) -> None:
    instance = await _stored(api)
    request_id = str(uuid.uuid4())
    await send(api, write(instance, request_id, instance.revision))
    effects = await _effects(api, instance)
    other = write(make.changed(instance, "data_json"), request_id, instance.revision + 1)
    with fails("ALREADY_EXISTS", "REQUEST_ID_REUSED") as failure:
        await send(api, other)
    assert failure.metadata["field"] == "request_id"
    assert await _effects(api, instance) == effects


async def test_it_names_a_write_to_one_workflow(api: Api) -> None:
    request_id = str(uuid.uuid4())
    for _ in range(2):
        instance = await _stored(api)
        answer = await send(api, _commit_alone(instance, request_id, None))
        assert answer.revision == instance.revision + 1


@every_write
async def test_what_was_refused_is_not_remembered(api: Api, write: Make) -> None:
    instance = await _stored(api)
    request = write(instance, str(uuid.uuid4()), instance.revision + 1)
    with fails("ABORTED", "REVISION_MISMATCH"):
        await send(api, request)
    await api.persist_workflow(instance)
    assert (await send(api, request)).revision == instance.revision + 2


async def test_it_may_be_written_in_either_case(api: Api) -> None:
    instance = await _stored(api)
    request_id = str(uuid.uuid4())
    await send(api, _persist(instance, request_id, None))
    with fails("ALREADY_EXISTS", "REQUEST_ID_REUSED"):
        await send(api, _persist(make.changed(instance, "data_json"), request_id.upper(), None))


@every_write
@pytest.mark.parametrize(
    "bad", ["1", "x" * 36, f"{uuid.UUID(int=1)}"[:-1], f"{{{uuid.UUID(int=1)}}}"]
)
async def test_what_is_no_uuid_is_refused(api: Api, write: Make, bad: str) -> None:
    instance = await _stored(api)
    with invalid("request_id", reason="FORMAT"):
        await send(api, write(instance, bad, instance.revision))


async def test_the_retention_is_told(api: Api) -> None:
    assert (await api.get_store_info()).request_retention.seconds == 3600
