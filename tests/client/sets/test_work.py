"""Workers, waiting calls and the blocking client over a namespace set."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.client.conftest import FAST
from tests.client.sets.conftest import MEMBERS
from tests.client.sets.support import member, new_id, workflow
from tests.support.server import ServerProcess
from wfe_persistence_client import (
    BlockingPersistenceProvider,
    CommandName,
    LeaseLost,
    LifecycleEvent,
    LifecycleEventType,
    LockHeld,
    NamespaceSetProvider,
    NameTaken,
    PersistenceProvider,
    QueueItem,
    QueueItemState,
    RevisionMismatch,
    ScheduledCommand,
    Work,
    WorkerHooks,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowNotFound,
    WorkflowStatus,
    connect_blocking,
)
from wfe_persistence_client.sets.routing import member_of

LONG = timedelta(minutes=10)
#: So short that stopping a worker takes no time.
SHORT = timedelta(milliseconds=300)
ENDLESS = timedelta(seconds=60)


@pytest.fixture
def queue() -> str:
    return f"queue-{new_id()}"


async def count_down(work: Work) -> None:
    """Takes a step of the item's workflow, and enqueues it for the next one."""
    found = work.workflow
    assert found is not None
    assert isinstance(found.data, dict)
    left = int(str(found.data["left"])) - 1
    async with work.commit() as step:
        found.data = {"left": left}
        if left:
            step.enqueue(QueueItem(queue=work.item.item.queue, id=""))
        else:
            found.status = WorkflowStatus.COMPLETE


async def started(provider: PersistenceProvider, queue: str, steps: int) -> list[str]:
    """Workflows with so many steps to take, two in each member, and their items."""
    ids = [new_id(n % MEMBERS) for n in range(2 * MEMBERS)]
    for id_ in ids:
        instance = workflow(id_, data={"left": steps})
        await provider.create_new_workflow(instance, enqueue=[QueueItem(queue=queue, id="")])
    return ids


async def test_a_worker_takes_every_step_once(orders: NamespaceSetProvider, queue: str) -> None:
    """Each in the member of its workflow, with the acknowledgement."""
    ids = await started(orders, queue, steps=3)
    steps: Counter[str] = Counter()
    failures: list[object] = []

    async def handle(work: Work) -> None:
        assert work.workflow is not None
        assert work.workflow.id == work.item.item.id
        await count_down(work)
        steps[work.item.item.id] += 1
        if steps.total() == 3 * len(ids):
            worker.stop()

    hooks = WorkerHooks(
        on_error=lambda _, error: failures.append(error),
        on_lost=failures.append,
        on_outage=failures.append,
    )
    worker = orders.worker(
        queue, handle, concurrency=3, wait=SHORT, lease_duration=LONG, hooks=hooks
    )
    async with asyncio.timeout(60):
        await worker.run()
    assert failures == []
    assert steps == dict.fromkeys(ids, 3)
    for id_ in ids:
        home = member(orders, member_of(id_, MEMBERS))
        assert (await home.get_workflow_instance(id_)).status is WorkflowStatus.COMPLETE
    assert await orders.list_queue_items(queue) == []


async def test_a_worker_settles_what_was_not_committed(
    orders: NamespaceSetProvider, queue: str
) -> None:
    """An item goes when its handler returns, and comes back when it fails or when the worker is
    cancelled; all is told by the end of `run`."""
    kept, failing, held = (new_id(index) for index in range(3))
    await orders.enqueue([QueueItem(queue=queue, id=id_) for id_ in (kept, failing, held)])
    handled: list[str] = []
    reached, errors = asyncio.Event(), list[Exception]()

    async def handle(work: Work) -> None:
        handled.append(work.item.item.id)
        if len(handled) == 3:
            reached.set()
        if work.item.item.id == failing:
            raise RuntimeError("not this time")
        if work.item.item.id == held:
            await asyncio.Event().wait()

    worker = orders.worker(
        queue, handle, concurrency=3, wait=SHORT, lease_duration=LONG, include_workflow=False,
        hooks=WorkerHooks(on_error=lambda _, error: errors.append(error)),
    )  # fmt: skip
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(60):
        await reached.wait()
        while len(await orders.list_queue_items(queue)) != 2:
            await asyncio.sleep(0.02)
        while QueueItemState.LEASED in [
            i.state for i in await orders.list_queue_items(queue, item_id=failing)
        ]:
            await asyncio.sleep(0.02)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(handled) == sorted([kept, failing, held])
    assert [str(error) for error in errors] == ["not this time"]
    states = {i.item.id: i.state for i in await orders.list_queue_items(queue)}
    assert states.keys() == {failing, held}
    assert states[held] is QueueItemState.WAITING
    assert states[failing] in (QueueItemState.DELAYED, QueueItemState.WAITING)


