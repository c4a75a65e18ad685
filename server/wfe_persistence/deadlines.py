"""Deadlines of what is under way, which a server that stops brings forward all at once.

Every call has two, and hardly any of them passes. So there is no timer for each, but one for all
those of the same moment (`_MOMENT_SECONDS`): they come late by at most so much, and never early.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Protocol

_MOMENT_SECONDS: Final = 1 / 64


class Expiring(Protocol):
    """What has a deadline."""

    def expire(self) -> None:
        """It has passed."""


Moment = set[Expiring]
"""What expires together; who no longer needs to takes itself out."""


class Moments:
    """What is to expire, by when."""

    def __init__(self) -> None:
        self._by_number: dict[int, Moment] = {}

    def add(self, when: float, what: Expiring) -> Moment:
        """Have something expire at a time, by the event loop's clock."""
        number = int(when / _MOMENT_SECONDS) + 1
        moment = self._by_number.get(number)
        if moment is None:
            moment = self._by_number[number] = set()
            asyncio.get_running_loop().call_at(number * _MOMENT_SECONDS, self._come, number)
        moment.add(what)
        return moment

    def expire(self) -> None:
        """Have everything expire now."""
        for moment in self._by_number.values():
            _expire(moment)

    def _come(self, number: int) -> None:
        _expire(self._by_number.pop(number))


def _expire(moment: Moment) -> None:
    expiring = list(moment)
    moment.clear()
    for what in expiring:
        what.expire()


class Deadlines:
    """The deadlines of things of one kind that are under way."""

    def __init__(self) -> None:
        self._moments = Moments()
        self._without: Moment = set()
        self.expired = False
        """Whether `expire` was called."""

    def until(self, when: float | None) -> Deadline:
        """As `asyncio.timeout_at`, or until `expire` is called, if that is sooner. A context
        manager, but not an asynchronous one."""
        return Deadline(self, when)

    def add(self, deadline: Deadline, when: float | None) -> Moment:
        """Have a deadline expire at a time; None: only with all others."""
        if self.expired:
            when = 0.0
        elif when is None:
            self._without.add(deadline)
            return self._without
        return self._moments.add(when, deadline)

    def expire(self, *, later_too: bool = True) -> None:
        """Have everything that is under way raise TimeoutError now, and what begins later."""
        self.expired = later_too
        self._moments.expire()
        _expire(self._without)


class Deadline:
    """One of them, as a context manager."""

    __slots__ = ("_cancelling", "_deadlines", "_has_expired", "_moment", "_task", "_when")

    def __init__(self, deadlines: Deadlines, when: float | None) -> None:
        self._deadlines = deadlines
        self._when = when
        self._has_expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._moment = self._deadlines.add(self, self._when)

    def expire(self) -> None:
        """It has passed."""
        self._has_expired = True
        self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._has_expired:
            self._moment.discard(self)
        # As asyncio.Timeout does: somebody else may have cancelled the task as well.
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from exc
