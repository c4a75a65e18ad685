"""Moves of namespaces: begun, taken up again, finished or aborted; `drive.py` has the way."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError, namespace_not_found
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.store.moving import directory, guard, logical, prerequisites, sides
from wfe_persistence.store.moving.directory import Directory, Entry
from wfe_persistence.store.moving.drive import GUARD_SECONDS, REPORT_SECONDS, At, Drive, Progress
from wfe_persistence.store.moving.failures import (
    explained,
    in_progress,
    not_possible,
    past_the_fence,
)
from wfe_persistence.store.moving.prerequisites import Plan, Way
from wfe_persistence.store.moving.sides import AsyncConnection, Side
from wfe_persistence.store.placement import CREATING, DELETED, Databases
from wfe_persistence.store.schema import DEFAULT_NAMESPACE, HOME

log = logging.getLogger(__name__)
warnings = RecurringWarnings(log)

_FINISH_SECONDS: Final = 5.0
# For how long what is in the same databases waits for one namespace.
_FINISH_EACH_SECONDS: Final = 60.0
_PHASES: Final = (
    directory.COPYING, directory.SWITCHING, directory.CLEANING, directory.ABORTING
)  # fmt: skip


async def _nowhere(_: str) -> None:
    """Where nothing is planted."""


class Mover:
    """Moves namespaces among databases.

    `grace`: how long (seconds) a schema is kept after it was moved away. `at`: called at each place
    where a driver might end, for tests.
    """

    def __init__(
        self,
        directory_: Directory,
        databases: Databases,
        *,
        grace: float = 86_400.0,
        at: At = _nowhere,
    ) -> None:
        self._directory = directory_
        self._databases = databases
        self._grace = grace
        self._at = at
        # What `finish` does at the moment, by namespace.
        self._finishing: dict[str, asyncio.Task[None]] = {}

    async def look(self, namespace: str, to: str, way: Way | None) -> Progress:
        """What a move would be like, or how far it is. Changes nothing. Raises as `move` does."""
        entry = await self._entry(namespace)
        if to not in self._databases:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_DATABASE_NOT_FOUND,
                "the service has no database with this name",
                metadata={"database": to},
            )
        if entry.phase is not None:
            return self._checked(entry, to).progress()
        if entry.database == to:
            await self._check_is_there(namespace, to)
            return Progress("moved")
        with explained():
            plan = await prerequisites.examine(
                self._side(namespace, entry.database), self._side(namespace, to), way
            )
        return Progress("planned", plan)

    async def move(
        self, namespace: str, to: str, way: Way | None
    ) -> AsyncGenerator[Progress, None]:
        """Move a namespace, or take up a move where it was left; how far it is, twice a second.

        If the generator is closed before its end, the move stays as it is, for the next call.
        Raises NAMESPACE_NOT_FOUND, DATABASE_NOT_FOUND, MOVE_NOT_POSSIBLE, MOVE_IN_PROGRESS,
        DATABASE_UNAVAILABLE, and TRANSACTION_CONFLICT if somebody else has taken it over.
        """
        seen_before = await self.look(namespace, to, way)
        yield seen_before
        if seen_before.phase == "moved":
            return
        entry = await self._entry(namespace)
        if seen_before.plan is not None:
            entry = await self._begin(entry, to, seen_before.plan)
        else:
            self._checked(entry, to)
            async for seen in self._until_stale(entry):
                if isinstance(seen, Entry):
                    entry = seen
                else:
                    yield seen
            if entry.phase is None:
                yield Progress("moved")
                return
        async with aclosing(self._drive(entry).run()) as driving:
            async for progress in driving:
                yield progress

    async def abort(self, namespace: str) -> bool:
        """Give up a move; whether there was one. Raises MOVE_IN_PROGRESS past its fence."""
        entry = await self._directory.read(namespace)
        if entry is None or entry.phase not in _PHASES:
            return False
        if entry.phase == directory.CLEANING:
            raise past_the_fence(namespace)
        drive = self._drive(entry)
        if entry.phase != directory.ABORTING:
            with explained():
                async with drive.source.connect() as here:
                    # Whoever takes it away is the only one to decide: see `switch.fence`.
                    await here.execute("SET lock_timeout = '10s'")
                    if not await logical.take_publication(
                        here, drive.move
                    ) and await sides.is_moved_away(here, drive.archive, drive.move):
                        raise past_the_fence(namespace)
        taken = await self._directory.take(entry, by_force=True)
        if taken is None:
            raise in_progress(entry)
        drive.entry = await self._directory.change(
            taken, phase=directory.ABORTING, moving_to=taken.moving_to
        )
        await self._at("aborting")
        await drive.clean_up()
        return True

    async def run(self) -> None:
        """Call `finish` for as long as the server runs."""
        while True:
            await asyncio.sleep(_FINISH_SECONDS * random.uniform(0.75, 1.25))
            try:
                await self.finish()
            except Exception as exc:  # whatever it is, the next time may succeed
                warnings.warn("finish", f"moves can't be looked at: {exc or repr(exc)}")

    async def finish(self) -> None:
        """Finish what nobody drives and can't be left for the next call: moves that have come to
        their switch, and what remains of them. To be called once in a while by each server.

        A database that does not answer holds up only what is in it.
        """
        parts: dict[frozenset[str], list[Entry]] = {}
        for entry in await self._directory.unfinished():
            parts.setdefault(_databases_of(entry), []).append(entry)
        await asyncio.gather(*map(self._finish_each, parts.values()))

    async def _finish_each(self, entries: list[Entry]) -> None:
        """Finish what is in the same databases, one after the other."""
        for entry in entries:
            namespace = entry.namespace
            if namespace in self._finishing:
                continue  # since an earlier call: it did not end when it was called off
            task = asyncio.create_task(self._finish(entry))
            self._finishing[namespace] = task
            task.add_done_callback(functools.partial(self._finished, namespace))
            try:
                await asyncio.wait({task}, timeout=_FINISH_EACH_SECONDS)
            except asyncio.CancelledError:
                task.cancel()
                await asyncio.wait({task})
                raise
            if not task.done():
                task.cancel()
                warnings.warn_each(
                    "hangs",
                    namespace,
                    f"namespace {namespace}: its move can't be finished yet: a database does not "
                    f"answer within {_FINISH_EACH_SECONDS:g} s",
                )
                return

    def _finished(self, namespace: str, _: asyncio.Task[None]) -> None:
        del self._finishing[namespace]

    async def _finish(self, entry: Entry) -> None:
        namespace = entry.namespace
        try:
            if entry.phase in (directory.SWITCHING, directory.CLEANING, directory.ABORTING):
                taken = await self._directory.take(entry)
                if taken is not None:
                    log.warning("namespace %s: finishing its move, which nobody drives", namespace)
                    async for _ in self._drive(taken).run(only_from_switch=True):
                        pass
            elif entry.phase in (None, DELETED):
                await self._drop_remains(entry)
        except Exception as exc:  # whatever it is, the others are not to blame
            why = exc.in_full if isinstance(exc, PersistenceError) else repr(exc)
            warnings.warn_each(
                "finish", namespace, f"namespace {namespace}: its move can't be finished yet: {why}"
            )

    # Driving

    async def _begin(self, entry: Entry, to: str, plan: Plan) -> Entry:
        move = secrets.token_hex(6)
        detail = {
            "move": move,
            "way": plan.way.value,
            "from": entry.database,
            "generation": entry.generation,
            "bytes": plan.bytes,
            "pause": 0.0,
            "begun": time.time(),
        }
        begun = await self._directory.begin(
            entry.namespace, entry.database, entry.generation, to, detail
        )
        log.info(
            "namespace %s: moving from %s to %s, by %s (move %s)",
            entry.namespace, entry.database, to, plan.way.value, move,
        )  # fmt: skip
        await self._at("begun")
        return begun

    async def _until_stale(self, entry: Entry) -> AsyncIterator[Entry | Progress]:
        """Watch a move that another call drives, and take it over as soon as that does not go on.
        The last of it is its entry, driven by us, or without a phase."""
        while True:
            taken = await self._directory.take(entry)
            if taken is not None:
                yield taken
                return
            yield self._drive(entry).progress()
            await asyncio.sleep(2 * REPORT_SECONDS)
            found = await self._directory.read(entry.namespace)
            if found is None or found.phase is None:
                yield found or replace(entry, phase=None)
                return
            if found.phase == directory.ABORTING:
                raise in_progress(found)
            entry = found

    async def _drop_remains(self, entry: Entry) -> None:
        """Drop what remains of moves and whose time has come. Raises the last error."""
        failed: PersistenceError | None = None
        for left in entry.remains:
            if left["until"] >= time.time():
                continue
            try:
                await self._drop(entry.namespace, left)
            except PersistenceError as exc:
                failed = exc
        if failed is not None:
            raise failed
        if entry.phase == DELETED:
            await self._directory.forget(entry.namespace)

    async def _drop(self, namespace: str, left: dict[str, Any]) -> None:
        side = self._side(namespace, left["database"])
        with explained():
            async with side.connect() as connection:
                if "guard" in left:
                    name = left["guard"]
                    await _removed_soon(connection, side, name)
                else:
                    name = left["schema"]
                    await sides.drop_archive(connection, name)
        await self._directory.dropped(namespace, name)
        log.info("namespace %s: dropped %s in %s", namespace, name, side.name)

    # Small things

    async def _check_is_there(self, namespace: str, database: str) -> None:
        side = self._side(namespace, database)
        with explained():
            async with side.connect() as connection:
                await prerequisites.check_is_there(connection, side)

    async def _entry(self, namespace: str) -> Entry:
        if namespace == DEFAULT_NAMESPACE:
            raise not_possible(
                "the namespace default has the directory of all others: it stays at home"
            )
        found = await self._directory.read(namespace)
        if found is not None and found.phase in (CREATING, DELETED):
            raise namespace_not_found(namespace)
        return found or Entry(namespace, HOME, 0, None, None)

    def _checked(self, entry: Entry, to: str) -> Drive:
        """A move that has begun; raises MOVE_IN_PROGRESS if it is another one."""
        if entry.phase == directory.ABORTING or (entry.moving_to or entry.database) != to:
            raise in_progress(entry)
        return self._drive(entry)

    def _drive(self, entry: Entry) -> Drive:
        namespace = entry.namespace
        return Drive(
            entry,
            self._side(namespace, str(entry.detail["from"])),
            self._side(namespace, entry.moving_to or entry.database),
            self._directory,
            grace=self._grace,
            at=self._at,
        )

    def _side(self, namespace: str, name: str) -> Side:
        database = self._databases.named(name, namespace)
        return Side(name, database, self._directory.home.schema.for_namespace(namespace))


async def _removed_soon(connection: AsyncConnection, side: Side, name: str) -> None:
    """Remove a guard. Raises PersistenceError if somebody uses the tables for long."""
    try:
        async with asyncio.timeout(GUARD_SECONDS):
            await guard.remove(connection, side.schema, name)
    except TimeoutError:
        raise not_possible(
            f"indexes that are of no use any more can't be dropped in {side.name}: a transaction "
            "uses the tables for long, see pg_locks"
        ) from None


def _databases_of(entry: Entry) -> frozenset[str]:
    """The databases that it takes to finish something."""
    if entry.phase in (None, DELETED):
        return frozenset(left["database"] for left in entry.remains)
    return frozenset({str(entry.detail.get("from", "")), entry.moving_to or entry.database})
