"""Fair queuing: who gets the next slot, who is rejected, and that no slot is ever lost."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress

import pytest

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.postgres.fairness import FairGate


class Waiting:
    """Calls that wait at a gate, and the order in which they get through."""

    def __init__(self, gate: FairGate) -> None:
        self.gate = gate
        self.got: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def join(self, namespaces: Iterable[str]) -> None:
        """More calls, one of each of these namespaces, in this order."""
        self.tasks += [asyncio.create_task(self._call(namespace)) for namespace in namespaces]
        await asyncio.sleep(0)

    async def _call(self, namespace: str) -> None:
        await self.gate.acquire(namespace)
        self.got.append(namespace)

    async def release(self, times: int) -> str:
        """Give back so many slots, one after the other; who has got through so far."""
        for _ in range(times):
            self.gate.release()
            await asyncio.sleep(0)
        return "".join(self.got)


@pytest.fixture
async def waiting() -> AsyncIterator[Waiting]:
    """A gate whose only slot is taken, for at most three calls of a namespace."""
    waiting = Waiting(FairGate(1, 3))
    await waiting.gate.acquire("x")
    yield waiting
    for task in waiting.tasks:
        task.cancel()
        with suppress(asyncio.CancelledError, PersistenceError):
            await task


async def free_slots(gate: FairGate) -> int:
    """How many calls get through without waiting."""
    count = 0
    while True:
        try:
            async with asyncio.timeout(0):
                await gate.acquire("z")
        except TimeoutError:
            return count
        count += 1


async def test_free_slots_are_given_at_once() -> None:
    gate = FairGate(3, 1)
    assert await free_slots(gate) == 3


async def test_namespaces_take_turns_whoever_came_first(waiting: Waiting) -> None:
    await waiting.join("aaabbc")
    assert await waiting.release(6) == "abcaba"


async def test_namespace_that_comes_late_waits_for_one_call_of_each_before_it(
    waiting: Waiting,
) -> None:
    await waiting.join("aaabbb")
    assert await waiting.release(1) == "a"
    await waiting.join("c")
    assert await waiting.release(3) == "abac"


async def test_too_many_calls_of_one_namespace_are_refused_and_no_others(waiting: Waiting) -> None:
    await waiting.join("aaa")
    for _ in range(3):
        with pytest.raises(PersistenceError) as caught:
            await waiting.gate.acquire("a")
        assert caught.value.reason == ErrorReason.ERROR_REASON_NAMESPACE_BUSY
        assert caught.value.retry_after
    await waiting.join("bbb")
    assert await waiting.release(1) == "a"
    await waiting.join("a")  # there is room again
    assert await waiting.release(6) == "abababa"


async def test_call_that_no_longer_waits_takes_no_slot_and_no_room(waiting: Waiting) -> None:
    await waiting.join("aaab")
    for task in waiting.tasks[:3]:
        task.cancel()
    await asyncio.sleep(0)
    await waiting.join("aaa")
    assert await waiting.release(4) == "baaa"
    assert await waiting.release(1) == "baaa"
    assert await free_slots(waiting.gate) == 1


async def test_slot_given_to_a_call_in_the_moment_it_is_cancelled_is_not_lost(
    waiting: Waiting,
) -> None:
    """Cancelled first or given first: the call has not heard of either."""
    await waiting.join("ab")
    waiting.tasks[0].cancel()
    assert await waiting.release(1) == "b"
    await waiting.join("ab")
    waiting.gate.release()
    waiting.tasks[2].cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert "".join(waiting.got) == "bb"
    assert await waiting.release(1) == "bb"
    assert await free_slots(waiting.gate) == 1


@pytest.mark.parametrize("seed", range(20))
async def test_no_slot_is_lost_or_made_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)
    slots = chance.randrange(1, 5)
    gate = FairGate(slots, 10)
    held = 0
    most = 0
    ended: Counter[str] = Counter()

    async def call(namespace: str) -> None:
        nonlocal held, most
        try:
            await gate.acquire(namespace)
        except PersistenceError:
            ended["refused"] += 1
            return
        held += 1
        most = max(most, held)
        try:
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
        finally:
            held -= 1
            gate.release()
        ended["done"] += 1

    tasks: list[asyncio.Task[None]] = []
    for _ in range(300):
        tasks.append(asyncio.create_task(call(chance.choice("aaaaabc"))))
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.3:
            await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await asyncio.gather(*tasks, return_exceptions=True)
    ended["cancelled"] = sum(task.cancelled() for task in tasks)
    assert ended.total() == 300, ended
    assert ended["done"] > 50, ended
    assert ended["cancelled"], ended
    assert most == slots
    assert await free_slots(gate) == slots


async def test_a_gate_within_another_has_a_part_of_its_slots() -> None:
    whole = FairGate(3, 10)
    part = FairGate(2, 10, within=whole)
    waiting = Waiting(part)
    await waiting.join("aaaa")
    assert waiting.got == ["a", "a"]
    others = Waiting(whole)
    await others.join("bb")
    assert others.got == ["b"]
    assert await waiting.release(1) == "aa"  # the other one has waited for it for longer
    assert others.got == ["b", "b"]
    assert await others.release(1) == "bb"
    await asyncio.sleep(0)
    assert waiting.got == ["a", "a", "a"]


async def test_no_slot_of_either_gate_is_lost_to_cancelled_calls() -> None:
    generator = random.Random(7)
    whole = FairGate(3, 1000)
    part = FairGate(2, 1000, within=whole)

    async def call(gate: FairGate, namespace: str) -> None:
        await gate.acquire(namespace)
        try:
            await asyncio.sleep(0)
        finally:
            gate.release()

    tasks = []
    for _ in range(500):
        gate = generator.choice((whole, part))
        tasks.append(asyncio.create_task(call(gate, generator.choice("abc"))))
        if generator.random() < 0.5:
            generator.choice(tasks).cancel()
        if generator.random() < 0.3:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(5):
        for _ in range(2):
            await part.acquire("a")
        await whole.acquire("a")
