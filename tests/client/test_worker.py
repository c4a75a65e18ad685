"""Workers on queues, against a real server."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import grpc
import pytest

from tests.client.fake_store import UNAVAILABLE, FakeStore, answers, fails
from tests.client.wire import Wire, provider_on
from tests.support import make
from wfe.persistence.v1 import queue_pb2
from wfe_persistence_client import (
    BlockingWork,
    ExecutionPointer,
    LeaseLost,
    PermissionDenied,
    PersistenceError,
    PersistenceProvider,
    QueueItem,
    QueueItemState,
    RevisionMismatch,
    Work,
    Worker,
    WorkerHooks,
    WorkflowInstance,
    WorkflowStatus,
    connect_blocking,
)

#: So short that stopping a worker takes no time.
WAIT = timedelta(milliseconds=300)
SHORT = timedelta(seconds=1)
LONG = timedelta(minutes=10)


@pytest.fixture
async def wire() -> Wire:
    return Wire()


@pytest.fixture
async def real(target: str, wire: Wire) -> AsyncIterator[PersistenceProvider]:
    async with provider_on(target, wire) as provider:
        yield provider


@pytest.fixture
def name() -> str:
    return make.queue()


@asynccontextmanager
async def at_work(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    """The worker runs during the block, and is then stopped in order."""
    running = asyncio.create_task(worker.run())
    try:
        yield running
        worker.stop()
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def items(real: PersistenceProvider, queue: str) -> list[tuple[QueueItemState, int]]:
    return [(item.state, item.attempt) for item in await real.list_queue_items(queue)]


async def create(real: PersistenceProvider, queue: str, steps: int = 1) -> WorkflowInstance:
    """A workflow with so many steps to take, and its item."""
    workflow = WorkflowInstance(
        id=make.new_id("workflow"),
        workflow_definition_id="count",
        version=1,
        data={"left": steps},
        execution_pointers=[ExecutionPointer(id="1", step_id=0, active=True)],
    )
    await real.create_new_workflow(workflow, enqueue=[QueueItem(queue=queue, id="")])
    return workflow


async def count_down(work: Work) -> None:
    """Takes one of the workflow's steps, and enqueues it for the next one."""
    workflow = work.workflow
    assert workflow is not None
    assert isinstance(workflow.data, dict)
    async with work.commit() as step:
        left = int(str(workflow.data["left"])) - 1
        workflow.data = {"left": left}
        if left:
            step.enqueue(QueueItem(queue=work.item.item.queue, id=""))
        else:
            workflow.status = WorkflowStatus.COMPLETE


async def test_a_step_is_two_calls(real: PersistenceProvider, wire: Wire, name: str) -> None:
    workflow = await create(real, name, steps=5)
    ended = asyncio.Event()

    async def handle(work: Work) -> None:
        await count_down(work)
        if work.workflow is not None and work.workflow.status is WorkflowStatus.COMPLETE:
            ended.set()

    wire.take()
    async with at_work(real.worker(name, handle, wait=WAIT, lease_duration=LONG)):
        await ended.wait()
        calls = Counter(wire.take())
    assert calls == {"Dequeue": 5, "CommitWorkflow": 5}
    assert set(wire.take()) <= {"Dequeue"}
    stored = await real.get_workflow_instance(workflow.id)
    assert (stored.status, stored.data) == (WorkflowStatus.COMPLETE, {"left": 0})
    assert stored.revision == workflow.revision + 5
    assert await items(real, name) == []


async def test_what_is_not_committed_is_acknowledged_with_the_next_dequeue(
    real: PersistenceProvider, wire: Wire, name: str
) -> None:
    await real.enqueue([QueueItem(queue=name, id=str(number)) for number in range(3)])
    handled: list[str] = []

    async def handle(work: Work) -> None:
        assert work.workflow is None
        handled.append(work.item.item.id)

    wire.take()
    async with at_work(real.worker(name, handle, wait=WAIT)):
        await until(lambda: _true(len(wire.sent) >= 4))
    assert set(wire.take()) == {"Dequeue"}
    assert handled == ["0", "1", "2"]
    assert await items(real, name) == []


async def _true(value: object) -> object:
    return value


async def test_so_many_at_a_time(real: PersistenceProvider, name: str) -> None:
    await real.enqueue([QueueItem(queue=name, id=str(number)) for number in range(7)])
    running, most, done = 0, 0, 0
    full = asyncio.Event()

    async def handle(_work: Work) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        await full.wait()  # all three places are taken at the same time
        running -= 1
        done += 1

    async with at_work(real.worker(name, handle, concurrency=3, wait=WAIT)):
        await until(lambda: _true(done == 7))
    assert most == 3
    assert await items(real, name) == []


