"""Calls that are run together: what each of them gets, whatever happens to its neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.postgres import groups
from wfe_persistence.store.postgres.groups import MAX_BYTES, MAX_CALLS, Group, Groups
from wfe_persistence.time_spent import CURRENT, TimeSpent

MAX_WAITING = 300


async def doubled(
    groups: Groups, doubling: Doubling, number: int, size: int = 0, kind: str = "kind"
) -> int | None:
    return await groups.run(kind, doubling, number, size)


class Doubling(Group[int, int]):
    """Doubles numbers, when it is let."""

    def __init__(self) -> None:
        self.begun: list[list[int]] = []
        self.ended: list[list[int]] = []
        self.taken_back: list[int] = []
        self.error: Exception | None = None
        self.nothing_for: set[int] = set()
        self.may_end = asyncio.Event()

    async def run(self, calls: Sequence[int]) -> Sequence[int | None]:
        self.begun.append(list(calls))
        await self.may_end.wait()
        self.ended.append(list(calls))
        if spent := CURRENT.get():
            spent.add_round_trip(1.0, str(calls))
        if self.error is not None:
            raise self.error
        return [None if call in self.nothing_for else 2 * call for call in calls]

    async def take_back(self, results: Sequence[int]) -> None:
        self.taken_back += results


class Callers:
    """Calls of one kind."""

    def __init__(self) -> None:
        self.groups = Groups(MAX_WAITING)
        self.doubling = Doubling()
        self.tasks: list[asyncio.Task[int | None]] = []

    async def call(self, *numbers: int, size: int = 0) -> None:
        """More calls, in this order."""
        self.tasks += [
            asyncio.create_task(doubled(self.groups, self.doubling, number, size))
            for number in numbers
        ]
        await self.turn()

    async def turn(self) -> None:
        """Let everybody do what there is to do."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def results(self) -> list[int | None]:
        self.doubling.may_end.set()
        async with asyncio.timeout(30):
            return list(await asyncio.gather(*self.tasks))


@pytest.fixture
async def callers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callers]:
    """None of whose statements is slow, however busy the machine."""
    monkeypatch.setattr(groups, "SLOW_SECONDS", 1000.0)
    callers = Callers()
    yield callers
    callers.doubling.may_end.set()
    await asyncio.gather(*callers.tasks, return_exceptions=True)
    await callers.turn()
    assert not callers.groups._lines
    assert not callers.groups._tasks


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def unavailable() -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE, "away", retry_after=1.0, detail="detail"
    )


async def test_call_that_comes_alone_is_run_at_once(callers: Callers) -> None:
    task = asyncio.create_task(doubled(callers.groups, callers.doubling, 1))
    await asyncio.sleep(0)
    assert callers.doubling.begun == [[1]]
    callers.doubling.may_end.set()
    assert await task == 2


async def test_calls_that_come_meanwhile_are_run_together(callers: Callers) -> None:
    await callers.call(1, 2, 3, 4)
    assert await callers.results() == [2, 4, 6, 8]
    assert callers.doubling.begun == [[1], [2, 3, 4]]


async def test_calls_of_other_kinds_are_run_apart(callers: Callers) -> None:
    await callers.call(1, 2)
    other = asyncio.create_task(doubled(callers.groups, callers.doubling, 3, kind="other"))
    await callers.turn()
    assert callers.doubling.begun == [[1], [3]]
    callers.doubling.may_end.set()
    assert await other == 6


async def test_groups_are_bounded(callers: Callers) -> None:
    await callers.call(*range(MAX_CALLS + 3))
    await callers.results()
    assert [len(group) for group in callers.doubling.begun] == [1, MAX_CALLS, 2]


