"""Deleting namespaces, and sets of them, that are not as the server would make them."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from tests.faults.test_owners import make_old
from tests.store.test_databases import execute, refused, schemas, serving
from tests.support import make
from wfe_persistence.store import event, namespace_set, owner
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.migration_files import latest_version
from wfe_persistence.store.migration_history import LOCK_MIGRATIONS
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.namespace_set import (
    CREATE_NAMESPACE_SET,
    create_namespace_set,
    delete_namespace_set,
    get_namespace_set,
)
from wfe_persistence.store.rows import integer, text
from wfe_persistence.store.schema import Schema


async def test_a_deletion_that_meets_a_write_is_undone(
    database_urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all members were found empty, somebody writes to the last one."""
    async with serving(database_urls) as namespaces:
        await migrate(namespaces.databases.home, namespaces.default.schema)
        await create_namespace_set(namespaces, "s", 5, ["a", "b"])
        check_empty = namespace_set._check_empty
        created = make.event()

        async def checked(of: Namespaces, member: str) -> None:
            await check_empty(of, member)
            if member == "s_4":
                await event.create_event(await of.get("s_4"), created)

        monkeypatch.setattr(namespace_set, "_check_empty", checked)
        with refused("NAMESPACE_NOT_EMPTY"):
            await delete_namespace_set(namespaces, "s", force=False)
        # It is whole, where it was, and has what was written.
        assert (await get_namespace_set(namespaces.default, "s")).size == 5
        assert await schemas(database_urls["a"]) == ["wfc_s_0", "wfc_s_2", "wfc_s_4"]
        assert await schemas(database_urls["b"]) == ["wfc_s_1", "wfc_s_3"]
        async with serving(database_urls) as others:
            found = await event.get_event(await others.get("s_4"), created.id)
            assert found.id == created.id
            other = make.event()
            await event.create_event(await others.get("s_1"), other)
        with refused("NAMESPACE_NOT_EMPTY"):
            await delete_namespace_set(namespaces, "s", force=False)
        await delete_namespace_set(namespaces, "s", force=True)
        with refused("NAMESPACE_SET_NOT_FOUND"):
            await get_namespace_set(namespaces.default, "s")
        assert await schemas(database_urls["a"]) == await schemas(database_urls["b"]) == []


@pytest.mark.parametrize("version", range(owner.FIRST_VERSION, latest_version()))
async def test_a_namespace_of_an_older_release_is_deleted(
    database_urls: dict[str, str], version: int
) -> None:
    """It has not been used since the upgrade, so it was not migrated, and lacks tables."""
    async with serving(database_urls) as namespaces:
        await migrate(namespaces.databases.home, namespaces.default.schema)
        schema = Schema().for_namespace("old")
        with psycopg.connect(database_urls["home"], autocommit=True) as connection:
            make_old(connection, schema, version)
            connection.execute(owner.claim_statement(schema).encode())
        await execute(
            database_urls["home"],
            """INSERT INTO wfc_old.execution_errors
                (error_time, workflow_id, execution_pointer_id, message)
                VALUES (now(), 'w', 'p', 'x')""",
        )
        with refused("NAMESPACE_NOT_EMPTY"):
            await namespaces.delete_namespace("old", force=False)
        assert "wfc_old" in await schemas(database_urls["home"])
        await execute(database_urls["home"], "DELETE FROM wfc_old.execution_errors")
        await namespaces.delete_namespace("old", force=False)
        assert await schemas(database_urls["home"]) == ["wfc"]


@pytest.mark.parametrize("version", [1, 3, 7, latest_version() - 1])
async def test_a_set_is_deleted_whose_member_was_half_made(
    database_urls: dict[str, str], version: int
) -> None:
    async with serving(database_urls) as namespaces:
        await migrate(namespaces.databases.home, namespaces.default.schema)
        await namespaces.default.write_once(CREATE_NAMESPACE_SET, text("s"), integer(3))
        schema = Schema().for_namespace("s_0")
        with psycopg.connect(database_urls["home"], autocommit=True) as connection:
            make_old(connection, schema, version)
            if version >= owner.FIRST_VERSION:
                connection.execute(owner.claim_statement(schema).encode())
        await delete_namespace_set(namespaces, "s", force=False)
        assert await schemas(database_urls["home"]) == ["wfc"]


async def test_a_creation_that_is_still_being_committed_leaves_nothing(
    database_urls: dict[str, str],
) -> None:
    """Its server was killed, but PostgreSQL had got the COMMIT."""
    async with serving(database_urls) as namespaces:
        await migrate(namespaces.databases.home, namespaces.default.schema)
        await namespaces.default.write_once(CREATE_NAMESPACE_SET, text("s"), integer(1))
        schema = Schema().for_namespace("s_0")
        with psycopg.connect(database_urls["home"]) as killed:
            killed.execute(LOCK_MIGRATIONS, [schema.name])
            make_old(killed, schema, 1)
            deleting = asyncio.create_task(delete_namespace_set(namespaces, "s", force=False))
            waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            with psycopg.connect(database_urls["home"], autocommit=True) as look:
                while look.execute(waits).fetchone() == (0,):
                    assert not deleting.done()
                    await asyncio.sleep(0.01)
            killed.commit()
        await deleting
        assert await schemas(database_urls["home"]) == ["wfc"]
