"""Dropping the schema of a namespace: all that is the server's in it, and nothing else."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Any, Final

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError, namespace_not_found
from wfe_persistence.store import migration_files, migration_history, owner
from wfe_persistence.store.administration import connect
from wfe_persistence.store.migration_history import LOCK_MIGRATIONS
from wfe_persistence.store.moving import guard
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import (
    MIGRATIONS_TABLE,
    PLACEMENTS_TABLE,
    SETS_TABLE,
    STORE_TABLE,
    TABLES,
    Store,
    qualified,
)

log = logging.getLogger(__name__)


NAMESPACE_TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""

# Requests are not counted as data: they remain when another host deletes their workflow. Lifecycle
# events and changes are not either: what they tell of may be long gone. Nor are names that
# workflows of other members of a set have, or had.
_NO_DATA: Final = (
    "requests", "lifecycle_events", "lifecycle_feed", "workflow_changes", "workflow_feed", "sweeps",
    "retention_rules", "name_holders",
)  # fmt: skip

# The migrations of a host that uses `wfe-postgres`. They are part of a store as the workflows are,
# which such a host may have written too, so `force` covers them.
_HOST_TABLES: Final = frozenset({"_sqlx_migrations", "_wfe_sqlx_migrations"})


_CREATED: Final = re.compile(
    r"^CREATE (?:OR REPLACE )?(FUNCTION|SEQUENCE) (wfc\.\w+)", re.MULTILINE
)


async def drop(store: Store, *, force: bool, is_reserved: bool = False) -> None:
    """Drop the store of a namespace, with its schema. Raises NAMESPACE_NOT_EMPTY, unless it is
    empty or `force` is set, NAMESPACE_NOT_FOUND and STORE_NOT_OWNED.

    `is_reserved`: the directory keeps the place for the namespace, or it is a member of a set,
    whose creation has not been finished. What that has left there has no owner yet, and is empty.
    """
    schema, name = store.schema, store.namespace
    ours = {
        schema.table_prefix + table
        for table in (MIGRATIONS_TABLE, STORE_TABLE, PLACEMENTS_TABLE, SETS_TABLE, *TABLES)
    }
    async with connect(store.database) as connection, connection.transaction():
        # What a server that was killed has sent may still be committed: tables that come now would
        # be left. And a store of another version has other tables.
        await connection.execute(LOCK_MIGRATIONS, [schema.name])
        tables = await _tables(connection, schema)
        there = [
            table
            for table in (MIGRATIONS_TABLE, STORE_TABLE, *TABLES)
            if schema.table_prefix + table in tables
        ]
        if MIGRATIONS_TABLE not in there:
            raise namespace_not_found(name)
        if STORE_TABLE not in there and not is_reserved:
            owner.raise_foreign(schema, None)
        has_owner = STORE_TABLE in there
        try:
            if has_owner:
                await _check_deletable(connection, store, is_reserved=is_reserved)
            lock = f"LOCK TABLE {qualified(*there)} IN ACCESS EXCLUSIVE MODE"
            await connection.execute(schema.qualify(lock).encode())
            # Once more: it may have been deleted and created by other servers meanwhile.
            is_owned = has_owner and await _check_deletable(
                connection, store, is_reserved=is_reserved
            )
        except psycopg.errors.UndefinedTable:
            raise namespace_not_found(name) from None  # deleted concurrently
        has_data = await _has_data(connection, schema, there)
        if not is_owned and (has_data or tables - ours):
            owner.raise_foreign(schema, None)
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
        drop_tables, *drop_others = _drop_statements(schema, sorted(tables))
        for statement in (drop_tables, *drop_others):
            try:
                await connection.execute(statement.encode())
                if statement is drop_tables:
                    await guard.drop_what_is_left(connection, schema)
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


async def _check_deletable(
    connection: psycopg.AsyncConnection[Any], store: Store, *, is_reserved: bool
) -> bool:
    """Raise NAMESPACE_NOT_FOUND for the store of other servers. One without an owner may be such a
    store: STORE_NOT_OWNED, unless its place is reserved. Whether it has an owner."""
    whose = await migration_history.owner_of(connection, store.schema)
    if whose is None:
        if not is_reserved:
            owner.raise_foreign(store.schema, None)
        return False
    if not whose.is_of(store):
        raise namespace_not_found(store.namespace)
    return True


async def is_empty(connection: psycopg.AsyncConnection[Any], store: Store) -> bool:
    """Whether a store, of whatever version, has no data."""
    schema = store.schema
    tables = await _tables(connection, schema)
    there = [table for table in TABLES if schema.table_prefix + table in tables]
    return not await _has_data(connection, schema, there)


async def _tables(connection: psycopg.AsyncConnection[Any], schema: Schema) -> set[str]:
    """The names of all that looks like a table in a schema."""
    cursor = await connection.execute(NAMESPACE_TABLES, [schema.name])
    return {row[0] for row in await cursor.fetchall()}


async def _has_data(
    connection: psycopg.AsyncConnection[Any], schema: Schema, there: Collection[str]
) -> bool:
    """Whether a store has data, in those of its tables that are there."""
    some = [
        f"EXISTS (SELECT FROM wfc.{table})"
        for table in TABLES
        if table in there and table not in _NO_DATA
    ]
    cursor = await connection.execute(
        schema.qualify("SELECT " + " OR ".join(["FALSE", *some])).encode()
    )
    return await cursor.fetchone() == (True,)