async def test_a_stopped_worker_finishes_what_it_has(real: PersistenceProvider, name: str) -> None:
    await real.enqueue([QueueItem(queue=name, id=each) for each in ("a", "b")])
    begun, go_on = asyncio.Event(), asyncio.Event()
    handled: list[str] = []

    async def handle(work: Work) -> None:
        begun.set()
        await go_on.wait()
        handled.append(work.item.item.id)

    worker = real.worker(name, handle, wait=WAIT)
    running = asyncio.create_task(worker.run())
    await begun.wait()
    worker.stop()
    go_on.set()
    await running
    assert handled == ["a"]
    assert await items(real, name) == [(QueueItemState.WAITING, 0)]
    with pytest.raises(RuntimeError, match="once"):
        await worker.run()


async def test_a_cancelled_worker_gives_back_what_it_has(
    real: PersistenceProvider, name: str
) -> None:
    await real.enqueue([QueueItem(queue=name, id="a")])
    begun = asyncio.Event()
    cancelled = False

    async def handle(_work: Work) -> None:
        nonlocal cancelled
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    running = asyncio.create_task(real.worker(name, handle, lease_duration=LONG).run())
    await begun.wait()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert cancelled
    assert await items(real, name) == [(QueueItemState.WAITING, 1)]


async def test_a_handler_that_fails_gets_the_item_again_later(
    real: PersistenceProvider, name: str
) -> None:
    await real.enqueue([QueueItem(queue=name, id="a")])
    told: list[tuple[int, str]] = []

    async def handle(work: Work) -> None:
        if work.item.attempt == 1:
            raise ValueError("not yet")

    hooks = WorkerHooks(on_error=lambda work, error: told.append((work.item.attempt, str(error))))
    async with at_work(real.worker(name, handle, wait=WAIT, hooks=hooks)):
        # Not at once: it would fail again and again.
        await until(lambda: _in(real, name, (QueueItemState.DELAYED, 1)))
        await until(lambda: _gone(real, name))
    assert told == [(1, "not yet")]


async def _in(real: PersistenceProvider, name: str, item: tuple[QueueItemState, int]) -> bool:
    return await items(real, name) == [item]


async def _gone(real: PersistenceProvider, name: str) -> bool:
    return await items(real, name) == []


async def test_a_lease_is_renewed_for_as_long_as_the_handler_runs(
    real: PersistenceProvider, wire: Wire, name: str
) -> None:
    workflow = await create(real, name)
    go_on = asyncio.Event()

    async def handle(work: Work) -> None:
        await go_on.wait()
        await count_down(work)

    async with at_work(real.worker(name, handle, wait=WAIT, lease_duration=SHORT)):
        # Longer than the lease: the third renewal is after its end.
        await until(lambda: _true(sum(rpc == "RenewItems" for rpc, _ in wire.sent) > 3))
        assert (await real.dequeue([name])).items == []
        go_on.set()
        await until(lambda: _gone(real, name))
    stored = await real.get_workflow_instance(workflow.id)
    assert stored.status is WorkflowStatus.COMPLETE


async def test_a_handler_whose_lease_is_lost_is_cancelled(
    real: PersistenceProvider, name: str
) -> None:
    await real.enqueue([QueueItem(queue=name, id="a")])
    begun = asyncio.Event()
    lost: list[Work] = []
    cancelled = False

    async def handle(work: Work) -> None:
        nonlocal cancelled
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = work.lost
            raise

    hooks = WorkerHooks(on_lost=lost.append)
    worker = real.worker(name, handle, wait=WAIT, lease_duration=SHORT, hooks=hooks)
    async with at_work(worker):
        await begun.wait()
        assert await real.delete_items(name, ["a"]) == 1
        await until(lambda: _true(lost))
    assert [work.item.item.id for work in lost] == ["a"]
    assert cancelled


async def test_a_step_is_not_stored_without_the_lease(real: PersistenceProvider, name: str) -> None:
    workflow = await create(real, name)
    lost: list[Work] = []
    errors: list[Exception] = []

    async def handle(work: Work) -> None:
        await real.delete_items(name, [work.item.item.id])
        with pytest.raises(LeaseLost):
            await count_down(work)
        assert work.lost

    hooks = WorkerHooks(on_lost=lost.append, on_error=lambda _work, error: errors.append(error))
    async with at_work(real.worker(name, handle, wait=WAIT, lease_duration=LONG, hooks=hooks)):
        await until(lambda: _true(lost or errors))
    assert errors == []
    assert (await real.get_workflow_instance(workflow.id)).data == {"left": 1}


async def test_a_step_is_not_stored_over_that_of_another(
    real: PersistenceProvider, target: str, name: str
) -> None:
    workflow = await create(real, name)
    errors: list[Exception] = []

    async def handle(work: Work) -> None:
        if work.item.attempt == 1:
            async with provider_on(target) as other:
                theirs = await other.get_workflow_instance(workflow.id)
                theirs.reference = "theirs"
                await other.persist_workflow(theirs)
        await count_down(work)

    hooks = WorkerHooks(on_error=lambda _work, error: errors.append(error))
    async with at_work(real.worker(name, handle, wait=WAIT, hooks=hooks)):
        await until(lambda: _gone(real, name))
    assert [type(error) for error in errors] == [RevisionMismatch]
    stored = await real.get_workflow_instance(workflow.id)
    assert (stored.reference, stored.status) == ("theirs", WorkflowStatus.COMPLETE)


