"""Calls that wait for what other calls do, without the database: a place in a line each, in memory.

Whoever changes what others wait for calls `wake` after the commit. A waiter that is woken, or whose
pause ends, looks for itself: that it is woken promises nothing, and what other servers do wakes
nobody here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Final, NamedTuple, Self

from wfe_persistence.errors import shutting_down


class Line(NamedTuple):
    """What is waited for."""

    namespace: str
    kind: str
    name: str


class Waiters:
    """All that wait on this server, each line in the order of arrival."""

    def __init__(self) -> None:
        # The values of the inner dictionaries are not used: it is an ordered set.
        self._lines: Final[dict[Line, dict[Waiter, None]]] = {}
        self.closed = False

    def join(self, *lines: Line) -> Waiter:
        """A place at the end of each of these lines, as a context manager: leaving it gives them
        up."""
        return Waiter(self, lines)

    def wake(self, line: Line, count: int = 1) -> None:
        """Wake the first waiters of a line, up to `count`."""
        for waiter, _ in zip(self._lines.get(line, ()), range(count), strict=False):
            waiter.wake()

    def wake_all(self, line: Line) -> None:
        """Wake all waiters of a line."""
        for waiter in self._lines.get(line, ()):
            waiter.wake()

    def close(self) -> None:
        """Have everybody who waits, or comes later, raise SHUTTING_DOWN: the server stops."""
        self.closed = True
        for line in self._lines.values():
            for waiter in line:
                waiter.wake()

    def enter(self, waiter: Waiter, line: Line) -> None:
        """Put a waiter at the end of a line."""
        self._lines.setdefault(line, {})[waiter] = None

    def leave(self, waiter: Waiter, line: Line) -> None:
        """Take a waiter out of a line. If it was the first, or is woken but can no longer look, the
        first one of the rest is woken in its place."""
        passes_on = self.is_first(waiter, line) or waiter.woken
        del self._lines[line][waiter]
        if not self._lines[line]:
            del self._lines[line]
        elif passes_on:
            self.wake(line)

    def is_first(self, waiter: Waiter, line: Line) -> bool:
        """Whether a waiter is the first of a line."""
        return next(iter(self._lines[line])) is waiter


class Waiter:
    """One call that waits; see `Waiters.join`."""

    __slots__ = ("_lines", "_waiters", "_woken")

    def __init__(self, waiters: Waiters, lines: tuple[Line, ...]) -> None:
        self._waiters = waiters
        self._lines = lines
        self._woken = asyncio.Event()

    def __enter__(self) -> Self:
        for line in self._lines:
            self._waiters.enter(self, line)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for line in self._lines:
            self._waiters.leave(self, line)

    @property
    def is_first(self) -> bool:
        """Whether it is the first in one of its lines."""
        return any(self._waiters.is_first(self, line) for line in self._lines)

    def wake(self) -> None:
        """End the pause, or the next one."""
        self._woken.set()

    @property
    def woken(self) -> bool:
        """Whether it was woken and has not looked since."""
        return self._woken.is_set()

    def watch(self, lines: Iterable[Line]) -> None:
        """Stand in these lines, too; in those where it stands already it keeps its place."""
        for line in lines:
            if line not in self._lines:
                self._lines = (*self._lines, line)
                self._waiters.enter(self, line)

    async def pause(self, seconds: float) -> bool:
        """Wait until woken, at most this long; returns whether it was. Raises SHUTTING_DOWN if the
        server stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        woken = self._woken.is_set()
        self._woken.clear()
        if self._waiters.closed:
            raise shutting_down()
        return woken
