"""Indexes are built CONCURRENTLY through a PgBouncer in transaction mode, by one of several."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.store.test_online_migrations import ALL, COMMIT, LATEST, at_version, indexes
from tests.support import binaries
from tests.support.postgres import PgBouncer, PostgresServer
from wfe_persistence.store import migrate, online, take_back
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.schema import Schema

LEFT = """
SELECT current_setting('statement_timeout'), current_setting('lock_timeout'),
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


@pytest.fixture
def urls(data_dir: Path) -> Iterator[tuple[str, str]]:
    """The connection strings of a database of its own: directly, and through a PgBouncer."""
    with (
        PostgresServer(binaries.postgres(18), data_dir / "postgres") as postgres,
        PgBouncer(binaries.pgbouncer(), data_dir / "pooler", postgres.directory) as pooler,
    ):
        yield postgres.url, pooler.url


async def test_several_servers_build_indexes_through_a_pooler(
    urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database_url, pooled_url = urls
    at_version(ConnectionSource(database_url), COMMIT.version - 1)
    monkeypatch.setattr(online, "LARGE_BYTES", 0)
    source = ConnectionSource(pooled_url)
    runs = await asyncio.gather(*(migrate.migrate(source, Schema()) for _ in range(4)))
    names = sorted(name for run in runs for name in run.applied)
    assert names == [migration.name for migration in ALL[COMMIT.version - 1 :]]
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert all(valid for valid, _ in indexes(connection).values())
    assert await take_back.take_back(source, Schema(), LATEST - 1) == ALL[-1].name
    # Neither a setting nor a lock stays on a connection that others get next.
    with psycopg.connect(pooled_url, autocommit=True, prepare_threshold=None) as connection:
        assert connection.execute(LEFT).fetchone() == ("0", "0", 0)
