"""WaitForWorkflow: a call waits until a workflow has one of some statuses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails
from tests.support.scene import create_namespace, delete_namespace
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    CreateNewWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
    WaitForWorkflowRequest,
    WorkflowInstance,
    WorkflowStatus,
    WorkflowView,
)

RUNNABLE = WorkflowStatus.WORKFLOW_STATUS_RUNNABLE
SUSPENDED = WorkflowStatus.WORKFLOW_STATUS_SUSPENDED
COMPLETE = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
TERMINATED = WorkflowStatus.WORKFLOW_STATUS_TERMINATED
LONG = Duration(seconds=60)


@pytest.fixture
async def stored(api: Api) -> WorkflowInstance:
    """A workflow that is suspended."""
    instance = make.instance(
        status=SUSPENDED, execution_pointers=[make.pointer("a"), make.pointer("b")]
    )
    await api.create(instance)
    return instance


def waiting(api: Api, id_: str, *statuses: WorkflowStatus.ValueType) -> asyncio.Task[Any]:
    """A call that waits, for as long as the test may take."""
    return asyncio.ensure_future(api.wait_for_workflow(id_, statuses=statuses, wait=LONG))


async def settled(*tasks: asyncio.Task[Any]) -> None:
    """Until the calls are likely to have looked and to wait."""
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in tasks)


def with_status(instance: WorkflowInstance, status: WorkflowStatus.ValueType) -> WorkflowInstance:
    """The same with another status."""
    changed = WorkflowInstance()
    changed.CopyFrom(instance)
    changed.status = status
    return changed


async def persist(api: Api, instance: WorkflowInstance) -> None:
    await api.persist_workflow(instance)


async def persist_with_subscriptions(api: Api, instance: WorkflowInstance) -> None:
    await api.workflows.PersistWorkflowWithSubscriptions(
        PersistWorkflowWithSubscriptionsRequest(instance=instance)
    )


async def commit(api: Api, instance: WorkflowInstance) -> None:
    await api.workflows.CommitWorkflow(CommitWorkflowRequest(instance=instance))


async def patch(api: Api, instance: WorkflowInstance) -> None:
    stored = await api.get_workflow_instance(instance.id)
    await api.workflows.CommitWorkflow(
        CommitWorkflowRequest(
            patch=make.patch(instance.id, status=instance.status),
            expected_revision=stored.revision,
        )
    )


@pytest.mark.parametrize("status", [COMPLETE, TERMINATED])
async def test_what_has_ended_is_returned_at_once(
    api: Api, stored: WorkflowInstance, status: WorkflowStatus.ValueType
) -> None:
    await persist(api, with_status(stored, status))
    found = await waiting(api, stored.id)
    assert found == await api.get_workflow_instance(
        stored.id, view=WorkflowView.WORKFLOW_VIEW_HEADER
    )
    assert found.status == status


async def test_without_a_wait_the_header_is_returned_at_once(
    api: Api, stored: WorkflowInstance
) -> None:
    found = await api.wait_for_workflow(stored.id)
    assert (found.status, found.view) == (SUSPENDED, WorkflowView.WORKFLOW_VIEW_HEADER)
    assert not found.execution_pointers


async def test_when_the_wait_is_over_the_header_is_returned(
    api: Api, stored: WorkflowInstance
) -> None:
    found = await api.wait_for_workflow(stored.id, wait=Duration(nanos=50_000_000))
    assert found.status == SUSPENDED


async def test_wait_ends_before_the_deadline(api: Api, stored: WorkflowInstance) -> None:
    answer = await api.workflows.WaitForWorkflow(
        WaitForWorkflowRequest(id=stored.id, wait=LONG), timeout=2
    )
    assert answer.instance.status == SUSPENDED


@pytest.mark.parametrize("write", [persist, persist_with_subscriptions, commit, patch])
async def test_a_write_of_the_status_ends_a_wait(
    api: Api,
    stored: WorkflowInstance,
    write: Callable[[Api, WorkflowInstance], Awaitable[None]],
) -> None:
    task = waiting(api, stored.id)
    await settled(task)
    await write(api, with_status(stored, COMPLETE))
    assert (await task).status == COMPLETE


async def test_only_the_given_statuses_end_a_wait(api: Api, stored: WorkflowInstance) -> None:
    ended = waiting(api, stored.id)
    runs = waiting(api, stored.id, RUNNABLE, TERMINATED)
    await settled(ended, runs)
    await persist(api, with_status(stored, RUNNABLE))
    assert (await runs).status == RUNNABLE
    await settled(ended)
    await persist(api, with_status(stored, TERMINATED))
    assert (await ended).status == TERMINATED


async def test_everybody_who_waits_is_answered(api: Api, stored: WorkflowInstance) -> None:
    other = make.instance(status=SUSPENDED)
    await api.create(other)
    tasks = [waiting(api, stored.id) for _ in range(20)]
    still = waiting(api, other.id)
    await settled(*tasks, still)
    await persist(api, with_status(stored, COMPLETE))
    assert {each.status for each in await asyncio.gather(*tasks)} == {COMPLETE}
    await settled(still)
    await api.delete_workflow(other.id)
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await still


async def test_unknown_workflow_is_not_waited_for(api: Api) -> None:
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await waiting(api, make.new_id("workflow"))


async def delete(api: Api, instance: WorkflowInstance) -> None:
    await api.delete_workflow(instance.id)


async def purge(api: Api, instance: WorkflowInstance) -> None:
    ended = with_status(instance, COMPLETE)
    ended.complete_time.CopyFrom(make.FIRST_TIME)
    await persist(api, ended)
    await api.purge_workflows(
        ended_before=make.time(), workflow_definition_id=instance.workflow_definition_id
    )


@pytest.mark.parametrize("remove", [delete, purge])
async def test_workflow_that_is_deleted_ends_a_wait(
    api: Api,
    stored: WorkflowInstance,
    remove: Callable[[Api, WorkflowInstance], Awaitable[None]],
) -> None:
    task = waiting(api, stored.id, RUNNABLE)
    await settled(task)
    await remove(api, stored)
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await task


async def test_workflow_of_another_namespace_ends_no_wait(
    api: Api, stored: WorkflowInstance
) -> None:
    """And that the namespace is deleted ends all waits in it."""
    name = make.new_namespace()
    await create_namespace(api, name)
    there = [("wfe-namespace", name)]
    try:
        await api.workflows.CreateNewWorkflow(
            CreateNewWorkflowRequest(instance=stored), metadata=there
        )
        request = WaitForWorkflowRequest(id=stored.id, wait=LONG)
        task = asyncio.ensure_future(api.workflows.WaitForWorkflow(request, metadata=there))
        await settled(task)
        await persist(api, with_status(stored, COMPLETE))
        await settled(task)
    finally:
        await delete_namespace(api, name)
    with fails("NOT_FOUND", "NAMESPACE_NOT_FOUND"):
        await task