async def test_an_answer_that_is_lost_is_no_lost_lease(
    real: PersistenceProvider, wire: Wire, name: str
) -> None:
    """The acknowledgement was applied; the worker can't know, and sends it again."""
    await real.enqueue([QueueItem(queue=name, id="a")])
    lost: list[Work] = []
    outages: list[PersistenceError] = []

    async def handle(_work: Work) -> None:
        wire.lose = 1

    hooks = WorkerHooks(on_lost=lost.append, on_outage=outages.append)
    async with at_work(real.worker(name, handle, wait=WAIT, hooks=hooks)):
        await until(lambda: _true(outages))
        await real.enqueue([QueueItem(queue=name, id="a")])
        await until(lambda: _gone(real, name))
    assert lost == []


async def test_outages_are_told_and_outlasted(store: FakeStore, provider: Any) -> None:
    dequeued = queue_pb2.DequeueResponse()
    item = dequeued.items.add(receipt="r", attempt=1)
    item.item.queue, item.item.id = "q", "a"
    item.lease_expiry.seconds = 1_800_000_000
    broken = fails(UNAVAILABLE, "DATABASE_UNAVAILABLE")
    store.on("Dequeue", *[broken] * 12, answers(dequeued), answers(queue_pb2.DequeueResponse()))
    outages: list[PersistenceError] = []
    handled = asyncio.Event()

    async def handle(_work: Work) -> None:
        handled.set()

    hooks = WorkerHooks(on_outage=outages.append)
    async with at_work(provider.worker("q", handle, hooks=hooks)):
        await handled.wait()
        await until(lambda: _true(any(each.acknowledge for each in store.requests["Dequeue"])))
    assert outages
    assert {error.reason for error in outages} == {"DATABASE_UNAVAILABLE"}


async def test_what_would_be_refused_again_ends_the_worker(store: FakeStore, provider: Any) -> None:
    store.on("Dequeue", fails(grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED"))

    async def handle(_work: Work) -> None:
        raise AssertionError("it was called")

    with pytest.raises(PermissionDenied):
        await provider.worker("q", handle, concurrency=3).run()


async def test_arguments(provider: Any) -> None:
    async def handle(_work: Work) -> None:
        raise AssertionError("it was called")

    with pytest.raises(ValueError, match=r"^concurrency: "):
        provider.worker("q", handle, concurrency=0)
    with pytest.raises(TypeError, match=r"^handler: "):
        provider.worker("q", print)
    with pytest.raises(TypeError, match=r"^queue: "):
        provider.worker(["q"], handle)
    with pytest.raises(ValueError, match="no workflow"):
        Work(provider, make_item(), None).commit()


def make_item() -> Any:
    class Item:
        item = QueueItem(queue="q", id="a")
        workflow = None

    return Item()


# Without an event loop


async def test_a_blocking_worker_handles_items_in_threads(
    real: PersistenceProvider, target: str, wire: Wire, name: str
) -> None:
    workflows = [await create(real, name, steps=3) for _ in range(4)]
    both = threading.Barrier(2)
    threads: set[str] = set()

    def handle(work: BlockingWork) -> None:
        if work.workflow is not None and work.workflow.data == {"left": 3}:
            both.wait(60)  # two are handled at the same time
        threads.add(threading.current_thread().name)
        assert work.workflow is not None
        assert isinstance(work.workflow.data, dict)
        with work.commit() as step:
            left = int(str(work.workflow.data["left"])) - 1
            work.workflow.data = {"left": left}
            if left:
                step.enqueue(QueueItem(queue=name, id=""))
            else:
                work.workflow.status = WorkflowStatus.COMPLETE

    def run() -> None:
        with connect_blocking(target) as provider:
            worker = provider.worker(name, handle, concurrency=2, wait=WAIT)
            workers.append(worker)
            worker.run()

    workers: list[Any] = []
    running = asyncio.create_task(asyncio.to_thread(run))
    await until(lambda: _gone(real, name))
    workers[0].stop()
    await running
    assert len(threads) == 2
    for workflow in workflows:
        stored = await real.get_workflow_instance(workflow.id)
        assert (stored.status, stored.data) == (WorkflowStatus.COMPLETE, {"left": 0})


async def test_a_blocking_handler_is_plain(target: str) -> None:
    async def handle(_work: BlockingWork) -> None: ...

    wrong: Any = handle

    def make_worker() -> None:
        with connect_blocking(target) as provider:
            provider.worker("q", wrong)

    with pytest.raises(TypeError, match=r"^handler: "):
        await asyncio.to_thread(make_worker)
