"""Migrations of stores in use: whom they hold up, what interrupts them, and what they reckon."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tests.store.originals import Original
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import (
    administration,
    migrate,
    migration_files,
    migration_history,
    migration_plan,
    online,
    original_indexes,
)
from wfe_persistence.store.administration import connect
from wfe_persistence.store.migrate import Migrated
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.schema import Schema

ALL = migration_files.migrations()
LATEST = len(ALL)
COMMIT = ALL[2]  # it builds indexes of tables that are there, and its file says nothing of that

DROPPED = set(re.findall(r"DROP INDEX wfc\.(\w+);", "".join(m.template for m in ALL)))
"""The indexes that later migrations drop."""

# The indexes of the schema, whether they are valid, and what they are.
INDEXES = """
SELECT c.relname, x.indisvalid, pg_get_indexdef(c.oid)
FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
WHERE c.relnamespace = 'wfc'::regnamespace
"""

LOCKS = """
SELECT c.relname, l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
WHERE l.pid = pg_backend_pid() AND c.relnamespace = 'wfc'::regnamespace AND c.relkind = 'r'
"""

TABLES = """
SELECT relname FROM pg_class WHERE relnamespace = 'wfc'::regnamespace AND relkind = 'r'
"""

FILES = "SELECT relname, relfilenode FROM pg_class WHERE relname = ANY (%s) AND relkind = 'r'"


def at_version(source: ConnectionSource, version: int) -> None:
    """Make a store of this version, as a release did that knew no later one."""
    with psycopg.connect(source.url) as connection:
        if connection.execute("SELECT to_regnamespace('wfc')").fetchone() == (None,):
            connection.execute("CREATE SCHEMA wfc")
        connection.execute(migration_history.CREATE_MIGRATIONS_TABLE)
        for migration in ALL[:version]:
            connection.execute(migration.sql(Schema()).encode())
            connection.execute(
                migration_history.RECORD_MIGRATION, migration_history.record_values(migration)
            )


def indexes(connection: psycopg.Connection[Any]) -> dict[str, tuple[bool, str]]:
    found = connection.execute(INDEXES).fetchall()
    return {name: (valid, definition) for name, valid, definition in found}


async def test_what_is_built_before_is_what_the_migration_builds(
    source: ConnectionSource, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_version(source, LATEST)
    plain = indexes(connection)
    connection.execute("DROP SCHEMA wfc CASCADE")
    at_version(source, COMMIT.version - 1)
    monkeypatch.setattr(online, "LARGE_BYTES", 0)
    await migrate.migrate(source, Schema())
    assert indexes(connection) == plain
    assert {index.name for index in COMMIT.indexes} - DROPPED <= set(plain)


@pytest.mark.parametrize("large_bytes", [0, online.LARGE_BYTES])
async def test_an_interrupted_index_is_found_and_built_again(
    source: ConnectionSource,
    connection: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    large_bytes: int,
) -> None:
    at_version(source, COMMIT.version - 1)
    monkeypatch.setattr(online, "LARGE_BYTES", 0)
    with psycopg.connect(source.url) as another:
        another.execute(
            "LOCK TABLE wfc.execution_pointers IN ROW EXCLUSIVE MODE"
        )  # as one who writes
        running = asyncio.ensure_future(migrate.migrate(source, Schema()))
        while not any(not valid for valid, _ in indexes(connection).values()):
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    [interrupted] = [name for name, (valid, _) in indexes(connection).items() if not valid]
    assert interrupted in {index.name for index in COMMIT.indexes}
    monkeypatch.setattr(online, "LARGE_BYTES", large_bytes)
    await migrate.migrate(source, Schema())
    assert all(valid for valid, _ in indexes(connection).values())


async def test_many_servers_build_each_index_once(
    source: ConnectionSource,
    connection: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    at_version(source, COMMIT.version - 1)
    monkeypatch.setattr(online, "LARGE_BYTES", 0)
    with caplog.at_level(logging.INFO):
        runs = await asyncio.gather(*(migrate.migrate(source, Schema()) for _ in range(8)))
    names = sorted(name for run in runs for name in run.applied)
    assert names == [m.name for m in ALL[COMMIT.version - 1 :]]
    assert all(valid for valid, _ in indexes(connection).values())
    said = [record.getMessage() for record in caplog.records]
    built = re.findall(r"building the index (\w+)", "\n".join(said))
    expected = [index.name for m in ALL[COMMIT.version - 1 :] for index in m.indexes]
    assert sorted(built) == sorted(expected)


async def test_nobody_is_held_up_by_an_index_that_waits(
    source: ConnectionSource, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_version(source, COMMIT.version - 1)
    monkeypatch.setattr(online, "LARGE_BYTES", 0)
    original = Original(connection, 2)
    with psycopg.connect(source.url) as another:
        another.execute(
            "LOCK TABLE wfc.execution_pointers IN ROW EXCLUSIVE MODE"
        )  # as one who writes
        running = asyncio.ensure_future(migrate.migrate(source, Schema()))
        while all(valid for valid, _ in indexes(connection).values()):
            await asyncio.sleep(0.01)
        connection.execute("SET lock_timeout = '10s'")
        for i in range(20):
            original.create_workflow(f"w{i}", pointers=1)
            await asyncio.sleep(0.01)
        assert not running.done()
    assert (await running).version == LATEST


async def test_a_migration_that_waits_for_a_lock_gives_way(
    source: ConnectionSource,
    connection: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With as much as one reader in a long transaction, whoever came after it would wait too."""
    at_version(source, COMMIT.version - 1)
    monkeypatch.setattr(administration, "LOCK_SECONDS", 0.1)
    original = Original(connection, 2)
    connection.execute("SET lock_timeout = '30s'")
    with psycopg.connect(source.url, application_name="report") as another:
        another.execute("SELECT FROM wfc.workflows")
        running = asyncio.ensure_future(migrate.migrate(source, Schema()))
        while "gives way" not in caplog.text:
            await asyncio.sleep(0.01)
        for i in range(5):
            await asyncio.to_thread(original.create_workflow, f"w{i}", pointers=1)
        assert not running.done()
    assert await running == Migrated(LATEST, [m.name for m in ALL[COMMIT.version - 1 :]])
    [said] = [record.getMessage() for record in caplog.records if "gives way" in record.msg]
    assert "canceling statement due to lock timeout" in said
    assert "(postgres, report), for " in said


