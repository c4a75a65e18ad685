"""Where a dequeue begins to look in a queue: behind what is known to have gone.

Items leave at the head of their queue, and what is left of them stays in its index until a vacuum
comes, or for as long as a transaction stays open that might see it: so whoever began at the
beginning would pass by all that was handled lately. Here it is remembered for each queue below
which visible_time there is nothing. What comes to be below all the same (an item enqueued for a
time in the past through another server, a transaction that took long to commit, an item that was
locked) is found by looks from the beginning. These take a small part of the time, however long each
of them takes; and as long as they are quick, a dequeue that finds nothing looks once more from the
beginning itself.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from contextvars import Context
from typing import Final

from wfe_persistence.errors import PersistenceError

LOOK_SECONDS: Final = 0.05
"""A floor that is older is looked for anew when it is used."""

_REST: Final = 20
"""A look from the beginning is followed by a rest of so many times as long."""

_QUICK_SECONDS: Final = 0.02
_KNOWN_SECONDS: Final = 1.0
_MAX_QUEUES: Final = 1000
"""So many floors are remembered: those of the queues that were used last."""

BEGINNING: Final = None
"""The floor of a queue of which nothing is known. Floors are in µs, as a timestamptz has them."""

Look = Callable[[str, int | None], Awaitable[int]]
"""Finds the floor of a queue, beginning at an earlier one."""


class _Floor:
    __slots__ = ("at", "changes", "floor", "from_beginning_at", "looking", "took")

    def __init__(self) -> None:
        self.floor: int | None = BEGINNING
        self.at = self.from_beginning_at = float("-inf")
        self.took = 0.0
        """How long the last look from the beginning took."""
        self.looking = False
        self.changes = 0
        """How often it was lowered: what was looked at before no longer holds."""


class Floors:
    """The floors of one namespace's queues."""

    def __init__(self) -> None:
        self._floors: OrderedDict[str, _Floor] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def of(self, queue: str) -> int | None:
        """Where to begin; None: at the beginning."""
        found = self._floors.get(queue)
        return BEGINNING if found is None else found.floor

    def known(self, queue: str) -> int | None:
        """The same for whoever looks by itself now and then: the beginning, unless others have
        looked there of late."""
        found = self._floors.get(queue)
        if found is None or found.from_beginning_at < asyncio.get_running_loop().time() - max(
            _KNOWN_SECONDS, 2 * _REST * found.took
        ):
            return BEGINNING
        return found.floor

    def may_hide(self, queues: Iterable[str]) -> bool:
        """Whether it is worth a look from the beginning that nothing was found in these queues:
        because it is quick, and it is not known from a moment ago."""
        before = asyncio.get_running_loop().time() - LOOK_SECONDS
        found = [floor for queue in queues if (floor := self._floors.get(queue)) is not None]
        return all(floor.took <= _QUICK_SECONDS for floor in found) and any(
            floor.floor is not BEGINNING and floor.from_beginning_at < before for floor in found
        )

    def lower(self, queue: str, time: int | None = BEGINNING) -> None:
        """Know that there may be an item from this time on."""
        found = self._floors.get(queue)
        if found is None:
            return
        found.changes += 1
        if time is BEGINNING or (found.floor is not None and time < found.floor):
            found.floor = time

    def keep_up(self, queues: Iterable[str], look: Look) -> None:
        """Look for the floors of queues that are used, in the background, if it is time."""
        loop = asyncio.get_running_loop()
        for queue in queues:
            found = self._floors.get(queue)
            if found is None:
                found = self._floors[queue] = _Floor()
                if len(self._floors) > _MAX_QUEUES:
                    self._floors.popitem(last=False)
            now = loop.time()
            if found.looking or now - found.at < LOOK_SECONDS:
                continue
            self._floors.move_to_end(queue)
            found.looking = True
            # In a context of its own: it belongs to no call.
            task = loop.create_task(self._look(queue, found, look), context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _look(self, queue: str, found: _Floor, look: Look) -> None:
        now = asyncio.get_running_loop().time
        begun, changes = now(), found.changes
        is_due = begun - found.from_beginning_at >= found.took * _REST
        start = BEGINNING if is_due else found.floor
        try:
            with suppress(PersistenceError):
                floor = await look(queue, start)
                if changes == found.changes:
                    found.floor = floor
                if start is BEGINNING:
                    found.took = now() - begun
        finally:
            found.looking = False
            found.at = now()
            if start is BEGINNING:
                found.from_beginning_at = found.at
