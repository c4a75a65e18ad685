"""Deadlines of what is under way, which a server that stops brings forward all at once."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType


class Deadlines:
    """The deadlines of things of one kind that are under way."""

    def __init__(self) -> None:
        self._pending: set[asyncio.Timeout] = set()
        self.expired = False
        """Whether `expire` was called."""

    def until(self, when: float | None) -> Deadline:
        """As `asyncio.timeout_at`, or until `expire` is called, if that is sooner."""
        return Deadline(self._pending, asyncio.get_running_loop().time() if self.expired else when)

    def expire(self) -> None:
        """Have everything that is under way, or begins later, raise TimeoutError now."""
        self.expired = True
        now = asyncio.get_running_loop().time()
        for timeout in list(self._pending):
            with suppress(RuntimeError):  # it has just expired by itself
                timeout.reschedule(now)


class Deadline:
    """One of them, as a context manager."""

    __slots__ = ("_pending", "_timeout")

    def __init__(self, pending: set[asyncio.Timeout], when: float | None) -> None:
        self._pending = pending
        self._timeout = asyncio.timeout_at(when)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._pending.add(self._timeout)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pending.discard(self._timeout)
        await self._timeout.__aexit__(kind, exc, traceback)
