"""Taking back the newest migration of a store, and what refuses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.store.test_online_migrations import ALL, LATEST, at_version
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import migrate, migration_files, migration_history, take_back
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.take_back import NotTakenBackError

REVERSIBLE = [migration for migration in ALL if not migration.irreversible]
IRREVERSIBLE = [migration for migration in ALL if migration.irreversible]

# All that a migration makes.
STRUCTURE = """
SELECT 'relation', relname, relkind::text,
    ARRAY (SELECT unnest(reloptions) ORDER BY 1)::text FROM pg_class
    WHERE relnamespace = 'wfc'::regnamespace
UNION ALL SELECT 'column', attrelid::regclass || '.' || attname, format_type(atttypid, atttypmod),
    attnotnull::text || coalesce(pg_get_expr(d.adbin, d.adrelid), '') || attidentity::text
    FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
    LEFT JOIN pg_attrdef d ON d.adrelid = attrelid AND d.adnum = attnum
    WHERE relnamespace = 'wfc'::regnamespace AND attnum > 0 AND NOT attisdropped
UNION ALL SELECT 'index', '', '', pg_get_indexdef(indexrelid)
    FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE relnamespace = 'wfc'::regnamespace
UNION ALL SELECT 'trigger', tgname, '', pg_get_triggerdef(oid) FROM pg_trigger
    WHERE NOT tgisinternal
UNION ALL SELECT 'function', proname, '', prosrc FROM pg_proc
    WHERE pronamespace = 'wfc'::regnamespace
UNION ALL SELECT 'constraint', conname, '', pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'wfc'::regnamespace
"""

ROWS = {
    5: "INSERT INTO wfc.locks (resource, expiry) VALUES ('a', now() + interval '1 h')",
    6: "INSERT INTO wfc.queue_items (queue, id, visible_time) VALUES ('q', 'a', now())",
    7: "INSERT INTO wfc.lifecycle_events (type, workflow_id, definition_id, version, event_time)"
    " VALUES ('t', 'w', 'd', 1, now())",
    8: "INSERT INTO wfc.workflows (id, name, definition_id, version, status, create_time,"
    " extension_attributes) VALUES ('a', 'a', 'd', 1, 'Runnable', now(), '{\"a\": 1}')",
    9: "INSERT INTO wfc.workflow_changes (workflow_id) VALUES ('w')",
    11: "INSERT INTO wfc.retention_rules (kind) VALUES ('Event')",
    14: "INSERT INTO wfc.placements (namespace, database) VALUES ('x', 'a')",
    15: "INSERT INTO wfc.name_holders (name, workflow_id, claim_id) VALUES ('n', 'w', 'c')",
}
"""By version: what would be lost."""


def structure(connection: psycopg.Connection[Any]) -> set[tuple[str, ...]]:
    return {
        row
        for row in connection.execute(STRUCTURE.encode()).fetchall()
        if "held_time" not in row[1] and "pg_toast" not in row[1]
    }


async def versions(source: ConnectionSource) -> list[int]:
    applied = await migration_history.applied_migrations(source, Schema())
    return [migration.version for migration in applied]


async def test_what_is_taken_back_is_as_before(
    source: ConnectionSource, connection: psycopg.Connection[Any]
) -> None:
    """One after the other, from the newest to the first one that can't be."""
    before = {}
    for version in range(LATEST + 1):
        if version >= REVERSIBLE[0].version - 1:
            connection.execute("DROP SCHEMA IF EXISTS wfc CASCADE")
            at_version(source, version)
            before[version] = structure(connection)
    for migration in reversed(REVERSIBLE):
        version = migration.version - 1
        assert await take_back.obstacle(source, Schema(), version) is None
        assert await take_back.take_back(source, Schema(), version) == migration.name
        assert structure(connection) == before[version], migration.name
        assert await versions(source) == list(range(1, version + 1))
        assert await take_back.take_back(source, Schema(), version) is None
    await migrate.migrate(source, Schema())
    assert structure(connection) == before[LATEST]


async def test_it_works_with_a_prefix(
    source: ConnectionSource, connection: psycopg.Connection[Any]
) -> None:
    schema = Schema("Wfc", "p" * 28)
    await migrate.migrate(source, schema)
    for migration in reversed(REVERSIBLE):
        await take_back.take_back(source, schema, migration.version - 1)
    assert (await migrate.migrate(source, schema)).applied == [m.name for m in REVERSIBLE]


