"""Writes under locks: `held_lock_tokens` of CommitWorkflow and of both persists."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.conformance.test_locks import LONG, STALE, acquired
from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails, failure_of
from tests.support.scene import found, never_due
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    PersistWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
    WorkflowInstance,
    WorkflowPatch,
)


class Write:
    """A write of one of the kinds that can be made under locks."""

    def __init__(self, api: Api, instance: WorkflowInstance, tokens: Sequence[str]) -> None:
        self.api = api
        self.instance = instance
        self.tokens = tokens
        self.request_id = make.request_id()
        self.subscription = make.subscription(workflow_id=instance.id)

    async def persist(self) -> int:
        request = PersistWorkflowRequest(instance=self.instance, held_lock_tokens=self.tokens)
        return (await self.api.workflows.PersistWorkflow(request)).revision

    async def persist_once(self) -> int:
        request = PersistWorkflowRequest(
            instance=self.instance,
            held_lock_tokens=self.tokens,
            request_id=self.request_id,
        )
        return (await self.api.workflows.PersistWorkflow(request)).revision

    async def persist_with_subscriptions(self) -> int:
        request = PersistWorkflowWithSubscriptionsRequest(
            instance=self.instance,
            subscriptions=[self.subscription],
            held_lock_tokens=self.tokens,
        )
        return (await self.api.workflows.PersistWorkflowWithSubscriptions(request)).revision

    async def commit(self) -> int:
        return await self._commit(instance=self.instance)

    async def commit_patch(self) -> int:
        return await self._commit(
            patch=WorkflowPatch(id=self.instance.id), expected_revision=self.instance.revision
        )

    async def _commit(self, **state: Any) -> int:
        request = CommitWorkflowRequest(
            create_subscriptions=[self.subscription], held_lock_tokens=self.tokens, **state
        )
        return (await self.api.workflows.CommitWorkflow(request)).revision


WRITES = pytest.mark.parametrize(
    "write",
    [
        Write.persist, Write.persist_once, Write.persist_with_subscriptions, Write.commit,
        Write.commit_patch,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
Kind = Callable[[Write], Awaitable[int]]


@pytest.fixture
async def instance(api: Api) -> WorkflowInstance:
    """A workflow, stored."""
    stored = never_due()
    await api.create(stored)
    return await api.get_workflow_instance(stored.id)


@WRITES
async def test_who_holds_the_locks_may_write(
    api: Api, instance: WorkflowInstance, write: Kind
) -> None:
    tokens = [(await acquired(api, make.new_id("resource"))).token for _ in range(3)]
    assert await write(Write(api, instance, tokens)) == instance.revision + 1
    assert await api.renew_locks(*tokens), "they are held as before"


@WRITES
@STALE
async def test_who_does_not_hold_them_any_more_changes_nothing(
    api: Api, instance: WorkflowInstance, write: Kind, stale: Any
) -> None:
    """And the error names the first one that is lost."""
    good = await acquired(api, make.new_id("resource"))
    token = await stale(api, make.new_id("resource"))
    attempt = Write(api, instance, [good.token, token])
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        await write(attempt)
    assert failure.metadata == {
        "lease_tokens": token, "lost": "1", "field": "held_lock_tokens[1]",
    }  # fmt: skip
    assert await api.get_workflow_instance(instance.id) == instance
    assert await found(api.get_subscription(attempt.subscription.id)) is None
    assert await api.renew_locks(good.token)


@WRITES
async def test_an_absent_workflow_is_told_first(api: Api, write: Kind) -> None:
    absent = never_due(id=make.new_id("workflow"), revision=1)
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await write(Write(api, absent, [f"1.{'0' * 32}"]))


async def test_a_repetition_is_answered_although_the_lock_is_gone(
    api: Api, instance: WorkflowInstance
) -> None:
    """As with every other condition: it has happened."""
    token = (await acquired(api, make.new_id("resource"))).token
    write = Write(api, instance, [token])
    revision = await write.persist_once()
    assert await api.release_lock(token)
    assert await write.persist_once() == revision
    assert (await api.get_workflow_instance(instance.id)).revision == revision


async def test_a_holder_whose_lock_is_taken_never_writes_after_the_next_one_has_read(
    api: Api,
) -> None:
    """However the two come together."""
    for turn in range(20):
        instance = never_due()
        await api.create(instance)
        resource = make.new_id("resource")
        first = await acquired(api, resource)
        read: list[WorkflowInstance] = []

        async def take_over(
            resource: str = resource,
            epoch: int = first.epoch,
            id_: str = instance.id,
            read: list[WorkflowInstance] = read,
        ) -> None:
            assert await api.break_lock(resource, epoch)
            await acquired(api, resource)
            read.append(await api.get_workflow_instance(id_))

        calls = [Write(api, instance, [first.token]).persist(), take_over()]
        failures = await asyncio.gather(*map(failure_of, calls if turn % 2 else calls[::-1]))
        reasons = {failure.reason for failure in failures if failure is not None}
        assert reasons <= {"LEASE_LOST"}
        assert read == [await api.get_workflow_instance(instance.id)]
        assert read[0].revision == instance.revision + (not reasons)


async def test_writes_under_one_lock_do_not_wait_for_each_other(api: Api) -> None:
    token = (await acquired(api, make.new_id("resource"))).token
    instances = [never_due() for _ in range(8)]
    for each in instances:
        await api.create(each)
    for _ in range(3):
        failures = await asyncio.gather(
            *(failure_of(Write(api, each, [token]).persist()) for each in instances),
            failure_of(api.renew_locks(token, ttl=LONG)),
        )
        assert failures == [None] * 9


async def test_at_most_1000_locks_and_none_twice(api: Api, instance: WorkflowInstance) -> None:
    token = (await acquired(api, make.new_id("resource"), ttl=Duration(seconds=60))).token
    for tokens, reason in (
        ([f"{n}.{'0' * 32}" for n in range(1, 1002)], "NUMBER_RANGE"),
        ([token, token], "DUPLICATE"),
        (["x"], "FORMAT"),
    ):
        for kind in (Write.persist, Write.persist_with_subscriptions, Write.commit):
            with fails("INVALID_ARGUMENT", "INVALID_FIELD") as failure:
                await kind(Write(api, instance, tokens))
            assert set(failure.violations.values()) == {reason}
