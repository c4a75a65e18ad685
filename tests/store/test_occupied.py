"""What servers do for all namespaces now and then, they do only for those that have something."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.store.test_databases import execute, serving
from wfe.persistence.v1 import store_pb2 as pb
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.feeds import Feeds
from wfe_persistence.store.lifecycle import LifecycleEvents
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.occupied import occupied_stores
from wfe_persistence.store.retention import RULES_TABLE, set_retention_policy
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.waiting import Kind, Waiters

POLICY = pb.RetentionPolicy(error_age=Duration(seconds=60))


async def occupied(namespaces: Namespaces) -> set[tuple[str, str]]:
    """The names of the namespaces that may have a policy, and of their databases."""
    stores = await occupied_stores(namespaces, RULES_TABLE)
    return {(store.namespace, store.database.name) for store in stores}


async def test_only_namespaces_with_something_are_looked_into(
    database_urls: dict[str, str],
) -> None:
    async with serving(database_urls) as namespaces:
        await migrate(namespaces.databases.home, namespaces.default.schema)
        for name, database in (("with", "a"), ("without", "a"), ("x", "b"), ("y", "home")):
            await namespaces.create_namespace(name, database)
        assert await occupied(namespaces) == set()
        for name in ("with", "y", "default"):
            await set_retention_policy(await namespaces.get(name), POLICY)
        found = {("with", "a"), ("y", "home"), ("default", "home")}
        assert await occupied(namespaces) == found

        # That of others, whose name begins the same; and a copy that is not where it should be.
        others = Schema("wfc_others")
        await migrate(namespaces.databases.home, others)
        await migrate(namespaces.databases.named("b"), Schema().for_namespace("with"))
        policy = "INSERT INTO {}.retention_rules (kind, definition_id) VALUES ('Error', '')"
        await execute(database_urls["home"], policy.format("wfc_others"))
        await execute(database_urls["b"], policy.format("wfc_with"))
        assert await occupied(namespaces) == found

        # Nothing of those that have nothing is read, so nobody waits for them.
        connection: psycopg.AsyncConnection[Any]
        async with await psycopg.AsyncConnection.connect(database_urls["a"]) as connection:
            await connection.execute("LOCK TABLE wfc_without.wfe_migrations, wfc_without.wfe_store")
            assert await occupied(namespaces) == found


async def test_old_rows_of_feeds_are_deleted_where_there_are_any(
    database_urls: dict[str, str],
) -> None:
    """Also in a namespace that no call to this server has named; nothing is read of the others."""
    old = """INSERT INTO wfc_with.lifecycle_events
        (type, workflow_id, definition_id, version, event_time, publish_time)
        VALUES ('Started', 'w', 'd', 1, now(), now() - interval '1 day')"""
    async with serving(database_urls) as namespaces:
        await migrate(namespaces.databases.home, namespaces.default.schema)
        for name in ("with", "without"):
            await namespaces.create_namespace(name, "a")
    await execute(database_urls["a"], old)
    connection: psycopg.AsyncConnection[Any]
    async with (
        serving(database_urls) as namespaces,
        await psycopg.AsyncConnection.connect(database_urls["a"]) as connection,
        await psycopg.AsyncConnection.connect(database_urls["a"], autocommit=True) as reader,
    ):
        await connection.execute("LOCK TABLE wfc_without.wfe_migrations, wfc_without.wfe_store")
        feeds = Feeds(LifecycleEvents(), namespaces, 1.0, Waiters(), Kind("lifecycle"))
        sweeping = asyncio.create_task(feeds.sweep())
        try:
            async with asyncio.timeout(30):
                while True:
                    rows = await reader.execute("SELECT count(*) FROM wfc_with.lifecycle_events")
                    if await rows.fetchone() == (0,):
                        break
                    await asyncio.sleep(0.05)
        finally:
            sweeping.cancel()
            await asyncio.wait([sweeping])


async def test_databases_that_are_away_are_passed_by(database_urls: dict[str, str]) -> None:
    away = {name: url.replace("/test_", "/no_such_") for name, url in database_urls.items()}
    async with serving(database_urls) as namespaces:
        await migrate(namespaces.databases.home, namespaces.default.schema)
        await namespaces.create_namespace("x", "a")
        await set_retention_policy(await namespaces.get("x"), POLICY)
    async with serving({**database_urls, "b": away["b"]}) as namespaces:
        assert await occupied(namespaces) == {("x", "a")}
    async with serving(away) as namespaces:
        with pytest.raises(PersistenceError):
            await occupied(namespaces)