@pytest.mark.parametrize("migration", REVERSIBLE, ids=lambda m: m.name)
async def test_what_would_be_lost_is_counted(
    source: ConnectionSource, connection: psycopg.Connection[Any], migration: Any
) -> None:
    version = migration.version
    if not migration.losses:
        assert version not in ROWS
        return
    at_version(source, version)
    connection.execute(ROWS[version].encode())
    before = structure(connection)
    with pytest.raises(NotTakenBackError, match=rf"{migration.name} would lose 1 ") as caught:
        await take_back.take_back(source, Schema(), version - 1)
    found = await take_back.obstacle(source, Schema(), version - 1)
    assert found is not None
    assert str(found) == str(caught.value)
    assert [(lost.rows, lost.what in str(found)) for lost in found.lost] == [(1, True)]
    assert structure(connection) == before
    assert await versions(source) == list(range(1, version + 1))


@pytest.mark.parametrize("migration", IRREVERSIBLE, ids=lambda m: m.name)
async def test_what_is_not_possible_is_refused(source: ConnectionSource, migration: Any) -> None:
    at_version(source, migration.version)
    with pytest.raises(NotTakenBackError, match=migration.irreversible):
        await take_back.take_back(source, Schema(), migration.version - 1)
    assert len(await versions(source)) == migration.version


@pytest.mark.parametrize("version", [0, LATEST - 2, LATEST + 1])
async def test_only_one_version_is_taken_back(source: ConnectionSource, version: int) -> None:
    await migrate.migrate(source, Schema())
    with pytest.raises(NotTakenBackError, match=f"has schema version {LATEST}; "):
        await take_back.take_back(source, Schema(), version)
    assert len(await versions(source)) == LATEST


async def test_a_store_that_is_not_there_or_not_ours_or_newer_is_left_alone(
    source: ConnectionSource, connection: psycopg.Connection[Any]
) -> None:
    with pytest.raises(NotTakenBackError, match="schema version 0"):
        await take_back.take_back(source, Schema(), LATEST - 1)
    await migrate.migrate(source, Schema())
    connection.execute("UPDATE wfc.wfe_store SET owner_schema = 'other'")
    with pytest.raises(PersistenceError) as caught:
        await take_back.take_back(source, Schema(), LATEST - 1)
    assert caught.value.reason == ErrorReason.ERROR_REASON_STORE_NOT_OWNED
    connection.execute("UPDATE wfc.wfe_store SET owner_schema = 'wfc'")
    connection.execute(
        "INSERT INTO wfc.wfe_migrations (version, name, checksum, oldest_server) "
        "VALUES (%s, 'next', '', 4)", [LATEST + 1],
    )  # fmt: skip
    with pytest.raises(PersistenceError) as caught:
        await take_back.take_back(source, Schema(), LATEST)
    assert caught.value.reason == ErrorReason.ERROR_REASON_SCHEMA_TOO_NEW
    assert len(await versions(source)) == LATEST + 1


async def test_only_an_operator_applies_it_again(source: ConnectionSource) -> None:
    await migrate.migrate(source, Schema())
    await take_back.take_back(source, Schema(), LATEST - 1)
    with pytest.raises(PersistenceError, match="taken back to schema version") as caught:
        await migrate.migrate(source, Schema(), unattended=60.0)
    assert caught.value.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED
    assert len(await versions(source)) == LATEST - 1
    assert (await migrate.migrate(source, Schema())).version == LATEST
    assert (await migrate.migrate(source, Schema(), unattended=60.0)).version == LATEST


async def test_it_gives_way_to_who_uses_the_tables(
    source: ConnectionSource, connection: psycopg.Connection[Any], tmp_path: Path
) -> None:
    await migrate.migrate(source, Schema())
    down = "-- loses events: SELECT count(*) FROM wfc.events\nALTER TABLE wfc.events DROP note;\n"
    up = f"-- oldest server: {LATEST}\nALTER TABLE wfc.events ADD COLUMN note text;\n"
    (tmp_path / f"{LATEST + 1:04}_next.sql").write_text(up)
    (tmp_path / f"{LATEST + 1:04}_next.down.sql").write_text(down)
    known = migration_files.read_migrations(migration_files.PACKAGED, tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(migration_files, "migrations", lambda: known)
        patched.setattr(take_back, "_MAX_ATTEMPTS", 1)
        await migrate.migrate(source, Schema())
        with psycopg.connect(source.url) as another:
            another.execute("SELECT FROM wfc.events")
            with pytest.raises(PersistenceError) as caught:
                await take_back.take_back(source, Schema(), LATEST)
        assert caught.value.reason == ErrorReason.ERROR_REASON_ROW_LOCKED
        assert await take_back.take_back(source, Schema(), LATEST) == f"{LATEST + 1:04}_next"


def test_every_migration_says_how_it_is_taken_back_or_why_not() -> None:
    for migration in ALL:
        assert migration.irreversible or migration.down.strip()
        assert "it has no script" not in migration.irreversible, migration.name
