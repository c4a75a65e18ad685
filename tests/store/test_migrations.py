"""Making a store, adopting the original's, and leaving everything else alone."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.store.originals import DATA_TABLES, Original
from tests.store.test_online_migrations import DROPPED
from tests.support import make
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.store_pb2 import ListErrorsRequest
from wfe.persistence.v1.workflow_pb2 import (
    PersistWorkflowRequest,
    PointerStatus,
    WorkflowInstance,
    WorkflowView,
)
from wfe_persistence.database import database_from
from wfe_persistence.errors import PersistenceError
from wfe_persistence.settings import Settings
from wfe_persistence.store import (
    command,
    commit,
    error_log,
    event,
    migrate,
    migration_files,
    migration_history,
    namespace_list,
    subscription,
    workflow,
)
from wfe_persistence.store.grants import grant
from wfe_persistence.store.migrate import Migrated
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.paging import START
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.request_key import RequestKey
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

LATEST = migration_files.latest_version()
OLDEST = migration_files.migrations()[-1].oldest_server

OBJECTS = """
SELECT 'relation', n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
UNION ALL SELECT 'function', n.nspname, p.proname FROM pg_proc p
    JOIN pg_namespace n ON n.oid = pronamespace
UNION ALL SELECT 'type', n.nspname, t.typname FROM pg_type t
    JOIN pg_namespace n ON n.oid = typnamespace
