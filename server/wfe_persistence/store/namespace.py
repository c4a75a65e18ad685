"""Namespaces: each is a store in its own schema; all share one connection pool."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from time import monotonic
from typing import Any, Final, TypeVar

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe_persistence.errors import PersistenceError, invalid_field
from wfe_persistence.store import (
    migrate,
    migration_files,
    migration_history,
    namespace_list,
    owner,
)
from wfe_persistence.store.administration import connect
from wfe_persistence.store.migrate import Migrated
from wfe_persistence.store.owner import Owner
from wfe_persistence.store.paging import Cursor
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.postgres.source import Connector
from wfe_persistence.store.schema import DEFAULT_NAMESPACE, Schema, is_namespace
from wfe_persistence.store.tables import MIGRATIONS_TABLE, STORE_TABLE, TABLES, Store, qualified

log = logging.getLogger(__name__)

T = TypeVar("T")

_REFUSALS: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND,
        ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
        ErrorReason.ERROR_REASON_SCHEMA_TOO_NEW,
        ErrorReason.ERROR_REASON_STORE_NOT_OWNED,
    }
)
"""The reasons why a store can't be used; any other one only hides whether it can."""

# A store caches the SQL bound to its schema, up to 50 kB; binding it takes longer than the rest of
# a call. Of further namespaces only the name is cached, which saves checking that they exist.
_MAX_BOUND = 2_000
_MAX_KNOWN = 100_000

# A store that could be used is looked at again after this time: other servers may have deleted it,
# or migrated it so that this server is too old for it.
_LOOK_SECONDS = 5.0

# A failed migration is not retried by every call to its namespace.
_RETRY_SECONDS = 2.0


class Namespaces:
    """The stores of one database that belong to the servers with this schema, by namespace.

    `migrate_on_use`: migrate a namespace when it is first used. `migrate_seconds`: how long that
    may be reckoned to take. `max_namespaces`: how many there may be besides `default` for one to be
    created.
    """

    def __init__(
        self,
        database: Database,
        schema: Schema,
        *,
        migrate_on_use: bool,
        max_namespaces: int,
        migrate_seconds: float = 10.0,
    ) -> None:
        self.migrate_seconds = migrate_seconds
        self.default = Store(database, schema, DEFAULT_NAMESPACE)
        self._migrate_on_use = migrate_on_use
        self._max_namespaces = max_namespaces
        # LRU caches: the stores used most recently; and the names of those that could be used, with
        # the time (of the event loop) of the next look.
        self._bound: OrderedDict[str, Store] = OrderedDict()
        self._known: OrderedDict[str, float] = OrderedDict()
        self._migrating: dict[str, asyncio.Task[PersistenceError | None]] = {}
        # Namespaces whose migration failed, the time (of the event loop) of the next attempt, and
        # why.
        self._failed: dict[str, tuple[float, PersistenceError]] = {}

    async def get(self, name: str | None) -> Store:
        """The store of a namespace; None: the default one.

        Raises NAMESPACE_NOT_FOUND if it does not exist or belongs to other servers, it is not
        created; and SCHEMA_TOO_NEW if this server is too old for it. The default one is returned
        even if it does not exist yet; if it belongs to other servers, STORE_NOT_OWNED is raised.
        """
        name = DEFAULT_NAMESPACE if name is None else name
        bound = self._bound.get(name)
        if bound is not None and self._known.get(name, 0.0) > monotonic():  # nearly always
            self._known.move_to_end(name)
            self._bound.move_to_end(name)
            return bound
        store = bound or self._store(name)
        now = asyncio.get_running_loop().time()
        next_look = self._known.get(name, 0.0)
        if next_look <= now:
            next_look = now + _LOOK_SECONDS
            if name in self._known:
                self._known[name] = next_look  # one call's look will do, the others go on
            if not await self._is_usable(store):
                return store
        _remember(self._known, name, next_look, _MAX_KNOWN)
        _remember(self._bound, name, store, _MAX_BOUND)
        return store

    async def _is_usable(self, store: Store) -> bool:
        """Whether calls may go on without another look; raises why they must not be made."""
        try:
            if store is not self.default:
                return await self._is_current(store)
            version = await migration_history.schema_version(store)
            version.check_usable()
            whose = await owner.read_owner(store, version.number)
            if whose is not None and whose != Owner.of(store.schema):
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

    def forget(self, name: str) -> None:
        """Check again on the next use whether it exists; another server may have deleted it."""
        self._bound.pop(name, None)
        self._known.pop(name, None)

    async def is_current(self, name: str) -> bool:
        """Whether a namespace's schema is current. Raises NAMESPACE_NOT_FOUND if it is absent."""
        try:
            return await self._is_current(self._bound.get(name) or self._store(name))
        except PersistenceError:
            self.forget(name)
            raise

    def _store(self, name: str) -> Store:
        if name == DEFAULT_NAMESPACE:
            return self.default
        if not is_namespace(name):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_INVALID_NAMESPACE,
                "a namespace must match [a-z][a-z0-9_]{0,39}",
            )
        try:
            schema = self.default.schema.for_namespace(name)
        except ValueError:
            raise _not_found(name) from None  # too long for a schema's name, so it can't exist
        return Store(self.default.database, schema, name)

    async def _is_current(self, store: Store) -> bool:
        version = await migration_history.schema_version(store)
        if version.number == 0:
            raise _not_found(store.namespace)
        whose = await owner.read_owner(store, version.number)
        _check_own(store, whose)
        version.check_usable()
        if version.is_outdated:
            if self._migrate_on_use:
                await self._migrate_once(store)
            return self._migrate_on_use
        if whose is None:
            _check_own(store, await owner.claim(store))
        return True

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
                await _migrated(store.database, store.schema, self.migrate_seconds)
        except PersistenceError as exc:
            if exc.reason == ErrorReason.ERROR_REASON_STORE_NOT_OWNED:
                return _not_found(name)
            if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
                now = asyncio.get_running_loop().time()
                self._failed[name] = (now + _RETRY_SECONDS, exc)
            return exc
        self._failed.pop(name, None)
        log.info("namespace %s: migrated", name)
        return None

    async def create_namespace(self, name: str) -> Migrated:
        """Create a namespace or migrate it.

        Raises STORE_NOT_OWNED if its schema has the store of other servers, and TOO_MANY_NAMESPACES
        if it does not exist and there are as many as may be.
        """
        schema = self._schema_to_change(name)
        database = self.default.database

        async def admit(connection: psycopg.AsyncConnection[Any]) -> None:
            await _admit(connection, self.default, self._max_namespaces)

        async with database.lane.turn(schema.name):
            return await _migrated(database, schema, self.migrate_seconds, admit)

    async def delete_namespace(self, name: str, *, force: bool) -> None:
        """Delete a namespace that is empty, or with `force` together with its data."""
        schema = self._schema_to_change(name)
        database = self.default.database
        async with database.lane.turn(schema.name):
            self.forget(name)
            await _drop(database, schema, name, force=force)

    def _schema_to_change(self, name: str) -> Schema:
        try:
            return self.default.schema.for_namespace(name)
        except ValueError as exc:
            raise invalid_field(
                "name",
                FieldViolationReason.FIELD_VIOLATION_REASON_TOO_LONG,
                "is too long for a schema's name",
            ) from exc


