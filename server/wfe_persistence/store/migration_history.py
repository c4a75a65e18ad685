"""The table in which a store says which migrations it has."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import migration_files, owner
from wfe_persistence.store.administration import connect
from wfe_persistence.store.migration_files import Migration
from wfe_persistence.store.owner import Owner
from wfe_persistence.store.postgres.source import Connector
from wfe_persistence.store.rows import read_int4
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store


@dataclass(frozen=True, slots=True)
class Applied:
    """A row of the table of applied migrations."""

    version: int
    name: str
    checksum: str
    applied_at: datetime
    oldest_server: int
    is_held: bool
    """Whether the one after it was taken back: only `migrate up` applies it again."""


class SchemaVersion(NamedTuple):
    """The version of a store's schema, and of the oldest server that may use it."""

    number: int
    """That of the newest migration; 0: the store is not created yet."""
    oldest_server: int

    @property
    def is_outdated(self) -> bool:
        """Whether this server needs a newer one."""
        return self.number < migration_files.latest_version()

    @property
    def is_newer(self) -> bool:
        """Whether a newer server has migrated the store."""
        return self.number > migration_files.latest_version()

    def check_usable(self) -> None:
        """Raise SCHEMA_TOO_NEW if this server is too old for the store."""
        latest = migration_files.latest_version()
        if self.is_newer and self.oldest_server > latest:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_SCHEMA_TOO_NEW,
                f"the store has schema version {self.number}, which only servers of schema version "
                f"{self.oldest_server} or newer may use; this one has {latest}: use a newer "
                "server",
                metadata={
                    "schema_version": str(self.number),
                    "oldest_server": str(self.oldest_server),
                    "latest_version": str(latest),
                },
            )


# Read through JSON because the column is missing in tables made by servers that stated nothing:
# then none but those with this version may use the store.
_OLDEST_SERVER_COLUMN: Final = (
    "coalesce((to_jsonb(wfe_migrations) ->> 'oldest_server')::int, version)"
)

SCHEMA_VERSION = f"""
SELECT version, {_OLDEST_SERVER_COLUMN}
FROM wfc.wfe_migrations AS wfe_migrations ORDER BY version DESC LIMIT 1
"""


async def schema_version(store: Store) -> SchemaVersion:
    """The schema version of a store."""
    row = await store.read_if_there(SCHEMA_VERSION)
    if row is None or row.ntuples == 0:
        return SchemaVersion(0, 0)
    return SchemaVersion(read_int4(row.get_value(0, 0)), read_int4(row.get_value(0, 1)))


LOCK_MIGRATIONS = """
SELECT pg_advisory_xact_lock(hashtextextended('wfe-persistence ' || current_database() || %s, 0))
"""

CREATE_MIGRATIONS_TABLE = """
CREATE TABLE IF NOT EXISTS wfc.wfe_migrations (
    version int PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    oldest_server int
)
"""

STATES_OLDEST_SERVER = """
SELECT EXISTS (SELECT FROM pg_attribute
    WHERE attrelid = 'wfc.wfe_migrations'::regclass AND attname = 'oldest_server')
"""

# No migration adds the column: its version would end the servers of the releases that know nothing
# of this. They go on with the column, and leave it NULL.
ADD_OLDEST_SERVER = """
ALTER TABLE wfc.wfe_migrations ADD COLUMN IF NOT EXISTS oldest_server int
"""

# What makes servers leave a store alone whose newest migration was taken back; added by that.
ADD_HELD_TIME = """
ALTER TABLE wfc.wfe_migrations ADD COLUMN IF NOT EXISTS held_time timestamptz
"""

APPLIED_MIGRATIONS = f"""
SELECT version, name, checksum, applied_at, {_OLDEST_SERVER_COLUMN},
    (to_jsonb(wfe_migrations) ->> 'held_time') IS NOT NULL
FROM wfc.wfe_migrations AS wfe_migrations ORDER BY version
"""

RECORD_MIGRATION = """
INSERT INTO wfc.wfe_migrations (version, name, checksum, oldest_server) VALUES (%s, %s, %s, %s)
"""


def record_values(migration: Migration) -> tuple[int, str, str, int]:
    """The parameters of RECORD_MIGRATION."""
    return migration.version, migration.name, migration.checksum, migration.oldest_server


async def owner_of(connection: psycopg.AsyncConnection[Any], schema: Schema) -> Owner | None:
    """Whose store it is, which must have the table for that; None: nobody's yet."""
    cursor = await connection.execute(schema.qualify(owner.READ_OWNER).encode())
    row = await cursor.fetchone()
    return None if row is None else Owner(*row)


async def applied_migrations(connector: Connector, schema: Schema) -> list[Applied]:
    """The migrations applied to a store; creates nothing."""
    async with connect(connector) as connection:
        try:
            return await read_applied(connection, schema)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return []


async def read_applied(connection: psycopg.AsyncConnection[Any], schema: Schema) -> list[Applied]:
    """The migrations that a store has, in order."""
    # Binary: psycopg can't read times as text unless the role's datestyle is ISO.
    cursor = connection.cursor(binary=True)
    await cursor.execute(schema.qualify(APPLIED_MIGRATIONS).encode())
    return [Applied(*row) for row in await cursor.fetchall()]


def check(applied: list[Applied]) -> None:
    """Raise SCHEMA_TOO_NEW if this server may not use a store with these migrations."""
    if applied:
        SchemaVersion(applied[-1].version, applied[-1].oldest_server).check_usable()
    for ours, theirs in zip(migration_files.migrations(), applied, strict=False):
        if (ours.version, ours.checksum) != (theirs.version, theirs.checksum):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_SCHEMA_TOO_NEW,
                f"migration {theirs.name} was applied by another build with different content",
            )
