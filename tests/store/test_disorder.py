"""Results that are not those of what was sent, as a PgBouncer gave them, are never an answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest

from tests.faults.proxy import Messages, Proxy
from tests.store.test_database import raises
from tests.support import make
from wfe_persistence.database import database_from
from wfe_persistence.settings import Settings
from wfe_persistence.store import event
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.rows import integer, read_int4, read_int8
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store


def types(messages: Messages) -> str:
    return "".join(message[:1].decode() for message in messages)


class Disorder:
    """Spoils the next answer that has messages of all the types in `at`, `times` times."""

    def __init__(self, at: str, spoil: Callable[[Messages], Messages], times: int = 1) -> None:
        self.at = at
        self.times = times
        self._spoil = spoil
        self.spoiled: list[str] = []

    def __call__(self, messages: Messages) -> Messages:
        if len(self.spoiled) >= self.times or not set(self.at) <= set(types(messages)):
            return messages
        messages = self._spoil(messages)
        self.spoiled.append(types(messages))
        return messages


def close_first(messages: Messages) -> Messages:
    """What PgBouncer 1.25.2 did: `3 3 1 2 T D C Z` became `1 3 2 T D C Z`."""
    parse = [message for message in messages if message[:1] == b"1"]
    closes = [message for message in messages if message[:1] == b"3"]
    rest = [message for message in messages if message[:1] not in b"13"]
    return parse + closes[1:] + rest


def without_results(messages: Messages) -> Messages:
    return [message for message in messages if message[:1] not in b"2TDC"]


def results_twice(messages: Messages) -> Messages:
    return [*messages[:-1], *(m for m in messages if m[:1] in b"2TDC"), messages[-1]]


@pytest.fixture
async def proxy(tmp_path: Path, database_url: str) -> AsyncIterator[Proxy]:
    [behind] = parse_qs(urlparse(database_url).query)["host"]
    directory = tmp_path / "proxy"
    directory.mkdir()
    async with Proxy(directory, Path(behind)) as proxy:
        yield proxy


@pytest.fixture
async def store(tmp_path: Path, proxy: Proxy, database_url: str) -> AsyncIterator[Store]:
    """A migrated store behind the proxy, which the tests below let spoil its answers."""
    [behind] = parse_qs(urlparse(database_url).query)["host"]
    await migrate(ConnectionSource(database_url), Schema())
    proxy.rewrite = list
    url = database_url.replace(behind, str(tmp_path / "proxy"))
    async with database_from(Settings(db_url=url, pool_size=1)) as database:
        yield Store(database, Schema(), "default")


SPOILT = [without_results, results_twice]


@pytest.mark.parametrize("spoil", SPOILT)
async def test_spoilt_read_is_tried_again(
    store: Store, proxy: Proxy, spoil: Callable[[Messages], Messages]
) -> None:
    await store.read("SELECT 1")
    connections = proxy.connections
    proxy.rewrite = disorder = Disorder("DC", spoil)
    row = await store.read("SELECT $1::int", integer(42))
    assert read_int4(row.get_value(0, 0)) == 42
    assert disorder.spoiled
    row = await store.read("SELECT $1::int", integer(43))
    assert read_int4(row.get_value(0, 0)) == 43
    assert proxy.connections > connections  # the one with the disorder was given up


async def test_spoilt_stream_is_tried_again(store: Store, proxy: Proxy) -> None:
    proxy.rewrite = disorder = Disorder("DC", without_results)
    async with aclosing(store.stream("SELECT n FROM generate_series(1, 3) n")) as rows:
        assert [read_int4(row.get_value(0, 0)) async for row in rows] == [1, 2, 3]
    assert disorder.spoiled


@pytest.mark.parametrize("spoil", SPOILT)
async def test_outcome_of_a_spoilt_write_is_unknown_and_its_repetition_safe(
    store: Store, proxy: Proxy, spoil: Callable[[Messages], Messages]
) -> None:
    created = make.event()
    await event.create_event(store, make.event())
    proxy.rewrite = disorder = Disorder("DC", spoil)
    async with raises("COMMIT_OUTCOME_UNKNOWN"):
        await event.create_event(store, created)
    assert disorder.spoiled
    await event.create_event(store, created)
    assert (await event.get_event(store, created.id)).id == created.id
    rows = await store.read("SELECT count(*) FROM wfc.events")
    assert read_int8(rows.get_value(0, 0)) == 2


async def test_result_of_another_kind_is_no_answer(store: Store, proxy: Proxy) -> None:
    """Both numbers of results are right, only who gave them is not."""

    def swapped(messages: Messages) -> Messages:
        row = [message for message in messages if message[:1] in b"TDC"]
        return [*row, *(message for message in messages if message[:1] not in b"TDC")]

    proxy.rewrite = disorder = Disorder("1DC", swapped)
    row = await store.read("SELECT $1::int", integer(42))
    assert read_int4(row.get_value(0, 0)) == 42
    assert disorder.spoiled == ["TDC12Z"]


async def test_read_that_is_always_spoilt_is_unavailable(store: Store, proxy: Proxy) -> None:
    proxy.rewrite = Disorder("DC", without_results, times=100)
    async with raises("DATABASE_UNAVAILABLE"):
        await store.read("SELECT 1")


async def test_disorder_of_closes_is_not_mistaken_for_an_answer(proxy: Proxy, store: Store) -> None:
    """Closes follow the commit, so the write that evicts other statements is answered all the same,
    and the connection is given up."""
    async with Database(
        store.database.source,
        pool_size=1,
        pool_timeout=5,
        prepare=True,
        max_prepared_bytes=30_000,
        max_waiting=10,
    ) as database:
        evicting = Store(database, Schema(), "default")
        for i in range(3):
            await evicting.read(f"SELECT {i}, $1::int", integer(0))
        connections = proxy.connections
        proxy.rewrite = disorder = Disorder("3", close_first)
        created = make.event()
        await event.create_event(evicting, created)
        assert disorder.spoiled
        assert (await event.get_event(evicting, created.id)).id == created.id
        assert proxy.connections > connections
