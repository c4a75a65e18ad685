"""One move, from phase to phase, from wherever it is.

    copying    The target gets the rows, and then what is written meanwhile; by COPY, its schema.
    switching  Writes are held, the rest gets there, the source is fenced, the target put into use.
    cleaning   What was needed for it is taken away. The source's schema stays for a while.
    aborting   The same, of a move that is given up before the fence.

Each step may be the last one of a driver, and be done again by the next.
`tests/faults/test_moves.py` ends one at each of the places that are named here by `_at`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg

from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.administration import INDEPENDENT
from wfe_persistence.store.moving import (
    copying,
    directory,
    guard,
    logical,
    prerequisites,
    sides,
    switch,
)
from wfe_persistence.store.moving.directory import Directory, Entry
from wfe_persistence.store.moving.failures import explained
from wfe_persistence.store.moving.prerequisites import NotPossible, Plan, Way
from wfe_persistence.store.moving.sides import AsyncConnection, Side
from wfe_persistence.store.postgres.session import Session

log = logging.getLogger(__name__)

REPORT_SECONDS: Final = 0.5
_BEAT_SECONDS: Final = 0.2 * directory.STALE_SECONDS
# The subscriber must be so close behind for the pause to begin (seconds), and has so long in it.
_CLOSE_SECONDS: Final = 0.3
_APPLY_SECONDS: Final = 5.0

# For how long writes are held at most while nothing is heard of who moves: then PostgreSQL ends its
# connection, and with that the move up to there. Less than the time after which others go on with a
# move, since its last beat: so they find nobody who could still commit a fence.
_HOLD_SECONDS: Final = 0.7 * directory.STALE_SECONDS
_COPY_SECONDS: Final = 600.0

GUARD_SECONDS: Final = 5.0
"""For how long users of the tables are waited for, to remove a guard that is open."""

# What is done to its end even if nobody waits for it.
_tasks: set[asyncio.Task[Any]] = set()

At = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a move is."""

    phase: str
    """That of the directory; before it begins `planned`, and at its end `moved`."""
    plan: Plan | None = None
    """Of one that has not begun: what it will be like."""
    way: Way | None = None
    copied_bytes: int = 0
    total_bytes: int = 0
    lag_bytes: int = 0
    """How much write-ahead log the target is behind."""
    pause_seconds: float = 0.0
    """For how long writes were held, at the end."""


