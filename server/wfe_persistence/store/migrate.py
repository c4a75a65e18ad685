"""Numbered SQL files that create and update a store's tables.

Each file is applied once, in a transaction that first takes an advisory lock and then reads which
files have been applied; so any number of servers may migrate concurrently, and one that crashes
leaves nothing half done. The lock is held until the transaction ends and is taken before the schema
is created (`CREATE ... IF NOT EXISTS` alone is subject to races). Checksums detect a store that was
migrated by other files.

Whoever waits for the lock of a table holds up all that come after him. So a migration waits for a
short time, and gives way and tries again for as long as it takes. Indexes of large tables are built
before it, without any such lock (`online.py`).

Servers of different releases use one store while they are upgraded one by one. So a migration says
which is the oldest server that may go on using the store, and that is recorded with it: there a
server reads of a migration that it does not know whether it may go on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import (
    migration_files,
    migration_history,
    migration_plan,
    online,
    original_indexes,
    owner,
)
from wfe_persistence.store.administration import INDEPENDENT, connect, wait_briefly
from wfe_persistence.store.migration_files import Migration
from wfe_persistence.store.migration_history import LOCK_MIGRATIONS, Applied, record_values
from wfe_persistence.store.owner import Owner
from wfe_persistence.store.postgres.reachability import why
from wfe_persistence.store.postgres.source import Connector
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import MIGRATIONS_TABLE

log = logging.getLogger(__name__)

Admission = Callable[[psycopg.AsyncConnection[Any]], Awaitable[None]]
"""Called in the transaction that creates a store, before it is created; raises what forbids it."""

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
_SAY_AGAIN_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a run of `migrate` did: the store's version now, and the names of those it applied."""

    version: int
    applied: list[str]


SCHEMA_AND_TABLE_EXIST = """
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s), to_regclass(%s) IS NOT NULL
"""

# Who uses tables of the schema for longest.
OLDEST_USER = """
SELECT a.pid, coalesce(a.usename, '?'), coalesce(a.application_name, '?'),
    extract(epoch FROM clock_timestamp() - a.xact_start)::float8
FROM pg_stat_activity a
WHERE a.pid IN (
    SELECT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s
        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
) AND a.pid <> pg_backend_pid()
ORDER BY a.xact_start LIMIT 1
"""


async def migrate(
    connector: Connector,
    schema: Schema,
    *,
    claim: bool = True,
    admit: Admission | None = None,
    unattended: float | None = None,
    own_later: bool = False,
    must_exist: bool = False,
) -> Migrated:
    """Apply the missing migrations on a separate connection. A newer store is left as it is.

    A store that has no owner yet gets `schema`'s, unless `claim` is false. `unattended`: nobody has
    ordered it, so it is not done if it is reckoned to take more than so many seconds, or after one
    was taken back. None: whatever it takes. `own_later`: a store without an owner stays without, as
    the caller will say whose it is. `must_exist`: one that is not there is not created; it may have
    moved to another database.

    Raises SCHEMA_TOO_NEW for a newer store that this server may not use; STORE_NOT_OWNED, having
    changed nothing, if it has another owner; and SCHEMA_OUTDATED if PostgreSQL rejects a migration,
    because of a conflicting object for example, or if it is left to `migrate up`.
    """
    try:
        return await _migrate(connector, schema, claim, admit, unattended, own_later, must_exist)
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
    connector: Connector,
    schema: Schema,
    claim: bool,
    admit: Admission | None,
    unattended: float | None,
    own_later: bool,
    must_exist: bool,
) -> Migrated:
    done: list[str] = []
    giving_way = _GivingWay(schema)
    async with connect(connector) as connection:
        if unattended is not None:
            await _leave_to_operator(connection, schema, unattended)
        while True:
            try:
                version = await _build_online(connector, connection, schema)
                applied = await _step(
                    connection, schema, claim, admit, done, version, own_later, must_exist
                )
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as exc:
                await giving_way.pause(connection, exc)
                continue
            if applied is not None:
                break
        await migration_plan.analyze(connection, schema, done)
        if applied.version == migration_files.latest_version():
            await original_indexes.drop(connection, schema)
    return Migrated(applied.version, done)


