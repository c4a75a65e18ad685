"""Calls in a loop, and how long they took."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psutil

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


def cpu_seconds(process: psutil.Process) -> float:
    """The processor's time, user and system, that a process has taken so far.

    What `/proc` says of others is in ticks of 10 ms, which is what thousands of small calls take.
    Linux has a clock for each process that is exact; its number follows from the process's.
    """
    if sys.platform == "linux":
        return time.clock_gettime(~process.pid << 3 | 2)
    times = process.cpu_times()
    return times.user + times.system


async def timed_with_cpu(
    call: Call, callers: int, seconds: float, process: psutil.Process
) -> tuple[list[float], float]:
    """Does the same; also returns the processor's time that the process took per call, in
    microseconds."""
    before = cpu_seconds(process)
    took = await timed(call, callers, seconds)
    return took, (cpu_seconds(process) - before) / len(took) * 1e6


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


def cost_table(what: str, width: int, figures: Sequence[dict[str, Any]]) -> str:
    """The cost of something: `p50_ms` and `server_us` of each row, which is named by its `what`,
    with their ratios to the first one's."""
    lines = [f"{what:{width}}{'p50 ms':>16}{'server µs/call':>20}"]
    for row in figures:
        cells = [
            f"{row[key]:.{digits}f} (x{row[f'{key}_ratio']:.3f})"
            for key, digits in (("p50_ms", 2), ("server_us", 0))
        ]
        lines.append(f"{row[what]:{width}}{cells[0]:>16}{cells[1]:>20}")
    return "\n".join(lines)