async def test_a_commit_of_a_worker_that_lost_its_item(
    orders: NamespaceSetProvider, queue: str
) -> None:
    [id_, *_] = await started(orders, queue, steps=1)
    lost: list[Work] = []
    refused: list[tuple[tuple[str, ...], ...]] = []

    async def handle(work: Work) -> None:
        if work.item.item.id != id_:
            return
        await orders.requeue_items(queue, [id_], break_leases=True)
        try:
            await count_down(work)
        except LeaseLost as error:
            refused.append((error.lease_tokens, (work.item.receipt,)))
        worker.stop()

    worker = orders.worker(
        queue, handle, wait=SHORT, lease_duration=LONG, hooks=WorkerHooks(on_lost=lost.append)
    )
    async with asyncio.timeout(60):
        await worker.run()
    assert len(refused) == len(lost) == 1
    assert refused[0][0] == refused[0][1]
    assert (await orders.get_workflow_instance(id_)).data == {"left": 1}


# Calls that wait, in all members.


async def woken(
    waiting: Callable[[], Awaitable[Any]], wake: Callable[[], Awaitable[object]]
) -> Any:
    """The result of a call that had to wait."""
    task = asyncio.ensure_future(waiting())
    # If it has not begun to wait by then, it finds what it waits for at once.
    await asyncio.wait([task], timeout=0.2)
    assert not task.done()
    await wake()
    async with asyncio.timeout(30):
        return await task


@pytest.mark.parametrize("index", [0, MEMBERS - 1])
async def test_who_waits_for_items_is_woken_by_any_member(
    orders: NamespaceSetProvider, queue: str, index: int
) -> None:
    id_ = new_id(index)
    dequeued = await woken(
        lambda: orders.dequeue([queue], wait=ENDLESS),
        lambda: orders.enqueue([QueueItem(queue=queue, id=id_)]),
    )
    [item] = dequeued.items
    assert item.item.id == id_
    # The waits in the other members have ended: nobody takes what comes there.
    others = [new_id(other) for other in range(MEMBERS)]
    await orders.enqueue([QueueItem(queue=queue, id=other) for other in others])
    taken = (await orders.dequeue([queue], max_items=10)).items
    assert sorted(one.item.id for one in taken) == sorted(others)
    await orders.acknowledge([item.receipt, *(one.receipt for one in taken)])


async def test_items_of_all_members_at_once_are_all_handed_out(
    orders: NamespaceSetProvider, queue: str
) -> None:
    """What comes to all members while one waits in all of them is handed out soon, though the calls
    that wait in the others are broken off, maybe while their answers are on the way."""
    for _ in range(5):
        ids = [new_id(index) for index in range(MEMBERS)]
        waiting = asyncio.create_task(orders.dequeue([queue], wait=ENDLESS, lease_duration=LONG))
        # Most of the time it waits by then.
        await asyncio.wait([waiting], timeout=0.02)
        await asyncio.gather(*(orders.enqueue([QueueItem(queue=queue, id=id_)]) for id_ in ids))
        taken = (await waiting).items
        while len(taken) < MEMBERS:
            # The lease that was asked for is longer than this wait.
            more = (await orders.dequeue([queue], wait=ENDLESS, lease_duration=LONG)).items
            assert more, await orders.list_queue_items(queue)
            taken += more
        held = await orders.list_queue_items(queue)
        assert [item.state for item in held] == [QueueItemState.LEASED] * MEMBERS
        assert min(i.lease_expiry for i in taken) > datetime.now(UTC) + LONG / 2
        assert sorted(item.item.id for item in taken) == sorted(ids)
        await orders.acknowledge(item.receipt for item in taken)


@pytest.mark.parametrize("index", [1, 2])
async def test_who_waits_for_commands_is_woken_by_any_member(
    orders: NamespaceSetProvider, index: int
) -> None:
    command = ScheduledCommand(
        command_name=CommandName.PROCESS_EVENT, data=new_id(index), execute_time=1
    )
    [claimed] = await woken(
        lambda: orders.claim_commands(wait=ENDLESS), lambda: orders.schedule_command(command)
    )
    assert claimed.command == command
    await orders.complete_commands([claimed.lease_token])


async def test_waits_for_a_lock_and_for_a_workflow(orders: NamespaceSetProvider) -> None:
    resource, instance = new_id(2), workflow(new_id(3))
    first = await orders.acquire_lock(resource)
    assert first is not None
    assert await orders.acquire_lock(resource) is None
    second = await woken(
        lambda: orders.acquire_lock(resource, wait=ENDLESS),
        lambda: orders.release_lock(first.token),
    )
    assert second.epoch > first.epoch
    assert await orders.release_lock(second.token)
    await orders.create_new_workflow(instance)

    async def complete() -> None:
        loaded = await orders.get_workflow_instance(instance.id)
        loaded.status = WorkflowStatus.COMPLETE
        await orders.persist_workflow(loaded)

    ended = await woken(lambda: orders.wait_for_workflow(instance.id, wait=ENDLESS), complete)
    assert ended.status is WorkflowStatus.COMPLETE


