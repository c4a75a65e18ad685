"""Who may use the tables of a copy that is being made: nobody but whoever makes it.

Replication finds a table by its name, so the copy has the name that the namespace has everywhere. A
server that does not know yet that the namespace has left a database, because nobody called it or it
was asleep, would read and write the copy that is made when the namespace comes back there. What it
knows can't be waited for: a process may sleep for any time between a look and a statement.

So the tables themselves refuse. Each gets an index on nothing, whose condition is a function that
fails; PostgreSQL evaluates it whenever it plans a statement that reads the table, or inserts into
it, whoever asks, the owner and superusers included. It does not fail for the workers of replication
(`session_replication_role`), nor in a transaction that is `passing`. The error is that of a table
that is not there, on which a server looks where the namespace is.

The tables come into being together with their guard (`sides.create_incoming`), so they are never
without. To open it takes no lock of a table, whoever reads them, a dump for example: the function
is replaced by one that does not fail. The indexes are removed later, without holding anybody up.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import psycopg

from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import TABLES

AsyncConnection = psycopg.AsyncConnection[Any]

_SETTING: Final = "wfe.move"

_FUNCTION: Final = """
CREATE OR REPLACE FUNCTION {function} RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $wfe$
BEGIN{refuse}
    RETURN FALSE;
END
$wfe$;
"""

# It is IMMUTABLE, as conditions of indexes must be, for all who may use the tables at all.
_REFUSE: Final = """
    IF pg_catalog.current_setting('session_replication_role') <> 'replica'
        AND pg_catalog.current_setting('wfe.move', TRUE) IS DISTINCT FROM '{move}'
    THEN
        RAISE undefined_table USING MESSAGE = 'the namespace is not here yet: it is being moved';
    END IF;"""

# An autovacuum would only be refused as well, and say so in the log once a minute.
_PROTECT: Final = """
CREATE INDEX "{index}" ON {table} ((1)) WHERE {function};
ALTER TABLE {table} SET (autovacuum_enabled = FALSE);
"""

INDEXES_OF_GUARD = """
SELECT c.relname, t.relname
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_class t ON t.oid = i.indrelid
WHERE n.nspname = %s AND starts_with(c.relname, %s)
"""

GUARDS = """
SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname = %s AND starts_with(p.proname, %s)
"""


def name_of(schema: Schema, move: str) -> str:
    """What the guard of a move's copy is called."""
    return f"{_prefix(schema)}{move}"


async def close(connection: AsyncConnection, schema: Schema, move: str) -> None:
    """Guard tables that are created in the same transaction."""
    guard = name_of(schema, move)
    function = f'"{schema.name}"."{guard}"()'
    # It must not fail while the indexes are built.
    statements = [_FUNCTION.format(function=function, refuse="")]
    statements += [
        _PROTECT.format(
            index=f"{guard}_{n}",
            table=f'"{schema.name}"."{schema.table_prefix}{table}"',
            function=function,
        )
        for n, table in enumerate(TABLES)
    ]
    statements.append(_FUNCTION.format(function=function, refuse=_REFUSE.format(move=move)))
    await connection.execute("".join(statements).encode())


async def open_(connection: AsyncConnection, schema: Schema, move: str) -> None:
    """Have everybody use the tables from the end of this transaction on, which is `passing`."""
    function = f'"{schema.name}"."{name_of(schema, move)}"()'
    await connection.execute(_FUNCTION.format(function=function, refuse="").encode())


@asynccontextmanager
async def passing(connection: AsyncConnection, schema: Schema, move: str) -> AsyncIterator[None]:
    """A transaction that may use the tables.

    PostgreSQL's process remembers what a condition has come to. Behind a PgBouncer others are
    served by it afterwards, so in the end it must forget that: it does when an index is changed.
    """
    async with connection.transaction():
        try:
            async with connection.transaction():
                await connection.execute("SELECT set_config(%s, %s, TRUE)", [_SETTING, move])
                yield
        finally:
            with suppress(psycopg.Error):  # then it has ended, or the caller knows more
                await connection.execute("SELECT set_config(%s, '', TRUE)", [_SETTING])
                for index, _ in await _indexes(connection, schema, name_of(schema, move)):
                    await connection.execute(
                        f'ALTER INDEX "{schema.name}"."{index}" SET (fillfactor = 90)'.encode()
                    )


async def remove(connection: AsyncConnection, schema: Schema, guard: str) -> None:
    """Remove a guard that was opened. Nobody waits for it, but it waits for whoever uses the tables
    at the moment."""
    for index, table in await _indexes(connection, schema, guard):
        await connection.execute(
            f'ALTER TABLE "{schema.name}"."{table}" RESET (autovacuum_enabled)'.encode()
        )
        await connection.execute(
            f'DROP INDEX CONCURRENTLY IF EXISTS "{schema.name}"."{index}"'.encode()
        )
    await _drop_function(connection, schema, guard)


async def drop_what_is_left(connection: AsyncConnection, schema: Schema) -> None:
    """Drop the functions of guards whose tables have been dropped."""
    cursor = await connection.execute(GUARDS, [schema.name, _prefix(schema)])
    for (guard,) in await cursor.fetchall():
        await _drop_function(connection, schema, guard)


def _prefix(schema: Schema) -> str:
    return f"{schema.table_prefix}incoming_"


async def _drop_function(connection: AsyncConnection, schema: Schema, guard: str) -> None:
    await connection.execute(f'DROP FUNCTION IF EXISTS "{schema.name}"."{guard}"()'.encode())


async def _indexes(
    connection: AsyncConnection, schema: Schema, guard: str
) -> list[tuple[str, str]]:
    """The indexes of a guard, each with its table."""
    cursor = await connection.execute(INDEXES_OF_GUARD, [schema.name, f"{guard}_"])
    return await cursor.fetchall()
