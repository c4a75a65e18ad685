"""Lines of waiters, without a server: who is woken, and what others are told to tell."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from wfe_persistence.store.waiting import Ahead, Kind, Line, Waiters

QUEUE, LOCK = Kind("queue"), Kind("lock")
STORE: Any = None


async def _no_look(*_: object) -> tuple[Ahead, ...]:
    return ()


LOOKED_AT = Kind("looked at", _no_look)


class Teller:
    """Notes what is wanted."""

    def __init__(self) -> None:
        self.wanted: Counter[Line] = Counter()
        self.told: list[Line] = []

    def tell(self, line: Line) -> None:
        self.told.append(line)

    def wants(self, line: Line) -> None:
        self.wanted[line] += 1

    def unwants(self, line: Line) -> None:
        self.wanted[line] -= 1


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_line_is_wanted_as_long_as_somebody_waits_in_it_or_behind_it(
    order: tuple[int, ...],
) -> None:
    waiters, teller = Waiters(), Teller()
    waiters.teller = teller
    queue, lock = Line("n", QUEUE, "q"), Line("n", LOCK, "l")
    of_queue, of_lock = (waiters.join(STORE, line) for line in (queue, lock))
    of_queue.__enter__()

    def set_behind(*behind: Line) -> None:
        if place := waiters.place(queue):
            waiters.set_behind(queue, place, behind)

    def leave() -> None:
        of_lock.__exit__(None, None, None)

    steps: list[Callable[[], object]] = [
        of_lock.__enter__,
        leave,
        partial(set_behind, lock),
        set_behind,
    ]
    entered = behind = False
    for at in order:
        if at == 1 and not entered:
            continue
        steps[at]()
        entered = (entered or at == 0) and at != 1
        behind = (behind or at == 2) and at != 3
        assert teller.wanted[lock] == (entered or behind)
        assert teller.wanted[queue] == 1
    if entered:
        leave()
    of_queue.__exit__(None, None, None)
    assert not +teller.wanted


async def test_who_is_woken_but_leaves_wakes_the_next() -> None:
    waiters = Waiters()
    line = Line("n", QUEUE, "q")
    first, second = waiters.join(STORE, line), waiters.join(STORE, line)
    with second:
        with first:
            pass
        assert not second.woken
    with first, second:
        waiters.wake(line)
        assert (first.woken, second.woken) == (True, False)
        waiters.leave(first, line)
        assert second.woken
        waiters.enter(first, STORE, line)


async def test_those_who_are_woken_at_once_are_different_ones() -> None:
    waiters = Waiters()
    line = Line("n", QUEUE, "q")
    first, second = waiters.join(STORE, line), waiters.join(STORE, line)
    with first, second:
        waiters.wake(line)
        assert (first.woken, second.woken) == (True, False)
        waiters.wake(line)
        assert second.woken
        first.woken = second.woken = False


async def test_others_are_told_what_those_who_wait_here_can_not_take() -> None:
    waiters, teller = Waiters(), Teller()
    waiters.teller = teller
    line = Line("n", QUEUE, "q")
    waiters.wake(line)
    assert teller.told == [line]
    first, second = waiters.join(STORE, line), waiters.join(STORE, line)
    with second:
        with first:
            waiters.wake(line)
            waiters.wake(line)
            assert teller.told == [line]
            waiters.wake(line)
            assert teller.told == [line] * 2
            second.woken = False  # it has looked
        assert second.woken  # instead of the first, which has not
        assert teller.told == [line] * 2
    assert teller.told == [line] * 3
    with waiters.join(STORE, line) as waiter:
        waiters.wake(line, is_ready=False)
        assert teller.told == [line] * 4
        waiter.woken = False
        waiters.wake_all(line)
        assert teller.told == [line] * 5
        waiter.woken = False
    assert teller.told == [line] * 5


async def test_who_hangs_up_while_it_looks_is_followed_by_another() -> None:
    waiters = Waiters()
    line = Line("n", QUEUE, "q")
    looks = 0

    async def claim() -> list[int]:
        nonlocal looks
        looks += 1
        if looks > 1:
            await asyncio.Event().wait()
        return []

    until = asyncio.get_running_loop().time() + 60
    taking = asyncio.create_task(waiters.take(STORE, [line], claim, until))
    while (place := waiters.place(line)) is None or looks == 0:
        await asyncio.sleep(0)
    [waiter] = place.waiters
    with waiters.join(STORE, line) as following:
        waiters.wake(line)
        while waiter.woken or looks == 1:
            await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait([taking])
        assert following.woken


async def test_the_lookout_is_not_asked_for_those_who_are_woken_before() -> None:
    waiters = Waiters()
    looked: list[Line] = []
    waiters.look = looked.append
    line = Line("n", LOOKED_AT, "q")
    until = asyncio.get_running_loop().time() + 60
    with waiters.join(STORE, line) as waiter:
        pausing = asyncio.create_task(waiter.pause(until))
        await asyncio.sleep(0)
        waiters.wake(line)
        assert await pausing
    await asyncio.sleep(0.05)
    assert looked == []
    with waiters.join(STORE, line) as waiter:
        pausing = asyncio.create_task(waiter.pause(until))
        while not looked:
            await asyncio.sleep(0.001)
        waiters.wake(line)
        assert await pausing
    assert looked == [line]


async def test_a_line_wakes_those_behind_it() -> None:
    waiters = Waiters()
    queue, lock = Line("n", QUEUE, "q"), Line("n", LOCK, "l")
    with waiters.join(STORE, queue) as waiter:
        place = waiters.place(queue)
        assert place is not None
        waiters.set_behind(queue, place, (lock,))
        waiters.wake(Line("other", LOCK, "l"))
        assert not waiter.woken
        waiters.wake(lock)
        assert await waiter.pause(asyncio.get_running_loop().time() + 60)


async def test_who_is_called_in_vain_is_not_called_again_at_once() -> None:
    waiters = Waiters()
    line = Line("n", QUEUE, "q")
    now = asyncio.get_running_loop().time
    with waiters.join(STORE, line) as waiter:
        place = waiters.place(line)
        assert place is not None
        for times in range(1, 1200):
            waiters.call(line, 1)
            assert await waiter.pause(now() + 60)
            before = now()
            assert not await waiter.pause(before)  # it has found nothing
            assert place.vain == times
            assert place.not_before > before
        waiters.wake(line)
        assert place.not_before == 0
