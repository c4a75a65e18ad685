"""Items that stand for workflows and events: confirmed acknowledgements, and workflows that come
with their items."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from tests.support.clock import database_time
from tests.support.queues import DELAYED, OwnQueue, ids
from tests.support.scene import never_due
from wfe.persistence.v1.queue_item_pb2 import Acknowledgement
from wfe.persistence.v1.queue_pb2 import QueueKind
from wfe.persistence.v1.workflow_pb2 import WorkflowStatus, WorkflowView

WORKFLOW = QueueKind.QUEUE_KIND_WORKFLOW
EVENT = QueueKind.QUEUE_KIND_EVENT
RUNNABLE = WorkflowStatus.WORKFLOW_STATUS_RUNNABLE


@pytest.fixture
async def own(api: Api) -> AsyncIterator[OwnQueue]:
    queue = OwnQueue(api)
    yield queue
    await queue.clear()


async def due(api: Api) -> str:
    """The id of a workflow that is due."""
    instance = make.instance(status=RUNNABLE, next_execution=0)
    await api.create_new_workflow(instance)
    return instance.id


# Confirmed acknowledgements.


async def test_workflow_that_is_still_due_comes_back(api: Api, own: OwnQueue) -> None:
    await own.configure(WORKFLOW)
    claim = await own.taken(await due(api))
    assert await api.acknowledge(claim.receipt, confirmed=True) == [claim.receipt]
    [listed] = await own.items()
    assert (listed.state, listed.attempt) == (DELAYED, 1)
    await api.delete_workflow(claim.item.id)


@pytest.mark.parametrize(
    "fields",
    [
        {"status": status, "next_execution": 0}
        for status in WorkflowStatus.values()
        if status not in (0, RUNNABLE)
    ]
    + [{"status": RUNNABLE}, {"status": RUNNABLE, "next_execution": 2**62}],
    ids=str,
)
async def test_workflow_that_is_not_due_is_done(
    api: Api, own: OwnQueue, fields: dict[str, Any]
) -> None:
    await own.configure(WORKFLOW)
    instance = make.instance(**fields)
    if "next_execution" not in fields:
        instance.ClearField("next_execution")
    await api.create_new_workflow(instance)
    claim = await own.taken(instance.id)
    assert await api.acknowledge(claim.receipt, confirmed=True) == []
    assert await own.items() == []
    await api.delete_workflow(instance.id)


@pytest.mark.parametrize("kind", [WORKFLOW, EVENT])
async def test_what_does_not_exist_is_done(
    api: Api, own: OwnQueue, kind: QueueKind.ValueType
) -> None:
    await own.configure(kind)
    claim = await own.taken()
    assert await api.acknowledge(claim.receipt, confirmed=True) == []
    assert await own.items() == []


async def test_event_is_done_once_it_is_processed(api: Api, own: OwnQueue) -> None:
    await own.configure(EVENT)
    event = make.event()
    await api.create_event(event)
    claim = await own.taken(event.id)
    assert await api.acknowledge(claim.receipt, confirmed=True) == [claim.receipt]
    await api.mark_event_processed(event.id)
    await api.requeue_items(queue=own.name, ids=[event.id])
    claim = await own.take()
    assert await api.acknowledge(claim.receipt, confirmed=True) == []
    assert await own.items() == []


async def test_item_of_a_plain_queue_goes_in_any_case(api: Api, own: OwnQueue) -> None:
    claim = await own.taken(await due(api))
    assert await api.acknowledge(claim.receipt, confirmed=True) == []
    assert await own.items() == []
    await api.delete_workflow(claim.item.id)


async def test_without_confirmed_an_item_goes_in_any_case(api: Api, own: OwnQueue) -> None:
    await own.configure(WORKFLOW)
    claim = await own.taken(await due(api))
    assert await api.acknowledge(claim.receipt) == []
    assert await own.items() == []
    await api.delete_workflow(claim.item.id)


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (20, 60)]
)
async def test_what_is_not_confirmed_comes_back_later_each_time(
    api: Api, own: OwnQueue, attempt: int, seconds: int
) -> None:
    await own.configure(WORKFLOW)
    claim = await own.taken(await due(api))
    for _ in range(attempt - 1):
        await api.return_items(claim.receipt)
        claim = await own.take()
    before = await database_time(api)
    await api.acknowledge(claim.receipt, confirmed=True)
    after = await database_time(api)
    [listed] = await own.items()
    at = listed.item.visible_time.ToDatetime()
    delay = [(at - time.ToDatetime()).total_seconds() for time in (after, before)]
    assert delay[0] <= seconds <= delay[1]
    await api.delete_workflow(claim.item.id)


async def test_confirmation_counts_for_max_attempts(api: Api, own: OwnQueue) -> None:
    await own.configure(WORKFLOW, max_attempts=1)
    claim = await own.taken(await due(api))
    assert await api.acknowledge(claim.receipt, confirmed=True) == [claim.receipt]
    assert (await own.stats()).dead == 1
    await api.delete_workflow(claim.item.id)


async def test_unconfirmed_item_that_was_enqueued_since_comes_at_once(
    api: Api, own: OwnQueue
) -> None:
    await own.configure(WORKFLOW, max_attempts=1)
    claim = await own.taken(await due(api))
    await own.enqueue(claim.item.id)
    assert await api.acknowledge(claim.receipt, confirmed=True) == [claim.receipt]
    assert ids(await own.dequeue()) == [claim.item.id]
    await api.delete_workflow(claim.item.id)


async def test_dequeue_tells_what_was_not_confirmed(api: Api, own: OwnQueue) -> None:
    await own.configure(WORKFLOW)
    back, done = await own.taken(await due(api)), await own.taken()
    answer = await api.dequeue(
        queues=[own.name],
        acknowledge=[
            Acknowledgement(receipt=claim.receipt, confirmed=True) for claim in (back, done)
        ],
    )
    assert list(answer.returned_receipts) == [back.receipt]
    assert list(await own.states()) == [back.item.id]
    await api.delete_workflow(back.item.id)


# Workflows that come with their items.


@pytest.mark.parametrize(
    "view",
    [
        WorkflowView.WORKFLOW_VIEW_UNSPECIFIED,
        WorkflowView.WORKFLOW_VIEW_FULL,
        WorkflowView.WORKFLOW_VIEW_ACTIVE,
        WorkflowView.WORKFLOW_VIEW_HEADER,
    ],
    ids=WorkflowView.Name,
)
async def test_workflow_comes_as_if_it_was_read(
    api: Api, own: OwnQueue, view: WorkflowView.ValueType
) -> None:
    instance = make.full_instance(status=WorkflowStatus.WORKFLOW_STATUS_SUSPENDED)
    await api.create_new_workflow(instance)
    await own.enqueue(instance.id)
    claim = await own.take(include_workflow=True, view=view)
    assert claim.workflow == await api.get_workflow_instance(instance.id, view)
    assert not claim.workflow_omitted


async def test_item_without_a_workflow_comes_alone(api: Api, own: OwnQueue) -> None:
    instance = never_due()
    await api.create_new_workflow(instance)
    await own.enqueue("a", visible_time=make.time(1))
    await own.enqueue(instance.id, visible_time=make.time(2))
    await own.enqueue("b", visible_time=make.time(3))
    claims = await own.dequeue(include_workflow=True)
    assert [claim.HasField("workflow") for claim in claims] == [False, True, False]
    assert not any(claim.workflow_omitted for claim in claims)


async def test_workflows_are_not_returned_unasked(api: Api, own: OwnQueue) -> None:
    instance = never_due()
    await api.create_new_workflow(instance)
    claim = await own.taken(instance.id)
    assert not claim.HasField("workflow")
    assert not claim.workflow_omitted


async def test_one_workflow_comes_with_items_of_several_queues(api: Api, own: OwnQueue) -> None:
    other = OwnQueue(api)
    instance = never_due()
    await api.create_new_workflow(instance)
    for queue in (own, other):
        await queue.enqueue(instance.id)
    answer = await api.dequeue(queues=[own.name, other.name], max_items=2, include_workflow=True)
    assert [claim.workflow.id for claim in answer.items] == [instance.id] * 2
    await other.clear()


async def test_workflows_that_do_not_fit_are_left_out(api: Api, own: OwnQueue) -> None:
    most = (await api.get_store_info()).max_message_bytes
    made = [never_due(data_json=f'"{"x" * (most // 3)}"') for _ in range(5)]
    for at, instance in enumerate(made):
        await api.create_new_workflow(instance)
        await own.enqueue(instance.id, visible_time=make.time(at))
    claims = await own.dequeue(include_workflow=True)
    assert ids(claims) == [instance.id for instance in made]
    assert [claim.HasField("workflow") for claim in claims] == [True] * 2 + [False] * 3
    assert [claim.workflow_omitted for claim in claims] == [False] * 2 + [True] * 3


async def test_workflow_as_large_as_a_message_is_left_out(api: Api, own: OwnQueue) -> None:
    most = (await api.get_store_info()).max_message_bytes
    instance = never_due(data_json=f'"{"x" * (most - 9000)}"')
    await api.create_new_workflow(instance)
    await own.enqueue(instance.id, payload_json=f'"{"y" * 12_000}"')
    claim = await own.take(include_workflow=True, lease_duration=Duration(seconds=60))
    assert claim.workflow_omitted
    assert not claim.HasField("workflow")
