"""A database that stops answering while its connections stay open, and one that is only busy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest

from tests.faults.proxy import Proxy
from tests.store.test_database import raises
from wfe_persistence.database import database_from
from wfe_persistence.settings import Settings
from wfe_persistence.store.postgres.watch import LOST_SECONDS
from wfe_persistence.store.rows import read_int4
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

GIVEN_UP = 3 * LOST_SECONDS
"""Within LOST_SECONDS, but the machine may be busy. Without a watch it would be for ever."""


@pytest.fixture
async def proxy(tmp_path: Path, database_url: str) -> AsyncIterator[Proxy]:
    [behind] = parse_qs(urlparse(database_url).query)["host"]
    directory = tmp_path / "proxy"
    directory.mkdir()
    async with Proxy(directory, Path(behind)) as proxy:
        yield proxy


@pytest.fixture
async def store(tmp_path: Path, proxy: Proxy, database_url: str) -> AsyncIterator[Store]:
    """A store behind the proxy, with a table."""
    [behind] = parse_qs(urlparse(database_url).query)["host"]
    url = database_url.replace(behind, str(tmp_path / "proxy"))
    async with database_from(Settings(db_url=url, pool_size=2, pool_timeout=30)) as database:
        store = Store(database, Schema(), "default")
        await store.write("CREATE SCHEMA wfc")
        await store.write("CREATE TABLE wfc.counter (n int)")
        await store.write("INSERT INTO wfc.counter VALUES (0)")
        yield store


ADD = "UPDATE wfc.counter SET n = n + 1"
COUNT = "SELECT n FROM wfc.counter"


async def count(store: Store) -> int:
    row = await store.read(COUNT)
    return read_int4(row.get_value(0, 0))


async def test_stalled_database_is_given_up_and_used_again(store: Store, proxy: Proxy) -> None:
    assert await count(store) == 0
    proxy.stall()
    assert not await store.database.answers(0.5)
    async with asyncio.timeout(GIVEN_UP):
        write = asyncio.create_task(store.write(ADD))
        async with raises("DATABASE_UNAVAILABLE"):
            await store.read(COUNT)
        async with raises("COMMIT_OUTCOME_UNKNOWN"):
            await write
    # Now that it is known, nobody waits: far less than for two probes.
    async with asyncio.timeout(1):
        async with raises("DATABASE_UNAVAILABLE"):
            await store.write(ADD)
    proxy.flow()
    async with asyncio.timeout(GIVEN_UP):
        while store.database.is_away:
            await asyncio.sleep(0.05)
        # The write that was given up may have been made when the proxy forwarded it.
        assert await count(store) in (0, 1)


async def test_connection_that_alone_is_stalled_is_given_up(store: Store, proxy: Proxy) -> None:
    await asyncio.gather(*(store.read("SELECT pg_sleep(0.1)") for _ in range(2)))
    proxy.stall_connections()
    async with asyncio.timeout(GIVEN_UP):
        assert await count(store) == 0
        await store.write(ADD)
    assert not store.database.is_away


async def test_answer_that_alone_is_stalled_leaves_the_outcome_unknown(
    store: Store, proxy: Proxy
) -> None:
    write = asyncio.create_task(store.write(f"{ADD} FROM pg_sleep(0.5)"))
    await asyncio.sleep(0.2)
    proxy.stall_connections()
    async with asyncio.timeout(GIVEN_UP), raises("COMMIT_OUTCOME_UNKNOWN"):
        await write
    async with asyncio.timeout(GIVEN_UP):
        assert await count(store) == 1


async def test_stalled_stream_ends(store: Store, proxy: Proxy) -> None:
    async with asyncio.timeout(GIVEN_UP):
        async with aclosing(
            store.stream("SELECT n, repeat('x', 10000) FROM generate_series(1, 100000) n")
        ) as rows:
            await anext(rows)
            proxy.stall()
            with pytest.raises(Exception, match="can't be reached"):
                async for _ in rows:
                    pass


async def test_long_statements_of_a_healthy_database_are_left_alone(store: Store) -> None:
    """Also if nothing else is said on any connection."""
    slow = f"SELECT 42 FROM pg_sleep({LOST_SECONDS + 2})"
    rows = await asyncio.gather(store.read(slow), store.write(f"{slow}, wfc.counter"))
    assert [read_int4(row.get_value(0, 0)) for row in rows] == [42, 42]
    assert await store.database.answers(5)


async def test_stream_that_nobody_reads_is_left_alone(store: Store) -> None:
    async with aclosing(
        store.stream("SELECT n, repeat('x', 10000) FROM generate_series(1, 1000) n")
    ) as rows:
        await anext(rows)
        await asyncio.sleep(LOST_SECONDS + 2)
        assert len([row async for row in rows]) == 999
