"""Namespaces: one store each, in a schema of its own, all over one pool."""

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
from wfe_persistence.store.db import Database
from wfe_persistence.store.paging import Cursor, Page, cut
from wfe_persistence.store.rows import integer, read_int4, read_int8, read_text, text
from wfe_persistence.store.schema import DEFAULT_NAMESPACE, Schema, is_namespace
from wfe_persistence.store.tables import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

# A store keeps the SQL bound to its schema, up to 50 kB; binding it anew takes longer than the rest
# of a call. Of the others only the name is kept, which spares the question whether they are there.
_MOST_BOUND = 2_000
_MOST_KNOWN = 100_000

# Namespaces are brought up to date on connections beside the pool's, so only a few at once; and
# one that failed is not tried again by every single call to it.
_MIGRATIONS_AT_ONCE = 4
_TRY_AGAIN_SECONDS = 2.0


class Namespaces:
    """The stores of one database, by namespace.

    `migrate_on_use`: bring a namespace up to date when it is first used.
    """

    def __init__(self, database: Database, schema: Schema, *, migrate_on_use: bool) -> None:
        self.default = Store(database, schema, DEFAULT_NAMESPACE)
        self._migrate_on_use = migrate_on_use
        # The stores of those used last, and the names of all that were found to be current.
        self._bound: OrderedDict[str, Store] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._migrating: dict[str, asyncio.Task[PersistenceError | None]] = {}
        self._slots = asyncio.Semaphore(_MIGRATIONS_AT_ONCE)
        # When those may be tried again that could not be brought up to date.
        self._failed: dict[str, float] = {}

    async def get(self, name: str | None) -> Store:
        """The store of a namespace; None: the default one. Raises if there is none; nothing is
        created."""
        if name is None or name == DEFAULT_NAMESPACE:
            return self.default
        store = self._bound.get(name)
        if store is not None:
            self._bound.move_to_end(name)
            return store
        store = self._store(name)
        if name in self._known or await self._is_current(store):
            _remember(self._known, name, None, _MOST_KNOWN)
            _remember(self._bound, name, store, _MOST_BOUND)
        return store

    def forget(self, name: str) -> None:
        """Look again at the next use; it may have been deleted, by another server perhaps."""
        self._bound.pop(name, None)
        self._known.pop(name, None)

    async def is_current(self, name: str) -> bool:
        """Whether a namespace can be served. Raises if there is none."""
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
            raise _not_found(name) from None  # too long a name for a schema: there can't be one
        return Store(self.default.database, schema, name)

    async def _is_current(self, store: Store) -> bool:
        version = await migrate.schema_version(store)
        if version == 0:
            raise _not_found(store.namespace)
        migrate.check_not_newer(version)
        if version < migrate.latest_version() and self._migrate_on_use:
            await self._bring_up(store)
            return True
        return version == migrate.latest_version()

    async def _bring_up(self, store: Store) -> None:
        """Migrate a namespace, once for all calls that need it now."""
        name = store.namespace
        if asyncio.get_running_loop().time() < self._failed.get(name, 0.0):
            raise _not_migrated(name)
        task = self._migrating.get(name)
        if task is None:
            task = asyncio.create_task(self._migrate(store))
            self._migrating[name] = task
            task.add_done_callback(lambda _: self._migrating.pop(name, None))
        # It goes on when the call that happened to start it ends.
        if error := await asyncio.shield(task):
            raise error

    async def _migrate(self, store: Store) -> PersistenceError | None:
        """Bring a namespace up to date; what is in the way. (A task that raises would complain if
        nobody waits for it any more.)"""
        name = store.namespace
        try:
            async with self._slots:
                await _migrated(store.database.conninfo, store.schema, name)
        except PersistenceError as exc:
            if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
                now = asyncio.get_running_loop().time()
                self._failed[name] = now + _TRY_AGAIN_SECONDS
            return exc
        self._failed.pop(name, None)
        log.info("namespace %s: brought up to date", name)
        return None

    async def create_namespace(self, name: str) -> list[str]:
        """Make a namespace, or bring it up to date; the names of the applied migrations."""
        schema = self._schema_to_change(name)
        return await _migrated(self.default.database.conninfo, schema, name)

    async def delete_namespace(self, name: str, *, force: bool) -> None:
        """Delete a namespace and all that is in it, if it is empty or `force` is given."""
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
                "too long for a schema's name",
            ) from exc


def _remember(cache: OrderedDict[str, T], name: str, value: T, most: int) -> None:
    """Put it last; drop the first if there are too many."""
    cache[name] = value
    cache.move_to_end(name)
    if len(cache) > most:
        cache.popitem(last=False)


async def _migrated(conninfo: str, schema: Schema, name: str) -> list[str]:
    """Migrate; what PostgreSQL refuses (something is in the way, say) as the namespace's error."""
    try:
        return await migrate.migrate(conninfo, schema)
    except PersistenceError as exc:
        if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
            raise _not_migrated(name) from exc
        raise


# A namespace is where the table of applied migrations is. The rows are PostgreSQL's estimate.
LIST_NAMESPACES = """
SELECT n.nspname,
    (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c
        WHERE c.relnamespace = n.oid AND c.relkind = 'r' AND c.oid <> m.oid)
FROM pg_namespace n JOIN pg_class m ON m.relnamespace = n.oid AND m.relname = $1
WHERE (n.nspname = $2 OR starts_with(n.nspname, $2 || '_')) AND n.nspname > $3
ORDER BY n.nspname
LIMIT $4
"""


