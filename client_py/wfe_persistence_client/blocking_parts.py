"""What a blocking provider hands out: steps, held locks and workers."""

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from wfe_persistence_client.lock import Hold
from wfe_persistence_client.loop_thread import LoopThread
from wfe_persistence_client.misfit import FieldTypeError
from wfe_persistence_client.model import DequeuedItem, WorkflowInstance
from wfe_persistence_client.step import Step, StepBuilder
from wfe_persistence_client.worker import Work, Worker, WorkHandler


class BlockingStep(StepBuilder):
    """A step as a plain context manager; `BlockingPersistenceProvider.step` creates one."""

    def __init__(self, step: Step, thread: LoopThread) -> None:
        super().__init__(step.workflow)
        self._effects.MergeFrom(step._open())  # such as the acknowledgement of the item
        self._commit = step._commit
        self._new_id = step._new_id
        self._thread = thread

    def __enter__(self) -> Self:
        """Returns the step; nothing is sent yet. Raises RuntimeError if it was used already."""
        self._open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stores the step, unless the block raised."""
        effects = self._open()
        self._ended = True
        if exc_type is None:
            self._committed = self._thread.run(self._commit(self.workflow, effects))


class BlockingHeldLock(Hold):
    """A lock as a plain context manager; `BlockingPersistenceProvider.lock` creates one."""

    def __init__(self, held: Hold, thread: LoopThread) -> None:
        super().__init__(held._provider, held._resource, held._owner, held._ttl, held._wait)
        self._thread = thread

    def __enter__(self) -> Self:
        """Acquires the lock."""
        self._thread.run(self._acquire(lambda: None))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Releases the lock; raises LeaseLost if it was lost, unless the block raised."""
        self._thread.run(self._end())
        if self._lost is not None and exc_type is None:
            raise self._lost


class BlockingWork:
    """An item in the hands of a plain handler; see `Work`."""

    def __init__(self, work: Work, thread: LoopThread) -> None:
        self._work = work
        self._thread = thread

    @property
    def item(self) -> DequeuedItem:
        """The item, held under a lease that is renewed while the handler runs."""
        return self._work.item

    @property
    def workflow(self) -> WorkflowInstance | None:
        """The workflow with the item's id, read with it; None: not asked for, or none."""
        return self._work.workflow

    @property
    def lost(self) -> bool:
        """Whether the lease is known to be lost: another worker may handle the item now."""
        return self._work.lost

    def commit(
        self, workflow: WorkflowInstance | None = None, *, strict: bool | None = True
    ) -> BlockingStep:
        """`Work.commit` as a plain context manager (`with`)."""
        return BlockingStep(self._work.commit(workflow, strict=strict), self._thread)


#: Handles an item in a thread.
BlockingWorkHandler = Callable[[BlockingWork], None]


class BlockingWorker:
    """Handles the items of a queue in threads; `BlockingPersistenceProvider.worker` creates one."""

    def __init__(
        self,
        make: Callable[[WorkHandler], Worker],
        handler: BlockingWorkHandler,
        thread: LoopThread,
        concurrency: int,
    ) -> None:
        self._handler = handler
        self._thread = thread
        self._threads = ThreadPoolExecutor(
            max(concurrency, 1), thread_name_prefix="wfe-persistence-worker"
        )
        self._worker = make(self._handle)

    def run(self) -> None:
        """Handles items until `stop` is called; see `Worker.run`."""
        try:
            self._thread.run(self._worker.run())
        finally:
            # Handlers that could not be cancelled.
            self._threads.shutdown()

    def stop(self) -> None:
        """Ends `run` when the items in hand have been handled; see `Worker.stop`."""
        self._thread.soon(self._worker.stop)

    async def _handle(self, work: Work) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._call, BlockingWork(work, self._thread))

    def _call(self, work: BlockingWork) -> None:
        # Not declared: a plain function whose coroutine nobody would await.
        returned: object = self._handler(work)
        if inspect.isawaitable(returned):
            if inspect.iscoroutine(returned):
                returned.close()
            raise FieldTypeError("handler", "it returned an awaitable: it must be plain")
