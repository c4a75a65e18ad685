"""Publication, slot and subscription of a move: how its rows get there while they are written.

The slot is made by itself, before the subscription: a subscription that makes its own would wait
for ever where both databases are in one cluster. The connection string, which may have a password,
is kept out of the target's log as well: it is no part of a statement's text.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import conninfo

from wfe_persistence.store.moving.sides import AsyncConnection, Side, sql

# libpq's own, and what only a server needs.
_LEFT_OUT: Final = ("application_name", "client_encoding", "fallback_application_name", "options")
_SLOT_SECONDS: Final = 20.0
_SLOT_PAUSE_SECONDS: Final = 0.05
# How often, and at what distance, it is looked whether a slot is gone for good.
_SLOT_LOOKS: Final = 6
_SLOT_LOOK_SECONDS: Final = 0.5


def name_of(move: str) -> str:
    """What the publication, the slot and the subscription of a move are called."""
    return f"wfe_move_{move}"


async def publish(connection: AsyncConnection, source: Side, move: str) -> None:
    """Create the publication, and behind it the slot: what is committed from now on is kept.

    The slot waits for the transactions that write in this cluster at the moment.
    """
    tables = ", ".join(source.tables().values())
    await connection.execute(sql(f'CREATE PUBLICATION "{name_of(move)}" FOR TABLE {tables}'))
    await connection.execute(CREATE_SLOT, [name_of(move)])


CREATE_SLOT = "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')"

# Who may set it has none of this in the log, whatever is logged: the parameter of SET_CONNINFO.
BE_QUIET = """
SELECT set_config(name, value, true)
FROM pg_settings JOIN (VALUES ('log_statement', 'none'), ('log_min_duration_statement', '-1'),
    ('log_min_duration_sample', '-1'), ('log_duration', 'off'),
    ('log_transaction_sample_rate', '0'), ('log_min_error_statement', 'panic'),
    ('log_error_verbosity', 'terse'))
    AS wanted (name, value) USING (name)
WHERE pg_catalog.has_parameter_privilege(name, 'SET')
"""
BE_QUIET_BEFORE_15 = BE_QUIET.replace(
    "pg_catalog.has_parameter_privilege(name, 'SET')",
    "(SELECT rolsuper FROM pg_roles WHERE rolname = current_user)",
)

SET_CONNINFO = "SELECT set_config('wfe.conninfo', %s, true)"

# An error that is caught is not logged, nor is its context, which would have the statement.
SUBSCRIBE = """
DO $wfe$
BEGIN
    EXECUTE format('CREATE SUBSCRIPTION %I CONNECTION %L PUBLICATION %I WITH (
        create_slot = FALSE, slot_name = {slot}, enabled = {enabled}, copy_data = TRUE)',
        '{subscription}', current_setting('wfe.conninfo'), '{publication}');
EXCEPTION WHEN OTHERS THEN
    RAISE EXCEPTION USING MESSAGE = SQLERRM, ERRCODE = SQLSTATE;
END
$wfe$
"""


async def subscribe(connection: AsyncConnection, source: Side, move: str) -> None:
    """Create the subscription, which begins to copy at once."""
    name = name_of(move)
    async with connection.transaction():
        await _create(connection, source, name, name, f"''{name}''", "TRUE")


_CHECK: Final = "wfe_move_check_"

# Those of checks whose sessions have ended, as one does whose server was killed.
CHECKS_LEFT = f"""
SELECT pubname FROM pg_publication
WHERE starts_with(pubname, '{_CHECK}') AND (pubname = %s OR NOT EXISTS (
    SELECT FROM pg_stat_activity WHERE pubname = '{_CHECK}' || pid))
