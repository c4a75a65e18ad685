"""What a move needs, looked at before it begins: whether it is possible, and in which way."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import psycopg

from wfe_persistence.errors import namespace_not_found
from wfe_persistence.store import migration_files, migration_history
from wfe_persistence.store.moving import logical
from wfe_persistence.store.moving.sides import AsyncConnection, Side, comment, sql
from wfe_persistence.store.owner import Owner
from wfe_persistence.store.postgres.reachability import why
from wfe_persistence.store.tables import (
    MIGRATIONS_TABLE,
    PLACEMENTS_TABLE,
    SETS_TABLE,
    STORE_TABLE,
    TABLES,
)

# What the pause is reckoned with: a switch takes a few hundred milliseconds, and a copy, with the
# indexes of what it writes, about so many bytes of tables a second.
_SWITCH_SECONDS: Final = 1.0
_COPY_BYTES_PER_SECOND: Final = 10_000_000

# Each store has its own.
_OF_THE_STORE: Final = (MIGRATIONS_TABLE, STORE_TABLE, PLACEMENTS_TABLE, SETS_TABLE)

MOST_SKEW_SECONDS: Final = 2.0
"""Leases are judged by the database's clock: clocks must not differ by more."""


class Way(Enum):
    """How a namespace gets to another database."""

    LOGICAL = "logical"
    """By PostgreSQL's logical replication, while it is written; writes pause for a moment."""
    COPY = "copy"
    """By a copy of its tables, during which writes pause."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a move would be like."""

    way: Way
    against_logical: tuple[str, ...]
    """Why it can't be by logical replication; empty: it can."""
    pause_seconds: float
    """For how long writes will be held, about."""
    bytes: int
    """The size of its tables, without indexes."""
    rows: int
    """About how many."""


class NotPossible(Exception):  # noqa: N818 — what it says
    """The move can't be made, in neither way; the message says why and what to do."""


EXAMINE_SOURCE = """
SELECT current_setting('wal_level'),
    (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user),
    has_database_privilege(current_database(), 'CREATE'),
    coalesce(pg_has_role(n.nspowner, 'USAGE'), FALSE),
    current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots),
    current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication),
    extract(epoch FROM clock_timestamp())::float8
FROM pg_namespace n WHERE n.nspname = %s
"""

EXAMINE_TARGET = """
SELECT current_setting('server_version_num')::int,
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
    has_database_privilege(current_database(), 'CREATE'),
    current_setting('max_logical_replication_workers')::int
        - (SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL),
    extract(epoch FROM clock_timestamp())::float8
"""

MAY_SUBSCRIBE = "SELECT pg_has_role('pg_create_subscription', 'USAGE')"

SOURCE_TABLES = """
SELECT c.relname, pg_has_role(c.relowner, 'USAGE'), greatest(c.reltuples, 0)::bigint,
    pg_table_size(c.oid), c.relreplident <> 'n' AND (c.relreplident <> 'd' OR EXISTS (
        SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""

TABLE_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
    AND a.attgenerated = ''
"""


async def examine(source: Side, target: Side, wanted: Way | None) -> Plan:
    """How a namespace would be moved. Raises NAMESPACE_NOT_FOUND and NotPossible; psycopg.Error if
    a database can't be asked."""
    async with source.connect() as here, target.connect() as there:
        await check_is_there(here, source)
        row = await (await here.execute(EXAMINE_SOURCE, [source.schema.name])).fetchone()
        if row is None:
            raise namespace_not_found(source.schema.namespace)
        wal_level, replicates, creates_here, owns, slots, senders, clock_here = row
        row = await (await there.execute(EXAMINE_TARGET)).fetchone()
        assert row is not None
        version, superuser, creates_there, workers, clock_there = row
        tables = await _tables(here, source)
        await _check(here, there, source, target, tables)
        if not (owns and all(table[1] for table in tables.values())):
            raise NotPossible(
                f"the server's role in {source.name} is not the owner of the namespace's schema "
                "and tables, so it may not rename or publish them"
            )
        for side, creates in ((source, creates_here), (target, creates_there)):
            if not creates:
                raise NotPossible(
                    f"the server's role in {side.name} lacks CREATE on the database: "
                    "GRANT CREATE ON DATABASE … TO …"
                )
        if abs(clock_here - clock_there) > MOST_SKEW_SECONDS:
            raise NotPossible(
                f"the clocks of {source.name} and {target.name} differ by "
                f"{abs(clock_here - clock_there):.1f} s; leases are judged by them: let both "
                "follow the same time servers"
            )
        against = []
        if wal_level != "logical":
            against.append(f"{source.name} has wal_level = {wal_level}, not logical")
        if not replicates:
            against.append(f"the server's role in {source.name} lacks REPLICATION")
        if slots < 3:
            against.append(f"{source.name} has {slots} replication slots left; 3 are needed")
        if senders < 3:
            against.append(f"{source.name} has {senders} WAL senders left; 3 are needed")
        if workers < 2:
            against.append(f"{target.name} has {workers} logical replication workers left, not 2")
        if not (superuser or await _may_subscribe(there, version)):
            against.append(
                f"the server's role in {target.name} may not create subscriptions "
                "(pg_create_subscription, from PostgreSQL 16 on; before, only superusers)"
            )
        against += [
            f"the table {name} has no replica identity"
            for name, (_, _, _, _, has_identity) in tables.items()
            if not has_identity
        ]
        if not against and wanted is not Way.COPY:
            try:
                await logical.try_subscription(here, there, source)
            except psycopg.Error as exc:
                against.append(f"{target.name} can't subscribe to {source.name}: {why(exc)}")
    if wanted is Way.LOGICAL and against:
        raise NotPossible("not by logical replication: " + "; ".join(against))
    way = wanted or (Way.COPY if against else Way.LOGICAL)
    size = sum(table[3] for table in tables.values())
    copying = size / _COPY_BYTES_PER_SECOND if way is Way.COPY else 0.0
    return Plan(
        way,
        tuple(against),
        _SWITCH_SECONDS + copying,
        size,
        sum(table[2] for table in tables.values()),
    )