async def test_an_index_of_that_name_which_is_another_stays(
    source: ConnectionSource, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_version(source, COMMIT.version - 1)
    connection.execute("CREATE INDEX workflows_by_status ON wfc.workflows (status)")
    for large_bytes in (0, online.LARGE_BYTES):
        monkeypatch.setattr(online, "LARGE_BYTES", large_bytes)
        with pytest.raises(PersistenceError, match="workflows_by_status") as caught:
            await migrate.migrate(source, Schema())
        assert caught.value.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED
    assert indexes(connection)["workflows_by_status"][1].endswith("(status)")
    connection.execute("ALTER INDEX wfc.workflows_by_status RENAME TO mine")
    await migrate.migrate(source, Schema())
    assert {"mine", "workflows_by_status"} <= set(indexes(connection))


async def test_a_role_that_owns_the_schema_suffices(
    source: ConnectionSource, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.execute("DROP ROLE IF EXISTS schema_owner")
    connection.execute("CREATE ROLE schema_owner LOGIN")
    connection.execute("ALTER ROLE schema_owner SET statement_timeout = '60s'")
    connection.execute("CREATE SCHEMA wfc AUTHORIZATION schema_owner")
    as_owner = ConnectionSource(source.url.replace("postgres@", "schema_owner@"))
    at_version(as_owner, COMMIT.version - 1)
    monkeypatch.setattr(online, "LARGE_BYTES", 0)
    assert (await migrate.migrate(as_owner, Schema())).version == LATEST


async def test_the_planner_knows_what_was_touched(
    source: ConnectionSource, connection: psycopg.Connection[Any]
) -> None:
    at_version(source, COMMIT.version - 1)
    original = Original(connection, 2)
    for i in range(50):
        original.create_workflow(f"w{i}", pointers=1)
    known = "SELECT n_distinct FROM pg_stats WHERE tablename = 'workflows' AND attname = 'name'"
    connection.execute("ANALYZE wfc.workflows")
    assert connection.execute(known).fetchall()
    await migrate.migrate(source, Schema())
    assert connection.execute(known).fetchall() == [(-1.0,)]


def test_the_locks_of_each_migration_are_those_that_the_plan_names(
    connection: psycopg.Connection[Any],
) -> None:
    """And it rewrites the tables that the plan says."""
    Original(connection, 2).create_tables()
    for migration in ALL:
        tables = [name for (name,) in connection.execute(TABLES)]
        files = dict(connection.execute(FILES, [tables]).fetchall())
        with connection.transaction():
            connection.execute(migration.sql(Schema()).encode())
            taken = held(connection, tables)
        changed = {
            table
            for table, file in connection.execute(FILES, [tables]).fetchall()
            if file != files[table]
        }
        planned = migration_plan.locks_of(migration.sql(Schema()))
        assert {t: m for t, m in planned.items() if t in tables} == taken, migration.name
        work = migration_plan.WORK.get(migration.version, ())
        assert {table for kind, table in work if kind == "rewrite"} == changed, migration.name


def held(connection: psycopg.Connection[Any], tables: list[str]) -> dict[str, str]:
    """The strongest lock that this session has on each of these tables."""
    names = {mode.title().replace(" ", "") + "Lock": mode for mode in migration_plan.MODES}
    order = list(migration_plan.MODES)
    found: dict[str, str] = {}
    for table, name in connection.execute(LOCKS).fetchall():
        if table in tables and name in names:
            modes = [names[name], found.get(table, order[0])]
            found[table] = max(modes, key=order.index)
    return found


async def test_what_takes_long_is_left_to_the_operator(
    source: ConnectionSource, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_version(source, COMMIT.version - 1)
    original = Original(connection, 2)
    for i in range(20):
        original.create_workflow(f"w{i}", pointers=1)
    connection.execute("ANALYZE")
    monkeypatch.setattr(migration_plan, "INDEX_SECONDS_PER_ROW", 0.5)
    with pytest.raises(PersistenceError, match="wfe-persistence migrate up") as caught:
        await migrate.migrate(source, Schema(), unattended=10.0)
    assert caught.value.reason == ErrorReason.ERROR_REASON_SCHEMA_OUTDATED
    async with connect(source) as own:
        assert len(await migration_history.read_applied(own, Schema())) == COMMIT.version - 1
        plan = await migration_plan.reckon(own, Schema(), COMMIT.version - 1)
    assert plan.locked_seconds > 10
    assert str(round(plan.locked_seconds)) in str(caught.value)
    assert (await migrate.migrate(source, Schema(), unattended=plan.seconds + 1)).applied


async def test_a_new_store_takes_no_time(source: ConnectionSource) -> None:
    assert (await migrate.migrate(source, Schema(), unattended=0.0)).version == LATEST


async def test_indexes_of_large_tables_are_planned_to_hold_up_nobody(
    source: ConnectionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_version(source, COMMIT.version - 1)
    async with connect(source) as own:
        small = (await migration_plan.reckon(own, Schema(), COMMIT.version - 1)).migrations[0]
        monkeypatch.setattr(online, "LARGE_BYTES", 0)
        large = (await migration_plan.reckon(own, Schema(), COMMIT.version - 1)).migrations[0]
    assert not small.online
    assert [index.name for index in large.online] == [index.name for index in COMMIT.indexes]
    assert {lock.table: lock.mode for lock in small.locks}["events"] == "SHARE"
    assert "events" not in {lock.table for lock in large.locks}


@pytest.mark.parametrize(("name", "prefix"), [("wfc", ""), ("Wfc", "p" * 28)])
async def test_indexes_that_a_host_of_the_original_creates_anew_are_dropped(
    source: ConnectionSource, connection: psycopg.Connection[Any], name: str, prefix: str
) -> None:
    schema = Schema(name, prefix)
    await migrate.migrate(source, schema)
    original = Original(connection, 2, name, prefix)
    original.create_indexes()
    made = {prefix + index for index in original_indexes.ORIGINAL_INDEXES}
    assert made <= all_indexes(connection)
    assert (await migrate.migrate(source, schema)).applied == []
    assert not made & all_indexes(connection)


def all_indexes(connection: psycopg.Connection[Any]) -> set[str]:
    found = connection.execute("SELECT relname FROM pg_class WHERE relkind = 'i'").fetchall()
    return {name for (name,) in found}


THEIRS = "CREATE INDEX idx_workflows_status ON wfc.workflows (status)"
OWN = [
    "CREATE INDEX idx_workflows_status ON wfc.workflows (status, id)",
    "CREATE INDEX idx_workflows_status ON wfc.workflows (status DESC)",
    "CREATE INDEX idx_workflows_status ON wfc.workflows (status) WHERE status <> 'Complete'",
    "CREATE INDEX idx_workflows_status ON wfc.workflows (status) WITH (fillfactor = 70)",
    "CREATE INDEX idx_workflows_status ON wfc.workflows (status) INCLUDE (name)",
    "CREATE INDEX idx_workflows_status ON wfc.workflows USING hash (status)",
    'CREATE INDEX idx_workflows_status ON wfc.workflows (status COLLATE "C")',
    "CREATE INDEX idx_workflows_status ON wfc.workflows (status text_pattern_ops)",
    "CREATE INDEX idx_workflows_status ON wfc.events (event_name)",
    f"{THEIRS}; COMMENT ON INDEX wfc.idx_workflows_status IS 'for the report'",
    f"{THEIRS}; CLUSTER wfc.workflows USING idx_workflows_status",
    "CREATE INDEX idx_mine ON wfc.workflows (status)",
]


@pytest.mark.parametrize("statement", OWN)
async def test_an_index_of_a_user_stays(
    source: ConnectionSource, connection: psycopg.Connection[Any], statement: str
) -> None:
    await migrate.migrate(source, Schema())
    connection.execute(statement.encode())
    before = all_indexes(connection)
    await migrate.migrate(source, Schema())
    assert all_indexes(connection) == before


async def test_dropping_them_waits_for_nobody_and_comes_back(
    source: ConnectionSource, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate.migrate(source, Schema())
    original = Original(connection, 2)
    original.create_indexes()
    monkeypatch.setattr(original_indexes, "MAX_SECONDS", 0.2)
    with psycopg.connect(source.url) as another:
        another.execute("SELECT FROM wfc.events")  # a drop waits for readers too
        await migrate.migrate(source, Schema())
        assert "idx_events_event_time" in all_indexes(connection)
        original.create_event("e")
    monkeypatch.undo()
    await migrate.migrate(source, Schema())
    assert not {index for index in all_indexes(connection) if index.startswith("idx_")}


def test_a_script_builds_indexes_as_it_is_told() -> None:
    plain, concurrent = (migrate.script(Schema(), concurrently=how) for how in (False, True))
    assert "CONCURRENTLY" not in plain
    for index in COMMIT.indexes:
        assert concurrent.count(f"CREATE INDEX CONCURRENTLY {index.name} ") == 1
        assert not re.search(rf"CREATE INDEX {index.name}\s", concurrent)
        assert re.search(rf"CREATE INDEX {index.name}\s", plain)


def test_a_file_may_say_concurrently_itself() -> None:
    text = "CREATE INDEX CONCURRENTLY {prefix}a ON wfc.events USING btree (id);\nSELECT 1;\n"
    migration = replace(COMMIT, template=text, online="")
    assert [index.name for index in migration.indexes] == ["a"]
    schema = Schema("s", "p_")
    assert migration.sql(schema) == (
        'CREATE INDEX p_a ON "s"."p_events" USING btree (id);\nSELECT 1;\n'
    )
    assert migration.sql(schema, built=["a"]) == "SELECT 1;\n"