UNION ALL SELECT 'schema', nspname, '' FROM pg_namespace
UNION ALL SELECT 'extension', '', extname FROM pg_extension
UNION ALL SELECT 'role', '', rolname FROM pg_roles
UNION ALL SELECT 'setting', '', setconfig::text FROM pg_db_role_setting
"""


async def get_instance(store: Store, id_: str) -> WorkflowInstance:
    return await workflow.get_workflow_instance(store, id_, WorkflowView.WORKFLOW_VIEW_FULL)


async def persist(store: Store, instance: WorkflowInstance, expected: int | None) -> int:
    request = PersistWorkflowRequest(instance=instance, expected_revision=expected)
    return (await commit.persist_workflow(store, request, (), RequestKey(request))).revision


def objects(connection: psycopg.Connection[Any]) -> set[tuple[str, str, str]]:
    found = connection.execute(OBJECTS.encode()).fetchall()
    return {o for o in found if not o[1].startswith(("pg_temp", "pg_toast"))}


async def test_everything_is_made_inside_the_schema(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    before = objects(connection)
    await migrate.migrate(ConnectionSource(database_url), Schema("mine", "pre_"))
    made = objects(connection) - before
    assert {schema for _, schema, _ in made} == {"mine"}
    names = {name for kind, _, name in made if kind in ("relation", "function") and name != ""}
    assert names, "the query sees nothing"
    assert all(name.startswith("pre_") for name in names), names


async def test_a_second_run_changes_nothing(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    schema = Schema()
    source = ConnectionSource(database_url)
    migrated = await migrate.migrate(source, schema)
    assert migrated.applied == [m.name for m in migration_files.migrations()]
    before = objects(connection)
    assert await migrate.migrate(source, schema) == Migrated(migration_files.latest_version(), [])
    assert objects(connection) == before


async def test_twenty_at_once_on_an_empty_database_all_succeed(database_url: str) -> None:
    source = ConnectionSource(database_url)
    runs = await asyncio.gather(*(migrate.migrate(source, Schema()) for _ in range(20)))
    names = [name for run in runs for name in run.applied]
    assert sorted(names) == [m.name for m in migration_files.migrations()]


async def test_stores_with_different_prefixes_share_a_schema(database_url: str) -> None:
    async with database_from(Settings(db_url=database_url, pool_size=2)) as database:
        stores = [Store(database, Schema("public", prefix), "default") for prefix in ("", "b_")]
        for store in stores:
            await migrate.migrate(ConnectionSource(database_url), store.schema)
        instance = make.full_instance()
        for store in stores:
            await workflow.create_new_workflow(store, instance)
            assert await persist(store, instance, 1) == 2
        await subscription.create_event_subscription(stores[0], make.subscription(id="s"))
        with pytest.raises(PersistenceError):
            await subscription.get_subscription(stores[1], "s")


async def test_no_session_setting_is_left_on_a_connection(store: Store) -> None:
    changed = "SELECT name FROM pg_settings WHERE source = 'session'"
    assert (await store.read(changed)).ntuples == 0
    await workflow.create_new_workflow(store, make.full_instance())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await store.read("SELECT pg_sleep(5)")
    for _ in range(4):
        assert (await store.read(changed)).ntuples == 0


def test_a_script_for_administrators_does_the_same(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    schema = Schema("mine", "pre_")
    connection.execute(migrate.script(schema).encode())
    by_script = {o for o in objects(connection) if o[1] == "mine"}
    source = ConnectionSource(database_url)
    assert asyncio.run(migrate.migrate(source, schema)).applied == []
    connection.execute("DROP SCHEMA mine CASCADE")
    asyncio.run(migrate.migrate(source, schema))
    assert {o for o in objects(connection) if o[1] == "mine"} == by_script


def test_a_store_of_a_newer_server_is_refused(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    asyncio.run(migrate.migrate(ConnectionSource(database_url), Schema()))
    connection.execute(
        "INSERT INTO wfc.wfe_migrations (version, name, checksum) VALUES (999, '0999_x', '')"
    )
    with pytest.raises(PersistenceError) as caught:
        asyncio.run(migrate.migrate(ConnectionSource(database_url), Schema()))
    assert caught.value.reason == ErrorReason.ERROR_REASON_SCHEMA_TOO_NEW
    assert "use a newer server" in str(caught.value)


def migration(number: int, oldest_server: int | None, sql: str = "") -> str:
    """What a migration of a later release may be."""
    stated = "" if oldest_server is None else f"-- oldest server: {oldest_server}\n"
    return f"-- Number {number}.\n{stated}{sql}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (migration(LATEST + 1, None), "does not state its oldest server"),
        (migration(LATEST + 1, OLDEST - 1), "will not be able to later"),
        (migration(LATEST + 1, LATEST + 2), "its own servers"),
    ],
    ids=["none", "older than that of the one before", "newer than itself"],
)
def test_a_migration_states_the_oldest_server_that_may_go_on(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / f"{LATEST + 1:04}_next.sql"
    file.write_text(text)
    with pytest.raises(AssertionError, match=message):
        migration_files.read_migrations(migration_files.PACKAGED, tmp_path)
    file.write_text(migration(LATEST + 1, LATEST))
    assert (
        migration_files.read_migrations(migration_files.PACKAGED, tmp_path)[-1].oldest_server
        == LATEST
    )


async def test_a_newer_store_is_used_if_its_newest_migration_says_so(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    source = ConnectionSource(database_url)
    await migrate.migrate(source, Schema())
    before = objects(connection)
    connection.execute(
        "INSERT INTO wfc.wfe_migrations (version, name, checksum, oldest_server) "
        "VALUES (%s, 'next', '', %s)", [LATEST + 1, LATEST],
    )  # fmt: skip
    assert await migrate.migrate(source, Schema()) == Migrated(LATEST + 1, [])
    assert objects(connection) == before
    connection.execute(
        "INSERT INTO wfc.wfe_migrations (version, name, checksum, oldest_server) "
        "VALUES (%s, 'after next', '', %s)", [LATEST + 2, LATEST + 1],
    )  # fmt: skip
    with pytest.raises(PersistenceError, match=f"only servers of schema version {LATEST + 1}"):
        await migrate.migrate(source, Schema())


async def test_a_store_of_servers_that_stated_nothing_is_migrated(
    store: Store, connection: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their table of migrations has no column for it, and their statements go on to work."""
    connection.execute("ALTER TABLE wfc.wfe_migrations DROP COLUMN oldest_server")
    assert await migration_history.schema_version(store) == (LATEST, LATEST)
    [*_, last] = await migration_history.applied_migrations(store.database, store.schema)
    assert last.oldest_server == LATEST

    next_one = migration_files.Migration(LATEST + 1, "next", migration(LATEST + 1, LATEST))
    known = migration_files.migrations()
    with monkeypatch.context() as patched:
        patched.setattr(migration_files, "migrations", lambda: (*known, next_one))
        migrated = await migrate.migrate(store.database, store.schema)
    assert migrated == Migrated(LATEST + 1, ["next"])
    assert await migration_history.schema_version(store) == (LATEST + 1, LATEST)
    connection.execute(
        "INSERT INTO wfc.wfe_migrations (version, name, checksum) VALUES (999, '', '')"
    )
    assert await migration_history.schema_version(store) == (999, 999)


