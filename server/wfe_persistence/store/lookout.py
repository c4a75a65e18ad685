"""The lookout: looks, for all lines of a server together, whether there is what they wait for.

However many wait, it is one reader: many lines of a kind and a namespace are looked at with one
statement. A line is looked at soon after somebody begins to wait in it; when it is told that
something may concern the line; at the time for which something is expected (a delayed item, the end
of a lease); and now and then, with all others, because other programs write the same tables, a
server may be at work that tells nobody, and what is told may be lost.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from wfe_persistence.errors import PersistenceError
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.store.waiting import ALL, Ahead, Kind, Line, Waiters, is_passing

log = logging.getLogger(__name__)
warnings = RecurringWarnings(log)

# How often (seconds) all lines are looked at, give or take a quarter: while other servers tell this
# one, and while they can't. And how much longer for each line, so that very many of them take but
# a small part of the database's time.
_TOLD_SECONDS: Final = 5.0
_UNTOLD_SECONDS: Final = 0.5
_SECONDS_PER_LINE: Final = 0.0002

# How many lines are looked at with one statement, how many statements run at once in each database,
# and the pause (seconds) after each: what comes meanwhile is looked at together.
_LINES: Final = 500
_READERS: Final = 2
_PAUSE_SECONDS: Final = 0.003

# When a look has failed, the pause (seconds) until the next one, give or take a half.
_RETRY_SECONDS: Final = 0.5

_Batch = tuple[str, Kind]


class Lookout:
    """The lookout of one server."""

    def __init__(self, waiters: Waiters) -> None:
        self._waiters = waiters
        self._waiters.look = self.look
        # What is to be looked at, by namespace and kind; the inner values are not used. The second
        # one, of the sweep over all lines, comes after the first.
        self._due: dict[_Batch, dict[str, None]] = {}
        self._swept: dict[_Batch, dict[str, None]] = {}
        # By database: how many looks there are at the moment.
        self._reading: Counter[str] = Counter()
        self._work = asyncio.Event()
        self._told = False
        self._retold = asyncio.Event()
        self.is_told: Callable[[], bool] = lambda: False
        """Whether other servers tell this one what they write."""

    def look(self, line: Line) -> None:
        """Look at a line soon."""
        self._due.setdefault(line[:2], {})[line.name] = None
        self._work.set()

    def reconsider(self) -> None:
        """Other servers have begun, or ceased, to tell this one."""
        self._retold.set()

    async def run(self, databases: int = 1) -> None:
        """Look, for as long as the server runs: in so many databases."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep())
            for _ in range(_READERS * databases):
                tasks.create_task(self._read())

    async def _sweep(self) -> None:
        while True:
            seconds = _TOLD_SECONDS if self.is_told() else _UNTOLD_SECONDS
            seconds = seconds * random.uniform(0.75, 1.25) + len(self._waiters) * _SECONDS_PER_LINE
            self._retold.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._retold.wait()
            except TimeoutError:
                for line, _ in self._waiters.lines():
                    if line.kind.look is not None:
                        self._swept.setdefault(line[:2], {})[line.name] = None
                self._work.set()

    async def _read(self) -> None:
        while True:
            await self._work.wait()
            if (batch := self._take()) is not None:
                key, names = batch
                database = self._database(key, names)
                self._reading[database] += 1
                try:
                    await self._look_at(key, names)
                finally:
                    self._reading[database] -= 1
                    if self._due or self._swept:
                        self._work.set()  # for those that may be taken only now
            await asyncio.sleep(_PAUSE_SECONDS)

    def _database(self, key: _Batch, names: Iterable[str]) -> str:
        """The name of the database in which lines are looked at; empty: nobody waits any more."""
        for name in names:
            if (place := self._waiters.place(Line(*key, name))) is not None:
                return place.store.database.name
        return ""

    def _take(self) -> tuple[_Batch, list[str]] | None:
        """Some of what is to be looked at, in a database in which there are not enough looks."""
        for due in (self._due, self._swept):
            for key in due:
                if self._reading[self._database(key, due[key])] >= _READERS:
                    continue
                names = due.pop(key)
                taken = [names.popitem()[0] for _ in range(min(len(names), _LINES))]
                if names:
                    due[key] = names  # behind the others
                return key, taken
        self._work.clear()
        return None

    async def _look_at(self, key: _Batch, names: list[str]) -> None:
        namespace, kind = key
        lines = {name: Line(namespace, kind, name) for name in names}
        places = {
            name: place
            for name, line in lines.items()
            if (place := self._waiters.place(line)) is not None
        }
        if not places or kind.look is None:
            return
        try:
            store = next(iter(places.values())).store
            found = {ahead.name: ahead for ahead in await kind.look(store, list(places))}
        except PersistenceError as exc:
            # Whoever waits for what can't be had, learns that by a look of its own.
            ready = 0 if is_passing(exc) else ALL
            warnings.warn(kind.name, f"can't look for what calls wait for: {exc}")
            seconds = _RETRY_SECONDS * random.uniform(0.5, 1.5)
            found = {name: Ahead(name, ready, seconds) for name in places}
        except Exception:
            log.exception("bug: can't look for what calls wait for")
            found = {name: Ahead(name, seconds=_RETRY_SECONDS) for name in places}
        for name in places:
            self._found(lines[name], found.get(name) or Ahead(name))

    def _found(self, line: Line, ahead: Ahead) -> None:
        place = self._waiters.place(line)
        if place is None:
            return
        if place.alarm is not None:
            place.alarm.cancel()
            place.alarm = None
        self._waiters.set_behind(line, place, ahead.behind)
        loop = asyncio.get_running_loop()
        place.looked = loop.time()
        seconds = ahead.seconds
        if not ahead.ready:
            place.vain = 0
        elif (wait := place.not_before - loop.time()) > 0:
            seconds = wait if seconds is None else min(wait, seconds)
        else:
            self._waiters.call(line, ahead.ready)
        if seconds is not None:
            place.alarm = loop.call_later(max(seconds, 0.001), self.look, line)
