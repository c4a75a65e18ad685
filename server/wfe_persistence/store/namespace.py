"""Namespaces: one store each, in a schema of its own, all over one pool."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe.persistence.v1.store_pb2 import Namespace
from wfe_persistence.errors import PersistenceError, invalid_field
from wfe_persistence.store import migrate
from wfe_persistence.store.db import Database, Store
from wfe_persistence.store.paging import Cursor, Page, cut
from wfe_persistence.store.rows import integer, read_int4, read_int8, read_text, text
from wfe_persistence.store.schema import DEFAULT_NAMESPACE, Schema, is_namespace

log = logging.getLogger(__name__)

# A store keeps the SQL bound to its schema, some 50 kB: enough of them for the busy ones.
_MOST_KNOWN = 200


class Namespaces:
    """The stores of one database, by namespace.

    `migrate_on_use`: bring a namespace up to date when it is first used.
    """

    def __init__(self, database: Database, schema: Schema, *, migrate_on_use: bool) -> None:
        self.default = Store(database, schema, DEFAULT_NAMESPACE)
        self._migrate_on_use = migrate_on_use
        self._known: OrderedDict[str, Store] = OrderedDict()

    async def get(self, name: str | None) -> Store:
        """The store of a namespace; None: the default one. Raises if there is none; nothing is
        created."""
        if name is None or name == DEFAULT_NAMESPACE:
            return self.default
        store = self._known.get(name)
        if store is not None:
            self._known.move_to_end(name)
            return store
        store = self._store(name)
        if await self._is_current(store):
            self._known[name] = store
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return store

    def forget(self, name: str) -> None:
        """Look again at the next use; it may have been deleted, by another server perhaps."""
        self._known.pop(name, None)

    async def is_current(self, name: str) -> bool:
        """Whether a namespace can be served. Raises if there is none."""
        try:
            return await self._is_current(self._known.get(name) or self._store(name))
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
            await migrate.migrate(store.database.conninfo, store.schema)
            log.info("namespace %s: brought up to date", store.namespace)
            return True
        return version == migrate.latest_version()

    async def create_namespace(self, name: str) -> list[str]:
        """Make a namespace, or bring it up to date; the names of the applied migrations."""
        schema = self._schema_to_change(name)
        return await migrate.migrate(self.default.database.conninfo, schema)

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
            except (PersistenceError, psycopg.Error) as exc:
                return exc

    results = await asyncio.gather(*(bring_up(schema) for _, schema in names))
    return {name: result for (name, _), result in zip(names, results, strict=True)}


def _not_found(name: str) -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND,
        "the namespace does not exist",
        metadata={"namespace": name},
    )