def _remember(cache: OrderedDict[str, T], name: str, value: T, max_size: int) -> None:
    """Make an entry the most recently used one; evict the least recently used beyond `max_size`."""
    cache[name] = value
    cache.move_to_end(name)
    if len(cache) > max_size:
        cache.popitem(last=False)


def _check_own(store: Store, whose: Owner | None) -> None:
    """Raise NAMESPACE_NOT_FOUND for the store of other servers."""
    if whose is not None and whose != Owner.of(store.schema):
        raise _not_found(store.namespace)


async def _migrated(
    connector: Connector,
    schema: Schema,
    migrate_seconds: float,
    admit: migrate.Admission | None = None,
) -> Migrated:
    """Migrate; an error of PostgreSQL becomes one that names the namespace."""
    try:
        return await migrate.migrate(connector, schema, admit=admit, unattended=migrate_seconds)
    except PersistenceError as exc:
        if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED and isinstance(
            exc.__cause__, psycopg.Error
        ):
            raise _not_migrated(schema.namespace) from exc
        raise


# Serializes the transactions that create a namespace of one owner, in all servers: each of them
# counts those that the ones before it have created.
LOCK_CREATION = """
SELECT pg_advisory_xact_lock(
    hashtextextended('wfe-persistence create ' || current_database() || %s, 0))
"""


async def _admit(connection: psycopg.AsyncConnection[Any], store: Store, most: int) -> None:
    """Raise TOO_MANY_NAMESPACES if there are `most` besides `default`, the one of `store`."""
    await connection.execute(LOCK_CREATION, [store.schema.name])
    if await namespace_list.count_at_most(store, most) >= most:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_TOO_MANY_NAMESPACES,
            f"there are {most} namespaces, as many as the server allows (--max-namespaces)",
            metadata={"limit": str(most)},
        )


NAMESPACE_TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""

LOCK_NAMESPACE = f"""
LOCK TABLE {qualified(MIGRATIONS_TABLE, STORE_TABLE, *TABLES)}
    IN ACCESS EXCLUSIVE MODE
"""

# Requests are not counted as data: they remain when another host deletes their workflow. Lifecycle
# events and changes are not either: what they tell of may be long gone.
_NO_DATA: Final = (
    "requests", "lifecycle_events", "lifecycle_feed", "workflow_changes", "workflow_feed", "sweeps",
    "retention_rules",
)  # fmt: skip
NAMESPACE_HAS_DATA = "SELECT " + "\n    OR ".join(
    f"EXISTS (SELECT FROM {qualified(table)})" for table in TABLES if table not in _NO_DATA
)

