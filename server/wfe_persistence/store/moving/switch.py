"""The pause and the switch: what happens while writes are held.

Writes are held by a lock of all tables that lets readers through. A writer that has waited for it
finds, after the fence, that its tables have gone by that name; PostgreSQL looks again after each
wait, also for what is prepared. So no statement of a server that does not know of the move can
write what would be lost, and none can read what is out of date.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psycopg

from wfe_persistence.store.administration import INDEPENDENT
from wfe_persistence.store.lifecycle import NEW_FEED
from wfe_persistence.store.moving import guard, logical, sides
from wfe_persistence.store.moving.prerequisites import NotPossible
from wfe_persistence.store.moving.sides import AsyncConnection, Side, sql
from wfe_persistence.store.owner import ACTIVE
from wfe_persistence.store.postgres.reachability import why
from wfe_persistence.store.workflow_changes import NEW_WORKFLOW_FEED

# For how long the lock is waited for, and others behind it, in each attempt (seconds). The first
# ones end before PostgreSQL looks for deadlocks, so none is anybody's error; the later ones are
# long enough for an autovacuum to give way.
_LOCK_SECONDS: Final = (0.2, 0.3, 0.5, 0.5, 1.2, 2.0)
_LOCK_PAUSE_SECONDS: Final = 0.3


async def hold_writes(connection: AsyncConnection, source: Side, idle_seconds: float) -> None:
    """Begin a transaction that holds back all writes. PostgreSQL ends it if it hears nothing for so
    many seconds. Raises NotPossible if others hold the tables for long."""
    tables = ", ".join(source.tables().values())
    for seconds in _LOCK_SECONDS:
        await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            await connection.execute(INDEPENDENT)
            await connection.execute(
                "SELECT set_config('lock_timeout', %s, true)", [f"{seconds * 1000:.0f}"]
            )
            await connection.execute(sql(f"LOCK TABLE {tables} IN EXCLUSIVE MODE"))
            await connection.execute("SELECT set_config('lock_timeout', '5s', true)")
            await hold_for(connection, idle_seconds)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as exc:
            await connection.execute("ROLLBACK")
            reason = why(exc)
            await asyncio.sleep(_LOCK_PAUSE_SECONDS)
        else:
            return
    raise NotPossible(
        "writes could not be held: a transaction keeps tables of the namespace locked, see "
        f"pg_locks ({reason}). The move can be taken up again"
    )


async def hold_for(connection: AsyncConnection, idle_seconds: float) -> None:
    """Have PostgreSQL end the transaction if it hears nothing for so many seconds."""
    await connection.execute(
        "SELECT set_config('idle_in_transaction_session_timeout', %s, true)",
        [f"{idle_seconds * 1000:.0f}"],
    )


@dataclass(frozen=True, slots=True)
class Sequence_:  # noqa: N801
    """A sequence and where it is."""

    key: tuple[str, str]
    """The table and the column that it belongs to, or an empty string and its own name."""
    value: int
    is_called: bool


SEQUENCES = """
SELECT c.relname, coalesce(t.relname, ''), coalesce(a.attname, '')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
        AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
    LEFT JOIN pg_class t ON t.oid = d.refobjid
    LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE n.nspname = %s AND c.relkind = 'S'
ORDER BY c.relname
"""


async def _sequence_names(connection: AsyncConnection, schema: str) -> dict[tuple[str, str], str]:
    rows = await (await connection.execute(SEQUENCES, [schema])).fetchall()
    return {(table, column) if table else ("", name): name for name, table, column in rows}


async def hold_sequences(connection: AsyncConnection, source: Side) -> None:
    """Hold back whoever would move a sequence without writing a table, to the end of the
    transaction: an import that raises the floor of revisions."""
    names = await _sequence_names(connection, source.schema.name)
    schema = source.schema.name
    await connection.execute(
        sql("; ".join(f'ALTER SEQUENCE "{schema}"."{name}" CACHE 1' for name in names.values()))
    )


async def read_sequences(connection: AsyncConnection, schema: str) -> list[Sequence_]:
    """Where the sequences of a schema are."""
    names = await _sequence_names(connection, schema)
    keys = list(names)
    selects = [
        f'SELECT {n}, last_value, is_called FROM "{schema}"."{names[key]}"'
        for n, key in enumerate(keys)
    ]
    rows = await (await connection.execute(sql(" UNION ALL ".join(selects)))).fetchall()
    return [Sequence_(keys[n], value, is_called) for n, value, is_called in rows]


async def fence(connection: AsyncConnection, source: Side, archive: str, move: str) -> None:
    """Commit the transaction that holds writes back, and with it that the source is out of use.

    Raises NotPossible if somebody has aborted the move, or has taken it over and begun anew.
    """
    schema = source.schema.name
    try:
        await connection.execute(sql(f'DROP PUBLICATION "{logical.name_of(move)}"'))
    except psycopg.errors.UndefinedObject as exc:
        raise NotPossible("the move was aborted, or begun anew, by another call") from exc
    await sides.set_state(connection, source.schema, sides.MOVED)
    await connection.execute(sql(sides.archived(schema, archive, move)))
    await connection.execute("COMMIT")


async def activate(
    connection: AsyncConnection,
    target: Side,
    move: str,
    generation: int,
    sequences: Sequence[Sequence_],
) -> bool:
    """Put the target into use, once the source is out of it. False: it is already."""
    schema = target.schema
    async with guard.passing(connection, schema, move):
        await connection.execute(INDEPENDENT)
        await connection.execute(sides.LOCK_ACTIVATION, [schema.name])
        if not await sides.is_incoming(connection, schema, move):
            return False
        names = await _sequence_names(connection, schema.name)
        calls = [
            f'setval(\'"{schema.name}"."{names[each.key]}"\', {each.value}, {each.is_called})'
            for each in sequences
        ]
        await connection.execute(sql("SELECT " + ", ".join(calls)))
        for statement in (NEW_FEED, NEW_WORKFLOW_FEED):  # cursors of the old ones have expired
            await connection.execute(sql(schema.qualify(statement)))
        await sides.set_identity(connection, schema, target.name, generation, ACTIVE)
        await connection.execute(sql(sides.activated(schema.name)))
        await guard.open_(connection, schema, move)
    return True