async def test_a_changed_migration_is_noticed(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    await migrate.migrate(ConnectionSource(database_url), Schema())
    connection.execute("UPDATE wfc.wfe_migrations SET checksum = 'other' WHERE version = 1")
    with pytest.raises(PersistenceError):
        await migrate.migrate(ConnectionSource(database_url), Schema())


async def test_a_role_that_may_not_create_is_told_so(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("DROP ROLE IF EXISTS weak")
    connection.execute("CREATE ROLE weak LOGIN")
    with pytest.raises(PersistenceError) as caught:
        await migrate.migrate(
            ConnectionSource(database_url.replace("postgres@", "weak@")), Schema()
        )
    assert caught.value.reason == ErrorReason.ERROR_REASON_DATABASE_PERMISSION_DENIED


async def test_a_schema_made_beforehand_needs_no_right_on_the_database(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("DROP ROLE IF EXISTS owner")
    connection.execute("CREATE ROLE owner LOGIN")
    connection.execute("CREATE SCHEMA wfc AUTHORIZATION owner")
    await migrate.migrate(ConnectionSource(database_url.replace("postgres@", "owner@")), Schema())


@pytest.mark.parametrize(
    ("schema", "prefix"),
    [
        ("", ""), ("1wfc", ""), ("w-fc", ""), ('w"; DROP TABLE x', ""), ("w\0", ""),
        ("pg_wfc", ""), ("information_schema", ""), ("w" * 64, ""), ("wfc", "A"), ("wfc", "a b"),
        ("wfc", "pg_"), ("wfc", "p" * 29), ("wfç", ""),
    ],
)  # fmt: skip
def test_bad_names_are_refused(schema: str, prefix: str) -> None:
    with pytest.raises(ValueError, match=r"schema|prefix"):
        Schema(schema, prefix)


async def test_the_longest_names_fit_uncut(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    prefix = "p" * 28
    await migrate.migrate(ConnectionSource(database_url), Schema("s" * 63, prefix))
    named = set(
        re.findall(r"\{prefix\}(\w+)", "".join(m.template for m in migration_files.migrations()))
    )
    made = {name.removeprefix(prefix) for _, schema, name in objects(connection) if schema != "wfc"}
    triggers = connection.execute("SELECT tgname FROM pg_trigger").fetchall()
    made |= {name.removeprefix(prefix) for (name,) in triggers}
    assert named - made <= DROPPED
    with pytest.raises(ValueError, match="prefix"):
        Schema("s", prefix + "p")


async def test_every_name_that_the_original_allows_is_adopted(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    """A schema of mixed case, and the longest prefix with which its own indexes fit."""
    original = Original(connection, 2, "Wfc_Prod", "p" * 28)
    original.create_tables()
    original.fill()
    before = original.rows()
    columns = {table: list(rows[0]) for table, rows in before.items()}
    schema = Schema("Wfc_Prod", "p" * 28)
    async with database_from(Settings(db_url=database_url, pool_size=2)) as database:
        store = Store(database, schema, "default")
        assert (await migrate.migrate(database.source, schema)).version == LATEST
        assert original.rows(columns) == before
        instance = await get_instance(store, "w0")
        assert await persist(store, instance, 1) == 2
        taken = make.instance(name="w1")
        with pytest.raises(PersistenceError) as caught:
            await workflow.create_new_workflow(store, taken)
        assert caught.value.reason == ErrorReason.ERROR_REASON_NAME_TAKEN
        await command.schedule_command(store, make.command())
        await grant(database.source, schema, "pg_monitor")
        namespaces = Namespaces(database, schema, migrate_on_use=True, max_namespaces=10)
        await namespaces.create_namespace("shop")
        listed = await namespace_list.list_namespaces(store, None, 10)
        assert [n.schema for n in listed.items] == ["Wfc_Prod", "Wfc_Prod_shop"]
        await namespaces.delete_namespace("shop", force=False)
    assert schemas(connection, "Wfc%") == ["Wfc_Prod"]


def schemas(connection: psycopg.Connection[Any], like: str) -> list[str]:
    found = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE %s", [like])
    return [name for (name,) in found]


@pytest.fixture(params=[1, 2], ids=["first age", "second age"])
def original(request: pytest.FixtureRequest, connection: psycopg.Connection[Any]) -> Original:
    """The original's store, filled by it."""
    original = Original(connection, request.param)
    original.create_tables()
    original.fill()
    return original


async def test_adoption_keeps_every_value(original: Original, database_url: str) -> None:
    before = original.rows()
    columns = {table: list(rows[0]) for table, rows in before.items()}
    await migrate.migrate(ConnectionSource(database_url), Schema())
    assert original.rows(columns) == before


async def test_adopted_workflows_are_read_whole_and_in_order(
    original: Original, database: Database, store: Store
) -> None:
    w1 = await get_instance(store, "w1")
    assert (w1.name, w1.revision, w1.data_json) == ("w1", 1, "[1, null]")
    assert [p.id for p in w1.execution_pointers] == [f"w1-{6 - i}" for i in range(6)]
    assert [p.HasField("persistence_data_json") for p in w1.execution_pointers] == [True, False] * 3
    assert w1.execution_pointers[5].outcome_json == f'{{"n": {2**60 + 5}}}'
    assert w1.execution_pointers[0].extension_attributes_json == {"a": "null"}
    due = await workflow.get_runnable_instances(store, 10, [], START, 10, 10_000)
    assert due.items == ["w0", "w2", "w1"]
    assert (await event.get_runnable_events(store, None, START, 10, 10_000)).items == ["e0"]
    first = await subscription.get_first_open_subscription(store, "paid", "42", None)
    assert first is not None
    assert first.id == "s0"
    claimed = await command.claim_commands(store, 50, 10, 1000, "", 10_000)
    assert [c.command.data for c in claimed] == ["c1", "c2"]
    errors = await error_log.list_errors(
        store, ListErrorsRequest(workflow_id="w"), START, 10, 10_000
    )
    assert [e.message for e in errors.items] == ["second", "first"]


async def test_the_original_still_works_on_an_adopted_store(
    original: Original, store: Store
) -> None:
    original.create_workflow("new", pointers=2, data=1)
    assert (await get_instance(store, "new")).name == "new"
    original.persist_workflow("new", pointers=3, data=2, name="")
    persisted = await get_instance(store, "new")
    # The empty name that the original writes would collide at the second workflow.
    assert (persisted.name, persisted.data_json, persisted.revision) == ("new", "2", 2)
    original.persist_workflow("w0", pointers=1, data=3, name="")
    assert [p.id for p in persisted.execution_pointers] == ["new-3", "new-2", "new-1"]
    original.create_event("new")
    assert (await event.get_event(store, "new")).event_data_json == "null"
    original.create_subscription("new")
    original.schedule_command("new", 1)
    original.schedule_command("new", 2)
    original.persist_error("third")
    errors = original.run("SELECT * FROM {s}.execution_errors ORDER BY id")
    assert [row["message"] for row in errors] == ["first", "second", "third"]
    number = await workflow.next_definition_sequence(store, "order")
    assert number == original.age
    if original.age >= 2:
        assert original.next_definition_sequence("order") == number + 1


async def test_original_and_server_take_turns_on_one_workflow(
    original: Original, store: Store
) -> None:
    instance = await get_instance(store, "w0")
    instance.execution_pointers[2].status = PointerStatus.POINTER_STATUS_FAILED
    assert await persist(store, instance, instance.revision) == 2
    original.persist_workflow("w0", pointers=2, data="theirs", name="w0")
    with pytest.raises(PersistenceError) as caught:
        await persist(store, instance, 2)
    assert caught.value.metadata["revision"] == "3"
    assert await persist(store, instance, None) == 4
    stored = await get_instance(store, "w0")
    assert [p.id for p in stored.execution_pointers] == ["w0-4", "w0-3", "w0-2", "w0-1"]


async def test_a_command_the_original_reschedules_survives_our_completion(
    original: Original, store: Store
) -> None:
    [claim] = await command.claim_commands(store, 1, 1, 60_000, "", 10_000)
    original.schedule_command(claim.command.data, claim.command.execute_time)
    await command.complete_commands(store, [claim.lease_token])
    [again] = await command.claim_commands(store, 1, 1, 60_000, "", 10_000)
    assert again.command == claim.command


async def test_scheduling_again_takes_no_number(store: Store) -> None:
    again = make.command()
    for _ in range(50):
        await command.schedule_command(store, again)
    await command.schedule_command(store, make.command())
    rows = await store.read("SELECT max(id)::text FROM wfc.scheduled_commands")
    assert rows.get_value(0, 0) == b"2"


async def test_numbers_have_room_beyond_32_bits(store: Store) -> None:
    for table in ("execution_errors", "scheduled_commands"):
        await store.write(f"ALTER SEQUENCE wfc.{table}_id_seq RESTART WITH {2**31}")
    await error_log.persist_errors(store, [make.error()])
    await command.schedule_command(store, make.command())


def test_the_test_data_covers_every_table() -> None:
    assert set(DATA_TABLES) | {"definition_sequences"} == {
        "workflows", "execution_pointers", "events", "event_subscriptions", "execution_errors",
        "scheduled_commands", "definition_sequences",
    }  # fmt: skip