# The migrations of a host that uses `wfe-postgres`. They are part of a store as the workflows are,
# which such a host may have written too, so `force` covers them.
_HOST_TABLES: Final = frozenset({"_sqlx_migrations", "_wfe_sqlx_migrations"})


_CREATED: Final = re.compile(
    r"^CREATE (?:OR REPLACE )?(FUNCTION|SEQUENCE) (wfc\.\w+)", re.MULTILINE
)


async def _drop(connector: Connector, schema: Schema, name: str, *, force: bool) -> None:
    ours = {schema.table_prefix + table for table in (MIGRATIONS_TABLE, STORE_TABLE, *TABLES)}
    async with connect(connector) as connection, connection.transaction():
        cursor = await connection.execute(NAMESPACE_TABLES, [schema.name])
        tables = {row[0] for row in await cursor.fetchall()}
        if schema.table_prefix + MIGRATIONS_TABLE not in tables:
            raise _not_found(name)
        if schema.table_prefix + STORE_TABLE not in tables:
            owner.raise_foreign(schema, None)
        try:
            await _check_deletable(connection, schema)
            await connection.execute(schema.qualify(LOCK_NAMESPACE).encode())
            # Once more: it may have been deleted and created by other servers meanwhile.
            await _check_deletable(connection, schema)
        except psycopg.errors.UndefinedTable:
            raise _not_found(name) from None  # deleted concurrently
        cursor = await connection.execute(schema.qualify(NAMESPACE_HAS_DATA).encode())
        [(has_data,)] = await cursor.fetchall()
        foreign = tables - ours - _HOST_TABLES
        if foreign or ((has_data or tables & _HOST_TABLES) and not force):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_NAMESPACE_NOT_EMPTY,
                "the schema has other tables as well"
                if foreign
                else "the namespace has data"
                if has_data
                else "the namespace has the migrations of a host that uses wfe-postgres",
                metadata={"namespace": name},
            )
        for statement in _drop_statements(schema, sorted(tables)):
            try:
                await connection.execute(statement.encode())
            except psycopg.errors.DependentObjectsStillExist as exc:
                log.warning("namespace %s: not deleted: %s", name, exc)
                raise PersistenceError(
                    ErrorReason.ERROR_REASON_NAMESPACE_NOT_EMPTY,
                    "there are objects in its schema, or that depend on it, which are not the "
                    "server's; see the server's log",
                    metadata={"namespace": name},
                ) from exc


def _drop_statements(schema: Schema, tables: list[str]) -> list[str]:
    """The statements that drop these tables and the rest of what the migrations create, one by one
    and not by CASCADE: PostgreSQL refuses the last ones if that is not all."""
    created = "\n".join(migration.template for migration in migration_files.migrations())
    statements = ["DROP TABLE " + ", ".join(f'"{schema.name}"."{table}"' for table in tables)]
    for kind, name in _CREATED.findall(created):
        statements.append(schema.qualify(f"DROP {kind} IF EXISTS {name}"))
    return [*statements, f'DROP SCHEMA "{schema.name}"']


async def _check_deletable(connection: psycopg.AsyncConnection[Any], schema: Schema) -> None:
    """Raise NAMESPACE_NOT_FOUND for the store of other servers. One without an owner may be such a
    store: STORE_NOT_OWNED."""
    whose = await migration_history.owner_of(connection, schema)
    if whose is None:
        owner.raise_foreign(schema, None)
    if whose != Owner.of(schema):
        raise _not_found(schema.namespace)


Outcomes = dict[str, Migrated | PersistenceError]
"""By namespace: what was done, or the error."""


async def all_names(store: Store) -> list[str]:
    """The names of all namespaces; `store` is the default one, which may not be there yet."""
    names = [DEFAULT_NAMESPACE]
    after: Cursor | None = None
    while True:
        page = await namespace_list.list_namespaces(store, after, 1000)
        names += [n.name for n in page.items if n.name != DEFAULT_NAMESPACE]
        if page.next is None:
            return names
        after = page.next


async def migrate_all(store: Store) -> Outcomes:
    """Migrate every namespace, a few at a time; returns the outcome of each.

    A namespace that has no owner is migrated without claiming it, because nobody has named it: it
    may be the store of other servers.
    """
    try:
        names = await all_names(store)
    except PersistenceError as exc:
        return {DEFAULT_NAMESPACE: exc}
    lane = store.database.lane

    async def migrate_one(name: str) -> Migrated | PersistenceError:
        schema = store.schema.for_namespace(name)
        async with lane.turn(schema.name, refuse=False):
            try:
                return await migrate.migrate(
                    store.database, schema, claim=name == DEFAULT_NAMESPACE
                )
            except PersistenceError as exc:
                return exc

    results = await asyncio.gather(*map(migrate_one, names))
    return dict(zip(names, results, strict=True))


def _not_migrated(name: str) -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
        "the namespace's migration failed; see the server's log",
        metadata={"namespace": name},
    )


def _not_found(name: str) -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND,
        "the namespace does not exist",
        metadata={"namespace": name},
    )
