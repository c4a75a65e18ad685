"""Queues through the provider, against a real server."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.support import make
from wfe_persistence_client import (
    ABSENT,
    Acknowledgement,
    DequeuedItem,
    Event,
    LeaseLost,
    LifecycleEvent,
    LifecycleEventType,
    PersistenceProvider,
    QueueItem,
    QueueItemState,
    QueueKind,
    ReturnedItem,
    WorkflowInstance,
    WorkflowStatus,
    WorkflowView,
    connect,
    connect_blocking,
)


@pytest.fixture
async def real(target: str) -> AsyncIterator[PersistenceProvider]:
    async with connect(target) as provider:
        yield provider


@pytest.fixture
def name() -> str:
    return make.queue()


async def take(real: PersistenceProvider, queue: str) -> DequeuedItem:
    [item] = (await real.dequeue([queue])).items
    return item


async def test_item_comes_back_as_it_was_enqueued(real: PersistenceProvider, name: str) -> None:
    at = datetime(2024, 1, 1, tzinfo=UTC)
    item = QueueItem(queue=name, id="a", payload={"n": [1]}, visible_time=at, blocked_by=["x"])
    await real.enqueue([item, QueueItem(queue=name, id="b")])
    answer = await real.dequeue([name], max_items=10, lease_duration=timedelta(minutes=5))
    first, second = answer.items
    assert first.item == item
    assert second.item.payload is ABSENT
    assert first.workflow is None
    assert not first.workflow_omitted
    assert first.lease_expiry > datetime.now(UTC) + timedelta(minutes=4)
    renewed = await real.renew_items([first.receipt], lease_duration=timedelta(hours=1))
    assert renewed is not None
    assert renewed > first.lease_expiry
    assert await real.acknowledge([first.receipt, second.receipt]) == []
    assert await real.list_queue_items(name) == []


async def test_items_are_settled_and_taken_by_one_call(
    real: PersistenceProvider, name: str
) -> None:
    await real.enqueue([QueueItem(queue=name, id=id_) for id_ in "abc"])
    first, second = (await real.dequeue([name], max_items=2)).items
    answer = await real.dequeue(
        [name],
        acknowledge=[Acknowledgement(receipt=first.receipt)],
        return_items=[ReturnedItem(receipt=second.receipt, delay=timedelta(hours=1))],
    )
    assert [each.item.id for each in answer.items] == ["c"]
    states = {each.item.id: each.state for each in await real.list_queue_items(name)}
    assert states == {"b": QueueItemState.DELAYED, "c": QueueItemState.LEASED}
    with pytest.raises(LeaseLost):
        await real.dequeue([name], acknowledge=[Acknowledgement(receipt=first.receipt)])


async def test_workflow_comes_with_its_item(real: PersistenceProvider, name: str) -> None:
    id_ = await real.create_new_workflow(
        WorkflowInstance(workflow_definition_id="d", version=1, data={"paid": False})
    )
    await real.enqueue([QueueItem(queue=name, id=id_)])
    [item] = (await real.dequeue([name], include_workflow=True, view=WorkflowView.ACTIVE)).items
    assert item.workflow is not None
    assert (item.workflow.id, item.workflow.data) == (id_, {"paid": False})
    assert item.workflow.view is WorkflowView.ACTIVE
    item.workflow.data = {"paid": True}
    await real.persist_workflow(item.workflow)
    assert (await real.get_workflow_instance(id_)).data == {"paid": True}


async def test_what_is_not_confirmed_comes_back(real: PersistenceProvider, name: str) -> None:
    await real.configure_queue(name, QueueKind.EVENT)
    id_ = await real.create_event(Event(event_name="n", event_key="k", event_data=1))
    await real.enqueue([QueueItem(queue=name, id=id_)])
    item = await take(real, name)
    assert await real.acknowledge([item.receipt], confirmed=True) == [item.receipt]
    [listed] = await real.list_queue_items(name, state=QueueItemState.DELAYED)
    assert (listed.item.id, listed.attempt, listed.lease) == (id_, 1, None)
    await real.mark_event_processed(id_)


async def test_people_see_and_mend_queues(real: PersistenceProvider, name: str) -> None:
    await real.configure_queue(name, max_attempts=1)
    await real.enqueue([QueueItem(queue=name, id=id_) for id_ in "ab"])
    for _ in "ab":
        await real.return_items([(await take(real, name)).receipt])
    [stats] = await real.get_queue_stats([name])
    assert (stats.kind, stats.max_attempts, stats.dead) == (QueueKind.PLAIN, 1, 2)
    assert stats.oldest_waiting_age is None
    assert await real.requeue_items(name, ["a"]) == 1
    assert await real.delete_items(name, max_dead=10) == 1
    [item] = [each async for each in real.iter_queue_items(name, page_size=1)]
    assert (item.item.id, item.state) == ("a", QueueItemState.WAITING)
    held = await take(real, name)
    [item] = await real.list_queue_items(name, item_id="a")
    assert item.lease is not None
    assert item.lease.epoch == held.epoch
    assert await real.requeue_items(name, ["a"]) == 0
    assert await real.requeue_items(name, ["a"], break_leases=True) == 1
    with pytest.raises(LeaseLost):
        await real.acknowledge([held.receipt])
    held = await take(real, name)
    await real.enqueue([QueueItem(queue=name, id="a")])
    [item] = await real.list_queue_items(name)
    assert item.again_time is not None
    assert name in [each.queue for each in await real.get_queue_stats()]


def test_blocking(target: str, name: str) -> None:
    with connect_blocking(target) as provider:
        provider.enqueue([QueueItem(queue=name, id="a")])
        [item] = provider.dequeue([name]).items
        assert [each.item.id for each in provider.iter_queue_items(name)] == ["a"]
        assert provider.acknowledge([item.receipt]) == []
        assert provider.list_queue_items(name) == []


async def test_item_is_waited_for(real: PersistenceProvider, name: str) -> None:
    assert (await real.dequeue([name], wait=timedelta(milliseconds=1))).items == []
    waiting = asyncio.ensure_future(real.dequeue([name], wait=timedelta(seconds=60)))
    assert not (await asyncio.wait([waiting], timeout=0.1))[0]
    await real.enqueue([QueueItem(queue=name, id="a")])
    [item] = (await waiting).items
    assert item.item.id == "a"


@pytest.fixture
async def workflow(real: PersistenceProvider) -> WorkflowInstance:
    stored = WorkflowInstance(workflow_definition_id="order", version=1, data={"n": 0})
    await real.create_new_workflow(stored)
    return stored


async def test_items_come_with_what_is_created(real: PersistenceProvider, name: str) -> None:
    workflow = WorkflowInstance(workflow_definition_id="order", version=1, data={})
    event = Event(event_name="paid", event_key="1", event_data=None, is_processed=True)
    item = QueueItem(queue=name, id="")
    await real.create_new_workflow(workflow, enqueue=[item])
    created = await real.create_event(event, enqueue=[item])
    listed = await real.list_queue_items(name)
    assert [each.item.id for each in listed] == [workflow.id, created]


@pytest.mark.parametrize("remembered", [0, 10])
async def test_writes_settle_and_enqueue(target: str, name: str, remembered: int) -> None:
    """As a patch, or in full."""
    async with connect(target, remember=remembered) as real:
        stored = WorkflowInstance(workflow_definition_id="order", version=1, data={"n": 0})
        await real.create_new_workflow(stored, enqueue=[QueueItem(queue=name, id="")])
        again = [QueueItem(queue=name, id="", payload=1)]
        happened = LifecycleEvent(
            type=LifecycleEventType.STEP_COMPLETED,
            workflow_id=stored.id,
            workflow_definition_id="order",
        )

        async def settled() -> list[Acknowledgement]:
            return [Acknowledgement(receipt=(await take(real, name)).receipt)]

        async def watched() -> LifecycleEvent:
            async for event in real.watch_lifecycle(workflow_id=stored.id):
                return event
            raise AssertionError("the stream ended")

        first = asyncio.create_task(watched())
        await real.persist_workflow(stored, acknowledge=await settled(), enqueue=again)
        await real.persist_workflow_with_subscriptions(
            stored, [], acknowledge=await settled(), enqueue=again
        )
        await real.commit_workflow(stored, acknowledge=await settled(), enqueue=again)
        while not first.done():  # nobody knows when the watch has begun
            await real.persist_workflow(stored, publish=[happened])
            await asyncio.sleep(0.05)
        assert (await first).type is LifecycleEventType.STEP_COMPLETED
        assert (await take(real, name)).item.payload == 1


async def test_step_settles_and_enqueues(
    real: PersistenceProvider, name: str, workflow: WorkflowInstance
) -> None:
    await real.configure_queue(name, kind=QueueKind.WORKFLOW)
    workflow.status, workflow.next_execution = WorkflowStatus.RUNNABLE, 0
    await real.enqueue([QueueItem(queue=name, id=workflow.id), QueueItem(queue=name, id="gone")])
    mine, gone = (await real.dequeue([name], max_items=2)).items
    async with real.step(workflow) as step:
        step.acknowledge(mine, confirmed=True)
        step.acknowledge(gone.receipt, confirmed=True)
        step.enqueue(QueueItem(queue=name, id="next"))
        step.publish(
            LifecycleEvent(
                type=LifecycleEventType.STARTED,
                workflow_id=workflow.id,
                workflow_definition_id="order",
            )
        )
    assert step.returned_receipts == [mine.receipt]
    listed = await real.list_queue_items(name)
    assert {each.item.id for each in listed} == {workflow.id, "next"}
    with pytest.raises(LeaseLost) as caught:
        async with real.step(workflow) as step:
            step.acknowledge(gone)
    assert caught.value.metadata["field"] == "acknowledge[0].receipt"
    workflow.status = WorkflowStatus.COMPLETE
    await real.persist_workflow(workflow)


def test_blocking_step(target: str, name: str) -> None:
    with connect_blocking(target) as provider:
        workflow = WorkflowInstance(workflow_definition_id="order", version=1, data={})
        provider.create_new_workflow(workflow, enqueue=[QueueItem(queue=name, id="")])
        [item] = provider.dequeue([name]).items
        with provider.step(workflow) as step:
            step.acknowledge(item)
            step.enqueue(QueueItem(queue=name, id="next"))
        assert step.returned_receipts == []
        assert [each.item.id for each in provider.list_queue_items(name)] == ["next"]