async def _step(
    connection: psycopg.AsyncConnection[Any],
    schema: Schema,
    claim: bool,
    admit: Admission | None,
    done: list[str],
    version: int,
    own_later: bool,
    must_exist: bool,
) -> Applied | None:
    """Apply the migration of a store of this version; returns the newest one if there is none to be
    applied."""
    async with connection.transaction():
        await connection.execute(INDEPENDENT)
        await connection.execute(LOCK_MIGRATIONS, [schema.name])
        await wait_briefly(connection)
        await _create_schema(connection, schema, must_exist)
        applied = await migration_history.read_applied(connection, schema)
        migration_history.check(applied)
        if not applied and admit is not None:
            await admit(connection)
        is_new = not applied or applied[0].name in done
        has_owner = await _has_owner(connection, schema, len(applied))
        if len(applied) >= migration_files.latest_version():
            if not has_owner and not own_later:
                await _without_owner(connection, schema, claim)
            return applied[-1]
        if len(applied) != version:
            # Another server was faster. The next migration may have indexes to be built before it.
            return None
        if not await _states_oldest_server(connection, schema):
            # In a transaction of its own: servers that look for the version would wait for the end
            # of the migration.
            await connection.execute(schema.qualify(migration_history.ADD_OLDEST_SERVER).encode())
            return None
        migration = migration_files.migrations()[len(applied)]
        await _apply(connection, schema, migration)
        if is_new and migration.version == owner.FIRST_VERSION and not own_later:
            await connection.execute(owner.claim_statement(schema).encode())
    done.append(migration.name)
    return None


async def _apply(
    connection: psycopg.AsyncConnection[Any], schema: Schema, migration: Migration
) -> None:
    built = await online.state(connection, schema, migration.indexes)
    for index in migration.indexes:
        if built.get(index.name) is False:
            # It was interrupted, and then the table became a small one.
            await connection.execute(index.drop(schema, concurrently=False).encode())
            del built[index.name]
    await connection.execute(migration.sql(schema, built=built).encode())
    await connection.execute(
        schema.qualify(migration_history.RECORD_MIGRATION).encode(), record_values(migration)
    )


async def _build_online(
    connector: Connector, connection: psycopg.AsyncConnection[Any], schema: Schema
) -> int:
    """Build the indexes of the next migration that are built before it; returns the version that
    the store has before it."""
    version = await _version(connection, schema)
    if not 0 < version < migration_files.latest_version():
        return version

    async def is_pending() -> bool:
        return await _version(connection, schema) == version

    migration = migration_files.migrations()[version]
    await online.build(connector, connection, schema, migration, is_pending)
    return version


async def _version(connection: psycopg.AsyncConnection[Any], schema: Schema) -> int:
    """The number of migrations that a store of ours has; 0: it is not there, or not ours."""
    applied = await _applied_if_any(connection, schema)
    if len(applied) >= owner.FIRST_VERSION:
        whose = await migration_history.owner_of(connection, schema)
        if whose is not None and whose != Owner.of(schema):
            return 0
    return len(applied)


async def _applied_if_any(
    connection: psycopg.AsyncConnection[Any], schema: Schema
) -> list[Applied]:
    try:
        return await migration_history.read_applied(connection, schema)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return []


async def _leave_to_operator(
    connection: psycopg.AsyncConnection[Any], schema: Schema, most: float
) -> None:
    """Raise SCHEMA_OUTDATED if the migrations that are pending are not for a server to apply by
    itself."""
    applied = await _applied_if_any(connection, schema)
    if len(applied) >= migration_files.latest_version():
        return
    if applied and applied[-1].is_held:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
            f"the store was taken back to schema version {applied[-1].version}, and this server "
            f"needs {migration_files.latest_version()}: use an older server, or apply the "
            "migrations again with wfe-persistence migrate up",
        )
    plan = await migration_plan.reckon(connection, schema, len(applied))
    if plan.seconds > most:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
            f"the store's migrations are reckoned to take {plan.seconds:.0f} s, for "
            f"{plan.locked_seconds:.0f} s of which they lock tables; a server does by itself what "
            f"takes up to {most:g} s (migrate-seconds): see wfe-persistence migrate plan, and "
            "run wfe-persistence migrate up",
        )


