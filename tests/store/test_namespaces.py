"""Listing namespaces in a database that has other schemas as well."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
import pytest

from tests.support import make
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.store import migration_history, namespace_list
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.namespace_list import count_at_most, list_namespaces
from wfe_persistence.store.paging import Cursor
from wfe_persistence.store.postgres import sqlstate
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.tables import Store


async def test_schemas_that_are_no_namespaces_do_not_end_the_list(store: Store) -> None:
    source = store.database.source
    await migrate(source, store.schema.for_namespace("a"))
    async with await psycopg.AsyncConnection.connect(source.url, autocommit=True) as connection:
        await connection.execute('CREATE SCHEMA "wfc_0"')  # a namespace starts with a letter
        await connection.execute('CREATE TABLE "wfc_0".wfe_migrations (version int)')
    names: list[str] = []
    page = await list_namespaces(store, None, 1)
    names += [n.name for n in page.items]
    while page.next:
        page = await list_namespaces(store, page.next, 1)
        names += [n.name for n in page.items]
    assert names == ["default", "a"]


async def test_listing_many_namespaces_takes_few_statements(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 60 stores every fifth is other servers', and every fifth has no owner yet. One statement
    looks into 10 of them here."""
    monkeypatch.setattr(namespace_list, "_MAX_CHUNK", 10)
    monkeypatch.setattr(namespace_list, "_MIN_CHUNK", 3)
    names = [f"n{i:02}" for i in range(60)]
    with psycopg.connect(database_url, autocommit=True) as connection:
        script = [
            f"""CREATE SCHEMA wfc_{name};
            CREATE TABLE wfc_{name}.wfe_migrations (version int);
            INSERT INTO wfc_{name}.wfe_migrations VALUES (1), (7);"""
            for name in names
        ]
        for i, name in enumerate(names):
            if i % 5:
                script.append(
                    f"CREATE TABLE wfc_{name}.wfe_store AS SELECT 'wfc' AS owner_schema, "
                    f"'{name if i % 5 > 1 else 'other'}' AS namespace;"
                )
        connection.execute("".join(script).encode())
    own = ["default", *(name for i, name in enumerate(names) if i % 5 != 1)]
    statements = 0
    run = Database.run

    async def counting(self: Database, *args: Any, **kwargs: Any) -> Any:
        nonlocal statements
        statements += 1
        return await run(self, *args, **kwargs)

    monkeypatch.setattr(Database, "run", counting)
    page = await list_namespaces(store, None, 1000)
    assert ([n.name for n in page.items], page.next) == (own, None)
    assert {n.schema_version for n in page.items[1:]} == {7}
    assert statements <= 2 * 7
    for size in (1, 7, 40, len(own)):
        found: list[str] = []
        after: Cursor | None = None
        while True:
            page = await list_namespaces(store, after, size)
            assert len(page.items) <= size
            found += [n.name for n in page.items]
            if page.next is None:
                break
            after = page.next
        assert found == own
    assert await count_at_most(store, 30) == 30
    assert await count_at_most(store, 50) == len(own) - 1
    assert await count_at_most(store, 100) == len(names)  # as long as that is enough to know


async def test_namespaces_that_are_deleted_meanwhile_do_not_end_the_list(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        await migrate(store.database.source, store.schema.for_namespace(name))
    with psycopg.connect(database_url, autocommit=True) as connection:
        read_once = Store.read_once

        async def after_a_deletion(self: Store, sql: str, *params: Any) -> Any:
            connection.execute("DROP SCHEMA IF EXISTS wfc_a CASCADE")
            return await read_once(self, sql, *params)

        monkeypatch.setattr(Store, "read_once", after_a_deletion)
        page = await list_namespaces(store, None, 100)
    assert [n.name for n in page.items] == ["default", "b"]


async def test_a_namespace_that_does_not_exist_is_nothing_to_be_logged(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller is told, and the log has nothing of a statement that was refused."""
    monkeypatch.setattr(sqlstate, "refusals", RecurringWarnings(logging.getLogger(make.new_id())))
    namespaces = Namespaces(store.database, store.schema, migrate_on_use=False, max_namespaces=9)
    with pytest.raises(PersistenceError) as refused:
        await namespaces.get("none")
    assert refused.value.reason == ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND
    nothing = Store(store.database, store.schema.for_namespace("none"), "none")
    assert (await migration_history.schema_version(nothing)).number == 0
    assert not caplog.records
    with pytest.raises(PersistenceError):  # any other use of tables that are gone is logged
        await nothing.read("SELECT count(*) FROM wfc.workflows")
    assert "42P01" in caplog.text