class Drive:
    """A move that has begun, driven from phase to phase.

    `grace`: how long (seconds) the schema is kept that it leaves. `at`: called at each place where
    a driver might end.
    """

    def __init__(
        self,
        entry: Entry,
        source: Side,
        target: Side,
        directory_: Directory,
        *,
        grace: float,
        at: At,
    ) -> None:
        self.entry = entry
        self.source = source
        self.target = target
        self._directory = directory_
        self._grace = grace
        self._at = at
        self.copied = 0
        self.pause = 0.0
        self.is_final = False
        """Whether what is done now must be done to its end."""

    @property
    def way(self) -> Way:
        """How it is moved, whatever is wanted by now."""
        return Way(self.entry.detail["way"])

    @property
    def move(self) -> str:
        """The id of the move."""
        return self.entry.move

    @property
    def archive(self) -> str:
        """What the source's schema is called behind the fence."""
        return sides.archive_name(self.source.schema, self.move)

    def progress(self) -> Progress:
        """How far it is, without a look at the databases."""
        return Progress(
            self.entry.phase or "moved",
            way=self.way,
            copied_bytes=self.copied,
            total_bytes=int(self.entry.detail.get("bytes", 0)),
            pause_seconds=self.pause or float(self.entry.detail.get("pause", 0.0)),
        )

    async def run(self, *, only_from_switch: bool = False) -> AsyncGenerator[Progress, None]:
        """Go on to the end, and say how far it is. `only_from_switch`: if it has not come to that,
        leave it to those who want it."""
        async with self._beating():
            with explained():
                if self.entry.phase == directory.SWITCHING:
                    await self._beyond_fence_or_back()
                if self.entry.phase == directory.COPYING:
                    if only_from_switch:
                        return  # it is for somebody who wants it
                    async with aclosing(self._copy()) as copying_:
                        async for progress in copying_:
                            yield progress
                    switching = self._reported(self._switch(), directory.SWITCHING)
                    async with aclosing(switching):
                        async for progress in switching:
                            yield progress
                if self.entry.phase == directory.SWITCHING:
                    await self._to_its_end(self._put_into_use())
                yield self.progress()
                await self.clean_up()
                yield self.progress()

    async def _reported(
        self, work: Coroutine[Any, Any, Any], phase: str
    ) -> AsyncGenerator[Progress, None]:
        """Do what may take long, and say how far it is. If nobody wants to know any more, it ends
        where it is, but not between the fence and the target's being in use: others wait."""
        task = asyncio.create_task(work)
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        try:
            yield replace(self.progress(), phase=phase)
            while not task.done():
                await asyncio.wait({task}, timeout=REPORT_SECONDS)
                if not task.done():
                    yield replace(self.progress(), phase=phase)
            await task
        except (GeneratorExit, asyncio.CancelledError):
            if not self.is_final:
                task.cancel()
            await self._end_of(task)
            raise

    async def _copy(self) -> AsyncGenerator[Progress, None]:
        """Have the target follow the source closely."""
        async with self.source.connect() as here, self.target.connect() as there:
            if await self._is_beyond_fence(here):
                return
            is_whole = await sides.is_incoming(there, self.target.schema, self.move)
            if is_whole and self.way is Way.LOGICAL:
                is_whole = (await logical.state(here, there, self.move)).is_whole
            if not is_whole or self.way is Way.COPY:
                beginning = self._reported(self._begin_copy(here, there), directory.COPYING)
                async with aclosing(beginning):
                    async for progress in beginning:
                        yield progress
            if self.way is Way.COPY or await self._is_beyond_fence(here):
                return
            async with aclosing(self._until_close(here, there)) as following:
                async for progress in following:
                    yield progress
            await self._at("copied")
            await self._analyze(there)
            # That may have taken long: nobody shall wait for what has come meanwhile.
            async with aclosing(self._until_close(here, there)) as following:
                async for progress in following:
                    yield progress
            await self._at("close")

    async def _until_close(
        self, here: AsyncConnection, there: AsyncConnection
    ) -> AsyncGenerator[Progress, None]:
        """Wait until the target has all rows but the very latest."""
        while True:
            state = await logical.state(here, there, self.move)
            if not state.is_whole:
                raise NotPossible(
                    "the slot or the subscription of the move was lost, perhaps for want of "
                    "space for the write-ahead log (max_slot_wal_keep_size); taken up again, "
                    "it begins anew"
                )
            self.copied = state.copied_bytes
            yield replace(self.progress(), lag_bytes=state.lag_bytes)
            if state.ready == state.tables and await logical.wait_until_applied(
                here, self.move, _CLOSE_SECONDS
            ):
                return
            await asyncio.sleep(REPORT_SECONDS)

    async def _begin_copy(self, here: AsyncConnection, there: AsyncConnection) -> None:
        """Begin from the beginning, whatever is there of this move, unless it is past its fence."""
        source, target, move = self.source, self.target, self.move
        # Without the publication no other driver of this move can fence the source any more, so
        # what the target has is not needed.
        await logical.take_publication(here, move)
        if await self._is_beyond_fence(here):
            return
        await self._at("publication taken")
        await logical.drop_slots(here, move, await logical.unsubscribe(there, move))
        await sides.drop_incoming(there, target.schema, move)
        if await sides.comment(there, target.schema.name) is not None:
            raise NotPossible(f"{target.name} has another schema {target.schema.name} by now")
        await self._at("target empty")
        await sides.create_incoming(there, target.schema, target.name, move)
        await prerequisites.check_same_columns(here, there, source, target)
        await self._at("target created")
        # Not for somebody who has taken it over, or aborted it, meanwhile.
        self.entry = await self._change(directory.COPYING)
        if self.way is Way.COPY:
            # It publishes nothing; to take it away is what decides on the fence.
            await here.execute(sides.sql(f'CREATE PUBLICATION "{logical.name_of(move)}"'))
            return
        await logical.publish(here, source, move)
        await self._at("published")
        await logical.subscribe(there, source, move)
        await self._at("subscribed")
        try:
            self.entry = await self._change(directory.COPYING)
        except PersistenceError:
            await self._undo_if_aborted(here, there)
            raise

    async def _undo_if_aborted(self, here: AsyncConnection, there: AsyncConnection) -> None:
        """Take away what was made while the move was being aborted; nobody else would."""
        found = await self._directory.read(self.entry.namespace)
        if found is None or found.move != self.move or found.phase is None:
            await logical.take_publication(here, self.move)
            await logical.drop_slots(here, self.move, await logical.unsubscribe(there, self.move))
            await sides.drop_incoming(there, self.target.schema, self.move)

    async def _switch(self) -> None:
        """Hold writes, have the rest follow, and fence the source."""
        source, target, move = self.source, self.target, self.move
        async with (
            self._apart() as session,
            source.connect() as holder,
            source.connect() as here,
            target.connect() as there,
        ):
            if await self._is_beyond_fence(here):
                self.entry = await self._change(directory.SWITCHING)
                return
            began = time.monotonic()
            # Copying says little to this connection for as long as it takes.
            is_copy = self.way is Way.COPY
            await switch.hold_writes(holder, source, _COPY_SECONDS if is_copy else _HOLD_SECONDS)
            await self._at("held")
            versions = [
                await prerequisites.schema_version(*each)
                for each in ((holder, source), (there, target))
            ]
            if versions[0] != versions[1]:
                raise NotPossible(
                    f"the namespace was migrated to schema version {versions[0]} meanwhile: abort "
                    "the move and begin again"
                )
            if self.way is Way.COPY:
                await self._copy_all(holder, there)
            elif not await logical.wait_until_applied(
                here, move, _APPLY_SECONDS, 0.002, durably=True
            ):
                raise NotPossible(
                    f"the target did not follow within {_APPLY_SECONDS:g} s; the move can be taken "
                    "up again"
                )
            await switch.hold_sequences(holder, source)
            await switch.hold_for(holder, _HOLD_SECONDS)
            self.is_final = True
            self.entry = await self._change(directory.SWITCHING, session)
            await self._at("switching")
            await switch.fence(holder, source, self.archive, move)
            await self._at("fenced")
            await self._activate(here, there)
            self.pause = time.monotonic() - began
        await self._write_switched()

    async def _copy_all(self, holder: AsyncConnection, there: AsyncConnection) -> None:
        def report(done: int) -> None:
            self.copied = done

        async with guard.passing(there, self.target.schema, self.move):
            await there.execute(INDEPENDENT)
            for table in self.target.tables().values():
                await there.execute(sides.sql(f"DELETE FROM {table}"))
            await copying.copy_tables(holder, there, self.source, self.target, report)
        await self._at("copied")

    async def _put_into_use(self) -> None:
        """What is left of a switch whose fence was committed."""
        async with self.source.connect() as here, self.target.connect() as there:
            await self._activate(here, there)
        await self._write_switched()

    async def _activate(self, here: AsyncConnection, there: AsyncConnection) -> None:
        sequences = await switch.read_sequences(here, self.archive)
        generation = int(self.entry.detail["generation"]) + 1
        await switch.activate(there, self.target, self.move, generation, sequences)
        await self._at("activated")

    async def _write_switched(self) -> None:
        entry = self.entry
        now, target = time.time(), self.target
        archive = directory.moved_away(self.source.name, self.archive, now + self._grace)
        open_guard = directory.guarded(target.name, guard.name_of(target.schema, self.move), now)
        self.entry = await self._directory.change(
            entry,
            phase=directory.CLEANING,
            was=directory.SWITCHING,
            database=target.name,
            generation=int(entry.detail["generation"]) + 1,
            detail={"remains": [*entry.remains, archive, open_guard], "pause": self.pause},
        )
        log.info(
            "namespace %s: moved from %s to %s; writes were held for %.2f s",
            entry.namespace, self.source.name, target.name, self.pause,
        )  # fmt: skip
        await self._at("switched")

    async def _beyond_fence_or_back(self) -> None:
        """Of a move that was left while it was switching: on which side of the fence it is."""
        async with self.source.connect() as here:
            # Who drove it may only be slow. Whoever takes this away decides: see `switch.fence`.
            await here.execute("SET lock_timeout = '10s'")
            await logical.take_publication(here, self.move)
            if not await self._is_beyond_fence(here):
                self.entry = await self._change(directory.COPYING)

    async def _is_beyond_fence(self, here: AsyncConnection) -> bool:
        return await sides.is_moved_away(here, self.archive, self.move)

    async def clean_up(self) -> None:
        """Take away what was needed for a move that is over, or given up."""
        is_given_up = self.entry.phase == directory.ABORTING
        with explained():
            async with self.source.connect() as here:
                # First of all on the source: it keeps its write-ahead log for the slot.
                await logical.take_publication(here, self.move)
                if not is_given_up:
                    async with self.target.connect() as there:
                        await logical.drop_slots(
                            here, self.move, await logical.unsubscribe(there, self.move)
                        )
                        if self.way is Way.COPY:
                            await self._analyze(there)
                        await self._remove_guard(there)
                else:
                    await logical.drop_slots(here, self.move)
                    await self._at("slot dropped")
                    async with self.target.connect() as there:
                        syncs = await logical.unsubscribe(there, self.move)
                        await sides.drop_incoming(there, self.target.schema, self.move)
                    await logical.drop_slots(here, self.move, syncs)
        await self._at("cleaned")
        self.entry = await self._directory.change(self.entry, phase=None)

    async def _remove_guard(self, there: AsyncConnection) -> None:
        """Remove the guard that was opened; later, if somebody uses the tables for long."""
        name = guard.name_of(self.target.schema, self.move)
        with suppress(TimeoutError, psycopg.Error):
            async with asyncio.timeout(GUARD_SECONDS):
                await guard.remove(there, self.target.schema, name)
            await self._directory.dropped(self.entry.namespace, name)

    async def _analyze(self, there: AsyncConnection) -> None:
        """Have plans go by what is in the tables: their statistics are those of empty ones."""
        async with guard.passing(there, self.target.schema, self.move):
            for table in self.target.tables().values():
                await there.execute(sides.sql(f"ANALYZE {table}"))

    @asynccontextmanager
    async def _apart(self) -> AsyncIterator[Session]:
        """A connection to the directory that waits for nobody's writes."""
        session = await Session.open(self._directory.home.database)
        try:
            yield session
        finally:
            await session.close()

    async def _change(self, phase: str, session: Session | None = None) -> Entry:
        return await self._directory.change(
            self.entry,
            phase=phase,
            was=self.entry.phase,
            moving_to=self.target.name,
            session=session,
        )

    @asynccontextmanager
    async def _beating(self) -> AsyncIterator[None]:
        """Say once in a while that somebody drives the move; in the end, that nobody does."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(_BEAT_SECONDS)
                with suppress(PersistenceError):
                    entry = self.entry
                    if entry.phase is not None:
                        await self._directory.touch(entry, {})

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()
            if self.entry.phase is not None:
                with suppress(PersistenceError, asyncio.CancelledError):
                    await self._to_its_end(self._directory.touch(self.entry, {"released": True}))

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Do work to its end, however often the caller is cancelled meanwhile."""
        task = asyncio.create_task(work)
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await self._end_of(task)
            raise

    async def _end_of(self, task: asyncio.Task[Any]) -> None:
        """Wait for the end of what must not be left halfway, whose error nobody will be told."""
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.warning(
                "namespace %s: left while %s: %s", self.entry.namespace, self.entry.phase, exc
            )
