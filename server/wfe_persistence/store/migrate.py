"""Numbered SQL files that create and update a store's tables.

Each file is applied once, in a transaction that first takes an advisory lock and then reads which
files have been applied; so any number of servers may migrate concurrently, and one that crashes
leaves nothing half done. The lock is held until the transaction ends and is taken before the schema
is created (`CREATE ... IF NOT EXISTS` alone is subject to races). Checksums detect a store that was
migrated by other files.

Servers of different releases use one store while they are upgraded one by one. So a migration says
which is the oldest server that may go on using the store, and that is recorded with it: there a
server reads of a migration that it does not know whether it may go on.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Final, NamedTuple

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import owner
from wfe_persistence.store.owner import Owner
from wfe_persistence.store.postgres.reachability import why
from wfe_persistence.store.postgres.source import Connector
from wfe_persistence.store.postgres.sqlstate import refusal
from wfe_persistence.store.rows import read_int4
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import MIGRATIONS_TABLE, Store

log = logging.getLogger(__name__)

Admission = Callable[[psycopg.AsyncConnection[Any]], Awaitable[None]]
"""Called in the transaction that creates a store, before it is created; raises what forbids it."""

_FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_OLDEST_SERVER: Final = re.compile(r"^-- oldest server: (\d+)$", re.MULTILINE)

# Those before it were released without a statement.
_FIRST_THAT_STATES: Final = 5

PACKAGED: Final = resources.files("wfe_persistence.store").joinpath("migrations")
"""The directory of this release's migrations."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `migrations/`."""

    version: int
    name: str
    template: str

    @property
    def checksum(self) -> str:
        """The checksum of the file before it is bound to a schema: the same for every store."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    @property
    def oldest_server(self) -> int:
        """The schema version of the oldest server that may go on using the store."""
        stated = _OLDEST_SERVER.search(self.template)
        if stated is None:
            assert self.version < _FIRST_THAT_STATES, (
                f"{self.name} does not state its oldest server"
            )
            return self.version
        return int(stated[1])

    def sql(self, schema: Schema) -> str:
        """The SQL for this schema."""
        return schema.qualify(self.template.replace("{prefix}", schema.table_prefix))


@dataclass(frozen=True, slots=True)
class Applied:
    """A row of the table of applied migrations."""

    version: int
    name: str
    checksum: str
    applied_at: datetime
    oldest_server: int


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a run of `migrate` did: the store's version now, and the names of those it applied."""

    version: int
    applied: list[str]