class _GivingWay:
    """Pauses after a lock was not to be had, and says why once in a while."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._pause = _FIRST_PAUSE
        self._said: float | None = None

    async def pause(self, connection: psycopg.AsyncConnection[Any], exc: psycopg.Error) -> None:
        """Wait before the next attempt."""
        now = asyncio.get_running_loop().time()
        if self._said is None or now - self._said >= _SAY_AGAIN_SECONDS:
            self._said = now
            log.warning(
                "schema %s: the migration gives way and tries again: %s%s",
                self._schema.name, why(exc), await self._held_by(connection),
            )  # fmt: skip
        await asyncio.sleep(self._pause * random.uniform(0.75, 1.25))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    async def _held_by(self, connection: psycopg.AsyncConnection[Any]) -> str:
        cursor = await connection.execute(OLDEST_USER.encode(), [self._schema.name])
        row = await cursor.fetchone()
        if row is None:
            return ""
        pid, user, application, seconds = row
        for_ = "" if seconds is None else f", for {seconds:.0f} s"
        return f"; its tables are used by process {pid} ({user}, {application}){for_}"


async def _states_oldest_server(connection: psycopg.AsyncConnection[Any], schema: Schema) -> bool:
    cursor = await connection.execute(
        schema.qualify(migration_history.STATES_OLDEST_SERVER).encode()
    )
    return await cursor.fetchone() == (True,)


async def _has_owner(
    connection: psycopg.AsyncConnection[Any], schema: Schema, version: int
) -> bool:
    """Whether this store has an owner; raises STORE_NOT_OWNED if it is another one than ours."""
    found = (
        await migration_history.owner_of(connection, schema)
        if version >= owner.FIRST_VERSION
        else None
    )
    if found is not None and found != Owner.of(schema):
        owner.raise_foreign(schema, found)
    return found is not None


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


def script(schema: Schema, first: int = 1, *, concurrently: bool = False) -> str:
    """The migrations from number `first` on as one script that also records them as applied.

    It may be run as one transaction, unless it builds indexes `concurrently`.
    """
    parts = []
    if first <= 1:
        parts.append(f'CREATE SCHEMA IF NOT EXISTS "{schema.name}";\n')
    for table in (
        migration_history.CREATE_MIGRATIONS_TABLE,
        migration_history.ADD_OLDEST_SERVER,
    ):
        parts.append(schema.qualify(table).strip() + ";\n")
    for migration in migration_files.migrations()[max(first, 1) - 1 :]:
        parts.append(migration.sql_online(schema) if concurrently else migration.sql(schema))
        record = schema.qualify(migration_history.RECORD_MIGRATION).strip()
        version, name, checksum, oldest_server = record_values(migration)
        parts.append(record % (version, f"'{name}'", f"'{checksum}'", oldest_server) + ";\n")
    parts.append(owner.claim_statement(schema).strip() + ";\n")
    return "\n".join(parts)


async def _create_schema(
    connection: psycopg.AsyncConnection[Any], schema: Schema, must_exist: bool
) -> None:
    # IF NOT EXISTS needs the CREATE privilege even where there is nothing to create: for the schema
    # if an administrator has created it beforehand, for the table if he has migrated the store.
    table = schema.qualify(f"wfc.{MIGRATIONS_TABLE}")
    cursor = await connection.execute(SCHEMA_AND_TABLE_EXIST, [schema.name, table])
    row = await cursor.fetchone()
    assert row is not None
    schema_exists, table_exists = row
    if must_exist and not table_exists:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_SCHEMA_OUTDATED, "the store is not here any more"
        )
    if not schema_exists:
        await connection.execute(f'CREATE SCHEMA "{schema.name}"'.encode())
    if not table_exists:
        await connection.execute(schema.qualify(migration_history.CREATE_MIGRATIONS_TABLE).encode())