"""


async def try_subscription(here: AsyncConnection, there: AsyncConnection, source: Side) -> None:
    """Raise psycopg.Error if the target could not subscribe: it is done, and rolled back."""
    # An empty one. Without any there would be a warning, and in its context the statement.
    row = await (await here.execute("SELECT pg_backend_pid()")).fetchone()
    assert row is not None
    name = f"{_CHECK}{row[0]}"
    for (left,) in await (await here.execute(CHECKS_LEFT, [name])).fetchall():
        await here.execute(sql(f'DROP PUBLICATION IF EXISTS "{left}"'))
    await here.execute(sql(f'CREATE PUBLICATION "{name}"'))
    try:
        await there.execute("BEGIN")
        try:
            await _create(there, source, name, name, "NONE", "FALSE")
        finally:
            await there.execute("ROLLBACK")
    finally:
        await here.execute(sql(f'DROP PUBLICATION "{name}"'))


async def _create(
    connection: AsyncConnection,
    source: Side,
    subscription: str,
    publication: str,
    slot: str,
    enabled: str,
) -> None:
    quiet = BE_QUIET if connection.info.server_version >= 150_000 else BE_QUIET_BEFORE_15
    await connection.execute(sql(quiet))
    await connection.execute(SET_CONNINFO, [await _conninfo(source)])
    statement = SUBSCRIBE.replace("{slot}", slot).replace("{enabled}", enabled)
    statement = statement.replace("{subscription}", subscription)
    await connection.execute(sql(statement.replace("{publication}", publication)))


async def _conninfo(source: Side) -> str:
    given = conninfo.conninfo_to_dict(await source.database.source.conninfo())
    kept = {key: value for key, value in given.items() if key not in _LEFT_OUT}
    return conninfo.make_conninfo("", **kept)


@dataclass(frozen=True, slots=True)
class State:
    """How far a subscription is."""

    is_whole: bool
    """Whether publication, slots and subscription are all there."""
    ready: int
    """How many tables have been copied, and follow."""
    tables: int
    copied_bytes: int
    """The size of the target's tables."""
    lag_bytes: int
    """How much write-ahead log the subscriber has not confirmed."""


SLOT_STATE = """
SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = m.name),
    (SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots
        WHERE slot_name = m.name AND wal_status IS DISTINCT FROM 'lost')::bigint
FROM (SELECT %s::text AS name) m
"""

SUBSCRIPTION_STATE = """
SELECT count(*) FILTER (WHERE r.srsubstate = 'r'), count(r.srrelid),
    coalesce(sum(pg_table_size(r.srrelid)), 0)::bigint
FROM pg_subscription s LEFT JOIN pg_subscription_rel r ON r.srsubid = s.oid
WHERE s.subname = %s
    AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
GROUP BY s.oid
"""


# PostgreSQL drops the slot of a table's copy before it commits that the copy is done. If it breaks
# down in between, the table stays as it is for good: its worker looks for the slot again and again.
COPIES_TO_FINISH = """
SELECT r.srrelid, 'pg_' || s.oid || '_sync_' || r.srrelid || '_'
    || (SELECT system_identifier FROM pg_control_system())
FROM pg_subscription s JOIN pg_subscription_rel r ON r.srsubid = s.oid AND r.srsubstate = 'f'
WHERE s.subname = %s
    AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
SLOTS_MISSING = """
SELECT name FROM unnest(%s::text[]) name
WHERE name NOT IN (SELECT slot_name FROM pg_replication_slots)
"""


async def _has_lost_a_slot(here: AsyncConnection, there: AsyncConnection, move: str) -> bool:
    """Whether there is a table whose copy can't be finished, because its slot is gone."""
    missing: set[int] = set()
    for look in range(_SLOT_LOOKS):
        if look:
            await asyncio.sleep(_SLOT_LOOK_SECONDS)
        cursor = await there.execute(COPIES_TO_FINISH, [name_of(move)])
        slots = {slot: table for table, slot in await cursor.fetchall()}
        cursor = await here.execute(SLOTS_MISSING, [list(slots)])
        found = {slots[slot] for (slot,) in await cursor.fetchall()}
        missing = missing & found if look else found
        if not missing:  # nearly always at once
            return False
    return True


async def state(here: AsyncConnection, there: AsyncConnection, move: str) -> State:
    """How far the subscription of a move is."""
    row = await (await here.execute(SLOT_STATE, [name_of(move)])).fetchone()
    assert row is not None
    is_published, lag = row
    row = await (await there.execute(SUBSCRIPTION_STATE, [name_of(move)])).fetchone()
    ready, tables, copied = row or (0, 0, 0)
    is_whole = is_published and lag is not None and row is not None
    if is_whole and ready < tables:
        is_whole = not await _has_lost_a_slot(here, there, move)
    return State(is_whole, ready, tables, copied, lag or 0)


