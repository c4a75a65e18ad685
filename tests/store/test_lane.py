"""The lane of administrative work: how much runs at once, who is refused, that no turn is lost."""

from __future__ import annotations

import asyncio

import pytest

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.postgres.lane import Lane


class Work:
    """Pieces of work in a lane that last until they are finished, and those that have begun."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.begun: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def start(self, *names: str, refuse: bool = True) -> None:
        """Start pieces; the first letter of each name is the schema."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(name, refuse))
            await self._settle()

    async def _run(self, name: str, refuse: bool) -> None:
        async with self.lane.turn(name[0], refuse=refuse):
            self.begun.append(name)
            await self._ends[name].wait()

    async def finish(self, *names: str) -> None:
        """Let pieces end."""
        for name in names:
            self._ends[name].set()
            await self._settle()

    async def cancel(self, *names: str) -> None:
        """Cancel pieces, whether they run or wait."""
        for name in names:
            self.tasks[name].cancel()
            await self._settle()

    async def _settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.fixture
def work() -> Work:
    """A lane of two, behind which three may wait."""
    return Work(Lane(2, 3))


async def test_two_run_and_the_others_follow_in_order(work: Work) -> None:
    await work.start("a", "b", "c", "d")
    assert work.begun == ["a", "b"]
    await work.finish("b")
    assert work.begun == ["a", "b", "c"]
    await work.finish("a", "c", "d")
    assert work.begun == ["a", "b", "c", "d"]


async def test_work_on_one_schema_takes_one_place(work: Work) -> None:
    await work.start("a1", "a2", "a3", "b")
    assert work.begun == ["a1", "b"]
    await work.finish("a1")
    assert work.begun == ["a1", "b", "a2"]
    await work.finish("a2", "a3", "b")
    assert work.begun == ["a1", "b", "a2", "a3"]


async def test_beyond_the_bound_work_is_refused_with_a_delay(work: Work) -> None:
    await work.start("a", "b", "c", "d", "e", "f")
    with pytest.raises(PersistenceError) as caught:
        work.tasks["f"].result()
    assert caught.value.reason == ErrorReason.ERROR_REASON_ADMINISTRATION_BUSY
    assert caught.value.retry_after is not None
    await work.start("g", refuse=False)
    assert not work.tasks["g"].done()
    await work.finish("a", "b", "c", "d", "e", "g")
    assert work.begun == ["a", "b", "c", "d", "e", "g"]


async def test_who_gives_up_makes_room(work: Work) -> None:
    await work.start("a", "b", "a2", "c", "d")
    await work.cancel("a2", "c", "a")
    await work.start("e", "f", "g")
    assert work.begun == ["a", "b", "d"]
    assert not any(task.done() for name, task in work.tasks.items() if name in "efg")
    await work.finish("b", "d", "e", "f", "g")
    assert work.begun == ["a", "b", "d", "e", "f", "g"]
    # Nothing is kept of schemas that nobody works on.
    assert work.lane.__dict__["_keys"] == {}
    assert work.lane.__dict__["_waiting"] == 0