async def test_bytes_of_a_group_are_bounded(callers: Callers) -> None:
    await callers.call(*range(6), size=MAX_BYTES // 2)
    await callers.call(6, size=2 * MAX_BYTES)
    await callers.results()
    assert callers.doubling.begun == [[0], [1, 2], [3, 4], [5], [6]]


async def test_calls_beyond_those_that_may_wait_are_refused(callers: Callers) -> None:
    await callers.call(*range(MAX_WAITING + 1))
    with pytest.raises(PersistenceError) as refused:
        await callers.groups.run("kind", callers.doubling, 0)
    assert refused.value.reason == ErrorReason.ERROR_REASON_NAMESPACE_BUSY


async def test_call_for_which_nothing_was_done_does_not_change_its_neighbours(
    callers: Callers,
) -> None:
    callers.doubling.nothing_for = {1, 3}
    await callers.call(1, 2, 3, 4)
    assert await callers.results() == [None, 4, None, 8]


@pytest.mark.parametrize(
    "error",
    [
        PersistenceError(ErrorReason.ERROR_REASON_INVALID_FIELD, "bad"),
        PersistenceError(ErrorReason.ERROR_REASON_ROW_LOCKED, "locked"),
        PersistenceError(ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT, "conflict"),
        RuntimeError("bug"),
    ],
)
async def test_error_that_may_be_of_one_call_is_nobodys(callers: Callers, error: Exception) -> None:
    """Each call is run by itself then, and meets its own."""
    callers.doubling.error = error
    await callers.call(1, 2, 3)
    assert await callers.results() == [None, None, None]


async def test_error_that_fails_all_is_raised_for_each(callers: Callers) -> None:
    callers.doubling.error = unavailable()
    await callers.call(1, 2, 3)
    callers.doubling.may_end.set()
    errors = await asyncio.gather(*callers.tasks, return_exceptions=True)
    assert len({id(error) for error in errors}) == 3  # each has a traceback of its own
    for error in errors:
        assert isinstance(error, PersistenceError)
        assert error.reason == ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE
        assert (str(error), error.retry_after, error.detail) == ("away", 1.0, "detail")


async def test_caller_that_has_gone_before_its_turn_is_left_out(callers: Callers) -> None:
    await callers.call(1, 2, 3)
    callers.tasks.pop(1).cancel()
    assert await callers.results() == [2, 6]
    assert callers.doubling.begun == [[1], [3]]
    assert not callers.doubling.taken_back


async def in_one_group(callers: Callers, *numbers: int) -> None:
    """Calls that are being run together."""
    await callers.call(0, *numbers)
    callers.doubling.may_end.set()
    await asyncio.sleep(0)
    callers.doubling.may_end.clear()
    await until(lambda: callers.doubling.begun == [[0], list(numbers)])


async def test_what_was_done_for_a_caller_that_has_gone_is_taken_back(callers: Callers) -> None:
    await in_one_group(callers, 1, 2, 3)
    callers.tasks.pop(2).cancel()
    assert await callers.results() == [0, 2, 6]
    await until(lambda: callers.doubling.taken_back == [4])


async def test_deadline_of_one_is_nothing_to_the_others(callers: Callers) -> None:
    await callers.call(0)

    async def impatient() -> int | None:
        async with asyncio.timeout(0.01):
            return await callers.groups.run("kind", callers.doubling, 1)

    late = asyncio.create_task(impatient())
    await callers.call(2)
    with pytest.raises(TimeoutError):
        await late
    assert await callers.results() == [0, 4]


async def test_caller_that_goes_as_its_result_comes_leaves_it_to_be_taken_back(
    callers: Callers,
) -> None:
    await in_one_group(callers, 1, 2)
    first, gone, other = callers.tasks
    other.add_done_callback(lambda _: gone.cancel())
    other.cancel()  # its place in the loop is before that of the result
    callers.doubling.may_end.set()
    await asyncio.gather(first, gone, other, return_exceptions=True)
    await callers.turn()
    results = [None if task.cancelled() else task.result() for task in (gone, other)]
    assert sorted([*callers.doubling.taken_back, *filter(None, results)]) == [2, 4]


async def test_statement_that_nobody_waits_for_is_called_off(callers: Callers) -> None:
    await in_one_group(callers, 1, 2)
    for task in callers.tasks[1:]:
        task.cancel()
    await callers.turn()
    await callers.call(3)  # does not wait for it
    assert callers.doubling.begun == [[0], [1, 2], [3]]
    callers.doubling.may_end.set()
    await asyncio.gather(*callers.tasks, return_exceptions=True)
    assert callers.doubling.ended == [[0], [3]]


async def test_slow_statement_holds_nobody_up(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "SLOW_SECONDS", 0.01)
    await callers.call(1, 2, 3)
    await until(lambda: callers.doubling.begun == [[1], [2, 3]])
    await callers.call(4)
    await until(lambda: callers.doubling.begun == [[1], [2, 3], [4]])
    assert not callers.doubling.ended
    assert await callers.results() == [2, 4, 6, 8]


async def test_second_call_is_run_at_once_if_its_kind_may(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But only one group at a time: the more is run together, the less each costs."""
    monkeypatch.setattr(Doubling, "at_once", 2)
    await callers.call(1, 2, 3, 4)
    assert callers.doubling.begun == [[1], [2]]
    callers.doubling.may_end.set()
    await asyncio.sleep(0)
    callers.doubling.may_end.clear()
    await until(lambda: callers.doubling.begun == [[1], [2], [3, 4]])
    await callers.call(5, 6)
    assert callers.doubling.begun == [[1], [2], [3, 4], [5]]
    assert await callers.results() == [2, 4, 6, 8, 10, 12]
    assert callers.doubling.begun == [[1], [2], [3, 4], [5], [6]]


async def test_call_that_comes_alone_meets_its_own_error_if_that_is_final(
    callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Doubling, "alone_is_final", True)
    callers.doubling.error = PersistenceError(ErrorReason.ERROR_REASON_ROW_LOCKED, "locked")
    await callers.call(1, 2, 3)
    callers.doubling.may_end.set()
    alone, *others = await asyncio.gather(*callers.tasks, return_exceptions=True)
    assert alone is callers.doubling.error
    assert others == [None, None]


async def test_each_call_knows_what_its_time_went_to(callers: Callers) -> None:
    """The statement of its group, and the wait for it: so the log tells why a call was slow."""
    spent = [TimeSpent() for _ in range(3)]

    async def call(number: int) -> None:
        CURRENT.set(spent[number])
        await doubled(callers.groups, callers.doubling, number)

    calls = [asyncio.create_task(call(number)) for number in range(3)]
    await callers.turn()
    callers.doubling.may_end.set()
    await asyncio.gather(*calls)
    assert [each.round_trips for each in spent] == [1, 1, 1]
    assert [each.slowest_statement for each in spent] == ["[0]", "[1, 2]", "[1, 2]"]
    assert not spent[0].connecting
    assert all(each.connecting > 0 for each in spent[1:])
