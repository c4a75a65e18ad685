"""Taking back the newest migration of a store, where nothing would be lost.

That is for going back to the release before, if it can't use what the new one made. The script
`NNNN_name.down.sql` beside the migration says what would be lost and how it is counted, or that it
is not possible and why. A store that was taken back is left alone by the servers of the new
release, which report that it is outdated; only `migrate up` applies the migration again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import migration_files, migration_history, owner
from wfe_persistence.store.administration import INDEPENDENT, connect, wait_briefly
from wfe_persistence.store.migration_files import Migration
from wfe_persistence.store.migration_history import LOCK_MIGRATIONS
from wfe_persistence.store.owner import Owner
from wfe_persistence.store.postgres.reachability import why
from wfe_persistence.store.postgres.source import Connector
from wfe_persistence.store.schema import Schema

_MAX_ATTEMPTS: Final = 10
_AGAIN: Final = (
    ErrorReason.ERROR_REASON_ROW_LOCKED,
    ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
)


class NotTakenBackError(Exception):
    """A migration can't be taken back, or not now; the message says why."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What taking back a migration would lose."""

    rows: int
    what: str

    def __str__(self) -> str:
        return f"{self.rows} {self.what}"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a migration can't be taken back."""

    migration: str
    reason: str
    lost: tuple[Lost, ...] = ()

    def __str__(self) -> str:
        lost = ", ".join(map(str, self.lost))
        return f"not taken back: {self.reason} {lost}" if lost else f"not taken back: {self.reason}"


DELETE_RECORD = """
DELETE FROM wfc.wfe_migrations WHERE version = %s
"""

HOLD = """
UPDATE wfc.wfe_migrations SET held_time = now() WHERE version = %s
"""


async def obstacle(connector: Connector, schema: Schema, version: int) -> Obstacle | None:
    """Why a store can't be taken back to `version`; None: nothing is in the way now.

    Raises PersistenceError as `take_back` does for what is not a matter of the rows.
    """
    async with connect(connector) as connection:
        migration = await _newest(connection, schema, version)
        return None if migration is None else await _obstacle(connection, schema, migration)


async def take_back(connector: Connector, schema: Schema, version: int) -> str | None:
    """Take a store back to `version`, which must be that before the newest one that it has; returns
    the name of the migration that was taken back, None: the store has that version already.

    Raises NotTakenBackError if it can't be taken back or something would be lost; PersistenceError:
    SCHEMA_TOO_NEW if this release does not know the migration, STORE_NOT_OWNED. Nothing has been
    changed then.
    """
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        try:
            async with connect(connector) as connection:
                return await _take_back(connection, schema, version)
        except PersistenceError as exc:
            # A lock, for which it would have held up others, was not to be had.
            if exc.reason not in _AGAIN or attempt == _MAX_ATTEMPTS:
                raise
            await asyncio.sleep(attempt)
        except psycopg.Error as exc:
            raise _refused(f"PostgreSQL refuses it: {why(exc)}") from exc
    raise AssertionError


async def _take_back(
    connection: psycopg.AsyncConnection[Any], schema: Schema, version: int
) -> str | None:
    async with connection.transaction():
        await connection.execute(INDEPENDENT)
        await connection.execute(LOCK_MIGRATIONS, [schema.name])
        await wait_briefly(connection)
        migration = await _newest(connection, schema, version)
        if migration is None:
            return None
        # Nobody adds rows between the count and the end.
        for table in migration.lost_tables:
            lock = schema.qualify(f"LOCK TABLE wfc.{table} IN ACCESS EXCLUSIVE MODE")
            await connection.execute(lock.encode())
        if found := await _obstacle(connection, schema, migration):
            raise NotTakenBackError(str(found))
        await connection.execute(migration.sql_down(schema).encode())
        await connection.execute(schema.qualify(DELETE_RECORD).encode(), [migration.version])
        await connection.execute(schema.qualify(migration_history.ADD_HELD_TIME).encode())
        await connection.execute(schema.qualify(HOLD).encode(), [version])
        return migration.name


async def _newest(
    connection: psycopg.AsyncConnection[Any], schema: Schema, version: int
) -> Migration | None:
    """The newest migration of a store, which is the one after `version`; None: it is `version`."""
    try:
        applied = await migration_history.read_applied(connection, schema)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        applied = []
    has = len(applied)
    if has > migration_files.latest_version():
        raise PersistenceError(
            ErrorReason.ERROR_REASON_SCHEMA_TOO_NEW,
            f"the store has schema version {has}, and this release knows those up to "
            f"{migration_files.latest_version()}: use the release that migrated it",
        )
    migration_history.check(applied)
    if has >= owner.FIRST_VERSION:
        whose = await migration_history.owner_of(connection, schema)
        if whose is not None and whose != Owner.of(schema):
            owner.raise_foreign(schema, whose)
    if has == version:
        return None
    if has != version + 1:
        raise _refused(
            f"the store has schema version {has}; it can be taken back by one version at a time"
        )
    return migration_files.migrations()[version]


async def _obstacle(
    connection: psycopg.AsyncConnection[Any], schema: Schema, migration: Migration
) -> Obstacle | None:
    if migration.irreversible:
        return Obstacle(migration.name, f"{migration.name} can't be: {migration.irreversible}")
    lost = []
    for loss in migration.losses:
        cursor = await connection.execute(schema.qualify(loss.count).encode())
        [[rows]] = await cursor.fetchall()
        if rows:
            lost.append(Lost(rows, loss.what))
    if lost:
        return Obstacle(migration.name, f"{migration.name} would lose", tuple(lost))
    return None


def _refused(message: str) -> NotTakenBackError:
    return NotTakenBackError(f"not taken back: {message}")
