"""What the pending migrations of a store would do: which locks, and for how long, on what size.

The locks follow from the SQL. The time is reckoned from the sizes of the tables and from rates that
were measured, see docs/upgrading.md: on a slower disk it takes longer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import psycopg

from wfe_persistence.store import migration_files, online
from wfe_persistence.store.migration_files import Index, Migration
from wfe_persistence.store.original_indexes import ORIGINAL_INDEXES
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import TABLES

log = logging.getLogger(__name__)

# Measured with PostgreSQL 18 on 2 cores that others used too: 1 million workflows, 3 million
# execution pointers (546 MB), 1 million events.
INDEX_SECONDS_PER_ROW: Final = 2.0e-6
ONLINE_INDEX_SECONDS_PER_ROW: Final = 4.0e-6
SCAN_SECONDS_PER_BYTE: Final = 2.0e-9
REWRITE_SECONDS_PER_BYTE: Final = 3.0e-8
_LEAST_SECONDS: Final = 0.02
_BYTES_PER_ROW: Final = 150  # of a table without statistics

MODES: Final = {
    "ROW EXCLUSIVE": "nobody",
    "SHARE UPDATE EXCLUSIVE": "nobody",
    "SHARE": "writes",
    "SHARE ROW EXCLUSIVE": "writes",
    "ACCESS EXCLUSIVE": "reads and writes",
}
"""The modes of locks that migrations take, from the weakest to the strongest, and whom each holds
up."""

_STRENGTH: Final = {mode: strength for strength, mode in enumerate(MODES)}


class Work(NamedTuple):
    """What takes time in a migration in proportion to a table, besides the indexes of its file."""

    kind: str
    """`scan`, `rewrite` (with all its indexes) or `reindex` (of one index)."""
    table: str


# Of the others, what they do to tables that are there takes no time.
WORK: Final[Mapping[int, tuple[Work, ...]]] = {
    1: (Work("scan", "workflows"), Work("scan", "workflows")),
    2: (
        Work("scan", "execution_pointers"),
        Work("rewrite", "execution_pointers"),
        Work("scan", "events"),
        Work("rewrite", "scheduled_commands"),
        Work("rewrite", "execution_errors"),
    ),
    3: (Work("reindex", "workflows"),),
}


class Size(NamedTuple):
    """How large a table is."""

    bytes: int
    rows: int
    """As PostgreSQL estimates them."""
    indexes: int
    """How many it has."""


@dataclass(frozen=True, slots=True)
class PlannedLock:
    """A lock that a migration holds to the end of its transaction."""

    table: str
    mode: str
    bytes: int
    rows: int

    @property
    def holds_up(self) -> str:
        """Whom it holds up: `nobody`, `writes` or `reads and writes`."""
        return MODES[self.mode]


@dataclass(frozen=True, slots=True)
class PlannedIndex:
    """An index that is built before the transaction and holds up nobody."""

    name: str
    table: str
    bytes: int
    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PlannedMigration:
    """What one migration would do."""

    name: str
    oldest_server: int
    online: tuple[PlannedIndex, ...]
    locks: tuple[PlannedLock, ...]
    seconds: float
    """For how long it would hold the locks."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the pending migrations of a store would do."""

    version: int
    """That of the store now."""
    migrations: tuple[PlannedMigration, ...]
    is_held: bool = False
    """Whether the first of them was taken back, so that no server applies it by itself."""

    @property
    def locked_seconds(self) -> float:
        """For how long they would lock tables."""
        return sum(m.seconds for m in self.migrations)

    @property
    def seconds(self) -> float:
        """How long they would take in all."""
        online = sum(index.seconds for m in self.migrations for index in m.online)
        return self.locked_seconds + online


SIZES_IN_PLAN = """
SELECT c.relname, pg_relation_size(c.oid), c.reltuples::bigint,
    (SELECT count(*) FROM pg_index x WHERE x.indrelid = c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = ANY (%s) AND c.relkind IN ('r', 'p')
"""


async def reckon(connection: psycopg.AsyncConnection[Any], schema: Schema, version: int) -> Plan:
    """What the migrations after `version` would do to a store that has those up to it."""
    sizes = await table_sizes(connection, schema)
    planned = []
    for migration in migration_files.migrations()[version:]:
        existing = [index for index in migration.indexes if index.table in sizes]
        large = await online.large(connection, schema, existing)
        planned.append(_planned(migration, sizes, large))
    return Plan(version, tuple(planned))


async def table_sizes(connection: psycopg.AsyncConnection[Any], schema: Schema) -> dict[str, Size]:
    """How large the tables are that there are, by name without prefix."""
    names = [schema.table_prefix + table for table in TABLES]
    cursor = await connection.execute(SIZES_IN_PLAN, [schema.name, names])
    return {
        name.removeprefix(schema.table_prefix): Size(
            size, size // _BYTES_PER_ROW if rows < 0 else rows, indexes
        )
        for name, size, rows, indexes in await cursor.fetchall()
    }


