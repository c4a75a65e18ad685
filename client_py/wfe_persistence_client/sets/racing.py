"""Taking work from whichever member of a namespace set has some."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, TypeAlias, TypeVar

from wfe_persistence_client.calls import RetryPolicy, passes
from wfe_persistence_client.deadline import Deadline
from wfe_persistence_client.errors import LeaseLost, PersistenceError
from wfe_persistence_client.provider import PersistenceProvider
from wfe_persistence_client.sets.members import SetMembers

_T = TypeVar("_T")

#: Takes so many things from a member, with its index, and waits for so long.
_Take: TypeAlias = Callable[
    [PersistenceProvider, int, int, timedelta | None], Coroutine[Any, Any, list[_T]]
]

#: The longest wait that a server accepts, in seconds.
_LONGEST_WAIT: Final = 60.0
#: The lease under which a call takes things that waits in one member while others do so in others.
#: If it is broken off while its answer is on the way, they come again when that is over.
_BRIEF: Final = timedelta(seconds=5)
_DEFAULT_LEASE: Final = timedelta(seconds=30)


def brief(lease_duration: timedelta | None, wait: timedelta | None) -> timedelta | None:
    """The lease under which a call takes things: a short one if it waits."""
    if wait is None:
        return lease_duration
    return min(lease_duration or _DEFAULT_LEASE, _BRIEF)


class SetTaking(SetMembers):
    """Asks the members in turn, then all at the same time."""

    async def _take(
        self,
        take: Callable[
            [PersistenceProvider, int, int, timedelta | None], Coroutine[Any, Any, list[_T]]
        ],
        give_back: Callable[[list[_T]], Coroutine[Any, Any, None]],
        keep: Callable[[_T], Coroutine[Any, Any, _T]],
        most: int,
        wait: timedelta | None,
    ) -> list[_T]:
        """At most so many things from any members; `take` asks one of them, with its index.

        A member that is away is passed over, as long as another one answers. What comes of a wait
        has a `brief` lease, and gets the one that was asked for by `keep`.
        """
        members = await self._members()
        taken: list[_T] = []
        failure: PersistenceError | None = None
        failed = 0
        for index in self._turns(members):
            try:
                taken += await take(_once(members[index]), index, most - len(taken), None)
            except PersistenceError as error:
                if not taken and not passes(error):
                    raise
                failure, failed = error, failed + 1
                if error.maybe_written and passes(error):
                    continue
            if len(taken) >= most:
                break
        if taken:
            return taken
        if wait is not None and wait > timedelta(0):
            end = Deadline(min(wait.total_seconds(), _LONGEST_WAIT))
            return await self._kept(await self._race(members, take, give_back, most, end), keep)
        if failure is not None and failed == len(members):
            raise failure
        return []

    async def _kept(
        self, taken: list[_T], keep: Callable[[_T], Coroutine[Any, Any, _T]]
    ) -> list[_T]:
        """What is still held, under its full lease."""
        kept = []
        for thing in taken:
            try:
                kept.append(await keep(thing))
            except LeaseLost:
                continue  # this client was too slow, and it is handed out again
            except PersistenceError:
                if not kept:
                    raise
                break
        return kept

    async def _race(
        self,
        members: Sequence[PersistenceProvider],
        take: Callable[
            [PersistenceProvider, int, int, timedelta | None], Coroutine[Any, Any, list[_T]]
        ],
        give_back: Callable[[list[_T]], Coroutine[Any, Any, None]],
        most: int,
        end: Deadline,
    ) -> list[_T]:
        """Waits in all members at the same time, until one has something; or until the wait is
        over in all but those that are away."""
        left = timedelta(seconds=max(end.remaining(), 0.001))
        tasks = [
            asyncio.ensure_future(take(member, index, most, left))
            for index, member in enumerate(members)
        ]
        taken: list[_T] = []
        failures: list[BaseException] = []
        waiting = set(tasks)
        try:
            while waiting and not taken:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if (error := task.exception()) is not None:
                        failures.append(error)
                    else:
                        taken += task.result()
        finally:
            for task in waiting:
                task.cancel()
            # One that has just been answered has something all the same.
            for result in await asyncio.gather(*waiting, return_exceptions=True):
                if isinstance(result, list):
                    taken += result
        if not taken:
            for failure in failures:
                if not isinstance(failure, PersistenceError) or not passes(failure):
                    raise failure
            if len(failures) == len(tasks):
                raise failures[0]
        if len(taken) > most:
            # Otherwise it comes back when the leases expire.
            with suppress(PersistenceError):
                await give_back(taken[most:])
        return taken[:most]


def _once(member: PersistenceProvider) -> PersistenceProvider:
    """A member that is asked once: the next one is not to wait for it."""
    other = member.with_timeout(member._calls.timeout)
    deadline = member._calls._deadline
    other._bind(member._namespace, member._calls.timeout, RetryPolicy(max_attempts=1))
    other._calls._deadline = deadline
    return other