def read_migrations(*directories: Traversable) -> tuple[Migration, ...]:
    """The migrations in these directories in order; they are numbered from 1 without gaps."""
    found = []
    for file in (file for directory in directories for file in directory.iterdir()):
        if match := _FILE_NAME.fullmatch(file.name):
            name = file.name.removesuffix(".sql")
            found.append(Migration(int(match[1]), name, file.read_text("utf-8")))
    found.sort(key=lambda migration: migration.version)
    assert [m.version for m in found] == list(range(1, len(found) + 1))
    oldest = [0, *(m.oldest_server for m in found)]
    assert oldest == sorted(oldest), "who may not use the store will not be able to later"
    assert all(m.oldest_server <= m.version for m in found), "it would lock out its own servers"
    return tuple(found)


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations of this release in order."""
    return read_migrations(PACKAGED)


def latest_version() -> int:
    """The schema version of this server: that of the newest migration that it knows."""
    return len(migrations())


class SchemaVersion(NamedTuple):
    """The version of a store's schema, and of the oldest server that may use it."""

    number: int
    """That of the newest migration; 0: the store is not created yet."""
    oldest_server: int

    @property
    def is_outdated(self) -> bool:
        """Whether this server needs a newer one."""
        return self.number < latest_version()

    @property
    def is_newer(self) -> bool:
        """Whether a newer server has migrated the store."""
        return self.number > latest_version()

    def check_usable(self) -> None:
        """Raise SCHEMA_TOO_NEW if this server is too old for the store."""
        if self.is_newer and self.oldest_server > latest_version():
            raise PersistenceError(
                ErrorReason.ERROR_REASON_SCHEMA_TOO_NEW,
                f"the store has schema version {self.number}, which only servers of schema version "
                f"{self.oldest_server} or newer may use; this one has {latest_version()}: use a "
                "newer server",
                metadata={
                    "schema_version": str(self.number),
                    "oldest_server": str(self.oldest_server),
                    "latest_version": str(latest_version()),
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
    try:
        row = await store.read_once(SCHEMA_VERSION)
    except PersistenceError as exc:
        if exc.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
            return SchemaVersion(0, 0)
        raise
    if row.ntuples == 0:
        return SchemaVersion(0, 0)
    return SchemaVersion(read_int4(row.get_value(0, 0)), read_int4(row.get_value(0, 1)))


LOCK_MIGRATIONS = """
SELECT pg_advisory_xact_lock(hashtextextended('wfe-persistence ' || current_database() || %s, 0))
"""

# What the role or the database may have set, and a migration must not depend on: it may take long,
# and its functions are those of PostgreSQL. For this transaction only; the names that this
# PostgreSQL has.
INDEPENDENT = """
SELECT set_config(name, value, true)
FROM pg_settings JOIN (VALUES ('statement_timeout', '0'), ('transaction_timeout', '0'),
    ('idle_in_transaction_session_timeout', '0'), ('search_path', 'pg_catalog'),
    ('standard_conforming_strings', 'on')) AS wanted (name, value) USING (name)
"""

SCHEMA_AND_TABLE_EXIST = """
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s), to_regclass(%s) IS NOT NULL
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

APPLIED_MIGRATIONS = f"""
SELECT version, name, checksum, applied_at, {_OLDEST_SERVER_COLUMN}
FROM wfc.wfe_migrations AS wfe_migrations ORDER BY version
"""

RECORD_MIGRATION = """
INSERT INTO wfc.wfe_migrations (version, name, checksum, oldest_server) VALUES (%s, %s, %s, %s)
"""


async def migrate(
    connector: Connector,
    schema: Schema,
    *,
    claim: bool = True,
    admit: Admission | None = None,
) -> Migrated:
    """Apply the missing migrations on a separate connection. A newer store is left as it is.

    A store that has no owner yet gets `schema`'s, unless `claim` is false. Raises SCHEMA_TOO_NEW
    for a newer store that this server may not use; STORE_NOT_OWNED, having changed nothing, if it
    has another owner; and SCHEMA_OUTDATED if PostgreSQL rejects a migration, because of a
    conflicting object for example.
    """
    try:
        return await _migrate(connector, schema, claim, admit)
    except psycopg.Error as exc:
        log.error(  # noqa: TRY400
            "schema %s: migration failed: %s", schema.name, why(exc)
        )
        raise PersistenceError(
            ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
            "the store's migration failed; see the server's log",
            detail=why(exc),
        ) from exc


async def _migrate(
    connector: Connector, schema: Schema, claim: bool, admit: Admission | None
) -> Migrated:
    done: list[str] = []
    async with connect(connector) as connection:
        while True:
            async with connection.transaction():
                await connection.execute(INDEPENDENT)
                await connection.execute(LOCK_MIGRATIONS, [schema.name])
                await _create_schema(connection, schema)
                applied = await _applied(connection, schema)
                _check(applied)
                if not applied and admit is not None:
                    await admit(connection)
                is_new = not applied or applied[0].name in done
                has_owner = await _has_owner(connection, schema, len(applied))
                if len(applied) >= latest_version():
                    if not has_owner:
                        await _without_owner(connection, schema, claim)
                    return Migrated(applied[-1].version, done)
                if not await _states_oldest_server(connection, schema):
                    # In a transaction of its own: servers that look for the version would wait
                    # for the end of the migration.
                    await connection.execute(schema.qualify(ADD_OLDEST_SERVER).encode())
                    continue
                migration = migrations()[len(applied)]
                await connection.execute(migration.sql(schema).encode())
                await connection.execute(
                    schema.qualify(RECORD_MIGRATION).encode(), record_values(migration)
                )
                if is_new and migration.version == owner.FIRST_VERSION:
                    await connection.execute(owner.claim_statement(schema).encode())
            done.append(migration.name)


def record_values(migration: Migration) -> tuple[int, str, str, int]:
    """The parameters of RECORD_MIGRATION."""
    return migration.version, migration.name, migration.checksum, migration.oldest_server


async def _states_oldest_server(connection: psycopg.AsyncConnection[Any], schema: Schema) -> bool:
    cursor = await connection.execute(schema.qualify(STATES_OLDEST_SERVER).encode())
    return await cursor.fetchone() == (True,)


async def _has_owner(
    connection: psycopg.AsyncConnection[Any], schema: Schema, version: int
) -> bool:
    """Whether this store has an owner; raises STORE_NOT_OWNED if it is another one than ours."""
    found = await owner_of(connection, schema) if version >= owner.FIRST_VERSION else None
    if found is not None and found != Owner.of(schema):
        owner.raise_foreign(schema, found)
    return found is not None


async def owner_of(connection: psycopg.AsyncConnection[Any], schema: Schema) -> Owner | None:
    """Whose store it is, which must have the table for that; None: nobody's yet."""
    cursor = await connection.execute(schema.qualify(owner.READ_OWNER).encode())
    row = await cursor.fetchone()
    return None if row is None else Owner(*row)


async def _without_owner(
    connection: psycopg.AsyncConnection[Any], schema: Schema, claim: bool
) -> None:
    if claim:
        await connection.execute(owner.claim_statement(schema).encode())
        owner.log_claim(schema)
    else:
        log.warning(
            "schema %s has no recorded owner yet: it will be that of the first server that uses it",
            schema.name,
        )


def script(schema: Schema, first: int = 1) -> str:
    """The migrations from number `first` on as one script that also records them as applied."""
    parts = []
    if first <= 1:
        parts.append(f'CREATE SCHEMA IF NOT EXISTS "{schema.name}";\n')
    for table in (CREATE_MIGRATIONS_TABLE, ADD_OLDEST_SERVER):
        parts.append(schema.qualify(table).strip() + ";\n")
    for migration in migrations()[max(first, 1) - 1 :]:
        parts.append(migration.sql(schema))
        record = schema.qualify(RECORD_MIGRATION).strip()
        version, name, checksum, oldest_server = record_values(migration)
        parts.append(record % (version, f"'{name}'", f"'{checksum}'", oldest_server) + ";\n")
    parts.append(owner.claim_statement(schema).strip() + ";\n")
    return "\n".join(parts)


async def applied_migrations(connector: Connector, schema: Schema) -> list[Applied]:
    """The migrations applied to a store; creates nothing."""
    async with connect(connector) as connection:
        try:
            return await _applied(connection, schema)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return []


async def _create_schema(connection: psycopg.AsyncConnection[Any], schema: Schema) -> None:
    # IF NOT EXISTS needs the CREATE privilege even where there is nothing to create: for the schema
    # if an administrator has created it beforehand, for the table if he has migrated the store.
    table = schema.qualify(f"wfc.{MIGRATIONS_TABLE}")
    cursor = await connection.execute(SCHEMA_AND_TABLE_EXIST, [schema.name, table])
    row = await cursor.fetchone()
    assert row is not None
    schema_exists, table_exists = row
    if not schema_exists:
        await connection.execute(f'CREATE SCHEMA "{schema.name}"'.encode())
    if not table_exists:
        await connection.execute(schema.qualify(CREATE_MIGRATIONS_TABLE).encode())


async def _applied(connection: psycopg.AsyncConnection[Any], schema: Schema) -> list[Applied]:
    # Binary: psycopg can't read times as text unless the role's datestyle is ISO.
    cursor = connection.cursor(binary=True)
    await cursor.execute(schema.qualify(APPLIED_MIGRATIONS).encode())
    return [Applied(*row) for row in await cursor.fetchall()]


def _check(applied: list[Applied]) -> None:
    if applied:
        SchemaVersion(applied[-1].version, applied[-1].oldest_server).check_usable()
    for ours, theirs in zip(migrations(), applied, strict=False):
        if (ours.version, ours.checksum) != (theirs.version, theirs.checksum):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_SCHEMA_TOO_NEW,
                f"migration {theirs.name} was applied by another build with different content",
            )


@asynccontextmanager
async def connect(connector: Connector) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection for administration, outside the pool.

    PostgreSQL's errors on connecting and within the block become PersistenceErrors, unless only a
    bug or an object that is in the way explains them.
    """
    try:
        connection = await connector.connect(
            psycopg.AsyncConnection.connect, autocommit=True, prepare_threshold=None
        )
    except psycopg.Error as exc:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
            "the database can't be reached",
            detail=why(exc),
            retry_after=1.0,
        ) from exc
    # Not that of the role: who has waited for a lock must see what was committed meanwhile.
    await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    async with connection:
        try:
            yield connection
        except psycopg.Error as exc:
            lost = "08000" if isinstance(exc, psycopg.OperationalError) else ""
            if error := refusal(exc.sqlstate or lost, why(exc)):
                raise error from exc
            raise
