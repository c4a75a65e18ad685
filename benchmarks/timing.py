"""Calls in a loop, and how long they took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

Call = Callable[[int], Awaitable[object]]
"""One call; its argument is a number unique to the call."""


async def timed(call: Call, callers: int, seconds: float) -> list[float]:
    """Runs this many concurrent callers for this long; returns the latency of each call in
    seconds."""
    took: list[float] = []
    number = iter(range(10**9))
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while (begin := time.perf_counter()) < end:
            await call(next(number))
            took.append(time.perf_counter() - begin)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return took


async def counted(call: Call, callers: int, calls: int) -> list[float]:
    """Makes this many calls in total from concurrent callers; returns the latency of each."""
    took: list[float] = []
    number = iter(range(calls))

    async def caller() -> None:
        for each in number:
            begin = time.perf_counter()
            await call(each)
            took.append(time.perf_counter() - begin)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return took


def percentile(values: Sequence[float], percent: float) -> float:
    """The given percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
