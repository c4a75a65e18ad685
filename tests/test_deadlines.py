"""Deadlines without a timer for each: late by a moment at most, never early, and nobody else's."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from wfe_persistence.deadlines import Deadlines


async def test_a_deadline_that_passes_raises_timeout_error_and_never_early() -> None:
    deadlines = Deadlines()

    async def expires(seconds: float) -> None:
        when = asyncio.get_running_loop().time() + seconds
        with pytest.raises(TimeoutError), deadlines.until(when):
            await asyncio.sleep(30)
        assert asyncio.get_running_loop().time() >= when

    async with asyncio.timeout(20):
        await asyncio.gather(*(expires(n / 500) for n in range(50)))


async def test_one_that_is_over_before_it_begins_ends_the_first_wait() -> None:
    async with asyncio.timeout(20):
        with pytest.raises(TimeoutError), Deadlines().until(monotonic() - 1):
            await asyncio.sleep(30)


async def test_what_has_ended_in_time_is_left_alone() -> None:
    deadlines = Deadlines()
    with deadlines.until(asyncio.get_running_loop().time() + 0.03):
        await asyncio.sleep(0)
    with deadlines.until(None):
        await asyncio.sleep(0.1)


async def test_who_is_cancelled_by_others_is_cancelled() -> None:
    """Also if the deadline passes at the same time."""
    deadlines = Deadlines()
    begun = asyncio.Event()

    async def wait() -> None:
        with deadlines.until(None):
            begun.set()
            await asyncio.sleep(30)

    for passes in (False, True):
        begun.clear()
        task = asyncio.create_task(wait())
        await begun.wait()
        if passes:
            deadlines.expire(later_too=False)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_all_at_once_and_those_that_come_later() -> None:
    deadlines = Deadlines()

    async def wait(when: float | None) -> str:
        try:
            with deadlines.until(when):
                await asyncio.sleep(30)
        except TimeoutError:
            return "expired"
        return "ended"

    later = asyncio.get_running_loop().time() + 20
    async with asyncio.timeout(10):
        for later_too in (False, True):
            waiting = [asyncio.create_task(wait(when)) for when in (None, later)]
            await asyncio.sleep(0)
            deadlines.expire(later_too=later_too)
            assert await asyncio.gather(*waiting) == ["expired", "expired"]
            assert deadlines.expired is later_too
        assert await wait(None) == "expired"


async def test_the_inner_one_does_not_end_the_outer_one() -> None:
    deadlines = Deadlines()
    now = asyncio.get_running_loop().time()
    with deadlines.until(now + 20):
        with pytest.raises(TimeoutError), deadlines.until(now + 0.01):
            await asyncio.sleep(30)
        await asyncio.sleep(0)
