"""Namespaces: each is a store in its own schema; all share one connection pool."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TypeVar

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe.persistence.v1.store_pb2 import Namespace
from wfe_persistence.errors import PersistenceError, invalid_field
from wfe_persistence.store import migrate
from wfe_persistence.store.paging import Cursor, Page
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.rows import integer, read_int4, read_int8, read_text, text
from wfe_persistence.store.schema import DEFAULT_NAMESPACE, Schema, is_namespace
from wfe_persistence.store.tables import MIGRATIONS_TABLE, TABLES, Store, qualified

log = logging.getLogger(__name__)

T = TypeVar("T")

# A store caches the SQL bound to its schema, up to 50 kB; binding it takes longer than the rest of
# a call. Of further namespaces only the name is cached, which saves checking that they exist.
_MAX_BOUND = 2_000
_MAX_KNOWN = 100_000

# Migrations run on connections outside the pool, so their number is limited; and a failed migration
# is not retried by every call to its namespace.
_CONCURRENT_MIGRATIONS = 4
_RETRY_SECONDS = 2.0


class Namespaces:
    """The stores of one database, by namespace.

    `migrate_on_use`: migrate a namespace when it is first used.
    """

    def __init__(self, database: Database, schema: Schema, *, migrate_on_use: bool) -> None:
        self.default = Store(database, schema, DEFAULT_NAMESPACE)
        self._migrate_on_use = migrate_on_use
        # LRU caches: the stores used most recently, and the names of those known to be current.
        self._bound: OrderedDict[str, Store] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._migrating: dict[str, asyncio.Task[PersistenceError | None]] = {}
        self._slots = asyncio.Semaphore(_CONCURRENT_MIGRATIONS)
        # Namespaces whose migration failed, and the time (of the event loop) of the next attempt.
        self._failed: dict[str, float] = {}

    async def get(self, name: str | None) -> Store:
        """The store of a namespace; None: the default one.

        Raises NAMESPACE_NOT_FOUND if it does not exist; it is not created.
        """
        if name is None or name == DEFAULT_NAMESPACE:
            return self.default
        store = self._bound.get(name)
        if store is not None:
            self._bound.move_to_end(name)
            return store
        store = self._store(name)
        if name in self._known or await self._is_current(store):
            _remember(self._known, name, None, _MAX_KNOWN)
            _remember(self._bound, name, store, _MAX_BOUND)
        return store

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
        version = await migrate.schema_version(store)
        if version == 0:
            raise _not_found(store.namespace)
        migrate.check_not_newer(version)
        if version < migrate.latest_version() and self._migrate_on_use:
            await self._migrate_once(store)
            return True
        return version == migrate.latest_version()

    async def _migrate_once(self, store: Store) -> None:
        """Migrate a namespace, once for all calls that wait for it."""
        name = store.namespace
        if asyncio.get_running_loop().time() < self._failed.get(name, 0.0):
            raise _not_migrated(name)
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
            async with self._slots:
                await _migrated(store.database.conninfo, store.schema, name)
        except PersistenceError as exc:
            if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
                now = asyncio.get_running_loop().time()
                self._failed[name] = now + _RETRY_SECONDS
            return exc
        self._failed.pop(name, None)
        log.info("namespace %s: migrated", name)
        return None

    async def create_namespace(self, name: str) -> list[str]:
        """Create a namespace or migrate it; returns the names of the applied migrations."""
        schema = self._schema_to_change(name)
        return await _migrated(self.default.database.conninfo, schema, name)

    async def delete_namespace(self, name: str, *, force: bool) -> None:
        """Delete a namespace that is empty, or with `force` together with its data."""
        schema = self._schema_to_change(name)
        self.forget(name)
        await _drop(self.default.database.conninfo, schema, name, force=force)

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


async def _migrated(conninfo: str, schema: Schema, name: str) -> list[str]:
    """Migrate; an error of PostgreSQL becomes one that names the namespace."""
    try:
        return await migrate.migrate(conninfo, schema)
    except PersistenceError as exc:
        if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
            raise _not_migrated(name) from exc
        raise


# A namespace is a schema with a table of migrations. The number of rows is PostgreSQL's estimate.
LIST_NAMESPACES = """
SELECT n.nspname,
    (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c
        WHERE c.relnamespace = n.oid AND c.relkind = 'r' AND c.oid <> m.oid)
