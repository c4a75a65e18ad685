"""Namespaces: each is a store in its own schema, in one of the databases; all stores in a database
share its connection pool."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping
from time import monotonic
from typing import Any, Final

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe_persistence.errors import PersistenceError, invalid_field, namespace_not_found
from wfe_persistence.store import (
    migration_history,
    namespace_creation,
    namespace_drop,
    owner,
)
from wfe_persistence.store.migrate import Migrated
from wfe_persistence.store.namespace_creation import is_being_moved, migrated_store
from wfe_persistence.store.owner import Owner
from wfe_persistence.store.placement import (
    SWITCHING,
    Databases,
    Found,
    Placement,
    Placements,
    put_last,
)
from wfe_persistence.store.postgres.database import MAX_ATTEMPTS, Database
from wfe_persistence.store.schema import DEFAULT_NAMESPACE, HOME, Schema, is_namespace
from wfe_persistence.store.tables import Store

log = logging.getLogger(__name__)

_REFUSALS: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND,
        ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
        ErrorReason.ERROR_REASON_SCHEMA_TOO_NEW,
        ErrorReason.ERROR_REASON_STORE_NOT_OWNED,
        ErrorReason.ERROR_REASON_DATABASE_NOT_CONFIGURED,
    }
)
"""The reasons why a store can't be used; any other one only hides whether it can."""

# A store caches the SQL bound to its schema, up to 50 kB; binding it takes longer than the rest of
# a call. Of further namespaces only the name is cached, which saves checking that they exist, and
# where those are that are not at home.
_MAX_BOUND = 2_000
_MAX_KNOWN = 100_000

# A store that could be used is looked at again after this time: other servers may have deleted it,
# or migrated it so that this server is too old for it.
_LOOK_SECONDS = 5.0

# A failed migration is not retried by every call to its namespace.
_RETRY_SECONDS = 2.0

# How often the directory is read while a namespace is between two databases, and for how long.
_SWITCH_LOOK_SECONDS: Final = (0.01, 0.25)
_SWITCH_SECONDS: Final = 60.0


