"""Whose work is done where, and in which order."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from wfe_persistence import offload
from wfe_persistence.offload import LARGE_BYTES, LARGEST_BYTES, Workers


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers()
    yield workers
    workers.close()


async def _thread(workers: Workers, request_bytes: int) -> str:
    workers.begin(request_bytes)
    thread = await offload.run(threading.current_thread)
    return thread.name.rpartition("_")[0] or "event loop"


async def test_work_is_done_where_the_size_of_the_request_says(workers: Workers) -> None:
    async def where(size: int) -> str:
        return await asyncio.create_task(_thread(workers, size))

    assert await where(0) == "event loop"
    assert await where(LARGE_BYTES) == "event loop"
    assert await where(LARGE_BYTES + 1) == "large-requests"
    assert await where(LARGEST_BYTES) == "large-requests"
    assert await where(LARGEST_BYTES + 1) == "largest-requests"


async def test_errors_and_results_come_back(workers: Workers) -> None:
    workers.begin(LARGE_BYTES + 1)
    assert await offload.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await offload.run(divmod, 7, 0)


async def test_one_at_a_time_and_the_furthest_first(workers: Workers) -> None:
    """So that few requests are decoded at any time, and the others wait as bytes."""
    begun: set[int] = set()
    ended: set[int] = set()
    most_begun = running = 0

    def work(call: int) -> None:
        nonlocal most_begun, running
        running += 1
        assert running == 1
        begun.add(call)
        most_begun = max(most_begun, len(begun - ended))
        time.sleep(0.001)
        running -= 1

    async def call(number: int) -> None:
        workers.begin(LARGE_BYTES + 1)
        for _ in range(3):
            await offload.run(work, number)
        ended.add(number)

    await asyncio.gather(*map(call, range(10)))
    assert begun == ended == set(range(10))
    assert most_begun == 2


async def test_a_cancelled_call_gives_its_turn_to_the_next(workers: Workers) -> None:
    begun = threading.Event()
    ended = threading.Event()

    def hold() -> None:
        begun.set()
        ended.wait(10)

    async def call(function: Callable[[], Any]) -> Any:
        workers.begin(LARGE_BYTES + 1)
        return await offload.run(function)

    holds = asyncio.create_task(call(hold))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    waits = [asyncio.create_task(call(object)) for _ in range(3)]
    last = asyncio.create_task(call(threading.current_thread))
    await asyncio.sleep(0)
    for task in (waits[0], holds, waits[1]):
        task.cancel()
        await asyncio.sleep(0)
    waits[2].cancel()
    ended.set()
    assert (await last).name.startswith("large-requests")
    assert all(task.cancelled() for task in (*waits, holds))


async def test_slices_let_others_through(workers: Workers) -> None:
    workers.begin(0)
    log: list[str] = []

    def steps(name: str) -> Iterator[None]:
        for _ in range(4):
            time.sleep(0.003)
            log.append(name)
            yield

    async def reads(name: str) -> None:
        await offload.in_slices(steps(name))

    await asyncio.gather(reads("a"), reads("b"))
    assert sorted(log) == ["a"] * 4 + ["b"] * 4
    assert "".join(log) not in ("aaaabbbb", "bbbbaaaa")


async def test_a_loop_over_rows_lets_others_through(workers: Workers) -> None:
    workers.begin(0)
    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            others += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    slices = offload.Slices()
    step = partial(time.sleep, 0.003)
    for _ in range(5):
        step()
        await slices.pause()
    await offload.pause_if_large()
    task.cancel()
    assert others >= 6


async def test_outside_of_a_call_everything_is_done_at_once() -> None:
    async def alone() -> str:
        await offload.in_slices(iter(range(10)))
        return (await offload.run(threading.current_thread)).name

    assert await alone() == threading.current_thread().name
