"""Whether the default store can be used: the database examined, the schema migrated and current."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import CannotServeError, PersistenceError
from wfe_persistence.store import admin, migrate, migration_files, migration_history, owner
from wfe_persistence.store.migrate import Migrated
from wfe_persistence.store.migration_history import SchemaVersion
from wfe_persistence.store.owner import Owner
from wfe_persistence.store.tables import Store

log = logging.getLogger(__name__)

# The timeout of one look at the schema version, except for the first one, which may migrate; and of
# the question whether the database answers at all, if a look takes longer. With the pause between
# two looks, a stalled database is noticed within 3 s.
_LOOK_SECONDS = 0.75
_ANSWER_SECONDS = 1.0

WATCH_SECONDS: Final = 1.0
"""The pause between two looks."""


@dataclass(frozen=True, slots=True)
class State:
    """Whether calls can succeed; if not, why."""

    ready: bool
    why: str = ""
    reached: bool = True
    """Whether the database answers."""


async def busy_or_stalled(store: Store) -> State | None:
    """A database that is only busy stays healthy: its state is unknown."""
    if store.database.is_away:
        return State(ready=False, why="the database can't be reached", reached=False)
    if not await store.database.answers(_ANSWER_SECONDS):
        return State(ready=False, why="the database has stopped answering", reached=False)
    return None


class Readiness:
    """Prepares the default store and knows its state; one for the whole server.

    `migrate`: apply pending migrations when the database is first reached, if that is reckoned to
    take up to `migrate_seconds`. `allow_data_loss`: accept a database that may lose committed
    transactions.
    """

    def __init__(
        self, store: Store, *, migrate: bool, migrate_seconds: float, allow_data_loss: bool
    ) -> None:
        self._store = store
        self._migrate = migrate
        self._migrate_seconds = migrate_seconds
        self._allow_data_loss = allow_data_loss
        self._examined = False
        self._has_served = False
        self._is_outrun = False
        self.is_starting = migrate
        """Missing tables will come soon: the first migration has neither succeeded nor failed."""

    async def look(self) -> State | None:
        """The current state; None if it is unknown because the server or its database is busy.

        The first time that the database is reached, it is examined and migrated. Raises
        CannotServeError if the server is configured for a database or a store that is not for it,
        but only as long as it has not served any: it must not be ended by what others do to it.
        """
        try:
            async with asyncio.timeout(_LOOK_SECONDS if self._examined else None):
                return await self._look()
        except PersistenceError as exc:
            is_foreign = exc.reason == ErrorReason.ERROR_REASON_STORE_NOT_OWNED
            if is_foreign and not self._has_served:
                raise CannotServeError(str(exc)) from exc
            if exc.reason in (
                ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
                ErrorReason.ERROR_REASON_SCHEMA_TOO_NEW,
            ):
                self.is_starting = False
            if exc.reason == ErrorReason.ERROR_REASON_POOL_EXHAUSTED:
                return await busy_or_stalled(self._store)
            # Why it can't be reached has been logged.
            away = self._store.database.is_away
            return State(
                ready=False,
                why=str(exc) if away else exc.in_full,
                reached=exc.reason != ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
            )
        except TimeoutError:
            return await busy_or_stalled(self._store)

    async def _look(self) -> State:
        if why := await admin.why_read_only(self._store):
            return State(ready=False, why=why)
        if not self._examined:
            await self._examine()
            self._examined = True
            self.is_starting = False
        version = await migration_history.schema_version(self._store)
        version.check_usable()
        await self._check_owner(version)
        if version.is_outdated:
            return State(
                ready=False,
                why=f"the store has schema version {version.number}, "
                f"{migration_files.latest_version()} is needed (wfe-persistence migrate up)",
            )
        if version.is_newer and not self._is_outrun:
            log.info(
                "the store has been migrated to schema version %d, which this server with version "
                "%d may go on using",
                version.number, migration_files.latest_version(),
            )  # fmt: skip
        self._is_outrun = version.is_newer
        self._has_served = True
        return State(ready=True)

    async def _check_owner(self, version: SchemaVersion) -> None:
        """Raise STORE_NOT_OWNED for the store of other servers; claim one that nobody has."""
        found = await owner.read_owner(self._store, version.number)
        if found is None and not version.is_outdated:
            found = await owner.claim(self._store)
        if found is not None and found != Owner.of(self._store.schema):
            owner.raise_foreign(self._store.schema, found)

    async def _examine(self) -> None:
        """Check the database, and migrate the store unless that is turned off."""
        database = await admin.database_info(self._store)
        if objections := database.objections():
            raise CannotServeError("; ".join(objections))
        if not database.durable:
            if not self._allow_data_loss:
                raise CannotServeError(
                    "the database runs with fsync or synchronous_commit off, so it may lose "
                    "committed transactions; turn them on, or accept it with --allow-data-loss"
                )
            log.warning("the database may lose committed transactions (--allow-data-loss)")
        if self._migrate:
            await ensure_store_exists(self._store, self._migrate_seconds, refuse=False)


class Service:
    """The state of a service with all its databases.

    It is ready as long as the namespaces in one of them can be served, once it has known the home.
    `others`: the default store, as it would be in each of the databases besides the home.
    """

    def __init__(
        self, readiness: Readiness, home: str, others: Sequence[Store], *, allow_data_loss: bool
    ) -> None:
        self._readiness = readiness
        self._home = home
        self._others = others
        self._allow_data_loss = allow_data_loss
        self._has_been_ready = False
        self.states: dict[str, State] = {
            name: State(ready=False, why="the database has not been reached yet", reached=False)
            for name in (home, *(store.database.name for store in others))
        }
        """By the names of the databases, as last seen."""

    async def look(self) -> State | None:
        """The state of the whole, having looked at the home; None: nothing is known yet. Raises
        what `Readiness.look` does."""
        state = await self._readiness.look()
        if state is not None:
            self.states[self._home] = state
        elif not self._has_been_ready:
            return None
        home = self.states[self._home]
        self._has_been_ready = self._has_been_ready or home.ready
        if self._has_been_ready and any(state.ready for state in self.states.values()):
            return State(ready=True, why=home.why, reached=home.reached)
        return home

    async def watch(self) -> None:
        """Look at the others, for as long as the server runs; none waits for another."""
        await asyncio.gather(*map(self._watch, self._others))

    async def _watch(self, store: Store) -> None:
        name = store.database.name
        while True:
            state = await self._look(store)
            if state is not None and state != self.states[name]:
                self.states[name] = state
                if state.ready:
                    log.info("the database %s can be used", name)
                else:
                    log.warning("the database %s can't be used: %s", name, state.why)
            await asyncio.sleep(WATCH_SECONDS)

    async def _look(self, store: Store) -> State | None:
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                found = await admin.database_info(store)
        except PersistenceError as exc:
            if exc.reason == ErrorReason.ERROR_REASON_POOL_EXHAUSTED:
                return await busy_or_stalled(store)
            away = store.database.is_away
            return State(ready=False, why=str(exc) if away else exc.in_full, reached=not away)
        except TimeoutError:
            return await busy_or_stalled(store)
        objections = found.objections()
        if not (found.durable or self._allow_data_loss):
            objections.append("fsync or synchronous_commit is off (see --allow-data-loss)")
        return State(ready=not objections, why="; ".join(objections))


async def ensure_store_exists(
    store: Store, migrate_seconds: float, *, refuse: bool = True
) -> Migrated:
    """Create a store or migrate it, if that is reckoned to take up to `migrate_seconds`."""
    async with store.database.lane.turn(store.schema.name, refuse=refuse):
        migrated = await migrate.migrate(store.database, store.schema, unattended=migrate_seconds)
    for name in migrated.applied:
        log.info("schema %s: applied %s", store.schema.name, name)
    return migrated
