"""An event loop in a thread of its own, whose coroutines other threads wait for."""

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from wfe_persistence_client import fork

_T = TypeVar("_T")


class LoopThread:
    """An event loop that runs in its own thread."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_report)
        self._lock = threading.Lock()
        self._closed = False
        #: The threads that are in a call.
        self._calling: set[int] = set()
        # A daemon, so that a provider that was not closed does not keep the program
        # alive. It does not refer to this object, which would keep it alive.
        self._thread = threading.Thread(
            target=_run, args=(self._loop,), name="wfe-persistence-client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine on the loop and waits for it."""
        caller = self._check(work)
        try:
            self._calling.add(caller)
            return _result(self._start(work))
        finally:
            self._calling.discard(caller)

    def start(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        """Starts a coroutine on the loop; `wait` returns its result."""
        caller = self._check(work)
        try:
            self._calling.add(caller)
            return self._start(work)
        finally:
            self._calling.discard(caller)

    def wait(self, running: concurrent.futures.Future[_T]) -> _T:
        """Waits for a started coroutine."""
        caller = self._check()
        try:
            self._calling.add(caller)
            return _result(running)
        finally:
            self._calling.discard(caller)

    def soon(self, act: Callable[[], None]) -> None:
        """Has a function called on the loop, without waiting; also from a signal handler."""
        self._loop.call_soon_threadsafe(act)

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Runs a last coroutine, ends all others, and ends the thread."""
        if os.getpid() != self._process:
            # The thread is the parent's, and so is the connection.
            last.close()
            return
        caller = self._check(last)
        try:
            self._calling.add(caller)
            with self._lock:
                if self._closed:
                    last.close()
                    return
                self._closed = True
            try:
                asyncio.run_coroutine_threadsafe(self._end(last), self._loop).result()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
        finally:
            self._calling.discard(caller)

    def __del__(self) -> None:
        # Nobody closed it; `Link` warns of that.
        if not self._closed and os.getpid() == self._process:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)

    def _check(self, work: Coroutine[Any, Any, Any] | None = None) -> int:
        """The calling thread, if it may wait for this one; otherwise raises RuntimeError."""
        caller = threading.get_ident()
        refusal = fork.refusal(self._process)
        if refusal:
            pass
        elif threading.current_thread() is self._thread:
            refusal = "a blocking provider cannot wait for its own event loop"
        elif caller in self._calling:
            # The interrupted call may hold a lock that this one needs.
            refusal = (
                "a signal handler cannot use the provider while the thread that it interrupted "
                "is in a call of the same provider: use another one, or let the handler only "
                "set a flag"
            )
        if refusal:
            if work is not None:
                work.close()
            raise RuntimeError(refusal)
        return caller

    def _start(self, work: Coroutine[Any, Any, _T]) -> concurrent.futures.Future[_T]:
        with self._lock:
            if self._closed:
                work.close()
                raise RuntimeError("the provider is closed")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _end(self, last: Coroutine[Any, Any, None]) -> None:
        try:
            await last
        finally:
            # Other threads may be waiting for calls in progress. The closed channel
            # ends those with an error that describes their outcome; tasks that have not
            # ended soon after, such as a backoff, are cancelled.
            under_way = asyncio.all_tasks() - {asyncio.current_task()}
            if under_way:
                _, late = await asyncio.wait(under_way, timeout=1)
                for task in late:
                    task.cancel()
                await asyncio.gather(*late, return_exceptions=True)
            await asyncio.get_running_loop().shutdown_asyncgens()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _result(running: concurrent.futures.Future[_T]) -> _T:
    try:
        return running.result()
    except concurrent.futures.CancelledError as exc:
        raise RuntimeError("the provider was closed during the call") from exc
    except BaseException:
        # KeyboardInterrupt, for example, is raised only in the waiting thread.
        running.cancel()
        raise


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # grpc.aio wakes every event loop of the process for each of its events, and the
    # loops that are late log this (github.com/grpc/grpc/issues/25364).
    if not isinstance(context.get("exception"), BlockingIOError):
        loop.default_exception_handler(context)