class Namespaces:
    """The stores that belong to the servers with this schema, by namespace.

    `databases`: where they are; a single one is the home. `migrate_on_use`: migrate a namespace
    when it is first used. `migrate_seconds`: how long that may be reckoned to take.
    `max_namespaces`: how many there may be besides `default` for one to be created.
    """

    def __init__(
        self,
        databases: Databases | Database,
        schema: Schema,
        *,
        migrate_on_use: bool,
        max_namespaces: int,
        migrate_seconds: float = 10.0,
    ) -> None:
        if isinstance(databases, Database):
            databases = Databases(databases)
        self.databases = databases
        self.migrate_seconds = migrate_seconds
        self.default = Store(databases.home, schema, DEFAULT_NAMESPACE)
        self.placements = Placements(self.default)
        """The directory."""
        self._creation = namespace_creation.Creation(
            self.default, databases, self.placements, max_namespaces
        )
        self._migrate_on_use = migrate_on_use
        # LRU caches: the stores used most recently; and the names of those that could be used, with
        # the time (of the event loop) of the next look.
        self._bound: OrderedDict[str, Store] = OrderedDict()
        self._known: OrderedDict[str, float] = OrderedDict()
        # Where those are that were found in another database, for when the home is away.
        self._placed: OrderedDict[str, Placement] = OrderedDict()
        self._found = Found(_MAX_KNOWN if len(databases) > 1 else 0)
        self._finding: dict[str, asyncio.Task[Placement | PersistenceError | None]] = {}
        self._migrating: dict[str, asyncio.Task[PersistenceError | None]] = {}
        # Namespaces whose migration failed, the time (of the event loop) of the next attempt, and
        # why.
        self._failed: dict[str, tuple[float, PersistenceError]] = {}

    async def get(self, name: str | None) -> Store:
        """The store of a namespace; None: the default one.

        Raises NAMESPACE_NOT_FOUND if it does not exist or belongs to other servers, it is not
        created; SCHEMA_TOO_NEW if this server is too old for it; and DATABASE_NOT_CONFIGURED. The
        default one is returned even if it does not exist yet; if it belongs to other servers,
        STORE_NOT_OWNED is raised.
        """
        name = DEFAULT_NAMESPACE if name is None else name
        bound = self._bound.get(name)
        if bound is not None and self._known.get(name, 0.0) > monotonic():  # nearly always
            self._known.move_to_end(name)
            self._bound.move_to_end(name)
            return bound
        store = bound or await self.find(name)
        now = asyncio.get_running_loop().time()
        next_look = self._known.get(name, 0.0)
        if next_look <= now:
            next_look = now + _LOOK_SECONDS
            if name in self._known:
                self._known[name] = next_look  # one call's look will do, the others go on
            if not await self._is_usable(store):
                return store
        put_last(self._known, name, next_look, _MAX_KNOWN)
        put_last(self._bound, name, store, _MAX_BOUND)
        return store

    async def _is_usable(self, store: Store) -> bool:
        """Whether calls may go on without another look; raises why they must not be made."""
        try:
            if store is not self.default:
                return await self._is_current(store)
            version = await migration_history.schema_version(store)
            version.check_usable()
            whose = await owner.read_owner(store, version.number)
            if whose is not None and not whose.is_of(store):
                owner.raise_foreign(store.schema, whose)
        except PersistenceError as exc:
            if exc.reason in _REFUSALS:
                self.forget(store.namespace)
            raise
        return not version.is_outdated

    def used_last(self, most: int) -> list[Store]:
        """The default store, and the others that were used last: at most so many."""
        others = [store for store in reversed(self._bound.values()) if store is not self.default]
        return [self.default, *others[: most - 1]]

    def count_loaded(self) -> int:
        """How many stores are remembered."""
        return len(self._bound)

    def database_of(self, name: str) -> str:
        """The name of the database of a namespace that is remembered; of others, that of the
        home."""
        bound = self._bound.get(name)
        return HOME if bound is None else bound.database.name

    def forget(self, name: str) -> None:
        """Check again on the next use whether it exists; another server may have deleted it."""
        self._bound.pop(name, None)
        self._known.pop(name, None)

    async def is_current(self, name: str) -> bool:
        """Whether a namespace's schema is current. Raises NAMESPACE_NOT_FOUND if it is absent."""
        try:
            return await self._is_current(self._bound.get(name) or await self.find(name))
        except PersistenceError:
            self.forget(name)
            raise

    async def make_sure(self, store: Store) -> None:
        """Look whether a namespace is still where it is thought to be; if not, its store is set to
        where it is now. Raises what `get` does."""
        if store is not self.default:
            await self._is_current(store)

    # ----- where a namespace is

    async def find(self, name: str) -> Store:
        """The store of a namespace, as far as the directory knows: it need not exist. Raises
        INVALID_NAMESPACE, NAMESPACE_NOT_FOUND and DATABASE_NOT_CONFIGURED."""
        if name == DEFAULT_NAMESPACE:
            return self.default
        schema = self._schema(name)
        if len(self.databases) == 1:
            # If it is elsewhere after all, that is found out when it is not here.
            return self.store_at(schema, None)
        return self.store_at(schema, await self._placement(name))

    def store_at(self, schema: Schema, placement: Placement | None) -> Store:
        """The store of a namespace that is where the directory says; None: at home."""
        name = schema.namespace
        if placement is None:
            return self._store(self.databases.home, schema, 0)
        database = self.databases.named(placement.database, name)
        return self._store(database, schema, placement.generation)

    def store_in(self, name: str, database: str) -> Store:
        """The store of a namespace that is known to exist, in this database."""
        schema = self.default.schema.for_namespace(name)
        return self._store(self.databases.named(database, name), schema, 0)

    def _store(self, database: Database, schema: Schema, generation: int) -> Store:
        """A store, of which it is known since when it is there."""
        store = Store(database, schema, schema.namespace, generation, self.look_elsewhere)
        store.found_at = self._found.at(store)
        return store

    async def look_elsewhere(self, store: Store, missed_in: Database) -> bool:
        """Whether a namespace that was missed in a database is in another one now; its store is set
        to that. Waits while it is being moved."""
        if store.database is not missed_in:
            return True  # another call has found it already
        was_at = store.database.name, store.generation
        while True:
            placement = await self._placement(store.namespace)
            if _place(placement) != was_at:
                break
            # That may have been read before the switch, for another call; or long ago, if the home
            # is away: then nothing can be said.
            placement = await self.placements.read(store.namespace)
            if placement is None or placement.phase != SWITCHING:
                break
        is_at = _place(placement)
        if is_at == was_at:
            return False
        store.database = (
            self.databases.home
            if placement is None
            else self.databases.named(placement.database, store.namespace)
        )
        store.generation = is_at[1]
        store.found_at = self._found.at(store)
        log.info("namespace %s: found in the database %s", store.namespace, store.database.name)
        return True

    async def _placement(self, name: str) -> Placement | None:
        """Where a namespace is, once for all calls that want to know it; while the home is away,
        where it was last. None: at home. Raises NAMESPACE_NOT_FOUND."""
        task = self._finding.get(name)
        if task is None:
            task = asyncio.create_task(self._read_placement(name))
            self._finding[name] = task
            task.add_done_callback(lambda _: self._finding.pop(name, None))
        found = await asyncio.shield(task)
        if isinstance(found, PersistenceError):
            raise found.copy()
        return found

    async def _read_placement(self, name: str) -> Placement | PersistenceError | None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _SWITCH_SECONDS
        pause, longest = _SWITCH_LOOK_SECONDS
        while True:
            try:
                placement = await self.placements.read(name)
            except PersistenceError as exc:
                if exc.reason == ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE:
                    return self._placed.get(name, exc)
                return exc
            if placement is None or placement.phase != SWITCHING:
                break
            if loop.time() >= until:
                return PersistenceError(
                    ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
                    "the namespace is being moved to another database",
                    metadata={"namespace": name},
                    retry_after=1.0,
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
        if placement is not None and not placement.is_there:
            return namespace_not_found(name)
        if placement is None or placement.database == HOME:
            self._placed.pop(name, None)
            return placement
        self.remember(placement)
        return placement

    def remember(self, placement: Placement) -> None:
        """Know where a namespace is, for when the home is away."""
        put_last(self._placed, placement.namespace, placement, _MAX_KNOWN)

    def _schema(self, name: str) -> Schema:
        if not is_namespace(name):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_INVALID_NAMESPACE,
                "a namespace must match [a-z][a-z0-9_]{0,39}",
            )
        try:
            return self.default.schema.for_namespace(name)
        except ValueError:
            raise namespace_not_found(name) from None  # too long for a schema, so it can't exist

    async def _is_current(self, store: Store, attempts: int = MAX_ATTEMPTS) -> bool:
        database = store.database  # another call may find it elsewhere meanwhile
        version = await migration_history.schema_version(store)
        whose = await owner.read_owner(store, version.number) if version.number else None
        if not version.number or not _is_here(store, whose):
            if attempts == 1 or not await self.look_elsewhere(store, database):
                raise namespace_not_found(store.namespace)
            return await self._is_current(store, attempts - 1)
        version.check_usable()
        if version.is_outdated:
            if self._migrate_on_use:
                await self._migrate_once(store)
            return self._migrate_on_use
        if whose is None and not _is_here(store, await owner.claim(store)):
            raise namespace_not_found(store.namespace)
        return True

    # ----- migrating, creating and deleting

    async def _migrate_once(self, store: Store) -> None:
        """Migrate a namespace, once for all calls that wait for it."""
        name = store.namespace
        next_attempt, error_before = self._failed.get(name, (0.0, None))
        if error_before and asyncio.get_running_loop().time() < next_attempt:
            raise error_before
        task = self._migrating.get(name)
        if task is None:
            task = asyncio.create_task(self._migrate(store))
            self._migrating[name] = task
            task.add_done_callback(lambda _: self._migrating.pop(name, None))
        # The migration continues even if the call that started it is cancelled.
        if error := await asyncio.shield(task):
            raise error

    async def _migrate(self, store: Store) -> PersistenceError | None:
        """Migrate a namespace; returns the error. (asyncio logs an exception that a task raises if
        nothing awaits the task any more.)"""
        name = store.namespace
        try:
            async with store.database.lane.turn(store.schema.name):
                await migrated_store(store, self.migrate_seconds, must_exist=True)
        except PersistenceError as exc:
            if exc.reason == ErrorReason.ERROR_REASON_STORE_NOT_OWNED:
                return namespace_not_found(name)
            if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
                now = asyncio.get_running_loop().time()
                self._failed[name] = (now + _RETRY_SECONDS, exc)
            return exc
        self._failed.pop(name, None)
        log.info("namespace %s: migrated", name)
        return None

    async def create_namespace(
        self, name: str, database: str = "", labels: Mapping[str, str] | None = None
    ) -> tuple[Migrated, str]:
        """Create a namespace or migrate it; returns the name of its database, too.

        A new one is created in this database, or else in the one of those with all these labels
        that has the fewest bytes. Raises DATABASE_NOT_FOUND if there is none,
        NAMESPACE_IN_OTHER_DATABASE if it exists in another one, STORE_NOT_OWNED if its schema has
        the store of other servers, and TOO_MANY_NAMESPACES if it does not exist and there are as
        many as may be.
        """
        schema = self._schema_to_change(name)
        creation = self._creation
        placement = await creation.place(self.store_at(schema, None), database, labels or {})
        store = self.store_at(schema, placement)

        async def admit(connection: psycopg.AsyncConnection[Any]) -> None:
            if placement is not None:
                await creation.admit_placed(placement)
            else:
                await creation.admit(connection, name)

        async with store.database.lane.turn(schema.name):
            if placement is not None:
                await creation.check_target(store, placement)
            migrated = await migrated_store(
                store, self.migrate_seconds, admit, own_later=placement is not None
            )
            if placement is not None:
                await creation.finish(store, placement)
        return migrated, store.database.name

    async def delete_namespace(self, name: str, *, force: bool, is_reserved: bool = False) -> None:
        """Delete a namespace that is empty, or with `force` together with its data. `is_reserved`:
        see `namespace_drop.drop`."""
        schema = self._schema_to_change(name)
        placement = await self.placements.read(name)
        if placement is not None and placement.phase and placement.is_there:
            raise is_being_moved(name)
        store = self.store_at(schema, placement)
        async with store.database.lane.turn(schema.name):
            self.forget(name)
            try:
                is_reserved |= placement is not None and not placement.is_there
                await namespace_drop.drop(store, force=force, is_reserved=is_reserved)
            except PersistenceError as exc:
                if exc.reason != ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND:
                    raise
                if placement is not None:
                    await self.placements.remove(placement)  # what a deletion before has left
                raise
            if placement is not None:
                await self.placements.remove(placement)
                self._placed.pop(name, None)

    def _schema_to_change(self, name: str) -> Schema:
        try:
            return self.default.schema.for_namespace(name)
        except ValueError as exc:
            raise invalid_field(
                "name",
                FieldViolationReason.FIELD_VIOLATION_REASON_TOO_LONG,
                "is too long for a schema's name",
            ) from exc

    # ----- all namespaces


def _place(placement: Placement | None) -> tuple[str, int]:
    return (HOME, 0) if placement is None else (placement.database, placement.generation)


def _is_here(store: Store, whose: Owner | None) -> bool:
    """Whether a store is the one that the directory means. One without an owner is too old to be in
    another database than the home."""
    if whose is None:
        return store.database.name == HOME
    return whose.is_of(store) and (not store.generation or whose.generation == store.generation)
