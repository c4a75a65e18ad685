"""The provider for code without an event loop.

It is not a second implementation: every method runs the async one on an event loop in a
background thread and waits for the result.
"""

import asyncio
import concurrent.futures
import functools
import inspect
import queue
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from wfe_persistence_client import fork, provider
from wfe_persistence_client.blocking_parts import (
    BlockingHeldLock,
    BlockingStep,
    BlockingWorker,
    BlockingWorkHandler,
)
from wfe_persistence_client.hints import is_async
from wfe_persistence_client.loop_thread import LoopThread
from wfe_persistence_client.misfit import FieldTypeError
from wfe_persistence_client.model import (
    CommandName,
    ScheduledCommand,
    WorkflowInstance,
    WorkflowView,
)
from wfe_persistence_client.provider import PersistenceProvider
from wfe_persistence_client.worker import Worker, WorkerHooks, WorkHandler

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _blocking(
    method: Callable[Concatenate[PersistenceProvider, _P], Coroutine[Any, Any, _T]],
) -> "Callable[Concatenate[BlockingPersistenceProvider, _P], _T]":
    """The blocking form of an async method."""
    name = method.__name__  # the provider of a namespace set has its own

    @functools.wraps(method)
    def call(self: "BlockingPersistenceProvider", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        result: _T = self._thread.run(getattr(self._provider, name)(*args, **kwargs))
        return result

    return call


def _blocking_iterator(
    method: Callable[Concatenate[PersistenceProvider, _P], AsyncIterator[_T]],
) -> "Callable[Concatenate[BlockingPersistenceProvider, _P], Iterator[_T]]":
    """The blocking form of a method that returns an async iterator."""
    name = method.__name__

    @functools.wraps(method)
    def iterate(
        self: "BlockingPersistenceProvider", /, *args: _P.args, **kwargs: _P.kwargs
    ) -> Iterator[_T]:
        items = getattr(self._provider, name)(*args, **kwargs)

        async def following() -> list[_T]:
            # In a list, because StopAsyncIteration cannot be a result.
            try:
                return [await anext(items)]
            except StopAsyncIteration:
                return []

        while item := self._thread.run(following()):
            yield item[0]

    return iterate


def _blocking_connect(
    connect: Callable[_P, PersistenceProvider],
) -> "Callable[_P, BlockingPersistenceProvider]":
    """The blocking form of `connect`."""

    @functools.wraps(connect)
    def connect_blocking(*args: _P.args, **kwargs: _P.kwargs) -> BlockingPersistenceProvider:
        async def make() -> PersistenceProvider:
            return connect(*args, **kwargs)

        # Before there is a thread that could only be ended by gRPC's help.
        fork.check_new_channel()
        thread = LoopThread()
        try:
            return BlockingPersistenceProvider(thread.run(make()), thread)
        except BaseException:
            thread.close(asyncio.sleep(0))
            raise

    signature = inspect.signature(connect)
    connect_blocking.__signature__ = signature.replace(  # type: ignore[attr-defined]
        return_annotation=BlockingPersistenceProvider
    )
    _, arguments, described = (connect.__doc__ or "").partition("\n    Args:\n")
    connect_blocking.__doc__ = _CONNECT_BLOCKING + arguments + described
    connect_blocking.__name__ = connect_blocking.__qualname__ = "connect_blocking"
    connect_blocking.__module__ = __name__
    return connect_blocking


_CONNECT_BLOCKING = """Creates a provider for code without an event loop.

    Its methods wait for their results; any number of threads may call them. Calls run on
    an event loop in a background thread of the provider's own. The first call opens the
    connection; it is reopened after a failure. Close the provider, or use it as a context
    manager:

        with connect_blocking("localhost:50052") as provider:
            provider.get_store_info()

    The provider belongs to the process that created it: one that is forked from it needs
    its own (see "Processes" in the package's documentation). A signal handler must not use
    a provider that the interrupted thread may be using.
"""


class BlockingPersistenceProvider:
    """`PersistenceProvider` with blocking methods; `connect_blocking` creates one.

    The methods, their arguments and their errors are those of `PersistenceProvider`. It
    is thread-safe. Close it, or use it as a context manager:

        with connect_blocking("localhost:50052") as provider:
            provider.get_store_info()
    """

    def __init__(self, provider: PersistenceProvider, thread: LoopThread) -> None:
        self._provider = provider
        self._thread = thread

    def __enter__(self) -> Self:
        """The provider itself."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Closes the connection and ends the thread; calls in progress fail.

        Providers created from this one by `with_timeout` and `with_namespace` share
        both and are closed too. In a process that was forked from the provider's own,
        this does nothing.
        """
        self._thread.close(self._provider.close())

    def with_timeout(self, timeout: float) -> "BlockingPersistenceProvider":
        """A provider on the same connection, with another timeout in seconds.

        Infinity counts as a year.
        """
        return BlockingPersistenceProvider(self._provider.with_timeout(timeout), self._thread)

    def with_namespace(self, namespace: str | None) -> "BlockingPersistenceProvider":
        """A provider on the same connection, for another namespace."""
        return BlockingPersistenceProvider(self._provider.with_namespace(namespace), self._thread)

    def with_reads(self, reads: str | None) -> "BlockingPersistenceProvider":
        """See `PersistenceProvider.with_reads`."""
        return BlockingPersistenceProvider(self._provider.with_reads(reads), self._thread)

    # A table with one line per method. The lines are alike on purpose: generating the methods
    # in a loop would hide their signatures from type checkers and editors.

    create_new_workflow = _blocking(PersistenceProvider.create_new_workflow)
    create_workflows = _blocking_iterator(PersistenceProvider.create_workflows)
    persist_workflow = _blocking(PersistenceProvider.persist_workflow)
    persist_workflow_with_subscriptions = _blocking(
        PersistenceProvider.persist_workflow_with_subscriptions
    )
    get_workflow_instance = _blocking(PersistenceProvider.get_workflow_instance)
    get_workflow_instance_by_name = _blocking(PersistenceProvider.get_workflow_instance_by_name)
    wait_for_workflow = _blocking(PersistenceProvider.wait_for_workflow)
    get_workflow_instances = _blocking(PersistenceProvider.get_workflow_instances)
    get_runnable_instances = _blocking(PersistenceProvider.get_runnable_instances)
    iter_runnable_instances = _blocking_iterator(PersistenceProvider.iter_runnable_instances)
    set_name_holder = _blocking(PersistenceProvider.set_name_holder)
    get_name_holder = _blocking(PersistenceProvider.get_name_holder)
    next_definition_sequence = _blocking(PersistenceProvider.next_definition_sequence)
    commit_workflow = _blocking(PersistenceProvider.commit_workflow)
    list_execution_pointers = _blocking(PersistenceProvider.list_execution_pointers)
    iter_execution_pointers = _blocking_iterator(PersistenceProvider.iter_execution_pointers)
    list_workflows = _blocking(PersistenceProvider.list_workflows)
    iter_workflows = _blocking_iterator(PersistenceProvider.iter_workflows)
    count_workflows = _blocking(PersistenceProvider.count_workflows)
    delete_workflow = _blocking(PersistenceProvider.delete_workflow)
    purge_workflows = _blocking(PersistenceProvider.purge_workflows)
    iter_purge_workflows = _blocking_iterator(PersistenceProvider.iter_purge_workflows)

    def step(
        self,
        workflow: WorkflowInstance,
        *,
        expected_revision: int | None = None,
        strict: bool | None = None,
    ) -> BlockingStep:
        """`PersistenceProvider.step` as a plain context manager (`with`)."""
        step = self._provider.step(workflow, expected_revision=expected_revision, strict=strict)
        return BlockingStep(step, self._thread)

    create_event_subscription = _blocking(PersistenceProvider.create_event_subscription)
    get_subscription = _blocking(PersistenceProvider.get_subscription)
    get_subscriptions = _blocking(PersistenceProvider.get_subscriptions)
    iter_subscriptions = _blocking_iterator(PersistenceProvider.iter_subscriptions)
    get_first_open_subscription = _blocking(PersistenceProvider.get_first_open_subscription)
    terminate_subscription = _blocking(PersistenceProvider.terminate_subscription)
    set_subscription_token = _blocking(PersistenceProvider.set_subscription_token)
    clear_subscription_token = _blocking(PersistenceProvider.clear_subscription_token)
    claim_subscription = _blocking(PersistenceProvider.claim_subscription)
    renew_subscription_token = _blocking(PersistenceProvider.renew_subscription_token)
    release_subscription = _blocking(PersistenceProvider.release_subscription)
    list_subscriptions = _blocking(PersistenceProvider.list_subscriptions)
    iter_all_subscriptions = _blocking_iterator(PersistenceProvider.iter_all_subscriptions)

    create_event = _blocking(PersistenceProvider.create_event)
    create_events = _blocking_iterator(PersistenceProvider.create_events)
    get_event = _blocking(PersistenceProvider.get_event)
    get_runnable_events = _blocking(PersistenceProvider.get_runnable_events)
    iter_runnable_events = _blocking_iterator(PersistenceProvider.iter_runnable_events)
    get_events = _blocking(PersistenceProvider.get_events)
    iter_events = _blocking_iterator(PersistenceProvider.iter_events)
    list_events = _blocking(PersistenceProvider.list_events)
    iter_all_events = _blocking_iterator(PersistenceProvider.iter_all_events)
    purge_events = _blocking(PersistenceProvider.purge_events)
    iter_purge_events = _blocking_iterator(PersistenceProvider.iter_purge_events)
    mark_event_processed = _blocking(PersistenceProvider.mark_event_processed)
    mark_event_unprocessed = _blocking(PersistenceProvider.mark_event_unprocessed)

    supports_scheduled_commands = _blocking(PersistenceProvider.supports_scheduled_commands)
    schedule_command = _blocking(PersistenceProvider.schedule_command)
    claim_commands = _blocking(PersistenceProvider.claim_commands)
    complete_commands = _blocking(PersistenceProvider.complete_commands)
    release_commands = _blocking(PersistenceProvider.release_commands)
    break_command_lease = _blocking(PersistenceProvider.break_command_lease)
    renew_commands = _blocking(PersistenceProvider.renew_commands)
    list_commands = _blocking(PersistenceProvider.list_commands)
    iter_commands = _blocking_iterator(PersistenceProvider.iter_commands)

    enqueue = _blocking(PersistenceProvider.enqueue)
    dequeue = _blocking(PersistenceProvider.dequeue)
    acknowledge = _blocking(PersistenceProvider.acknowledge)
    return_items = _blocking(PersistenceProvider.return_items)
    renew_items = _blocking(PersistenceProvider.renew_items)
    list_queue_items = _blocking(PersistenceProvider.list_queue_items)
    iter_queue_items = _blocking_iterator(PersistenceProvider.iter_queue_items)
    get_queue_stats = _blocking(PersistenceProvider.get_queue_stats)
    requeue_items = _blocking(PersistenceProvider.requeue_items)
    delete_items = _blocking(PersistenceProvider.delete_items)
    configure_queue = _blocking(PersistenceProvider.configure_queue)

    def process_commands(
        self,
        as_of: datetime | None,
        handler: Callable[[ScheduledCommand], object],
        *,
        worker_id: str = "",
        command_name: CommandName | None = None,
        batch_size: int = 10,
        lease_duration: timedelta = timedelta(seconds=30),
    ) -> int:
        """`PersistenceProvider.process_commands` with a plain function as handler.

        The handler runs in the calling thread and may use this provider; the lease of
        its command is renewed however long it blocks.
        """
        if not callable(handler) or is_async(handler):
            raise FieldTypeError("handler", "expected a plain function, not an async one")
        # Each item: a command, and the future for what its handler raised.
        todo: queue.SimpleQueue[
            tuple[ScheduledCommand, concurrent.futures.Future[Exception | None]] | None
        ] = queue.SimpleQueue()

        async def hand_over(command: ScheduledCommand) -> None:
            outcome: concurrent.futures.Future[Exception | None] = concurrent.futures.Future()
            # Running futures cannot be cancelled, so setting the outcome never fails.
            outcome.set_running_or_notify_cancel()
            todo.put((command, outcome))
            failure = await asyncio.wrap_future(outcome)
            if failure is not None:
                raise failure

        running = self._thread.start(
            self._provider.process_commands(
                as_of,
                hand_over,
                worker_id=worker_id,
                command_name=command_name,
                batch_size=batch_size,
                lease_duration=lease_duration,
            )
        )
        running.add_done_callback(lambda _running: todo.put(None))
        try:
            while (item := todo.get()) is not None:
                command, outcome = item
                try:
                    returned = handler(command)
                except Exception as exc:
                    outcome.set_result(exc)
                    continue
                if inspect.isawaitable(returned):
                    # Nothing has been handled.
                    if inspect.iscoroutine(returned):
                        returned.close()
                    raise FieldTypeError("handler", "it returned an awaitable: it must be plain")  # noqa: TRY301
                outcome.set_result(None)
        except BaseException:
            running.cancel()
            raise
        return self._thread.wait(running)

    def worker(
        self,
        queue: str,
        handler: BlockingWorkHandler,
        *,
        concurrency: int = 1,
        lease_duration: timedelta = timedelta(seconds=30),
        wait: timedelta = timedelta(seconds=5),
        include_workflow: bool = True,
        view: WorkflowView = WorkflowView.FULL,
        confirmed: bool = False,
        worker_id: str = "",
        hooks: WorkerHooks | None = None,
    ) -> BlockingWorker:
        """`PersistenceProvider.worker` with a plain function as handler, and threads.

            def handle(work: BlockingWork) -> None:
                with work.commit() as step:
                    run(work.workflow)

            worker = provider.worker("orders", handle, concurrency=8)
            signal.signal(signal.SIGTERM, lambda *_: worker.stop())
            worker.run()

        `run` blocks until `stop` is called, from any thread or a signal handler. Handlers
        run in as many threads as `concurrency`. A thread cannot be cancelled: if a lease is
        lost, the handler runs on, and its commit is refused. A long handler looks at
        `work.lost` now and then. Hooks are called on the provider's thread.
        """
        if is_async(handler):
            raise FieldTypeError("handler", "expected a plain function, not an async one")

        def make(wrapped: WorkHandler) -> Worker:
            return self._provider.worker(
                queue,
                wrapped,
                concurrency=concurrency,
                lease_duration=lease_duration,
                wait=wait,
                include_workflow=include_workflow,
                view=view,
                confirmed=confirmed,
                worker_id=worker_id,
                hooks=hooks,
            )

        return BlockingWorker(make, handler, self._thread, concurrency)

    publish = _blocking(PersistenceProvider.publish)
    watch_lifecycle = _blocking_iterator(PersistenceProvider.watch_lifecycle)
    watch_workflows = _blocking_iterator(PersistenceProvider.watch_workflows)

    acquire_lock = _blocking(PersistenceProvider.acquire_lock)
    renew_locks = _blocking(PersistenceProvider.renew_locks)
    release_lock = _blocking(PersistenceProvider.release_lock)
    break_lock = _blocking(PersistenceProvider.break_lock)
    list_locks = _blocking(PersistenceProvider.list_locks)
    iter_locks = _blocking_iterator(PersistenceProvider.iter_locks)

    def lock(
        self,
        resource: str,
        *,
        owner: str = "",
        ttl: timedelta = timedelta(seconds=30),
        wait: timedelta | None = None,
    ) -> BlockingHeldLock:
        """`PersistenceProvider.lock` as a plain context manager (`with`).

        A thread cannot be cancelled: if the lock is lost, the block runs on, and
        `LeaseLost` is raised at its end. A long block looks at `lost` now and then.
        """
        held = self._provider.lock(resource, owner=owner, ttl=ttl, wait=wait)
        return BlockingHeldLock(held, self._thread)

    persist_errors = _blocking(PersistenceProvider.persist_errors)
    list_errors = _blocking(PersistenceProvider.list_errors)
    iter_errors = _blocking_iterator(PersistenceProvider.iter_errors)
    ensure_store_exists = _blocking(PersistenceProvider.ensure_store_exists)
    get_store_info = _blocking(PersistenceProvider.get_store_info)
    truncate_all = _blocking(PersistenceProvider.truncate_all)
    create_namespace = _blocking(PersistenceProvider.create_namespace)
    list_databases = _blocking(PersistenceProvider.list_databases)
    list_namespaces = _blocking(PersistenceProvider.list_namespaces)
    delete_namespace = _blocking(PersistenceProvider.delete_namespace)
    create_namespace_set = _blocking(PersistenceProvider.create_namespace_set)
    get_namespace_set = _blocking(PersistenceProvider.get_namespace_set)
    delete_namespace_set = _blocking(PersistenceProvider.delete_namespace_set)
    move_namespace = _blocking_iterator(PersistenceProvider.move_namespace)
    abort_move_namespace = _blocking(PersistenceProvider.abort_move_namespace)
    set_retention_policy = _blocking(PersistenceProvider.set_retention_policy)
    get_retention_policy = _blocking(PersistenceProvider.get_retention_policy)
    run_retention = _blocking(PersistenceProvider.run_retention)
    preview_retention = _blocking(PersistenceProvider.preview_retention)
    get_storage_report = _blocking(PersistenceProvider.get_storage_report)

    export_records = _blocking_iterator(PersistenceProvider.export_records)
    import_records = _blocking(PersistenceProvider.import_records)


#: `connect` for code without an event loop: the same arguments, a
#: `BlockingPersistenceProvider`.
connect_blocking = _blocking_connect(provider.connect)