async def list_namespaces(store: Store, after: Cursor, page_size: int) -> Page[Namespace]:
    """The namespaces, by the names of their schemas; `store` is the default one."""
    base = store.schema
    rows = await store.read(
        LIST_NAMESPACES,
        text(base.table_prefix + "wfe_migrations"),
        text(base.name),
        text(after[1]),
        integer(page_size + 1),
    )
    found: list[Namespace] = []
    cursors: list[Cursor] = []
    for i in range(rows.ntuples):
        schema = read_text(rows.get_value(i, 0))
        name = schema.removeprefix(base.name + "_") if schema != base.name else DEFAULT_NAMESPACE
        if schema == base.name or is_namespace(name):
            found.append(
                Namespace(name=name, schema=schema, estimated_rows=read_int8(rows.get_value(i, 1)))
            )
            cursors.append((0, schema))
    page = cut(found, cursors, page_size)
    await _add_versions(store, page.items)
    return page


async def _add_versions(store: Store, namespaces: list[Namespace]) -> None:
    """Each schema has its version in a table of its own, so the statement is made for the page."""
    if not namespaces:
        return
    prefix = store.schema.table_prefix
    sql = " UNION ALL ".join(
        f"SELECT {i}, coalesce(max(version), 0) FROM {Schema(n.schema, prefix).qualify(_TABLE)}"
        for i, n in enumerate(namespaces)
    )
    rows = await store.read_once(sql)
    for i in range(rows.ntuples):
        version = read_int4(rows.get_value(i, 1))
        namespaces[read_int4(rows.get_value(i, 0))].schema_version = version


_TABLE = "wfc.wfe_migrations"

NAMESPACE_TABLES = """
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""

LOCK_NAMESPACE = """
LOCK TABLE wfc.wfe_migrations, wfc.workflows, wfc.execution_pointers, wfc.events,
    wfc.event_subscriptions, wfc.scheduled_commands, wfc.execution_errors, wfc.definition_sequences,
    wfc.requests
    IN ACCESS EXCLUSIVE MODE
"""

NAMESPACE_IS_EMPTY = """
SELECT NOT (EXISTS (SELECT FROM wfc.workflows) OR EXISTS (SELECT FROM wfc.events)
    OR EXISTS (SELECT FROM wfc.event_subscriptions) OR EXISTS (SELECT FROM wfc.scheduled_commands)
    OR EXISTS (SELECT FROM wfc.execution_errors) OR EXISTS (SELECT FROM wfc.definition_sequences))
"""

_OUR_TABLES = frozenset(
    {
        "wfe_migrations",
        "workflows",
        "execution_pointers",
        "events",
        "event_subscriptions",
        "scheduled_commands",
        "execution_errors",
        "definition_sequences",
        "requests",
    }
)


async def _drop(conninfo: str, schema: Schema, name: str, *, force: bool) -> None:
    ours = {schema.table_prefix + table for table in _OUR_TABLES}
    async with migrate.connect(conninfo) as connection, connection.transaction():
        cursor = await connection.execute(NAMESPACE_TABLES, [schema.name])
        tables = {row[0] for row in await cursor.fetchall()}
        if schema.table_prefix + "wfe_migrations" not in tables:
            raise _not_found(name)
        try:
            await connection.execute(schema.qualify(LOCK_NAMESPACE).encode())
        except psycopg.errors.UndefinedTable:
            raise _not_found(name) from None  # deleted by somebody else while we waited
        cursor = await connection.execute(schema.qualify(NAMESPACE_IS_EMPTY).encode())
        row = await cursor.fetchone()
        foreign = tables - ours
        if foreign or not (force or (row and row[0])):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_NAMESPACE_NOT_EMPTY,
                "the schema has tables that are not ours" if foreign else "something is stored",
                metadata={"namespace": name},
            )
        await connection.execute(f'DROP SCHEMA "{schema.name}" CASCADE'.encode())


Outcomes = dict[str, list[str] | Exception]
"""By namespace: the migrations that were applied, or why it failed."""


async def migrate_all(store: Store, at_once: int = 4) -> Outcomes:
    """Bring every namespace up to date, several at once; what became of each, by name."""
    names: list[tuple[str, Schema]] = [(DEFAULT_NAMESPACE, store.schema)]
    after: Cursor = (0, "")
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
    slots = asyncio.Semaphore(at_once)

    async def bring_up(schema: Schema) -> list[str] | Exception:
        async with slots:
            try:
                return await migrate.migrate(store.database.conninfo, schema)
            except PersistenceError as exc:
                # Who migrates by hand wants to know what PostgreSQL said.
                return exc.__cause__ if isinstance(exc.__cause__, psycopg.Error) else exc

    results = await asyncio.gather(*(bring_up(schema) for _, schema in names))
    return {name: result for (name, _), result in zip(names, results, strict=True)}


def _not_migrated(name: str) -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
        "the namespace can't be brought up to date; the server's log says why",
        metadata={"namespace": name},
    )


def _not_found(name: str) -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND,
        "the namespace does not exist",
        metadata={"namespace": name},
    )
