"""The two databases of a move: how their schemas are named, marked and looked at."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from wfe_persistence.store import migrate
from wfe_persistence.store.administration import INDEPENDENT, connect
from wfe_persistence.store.moving import guard
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.schema import MAX_IDENTIFIER_BYTES, Schema
from wfe_persistence.store.tables import TABLES

AsyncConnection = psycopg.AsyncConnection[Any]

_INCOMING: Final = "wfe-persistence: incoming by move "
_MOVED: Final = "wfe-persistence: moved away by move "


@dataclass(frozen=True, slots=True)
class Side:
    """A database, by its name in the directory, and the namespace's schema there."""

    name: str
    database: Database
    schema: Schema

    def connect(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection for administration, which commits each statement by itself."""
        return connect(self.database)

    def tables(self, schema: str | None = None) -> dict[str, str]:
        """The quoted names of the tables that hold data, in the order in which they are locked."""
        name, prefix = schema or self.schema.name, self.schema.table_prefix
        return {table: f'"{name}"."{prefix}{table}"' for table in TABLES}


def sql(text: str) -> bytes:
    """SQL that was put together from names that need no quoting, and from quoted ones."""
    return text.encode()


def archive_name(schema: Schema, move: str) -> str:
    """What a schema is called after it was moved away. (Not by its generation: a namespace that was
    deleted and created again has the same.)"""
    suffix = f"__moved_{move}"
    return schema.name[: MAX_IDENTIFIER_BYTES - len(suffix)] + suffix


SCHEMA_COMMENT = """
SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s
"""


async def comment(connection: AsyncConnection, schema: str) -> str | None:
    """The comment on a schema, empty without one; None: there is no such schema."""
    row = await (await connection.execute(SCHEMA_COMMENT, [schema])).fetchone()
    return None if row is None else row[0] or ""


async def is_incoming(connection: AsyncConnection, schema: Schema, move: str) -> bool:
    """Whether a schema is what a move makes, and not in use yet."""
    return await comment(connection, schema.name) == _INCOMING + move


async def is_moved_away(connection: AsyncConnection, archive: str, move: str) -> bool:
    """Whether the fence of a move was committed in its source."""
    return await comment(connection, archive) == _MOVED + move


async def create_incoming(
    connection: AsyncConnection, schema: Schema, database: str, move: str
) -> None:
    """Create the store of a move, empty. Its mark and its guard come with it, in one transaction,
    so that to nobody it ever looks like one that is in use."""
    async with connection.transaction():
        await connection.execute(INDEPENDENT)
        await connection.execute(sql(f'CREATE SCHEMA "{schema.name}"'))
        await connection.execute(sql(_commented(schema.name, _INCOMING + move)))
        await connection.execute(sql(migrate.script(schema)))
        await set_identity(connection, schema, database, 0, INCOMING)
        await guard.close(connection, schema, move)


async def drop_incoming(connection: AsyncConnection, schema: Schema, move: str) -> None:
    """Drop the schema that a move has made, unless it is in use."""
    async with connection.transaction():
        await connection.execute(LOCK_ACTIVATION, [schema.name])
        if await is_incoming(connection, schema, move):
            await connection.execute(sql(f'DROP SCHEMA "{schema.name}" CASCADE'))


async def drop_archive(connection: AsyncConnection, archive: str) -> bool:
    """Drop a schema that was moved away; whether there was one."""
    async with connection.transaction():
        found = await comment(connection, archive)
        if found is None or not found.startswith(_MOVED):
            return False
        # Somebody may read it; the next time will do.
        await connection.execute("SET LOCAL lock_timeout = '5s'")
        await connection.execute(sql(f'DROP SCHEMA "{archive}" CASCADE'))
    return True


# Serializes what makes an incoming schema the one in use with what drops it.
LOCK_ACTIVATION = """
SELECT pg_advisory_xact_lock(
    hashtextextended('wfe-persistence move ' || current_database() || %s, 0))
"""

INCOMING: Final = "incoming"
"""The state of a store that is being made of another one."""

MOVED: Final = "moved"
"""The state of one that was moved away."""

IDENTIFY_MOVED = "UPDATE wfc.wfe_store SET database = %s, generation = %s, state = %s"


async def set_identity(
    connection: AsyncConnection, schema: Schema, database: str, generation: int, state: str
) -> None:
    """Write into a store in which database it is, as which generation, and whether it is used."""
    statement = schema.qualify(IDENTIFY_MOVED)
    await connection.execute(sql(statement), [database, generation, state])


STATE_OF_MOVED = "UPDATE wfc.wfe_store SET state = %s"


async def set_state(connection: AsyncConnection, schema: Schema, state: str) -> None:
    """Write into a store whether it is used."""
    await connection.execute(sql(schema.qualify(STATE_OF_MOVED)), [state])


def archived(schema: str, archive: str, move: str) -> str:
    """The statements that rename a schema, so that whoever uses it by its name can't any more."""
    return f'ALTER SCHEMA "{schema}" RENAME TO "{archive}"; ' + _commented(archive, _MOVED + move)


def activated(schema: str) -> str:
    """The statement that takes the mark off a schema."""
    return f'COMMENT ON SCHEMA "{schema}" IS NULL'


def _commented(schema: str, text: str) -> str:
    return f"COMMENT ON SCHEMA \"{schema}\" IS '{text}'"