FROM pg_namespace n JOIN pg_class m ON m.relnamespace = n.oid AND m.relname = $1
WHERE (n.nspname = $2 OR starts_with(n.nspname, $2 || '_')) AND n.nspname > $3
ORDER BY n.nspname
LIMIT $4
"""


async def list_namespaces(store: Store, after: Cursor | None, page_size: int) -> Page[Namespace]:
    """The namespaces in the order of their schemas' names; `store` is the default one."""
    base = store.schema
    rows = await store.read(
        LIST_NAMESPACES,
        text(base.table_prefix + MIGRATIONS_TABLE),
        text(base.name),
        text("" if after is None else after[1]),
        integer(page_size + 1),
    )
    found: list[Namespace] = []
    schema = ""
    for i in range(min(rows.ntuples, page_size)):
        schema = read_text(rows.get_value(i, 0))
        name = schema.removeprefix(base.name + "_") if schema != base.name else DEFAULT_NAMESPACE
        if schema == base.name or is_namespace(name):
            found.append(
                Namespace(name=name, schema=schema, estimated_rows=read_int8(rows.get_value(i, 1)))
            )
    await _add_versions(store, found)
    return Page(found, (0, schema) if rows.ntuples > page_size else None)


async def _add_versions(store: Store, namespaces: list[Namespace]) -> None:
    """Set the schema versions. Each is in its own schema, so a page needs its own statement."""
    if not namespaces:
        return
    prefix, table = store.schema.table_prefix, qualified(MIGRATIONS_TABLE)
    sql = " UNION ALL ".join(
        f"SELECT {i}, coalesce(max(version), 0) FROM {Schema(n.schema, prefix).qualify(table)}"
        for i, n in enumerate(namespaces)
    )
    rows = await store.read_once(sql)
    for i in range(rows.ntuples):
        version = read_int4(rows.get_value(i, 1))
        namespaces[read_int4(rows.get_value(i, 0))].schema_version = version


NAMESPACE_TABLES = """
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""

LOCK_NAMESPACE = f"""
LOCK TABLE {qualified(MIGRATIONS_TABLE, *TABLES)}
    IN ACCESS EXCLUSIVE MODE
"""

# Requests are not counted as data: they remain when another host deletes their workflow.
NAMESPACE_HAS_DATA = "SELECT " + "\n    OR ".join(
    f"EXISTS (SELECT FROM {qualified(table)})" for table in TABLES if table != "requests"
)


async def _drop(conninfo: str, schema: Schema, name: str, *, force: bool) -> None:
    ours = {schema.table_prefix + table for table in (MIGRATIONS_TABLE, *TABLES)}
    async with migrate.connect(conninfo) as connection, connection.transaction():
        cursor = await connection.execute(NAMESPACE_TABLES, [schema.name])
        tables = {row[0] for row in await cursor.fetchall()}
        if schema.table_prefix + MIGRATIONS_TABLE not in tables:
            raise _not_found(name)
        try:
            await connection.execute(schema.qualify(LOCK_NAMESPACE).encode())
        except psycopg.errors.UndefinedTable:
            raise _not_found(name) from None  # deleted concurrently
        cursor = await connection.execute(schema.qualify(NAMESPACE_HAS_DATA).encode())
        [(has_data,)] = await cursor.fetchall()
        foreign = tables - ours
        if foreign or (has_data and not force):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_NAMESPACE_NOT_EMPTY,
                "the schema has other tables as well" if foreign else "the namespace has data",
                metadata={"namespace": name},
            )
        await connection.execute(f'DROP SCHEMA "{schema.name}" CASCADE'.encode())


Outcomes = dict[str, list[str] | Exception]
"""By namespace: the applied migrations, or the error."""


async def migrate_all(store: Store, concurrency: int = 4) -> Outcomes:
    """Migrate every namespace, `concurrency` at a time; returns the outcome of each."""
    names: list[tuple[str, Schema]] = [(DEFAULT_NAMESPACE, store.schema)]
    after: Cursor | None = None
    try:
        while True:
            page = await list_namespaces(store, after, 1000)
            names += [
                (n.name, Schema(n.schema, store.schema.table_prefix))
                for n in page.items
                if n.name != DEFAULT_NAMESPACE
            ]
            if page.next is None:
                break
            after = page.next
    except PersistenceError as exc:
        return {DEFAULT_NAMESPACE: exc}
    slots = asyncio.Semaphore(concurrency)

    async def migrate_one(schema: Schema) -> list[str] | Exception:
        async with slots:
            try:
                return await migrate.migrate(store.database.conninfo, schema)
            except PersistenceError as exc:
                # An administrator who migrates needs PostgreSQL's own message.
                return exc.__cause__ if isinstance(exc.__cause__, psycopg.Error) else exc

    results = await asyncio.gather(*(migrate_one(schema) for _, schema in names))
    return {name: result for (name, _), result in zip(names, results, strict=True)}


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
