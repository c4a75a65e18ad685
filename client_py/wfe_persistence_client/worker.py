"""A worker: takes items from a queue, has them handled, and settles them.

Each of its slots asks for an item, has it handled, and says what became of it when it asks
for the next one. So a step whose handler commits is two calls: Dequeue, which brings the
item and its workflow, and CommitWorkflow, which stores the step and acknowledges the item.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_client.command import is_plain
from wfe_persistence_client.deadline import Deadline
from wfe_persistence_client.errors import (
    InvalidArgument,
    LeaseLost,
    NamespaceNotFound,
    PermissionDenied,
    PersistenceError,
    Unimplemented,
)
from wfe_persistence_client.link import log
from wfe_persistence_client.misfit import FieldTypeError, FieldValueError
from wfe_persistence_client.model import (
    Acknowledgement,
    CommittedWorkflow,
    DequeuedItem,
    ReturnedItem,
    WorkflowInstance,
    WorkflowView,
)
from wfe_persistence_client.queue import Queues
from wfe_persistence_client.step import Step
from wfe_persistence_client.workflow import Workflows

#: Renewals per lease.
_RENEWALS: Final = 3
#: Minimum number of seconds between two renewals.
_RENEWAL_PAUSE: Final = 0.1
#: Minimum timeout of a renewal, in seconds.
_RENEWAL_TIMEOUT: Final = 1.0
#: Between two waits, in seconds: a server may end one early.
_WAIT_PAUSE: Final = 0.05
#: The first and the longest pause after the store has failed, in seconds.
_OUTAGE_PAUSE: Final = 0.1
_LONGEST_OUTAGE_PAUSE: Final = 5.0
#: How long an item whose handler failed is withheld: twice as long with each attempt.
_FIRST_DELAY: Final = timedelta(seconds=1)
_LONGEST_DELAY: Final = timedelta(seconds=60)
#: Errors that would be the same the next time: a worker with one ends.
_LASTING: Final = (InvalidArgument, NamespaceNotFound, PermissionDenied, Unimplemented)


class Work:
    """An item in the hands of a handler."""

    def __init__(
        self, provider: "Workers", item: DequeuedItem, workflow: WorkflowInstance | None
    ) -> None:
        self._provider = provider
        #: The item, held under a lease that is renewed while the handler runs.
        self.item = item
        #: The workflow with the item's id, read with it; None: not asked for, or none.
        self.workflow = workflow
        self._lost = False
        self._committing = False
        self._committed = False

    @property
    def lost(self) -> bool:
        """Whether the lease is known to be lost: another worker may handle the item now."""
        return self._lost

    def commit(
        self, workflow: WorkflowInstance | None = None, *, strict: bool | None = True
    ) -> Step:
        """A step that also acknowledges the item, all in one transaction.

            async with work.commit() as step:
                work.workflow.data = data
                step.enqueue(QueueItem(queue="orders", id="", visible_time=later))

        It is `PersistenceProvider.step`, with its errors. Nothing is stored if the lease on
        the item is lost (`LeaseLost`). An item that the step enqueues as well comes again at
        its `visible_time`. Without a commit, the item is acknowledged when the handler
        returns.

        Args:
            workflow: the workflow to store; None: `work.workflow`.
            strict: as for `persist_workflow`; by default, the workflow must not have been
                written since it was loaded.

        Raises:
            ValueError: there is no workflow.
        """
        workflow = self.workflow if workflow is None else workflow
        if workflow is None:
            raise ValueError(f"there is no workflow with the item's id, {self.item.item.id!r}")
        inner = self._provider.step(workflow, strict=strict)

        async def commit(
            instance: WorkflowInstance, effects: workflow_pb2.CommitWorkflowRequest
        ) -> CommittedWorkflow:
            self._committing = True
            try:
                committed = await inner._commit(instance, effects)
            except LeaseLost as error:
                # One of the locks or claims of the step may be lost instead.
                self._lost |= error.metadata.get("field", "").startswith("acknowledge")
                raise
            finally:
                self._committing = False
            self._committed = True
            return committed

        step = Step(workflow, commit)
        step.acknowledge(self.item)
        return step


#: Handles an item. When it returns, the item has been handled; if it raises, the item is
#: given back, and comes again later.
WorkHandler = Callable[[Work], Awaitable[None]]


@dataclass(slots=True, kw_only=True, frozen=True)
class WorkerHooks:
    """What a worker tells about what goes wrong; by default, it logs a warning.

    A hook is called on the event loop, must not block, and must not raise.
    """

    #: A handler raised this; the item comes again.
    on_error: Callable[[Work, Exception], None] | None = None
    #: The lease on an item was lost: the store was unreachable for too long, or the event
    #: loop was blocked. Another worker may have handled the item at the same time.
    on_lost: Callable[[Work], None] | None = None
    #: The store failed; the worker asks again after a pause.
    on_outage: Callable[[PersistenceError], None] | None = None


@dataclass(slots=True)
class Settled:
    """What became of the item that a slot has handled last, and is to be sent."""

    work: Work | None = None
    acknowledge: list[Acknowledgement] = field(default_factory=list)
    return_items: list[ReturnedItem] = field(default_factory=list)
    #: It may have been applied already: a response was lost.
    uncertain: bool = False


@dataclass(slots=True, kw_only=True, frozen=True)
class WorkerOptions:
    """How a worker works; see `PersistenceProvider.worker`."""

    queue: str
    concurrency: int
    lease_duration: timedelta
    wait: timedelta
    include_workflow: bool
    view: WorkflowView
    confirmed: bool
    worker_id: str
    hooks: WorkerHooks


class Worker:
    """Handles the items of a queue; `PersistenceProvider.worker` creates one."""

    def __init__(self, provider: "Workers", handler: WorkHandler, options: WorkerOptions) -> None:
        self._provider = provider
        self._handler = handler
        self._options = options
        self._stopping = asyncio.Event()
        self._failure: PersistenceError | None = None
        self._ran = False

    async def run(self) -> None:
        """Handles items until `stop` is called.

        If it is cancelled, the handlers are, too, and their items are given back.

        Raises:
            PersistenceError: an error that another attempt would not change, such as
                `PermissionDenied`. The items in hand have been finished.
            RuntimeError: it was called before.
        """
        if self._ran:
            raise RuntimeError("a worker runs only once: create another one")
        self._ran = True
        async with asyncio.TaskGroup() as slots:
            for _ in range(self._options.concurrency):
                slots.create_task(self._slot())
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ends `run` when the items in hand have been handled; from the event loop's thread.

        A call that waits for an item is not broken off, because it might take one: so it
        takes up to `wait`.
        """
        self._stopping.set()

    async def _slot(self) -> None:
        settled = Settled()
        outages = 0
        while not self._stopping.is_set():
            try:
                work = await self._take(settled)
            except LeaseLost:
                # Nothing was handed out. If it was applied before, nothing was lost either.
                if settled.work is not None and not settled.uncertain:
                    self._on_lost(settled.work)
                settled = Settled()
            except _LASTING as error:
                self._failure = self._failure or error
                self.stop()
            except PersistenceError as error:
                settled.uncertain = True
                self._on_outage(error)
                pause = min(_OUTAGE_PAUSE * 2**outages, _LONGEST_OUTAGE_PAUSE)
                outages = min(outages + 1, 10)
                # Not all workers at the same time.
                await self._rest(pause * random.uniform(0.5, 1))
            else:
                outages = 0
                settled = Settled()
                if work is None:
                    await self._rest(_WAIT_PAUSE)
                else:
                    settled = await self._handle(work)
        await self._settle(settled)

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _take(self, settled: Settled) -> Work | None:
        options = self._options
        dequeued = await self._provider.dequeue(
            [options.queue],
            lease_duration=options.lease_duration,
            worker_id=options.worker_id,
            acknowledge=settled.acknowledge,
            return_items=settled.return_items,
            include_workflow=options.include_workflow,
            view=options.view,
            wait=options.wait,
        )
        if not dequeued.items:
            return None
        [item] = dequeued.items
        return Work(self._provider, item, item.workflow)

    async def _handle(self, work: Work) -> Settled:
        """Has an item handled; returns what is to be said of it."""
        running = asyncio.ensure_future(self._call(work))
        renewing = asyncio.create_task(self._renew(work, running))
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            if not (work._committed or work.lost):
                returned = Settled(work, return_items=[ReturnedItem(receipt=work.item.receipt)])
                await self._settle(returned)
            raise
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        error = None if running.cancelled() else running.exception()
        if work.lost:
            self._on_lost(work)
            return Settled()
        if isinstance(error, Exception):
            self._on_error(work, error)
        elif error is not None:
            raise error
        if work._committed:
            return Settled()
        receipt = work.item.receipt
        if error is None and not running.cancelled():
            acknowledgement = Acknowledgement(receipt=receipt, confirmed=self._options.confirmed)
            return Settled(work, acknowledge=[acknowledgement])
        delay = min(_FIRST_DELAY * 2 ** min(work.item.attempt - 1, 10), _LONGEST_DELAY)
        returned = Settled(work, return_items=[ReturnedItem(receipt=receipt, delay=delay)])
        # A commit whose outcome is not known may have acknowledged it.
        returned.uncertain = isinstance(error, PersistenceError) and error.maybe_written
        return returned

    async def _call(self, work: Work) -> None:
        if work.item.workflow_omitted:
            # It does not fit in a response together with the item.
            work.workflow = await self._provider.get_workflow_instance(
                work.item.item.id, view=self._options.view
            )
        running = self._handler(work)
        if not isinstance(running, Awaitable):
            returned = type(running).__name__
            raise FieldTypeError("handler", f"it returned {returned} instead of an awaitable")
        await running

    async def _renew(self, work: Work, running: asyncio.Future[None]) -> None:
        """Renews the lease on an item; cancels its handler if it is lost."""
        duration = self._options.lease_duration
        every = max(duration.total_seconds() / _RENEWALS, _RENEWAL_PAUSE)
        lease = Deadline(duration.total_seconds())
        while True:
            await asyncio.sleep(max(min(every, lease.remaining()), 0))
            renewed = Deadline(duration.total_seconds())
            # A call that hangs must not delay the next one, nor the end of the lease.
            timeout = max(min(max(every, _RENEWAL_TIMEOUT), lease.remaining()), 0.001)
            provider = self._provider.with_timeout(timeout)
            try:
                await provider.renew_items([work.item.receipt], lease_duration=duration)
            except LeaseLost:
                if work._committing or work._committed:
                    return  # it is not lost but acknowledged
            except PersistenceError:
                # It may pass before the lease expires.
                if lease.remaining() > 0 or work._committing:
                    continue
            else:
                lease = renewed
                continue
            work._lost = True
            running.cancel()
            return

    async def _settle(self, settled: Settled) -> None:
        """Says what became of the last item; otherwise it comes back when its lease expires."""
        try:
            for acknowledged in settled.acknowledge:
                await self._provider.acknowledge(
                    [acknowledged.receipt], confirmed=acknowledged.confirmed
                )
            for returned in settled.return_items:
                await self._provider.return_items([returned.receipt], delay=returned.delay)
        except LeaseLost:
            if settled.work is not None and not settled.uncertain:
                self._on_lost(settled.work)
        except PersistenceError as error:
            self._on_outage(error)

    # What goes wrong is told.

    def _on_error(self, work: Work, error: Exception) -> None:
        if (hook := self._options.hooks.on_error) is not None:
            hook(work, error)
        else:
            log.warning("the handler of %s failed", _name(work), exc_info=error)

    def _on_lost(self, work: Work) -> None:
        if (hook := self._options.hooks.on_lost) is not None:
            hook(work)
        else:
            log.warning("the lease on %s was lost", _name(work))

    def _on_outage(self, error: PersistenceError) -> None:
        if (hook := self._options.hooks.on_outage) is not None:
            hook(error)
        else:
            log.warning("the worker could not reach its queue: %s", error)