async def check_is_there(connection: AsyncConnection, side: Side) -> None:
    """Raise NAMESPACE_NOT_FOUND unless there is a namespace."""
    try:
        whose = await migration_history.owner_of(connection, side.schema)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        whose = None
    if whose != Owner.of(side.schema):
        raise namespace_not_found(side.schema.namespace)


async def _tables(connection: AsyncConnection, source: Side) -> dict[str, tuple[Any, ...]]:
    """The tables that hold data, each as a row of SOURCE_TABLES."""
    prefix = source.schema.table_prefix
    rows = await (await connection.execute(SOURCE_TABLES, [source.schema.name])).fetchall()
    found = {row[0]: row for row in rows}
    ours = {prefix + table for table in TABLES}
    foreign = set(found) - ours - {prefix + table for table in _OF_THE_STORE}
    if foreign:
        raise NotPossible(
            f"the schema {source.schema.name} has tables that are not the server's: "
            f"{', '.join(sorted(foreign)[:5])}. A host that uses the database directly, as "
            "wfe-postgres does, would not follow the namespace"
        )
    return {name: found[name] for name in ours if name in found}


async def _check(
    here: AsyncConnection,
    there: AsyncConnection,
    source: Side,
    target: Side,
    tables: dict[str, tuple[Any, ...]],
) -> None:
    latest = migration_files.latest_version()
    version = await schema_version(here, source)
    if version != latest or len(tables) != len(TABLES):
        raise NotPossible(
            f"the namespace has schema version {version}, and this server makes stores of version "
            f"{latest}: run wfe-persistence migrate up first, or use a newer server"
        )
    if await comment(there, target.schema.name) is not None:
        raise NotPossible(
            f"{target.name} has a schema {target.schema.name} already, which is not this "
            "move's: drop or rename it"
        )


async def schema_version(connection: AsyncConnection, side: Side) -> int:
    """The schema version of a store; 0: it has none."""
    applied = await migration_history.read_applied(connection, side.schema)
    return applied[-1].version if applied else 0


async def columns(connection: AsyncConnection, side: Side) -> dict[str, dict[str, str]]:
    """The columns of each table that holds data, and their types, by name. They may have another
    order in a store that the original has made."""
    prefix = side.schema.table_prefix
    rows = await (await connection.execute(TABLE_COLUMNS, [side.schema.name])).fetchall()
    found: dict[str, dict[str, str]] = {table: {} for table in TABLES}
    for name, column, type_ in rows:
        table = name.removeprefix(prefix)
        if table in found:
            found[table][column] = type_
    return found


async def check_same_columns(
    here: AsyncConnection, there: AsyncConnection, source: Side, target: Side
) -> None:
    """Raise NotPossible unless the tables of both have the same columns."""
    ours, theirs = await columns(here, source), await columns(there, target)
    for table in TABLES:
        if set(ours[table].items()) != set(theirs[table].items()):
            different = set(ours[table].items()) ^ set(theirs[table].items())
            names = ", ".join(sorted({name for name, _ in different}))
            raise NotPossible(f"the table {table} has other columns than a new one: {names}")


async def _may_subscribe(connection: AsyncConnection, version: int) -> bool:
    if version < 160_000:
        return False
    row = await (await connection.execute(sql(MAY_SUBSCRIBE))).fetchone()
    return row == (True,)