def _planned(
    migration: Migration, sizes: Mapping[str, Size], large: Iterable[Index]
) -> PlannedMigration:
    before = {index.name: index for index in large}
    seconds = 0.0
    for index in migration.created_indexes:
        if index.name not in before and index.table in sizes:
            seconds += sizes[index.table].rows * INDEX_SECONDS_PER_ROW
    for kind, table in WORK.get(migration.version, ()):
        if table in sizes:
            seconds += _seconds(kind, sizes[table])
    locks = locks_of(migration.sql(Schema(), built=before))
    existing_locks = [(table, mode) for table, mode in locks.items() if table in sizes]
    return PlannedMigration(
        migration.name,
        migration.oldest_server,
        tuple(
            PlannedIndex(
                index.name,
                index.table,
                sizes[index.table].bytes,
                sizes[index.table].rows,
                sizes[index.table].rows * ONLINE_INDEX_SECONDS_PER_ROW,
            )
            for index in before.values()
        ),
        tuple(
            PlannedLock(table, mode, sizes[table].bytes, sizes[table].rows)
            for table, mode in existing_locks
        ),
        max(seconds, _LEAST_SECONDS) if existing_locks else 0.0,
    )


def _seconds(kind: str, size: Size) -> float:
    if kind == "scan":
        return size.bytes * SCAN_SECONDS_PER_BYTE
    if kind == "reindex":
        return size.rows * INDEX_SECONDS_PER_ROW
    indexes = size.rows * INDEX_SECONDS_PER_ROW * size.indexes
    return size.bytes * REWRITE_SECONDS_PER_BYTE + indexes


_NAME: Final = r'"wfc"\."(\w+)"'
_BODY: Final = re.compile(r"\$\$.*?\$\$", re.DOTALL)
_COMMENT: Final = re.compile(r"--.*$", re.MULTILINE)
_LOCKING: Final = (
    (re.compile(rf"ALTER TABLE {_NAME}\s+(?:SET|RESET) \("), "SHARE UPDATE EXCLUSIVE"),
    (re.compile(rf"ALTER TABLE {_NAME}"), "ACCESS EXCLUSIVE"),
    (re.compile(rf"CREATE TRIGGER.*? ON {_NAME}", re.DOTALL), "SHARE ROW EXCLUSIVE"),
    (re.compile(rf"DROP TRIGGER \w+ ON {_NAME}"), "ACCESS EXCLUSIVE"),
    (re.compile(rf"CREATE (?:UNIQUE )?INDEX.*? ON {_NAME}", re.DOTALL), "SHARE"),
    (re.compile(rf"UPDATE {_NAME}"), "ROW EXCLUSIVE"),
    (re.compile(rf"REFERENCES {_NAME}"), "SHARE ROW EXCLUSIVE"),
)
_DROPPED_INDEX: Final = re.compile(rf"DROP INDEX (?:IF EXISTS )?{_NAME}")
_DROPPED_TABLES: Final = re.compile(r"DROP TABLE ([^;]+)")


def locks_of(sql: str) -> dict[str, str]:
    """The strongest lock that SQL for the default schema takes on each table, if it is there."""
    found: dict[str, str] = {}
    for statement in _COMMENT.sub("", _BODY.sub("", sql)).split(";"):
        for table, mode in _locks_of_statement(statement.strip()):
            if _STRENGTH[mode] > _STRENGTH.get(found.get(table, ""), -1):
                found[table] = mode
    return found


def _locks_of_statement(statement: str) -> Iterator[tuple[str, str]]:
    for pattern, mode in _LOCKING:
        if match := pattern.match(statement):
            yield match[1], mode
            break
    if statement.startswith(("CREATE TABLE", "ALTER TABLE")):
        for table in re.findall(rf"REFERENCES {_NAME}", statement):
            yield table, "SHARE ROW EXCLUSIVE"
    if (match := _DROPPED_INDEX.match(statement)) and (table := _table_of_index(match[1])):
        yield table, "ACCESS EXCLUSIVE"
    if match := _DROPPED_TABLES.match(statement):
        for table in re.findall(_NAME, match[1]):
            yield table, "ACCESS EXCLUSIVE"


def _table_of_index(name: str) -> str | None:
    if name in ORIGINAL_INDEXES:
        return ORIGINAL_INDEXES[name][0]
    for migration in migration_files.migrations():
        for index in migration.created_indexes:
            if index.name == name:
                return index.table
    return None


async def analyze(
    connection: psycopg.AsyncConnection[Any], schema: Schema, applied: Iterable[str]
) -> None:
    """Renew the statistics of what these migrations have touched: the planner knows nothing of a
    column whose type was changed. A table that is being vacuumed is left out, that renews them."""
    names = set(applied)
    touched = {
        table: None
        for migration in migration_files.migrations()
        if migration.name in names
        for table in (
            *locks_of(migration.sql(Schema())),
            *(index.table for index in migration.indexes),
        )
    }
    if not touched:
        return
    sizes = await table_sizes(connection, schema)
    for table in touched:
        if table in sizes and sizes[table].bytes:
            statement = schema.qualify(f"ANALYZE (SKIP_LOCKED) wfc.{table}")
            await connection.execute(statement.encode())