# What is committed by now, whatever synchronous_commit says: it is behind this message, which is.
EMIT_MARK = "SELECT pg_logical_emit_message(TRUE, 'wfe-persistence', '')"
WAL_POSITION = "SELECT pg_current_wal_insert_lsn()::text"

# What was replayed need not be on disk: the target applies without waiting for that. Not every role
# may see the first, which is sooner.
HAS_APPLIED = """
SELECT EXISTS (SELECT FROM pg_stat_replication
        WHERE application_name = m.name
            AND CASE WHEN m.is_durable THEN flush_lsn ELSE replay_lsn END >= m.lsn)
    OR EXISTS (SELECT FROM pg_replication_slots
        WHERE slot_name = m.name AND confirmed_flush_lsn >= m.lsn)
FROM (SELECT %s::text AS name, %s::pg_lsn AS lsn, %s::boolean AS is_durable) m
"""


async def wait_until_applied(
    connection: AsyncConnection,
    move: str,
    seconds: float,
    pause: float = 0.01,
    *,
    durably: bool = False,
) -> bool:
    """Wait until the target has all that is committed in the source now, `durably`: on disk; False:
    it has not within this time."""
    await connection.execute("SET synchronous_commit = on")
    await connection.execute(EMIT_MARK)
    row = await (await connection.execute(WAL_POSITION)).fetchone()
    assert row is not None
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                cursor = await connection.execute(HAS_APPLIED, [name_of(move), row[0], durably])
                if await cursor.fetchone() == (True,):
                    return True
                await asyncio.sleep(pause)
    return False


SLOTS_OF_MOVE = """
SELECT slot_name, active_pid FROM pg_replication_slots
WHERE slot_name = %s OR slot_name LIKE %s
"""
DROP_SLOT = "SELECT pg_drop_replication_slot(%s)"
SUBSCRIBER = """
SELECT s.oid, (SELECT system_identifier FROM pg_control_system())
FROM pg_subscription s WHERE s.subname = %s
"""


IS_PUBLISHED = "SELECT 1 FROM pg_publication WHERE pubname = %s"


async def take_publication(connection: AsyncConnection, move: str) -> bool:
    """Take a move's publication away, without which its fence can't be committed; False: it was
    not there."""
    # PostgreSQL's log need not have an error for what is nearly always so.
    row = await (await connection.execute(IS_PUBLISHED, [name_of(move)])).fetchone()
    if row is None:
        return False
    try:
        await connection.execute(sql(f'DROP PUBLICATION "{name_of(move)}"'))
    except psycopg.errors.UndefinedObject:
        return False
    return True


async def unsubscribe(there: AsyncConnection, move: str) -> str:
    """Drop the subscription, without asking the source; returns the pattern of the names of slots
    that its copies may have left there, empty: none."""
    name = name_of(move)
    row = await (await there.execute(SUBSCRIBER, [name])).fetchone()
    if row is None:
        return ""
    for statement in ("DISABLE", "SET (slot_name = NONE)"):
        await there.execute(sql(f'ALTER SUBSCRIPTION "{name}" {statement}'))
    await there.execute(sql(f'DROP SUBSCRIPTION IF EXISTS "{name}"'))
    return f"pg\\_{row[0]}\\_sync\\_%\\_{row[1]}"


async def drop_slots(here: AsyncConnection, move: str, syncs: str = "") -> None:
    """Drop the slot of a move, and those that match `syncs`; whoever reads them is ended."""
    deadline = asyncio.get_running_loop().time() + _SLOT_SECONDS
    while True:
        cursor = await here.execute(SLOTS_OF_MOVE, [name_of(move), syncs])
        slots = await cursor.fetchall()
        if not slots:
            return
        for name, pid in slots:
            try:
                if pid is not None:
                    await here.execute("SELECT pg_terminate_backend(%s)", [pid])
                await here.execute(DROP_SLOT, [name])
            except psycopg.errors.UndefinedObject:
                pass
            except psycopg.errors.ObjectInUse:
                if asyncio.get_running_loop().time() > deadline:
                    raise
        await asyncio.sleep(_SLOT_PAUSE_SECONDS)
