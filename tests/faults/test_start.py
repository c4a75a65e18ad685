"""Calls to a server whose store is not there yet, and one whose store can't be made."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg

from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import eventually, fails, failure_of
from tests.support.server import ServerProcess
from wfe_persistence.store import migration_history


async def test_calls_while_the_store_is_made_may_be_tried_again(
    tmp_path: Path, database_url: str
) -> None:
    server = ServerProcess(tmp_path / "log", "--db-url", database_url)
    with psycopg.connect(database_url) as another:
        another.execute(migration_history.LOCK_MIGRATIONS.encode(), ["wfc"])
        await asyncio.to_thread(server.start)
        try:
            async with connect(server.address) as channel:
                api = Api(channel)
                with fails("UNAVAILABLE", "DATABASE_UNAVAILABLE") as failure:
                    await api.create_event(make.event())
                assert failure.retry_after
                another.rollback()
                await asyncio.to_thread(server.wait_until_serving)
                await api.create_event(make.event())
        finally:
            await asyncio.to_thread(server.stop)
    assert "bug" not in server.log(), server.log()


async def test_a_store_that_cannot_be_made_says_so_and_comes_when_it_can(
    tmp_path: Path, database_url: str
) -> None:
    """Something that is not ours is in the way."""
    with psycopg.connect(database_url, autocommit=True) as database:
        database.execute("CREATE SCHEMA wfc")
        database.execute("CREATE VIEW wfc.workflows AS SELECT 1 AS id")
        server = ServerProcess(tmp_path / "log", "--db-url", database_url)
        await asyncio.to_thread(server.start)
        try:
            async with connect(server.address) as channel:
                api = Api(channel)

                async def is_refused() -> bool:
                    failure = await failure_of(api.ensure_store_exists())
                    return failure is not None and failure.reason == "SCHEMA_OUTDATED"

                await eventually(is_refused)
                with fails("FAILED_PRECONDITION", "SCHEMA_OUTDATED"):
                    await api.create_event(make.event())
                database.execute("DROP VIEW wfc.workflows")
                await asyncio.to_thread(server.wait_until_serving)
                await api.create_event(make.event())
        finally:
            await asyncio.to_thread(server.stop)
    assert "migration failed" in server.log()
    assert "bug" not in server.log(), server.log()
