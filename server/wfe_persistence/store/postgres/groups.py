"""Calls of one kind that come while one runs are run together, as one statement: group commit.

A call that comes alone is run at once, as if there were no groups: nobody is ever waited for. What
comes meanwhile piles up, and is run together when that one has ended, or has taken `SLOW_SECONDS`.
(Of some kinds the second is run at once, too, so that two callers do not wait for each other.)
So the more there is to do the less each costs, and nothing is tuned.

Neighbours do not notice each other. A call for which a group did nothing, or that may be the reason
why its group failed, is run by itself, which is the only place where its own errors arise.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Hashable, Sequence
from contextlib import suppress
from contextvars import Context
from time import perf_counter
from typing import Any, ClassVar, Final, Generic, TypeVar

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.postgres.fairness import namespace_busy
from wfe_persistence.time_spent import CURRENT, TimeSpent

SLOW_SECONDS: Final = 0.05
"""When the next group no longer waits for the one before: it may wait for a lock, or be lost."""

MAX_CALLS: Final = 100
MAX_BYTES: Final = 131_072
"""The most of one group. It holds its connection, and its row locks, for that much longer."""

_OF_ONE: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_INVALID_FIELD,
        ErrorReason.ERROR_REASON_ROW_LOCKED,
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
    }
)
"""What may have failed a group because of one of its calls. All else would fail each of them."""

C = TypeVar("C")
R = TypeVar("R")


class Group(Generic[C, R]):
    """How calls of one kind are run together."""

    at_once: ClassVar[int] = 1
    """How many are run before others have to wait: one group, the others calls that came alone."""
    alone_is_final: ClassVar[bool] = False
    """Whether a call that came alone is run as its caller would run it by itself, so that it is
    not to be run again whatever it failed for."""

    async def run(self, calls: Sequence[C]) -> Sequence[R | None]:
        """Run them in one transaction; returns what each came to, None: nothing was done for it."""
        raise NotImplementedError

    async def take_back(self, results: Sequence[R]) -> None:
        """Undo as far as possible what was done for callers that had gone when it was done."""


class _Member(Generic[C, R]):
    """A call in a line, and what its caller waits for."""

    __slots__ = ("call", "came", "done", "group", "size", "spent")

    def __init__(self, call: C, size: int) -> None:
        self.came = perf_counter()
        self.spent = CURRENT.get()
        self.call = call
        self.size = size
        self.done: asyncio.Future[R | None] = asyncio.get_running_loop().create_future()
        self.group: _Running[C, R] | None = None


class _Running(Generic[C, R]):
    """A group that is being run. (Of a call that is alone there is only the object.)"""

    __slots__ = ("members", "task")

    def __init__(self, members: Sequence[_Member[C, R]] = ()) -> None:
        self.members = members
        self.task: asyncio.Task[None] | None = None

    def left(self) -> None:
        """One of the callers has gone; if it was the last, the statement is called off."""
        if self.task is not None and all(member.done.done() for member in self.members):
            self.task.cancel()


class _Line(Generic[C, R]):
    """The calls of one kind: what is run, and what has piled up meanwhile."""

    __slots__ = ("running", "timer", "waiting")

    def __init__(self) -> None:
        self.running: set[_Running[C, R]] = set()
        """What is run, without what is slow."""
        self.waiting: deque[_Member[C, R]] = deque()
        self.timer: asyncio.TimerHandle | None = None


class Groups:
    """The lines of all kinds; at most `max_waiting` calls wait in each."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._lines: dict[Hashable, _Line[Any, Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, key: Hashable, group: Group[C, R], call: C, size: int = 0) -> R | None:
        """Run a call of the kind `key`, alone or with others; `size`: about how many bytes it has.

        Returns what it came to; None: nothing was done, and the caller has to run it by itself.
        Raises PersistenceError: what would fail any call.
        """
        line: _Line[C, R] | None = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        if len(line.running) < group.at_once and not line.waiting:
            return await self._alone(key, line, group, call)
        if len(line.waiting) >= self._max_waiting:
            raise namespace_busy(len(line.waiting))
        member: _Member[C, R] = _Member(call, size)
        line.waiting.append(member)
        if line.timer is None:
            self._watch(key, line, group)
        try:
            return await member.done
        except asyncio.CancelledError:
            done = member.done
            if not done.cancelled():
                if done.exception() is None and (result := done.result()) is not None:
                    self._spawn(_take_back(group, [result]))  # it was done at the same moment
            elif member.group is not None:
                member.group.left()
            raise

    async def _alone(
        self, key: Hashable, line: _Line[C, R], group: Group[C, R], call: C
    ) -> R | None:
        running: _Running[C, R] = _Running()
        line.running.add(running)
        try:
            [result] = await group.run([call])
        except Exception as exc:
            if _may_be_of_one(exc) and not group.alone_is_final:
                return None
            raise
        finally:
            self._ended(key, line, group, running)
        return result

    async def _together(
        self, key: Hashable, line: _Line[C, R], group: Group[C, R], running: _Running[C, R]
    ) -> None:
        members = running.members
        spent = TimeSpent()
        CURRENT.set(spent)
        try:
            results = await group.run([member.call for member in members])
        except Exception as exc:
            for member in members:
                if member.done.done():
                    continue
                if isinstance(exc, PersistenceError) and not _may_be_of_one(exc):
                    member.done.set_exception(exc.copy())
                else:
                    member.done.set_result(None)
        else:
            left = []
            for member, result in zip(members, results, strict=True):
                if not member.done.done():
                    member.done.set_result(result)
                elif result is not None:
                    left.append(result)
            if left:
                self._spawn(_take_back(group, left))
        finally:
            for member in members:
                if member.spent is not None:
                    member.spent.connecting += spent.began - member.came  # for its turn
                    member.spent.share(spent)
            self._ended(key, line, group, running)

    def _ended(
        self, key: Hashable, line: _Line[C, R], group: Group[C, R], running: _Running[C, R]
    ) -> None:
        if running in line.running:
            line.running.remove(running)
            self._next(key, line, group)

    def _next(self, key: Hashable, line: _Line[C, R], group: Group[C, R]) -> None:
        """Run what has piled up, unless that is to wait for a group."""
        if not any(running.members for running in line.running) and (
            members := _take(line.waiting)
        ):
            running = _Running(members)
            line.running.add(running)
            for member in members:
                member.group = running
            running.task = self._spawn(self._together(key, line, group, running))
        if line.timer is not None and not line.waiting:
            line.timer.cancel()
            line.timer = None
        if not line.running and self._lines.get(key) is line:
            del self._lines[key]

    def _watch(self, key: Hashable, line: _Line[C, R], group: Group[C, R]) -> None:
        """Have those who wait not wait for a slow statement."""

        def look() -> None:
            line.timer = None
            line.running.clear()
            self._next(key, line, group)
            if line.waiting:
                self._watch(key, line, group)

        line.timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, look)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # In a context of its own: what belongs to one of the callers is nothing to the others.
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _take(waiting: deque[_Member[C, R]]) -> list[_Member[C, R]]:
    """Take the next group out of a line, without those that have gone."""
    members: list[_Member[C, R]] = []
    size = 0
    while waiting and len(members) < MAX_CALLS:
        member = waiting[0]
        if member.done.done():
            waiting.popleft()
            continue
        size += member.size
        if members and size > MAX_BYTES:
            break
        members.append(waiting.popleft())
    return members


async def _take_back(group: Group[C, R], results: Sequence[R]) -> None:
    with suppress(PersistenceError):  # then it is over when the leases expire
        await group.take_back(results)


def _may_be_of_one(exc: Exception) -> bool:
    """Whether a group may have failed because of one of its calls; what only a bug explains may be
    in what one of them needs."""
    return not isinstance(exc, PersistenceError) or exc.reason in _OF_ONE