# The blocking client.


@pytest.fixture
def blocking(set_server: ServerProcess) -> Iterator[BlockingPersistenceProvider]:
    with connect_blocking(set_server.address, namespace_set="orders", retry=FAST) as provider:
        yield provider


def test_the_blocking_client(blocking: BlockingPersistenceProvider, queue: str) -> None:
    """It is on the set, with names, steps, items, locks, lists and feeds."""
    definition = new_id()
    named = workflow(new_id(1), name=f"name-{new_id()}", workflow_definition_id=definition)
    blocking.create_new_workflow(named)
    with pytest.raises(NameTaken):
        blocking.create_new_workflow(workflow(new_id(2), name=named.name))
    assert blocking.get_workflow_instance_by_name(named.name).id == named.id
    for index in range(MEMBERS):
        blocking.create_new_workflow(
            workflow(
                new_id(index),
                workflow_definition_id=definition,
                create_time=datetime(2026, 1, 2 + index, tzinfo=UTC),
            ),
            enqueue=[QueueItem(queue=queue, id="")],
        )
    wanted = WorkflowFilter(workflow_definition_id=definition)
    listed = list(blocking.iter_workflows(wanted, page_size=2))
    assert len(listed) == MEMBERS + 1
    assert listed == sorted(listed, key=lambda one: one.create_time, reverse=True)
    assert blocking.count_workflows(wanted) == {WorkflowStatus.RUNNABLE: MEMBERS + 1}
    taken = blocking.dequeue([queue], max_items=MEMBERS, include_workflow=True).items
    assert {member_of(item.item.id, MEMBERS) for item in taken} == set(range(MEMBERS))
    first, *others = taken
    assert isinstance(first.workflow, WorkflowInstance)
    with blocking.step(first.workflow) as step:
        step.acknowledge(first)
        first.workflow.status = WorkflowStatus.COMPLETE
    with pytest.raises(LeaseLost):
        blocking.acknowledge([first.receipt])
    blocking.acknowledge(item.receipt for item in others)
    assert blocking.list_queue_items(queue) == []
    with blocking.lock(first.item.id) as lock:
        assert lock.token.endswith(f"@{member_of(first.item.id, MEMBERS)}")
        with pytest.raises(LockHeld), blocking.lock(first.item.id, wait=timedelta(0)):
            pass
    assert blocking.list_locks(resource_prefix=first.item.id) == []
    blocking.delete_workflow(named.id)
    with pytest.raises(WorkflowNotFound):
        blocking.get_workflow_instance(named.id)
    feed = blocking.watch_lifecycle(workflow_definition_id=definition)
    event = LifecycleEvent(
        type=LifecycleEventType.STARTED, workflow_id=named.id, workflow_definition_id=definition
    )
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, feed)
        # It begins when it has begun in all members.
        while not coming.done():
            blocking.publish([event])
            wait([coming], timeout=0.05)
    assert coming.result().workflow_id == named.id


def test_a_blocking_worker(blocking: BlockingPersistenceProvider, queue: str) -> None:
    ids = [new_id(index) for index in range(MEMBERS)]
    for id_ in ids:
        blocking.create_new_workflow(workflow(id_), enqueue=[QueueItem(queue=queue, id="")])
    handled: list[str] = []

    def handle(work: Any) -> None:
        with work.commit() as step:
            work.workflow.status = WorkflowStatus.COMPLETE
            step.enqueue(QueueItem(queue=f"{queue}-next", id=""))
        handled.append(work.item.item.id)
        if len(handled) == MEMBERS:
            worker.stop()

    worker = blocking.worker(queue, handle, concurrency=2, wait=SHORT)
    worker.run()
    assert sorted(handled) == sorted(ids)
    assert sorted(i.item.id for i in blocking.list_queue_items(f"{queue}-next")) == sorted(ids)


async def test_of_two_workers_that_have_the_same_workflow_one_writes(
    orders: NamespaceSetProvider, queue: str
) -> None:
    """An item is handed out to one at a time, wherever both look; and a write is by revision."""
    [id_, *_] = await started(orders, queue, steps=1)
    mine = await orders.get_workflow_instance(id_)
    theirs = await orders.get_workflow_instance(id_)
    async with orders.step(mine, strict=True):
        mine.data = {"left": 7}
    with pytest.raises(RevisionMismatch) as raised:
        async with orders.step(theirs, strict=True):
            theirs.data = {"left": 8}
    assert raised.value.metadata["namespace"] == f"orders_{member_of(id_, MEMBERS)}"
    assert (await orders.get_workflow_instance(id_)).data == {"left": 7}
