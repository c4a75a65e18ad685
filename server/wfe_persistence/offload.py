"""Work that takes long, so that no call waits for another's on the event loop.

Checking a message, writing it as a document and reading one from rows is Python, at 10 µs and more
for an execution pointer. For a small call it is done at once. What a large request needs is done in
a worker thread, of which there are two: one for the largest requests, so that others need not wait
for them. Large results are decoded on the event loop, in slices.

A thread shares the GIL with the event loop. So it only helps with Python code, and a single call of
a C function must be short: whoever hands over work cuts long ones into pieces.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Final, ParamSpec, TypeVar

LARGE_BYTES: Final = 16_384
"""Requests of more bytes are checked, and the like, in a worker thread."""
LARGEST_BYTES: Final = 262_144
"""Those of more bytes in one of their own."""

_SLICE_SECONDS: Final = 0.002
# How long the event loop waits for the GIL, each time it needs it. Python's default is ten times
# as long, and a call needs the GIL anew after every system call.
_GIL_SECONDS: Final = 0.0005

P = ParamSpec("P")
T = TypeVar("T")


class _Lane:
    """One thread, and the calls that wait for it.

    The one that has come furthest goes first, so that few are decoded and wait at any time.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, name, sys.setswitchinterval, (_GIL_SECONDS,))
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = count()
        self._busy = False

    async def run(self, steps_done: int, function: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        if self._busy:
            turn = loop.create_future()
            heappush(self._waiting, (-steps_done, next(self._numbers), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self._next()
                raise
        self._busy = True
        try:
            # If the caller is cancelled the thread goes on, and the next job waits in the executor.
            return await loop.run_in_executor(self._executor, function)
        finally:
            self._next()

    def _next(self) -> None:
        while self._waiting:
            turn = heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


class Workers:
    """The worker threads of a server; they are started when they are first needed."""

    def __init__(self) -> None:
        self._large, self._largest = _Lane("large-requests"), _Lane("largest-requests")
        self.slices = asyncio.Lock()

    def begin(self, request_bytes: int) -> bool:
        """From now on `run` and `in_slices` serve the current call; returns whether `run` does so
        in a worker thread."""
        lane = None
        if request_bytes > LARGE_BYTES:
            lane = self._large if request_bytes <= LARGEST_BYTES else self._largest
        _current.set(_CallWork(self, lane))
        return lane is not None

    def close(self) -> None:
        """End the threads."""
        self._large.close()
        self._largest.close()


class _CallWork:
    """Where the work of one call is done."""

    __slots__ = ("lane", "result_is_large", "steps_done", "workers")

    def __init__(self, workers: Workers, lane: _Lane | None) -> None:
        self.workers = workers
        self.lane = lane
        self.steps_done = 0
        self.result_is_large = False


_current: ContextVar[_CallWork | None] = ContextVar("_current", default=None)


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function, in a worker thread if the current call's request is large.

    It must not touch what others on the event loop do. If the current call is cancelled or its
    deadline passes, the function still runs to its end, but nothing waits for it.
    """
    call = _current.get()
    if call is None or call.lane is None:
        return function(*args, **kwargs)
    call.steps_done += 1
    return await call.lane.run(call.steps_done, partial(function, *args, **kwargs))


async def in_slices(steps: Iterator[object]) -> None:
    """Exhaust an iterator of short steps. From time to time others are let through, and all but one
    of those who do this at the same time wait."""
    if _exhausted(steps):
        return
    call = _current.get()
    lock = asyncio.Lock() if call is None else call.workers.slices
    if call is not None:
        call.result_is_large = True
    ended = False
    while not ended:
        await asyncio.sleep(0)
        async with lock:
            ended = _exhausted(steps)
    await asyncio.sleep(0)


class Slices:
    """The slices of a long loop over what it waits for."""

    def __init__(self) -> None:
        self._end = time.perf_counter() + _SLICE_SECONDS

    async def pause(self) -> None:
        """Between two steps: let others through if the slice has ended."""
        if time.perf_counter() > self._end:
            if (call := _current.get()) is not None:
                call.result_is_large = True
            await asyncio.sleep(0)
            self._end = time.perf_counter() + _SLICE_SECONDS


def has_read_much() -> bool:
    """Whether the current call has read so much that others should be let through, as there is more
    to do with it."""
    call = _current.get()
    return call is not None and call.result_is_large


async def pause_if_large() -> None:
    """Let others through if the current call has read much."""
    if has_read_much():
        await asyncio.sleep(0)


def _exhausted(steps: Iterator[object]) -> bool:
    end = time.perf_counter() + _SLICE_SECONDS
    return all(time.perf_counter() < end for _ in steps)
