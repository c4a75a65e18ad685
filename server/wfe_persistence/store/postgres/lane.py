"""The lane of administrative work: all that connects beside the pool, or that locks whole tables.

Such work is slow and takes a connection of its own, so without a bound a hundred calls at once
would take the connections of all servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError

CONNECTIONS: Final = 2
"""How many pieces of administrative work run at once in one server, each on one connection."""

MAX_WAITING: Final = 100
"""How many wait for their turn; further ones are refused."""


class _Key:
    """The work on one schema: one piece at a time."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Lane:
    """Runs administrative work in the order in which it comes, `connections` pieces at once.

    Of the work on one schema, one piece runs at a time: it would only wait for the others' locks,
    and hold up the lane meanwhile.
    """

    def __init__(self, connections: int = CONNECTIONS, max_waiting: int = MAX_WAITING) -> None:
        self._slots = asyncio.Semaphore(connections)
        self._max_waiting = max_waiting
        self._waiting = 0
        self._keys: dict[str, _Key] = {}

    @asynccontextmanager
    async def turn(self, schema: str, *, refuse: bool = True) -> AsyncIterator[None]:
        """Wait for a turn to work on a schema; inside the context it is taken.

        Raises ADMINISTRATION_BUSY if as many as may are waiting already, unless `refuse` is false:
        for work that no caller has asked for.
        """
        if refuse and self._waiting >= self._max_waiting:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_ADMINISTRATION_BUSY,
                f"{self._waiting} administrative calls are waiting already",
                retry_after=1.0,
            )
        key = self._keys.setdefault(schema, _Key())
        key.users += 1
        self._waiting += 1
        waiting = 1
        try:
            async with key.lock, self._slots:
                self._waiting -= 1
                waiting = 0
                yield
        finally:
            self._waiting -= waiting
            key.users -= 1
            if not key.users:
                del self._keys[schema]