def _name(work: Work) -> str:
    return f"the item {work.item.item.id!r} of {work.item.item.queue}"


class Workers(Workflows, Queues):
    """Workers on queues."""

    #: That of a namespace set is another one.
    _worker_type: type[Worker] = Worker

    def worker(
        self,
        queue: str,
        handler: WorkHandler,
        *,
        concurrency: int = 1,
        lease_duration: timedelta = timedelta(seconds=30),
        wait: timedelta = timedelta(seconds=5),
        include_workflow: bool = True,
        view: WorkflowView = WorkflowView.FULL,
        confirmed: bool = False,
        worker_id: str = "",
        hooks: WorkerHooks | None = None,
    ) -> Worker:
        """A worker that handles the items of a queue.

            async def handle(work: Work) -> None:
                async with work.commit() as step:
                    run(work.workflow)

            worker = provider.worker("orders", handle, concurrency=8)
            loop.add_signal_handler(signal.SIGTERM, worker.stop)
            await worker.run()

        Any number of workers may share a queue: each item goes to one of them at a time. If
        a worker dies, another one gets its items when their leases expire, so handlers run
        *at least* once.

        - A handler that stores its step with `work.commit()` acknowledges the item with it:
          a step is two calls. Otherwise the item is acknowledged when the handler returns,
          with the call that asks for the next one.
        - If a handler raises, its item is given back, and comes again after 1 s, twice as
          long with each attempt, but at most 60 s.
        - While a handler runs, the lease on its item is renewed, starting after a third of
          it. If it is lost nevertheless, the handler is cancelled, and its commit refused.
        - If the store can't be reached, the worker asks again, after a pause that grows to
          5 s.

        Args:
            queue: the queue's name.
            handler: an async function that takes one `Work`.
            concurrency: how many items to handle at a time, from 1.
            lease_duration: how long others wait for the items of a worker that died, 1 ms
                to 24 h. Below 1 s, renewals are not reliable.
            wait: how long one call waits for an item, and `stop` for that call, up to 60 s.
            include_workflow: whether to read the workflow that has an item's id with it.
            view: how much of each workflow to read.
            confirmed: whether an item that the handler did not commit goes only if the store
                says that its work is done; see `acknowledge`.
            worker_id: the worker, for information only.
            hooks: who is told what goes wrong; None: the log.
        """
        if concurrency < 1:
            raise FieldValueError("concurrency", "must be 1 or more")
        if is_plain(handler):
            raise FieldTypeError("handler", "expected an async function, not a plain one")
        options = WorkerOptions(
            queue=queue,
            concurrency=concurrency,
            lease_duration=lease_duration,
            wait=wait,
            include_workflow=include_workflow,
            view=view,
            confirmed=confirmed,
            worker_id=worker_id,
            hooks=hooks or WorkerHooks(),
        )
        return self._worker_type(self, handler, options)
