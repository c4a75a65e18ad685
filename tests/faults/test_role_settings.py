"""What the role or the database sets for its sessions: the server works all the same, or says why
it can't. Behind a pooler nothing of this can be set back for a session."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import psycopg
import pytest

from tests.faults.proxy import Proxy
from tests.support.server import ServerProcess, delete_a_workflow
from tests.test_cli import run
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.database import database_from
from wfe_persistence.errors import PersistenceError
from wfe_persistence.settings import Settings
from wfe_persistence.store.administration import INDEPENDENT
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.migration_files import migrations
from wfe_persistence.store.migration_history import LOCK_MIGRATIONS
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.rows import read_int8
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

HARMLESS = {
    "array_nulls": "off",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "datestyle": "German",
    "default_transaction_deferrable": "on",
    "enable_hashjoin": "off",
    "enable_seqscan": "off",
    "enable_sort": "off",
    "escape_string_warning": "off",
    "extra_float_digits": "-15",
    "idle_in_transaction_session_timeout": "5s",
    "idle_session_timeout": "200ms",
    "intervalstyle": "sql_standard",
    "lock_timeout": "20s",
    "plan_cache_mode": "force_generic_plan",
    "quote_all_identifiers": "on",
    "search_path": "nowhere",
    "standard_conforming_strings": "off",
    "statement_timeout": "60s",
    "timezone": "Asia/Kathmandu",
    "transaction_timeout": "60s",
    "transform_null_equals": "on",
    "xmloption": "document",
}

# A small part of the suite: times and intervals, leases, lists, values of every type.
FILES = ["test_traps", "test_stuck_workflows", "test_list_commands", "test_subscription_tokens"]


def alter(connection: psycopg.Connection[Any], settings: dict[str, str]) -> None:
    """Set for the database what this version of PostgreSQL has."""
    name = connection.info.dbname
    known = {name for (name,) in connection.execute("SELECT name FROM pg_settings").fetchall()}
    for setting, value in settings.items():
        if setting not in known:
            continue
        connection.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'".encode())


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.mark.timeout(600)
@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_the_server_works_whatever_the_database_sets(
    tmp_path: Path, database_url: str, connection: psycopg.Connection[Any], isolation: str
) -> None:
    alter(connection, {**HARMLESS, "default_transaction_isolation": isolation})
    assert run("migrate", "up", "--db-url", database_url).returncode == 0
    status = run("migrate", "status", "--db-url", database_url)
    assert (status.returncode, status.stderr) == (0, "")
    with ServerProcess(tmp_path / "log", "--db-url", database_url, "--allow-truncate") as server:
        delete_a_workflow(server.address)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q"),
                *("-p", "no:cacheprovider", "-p", "no:hypothesispytest"),
                *("--target", server.address),
                *(f"tests/conformance/{name}.py" for name in FILES),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 0, done.stdout[-20000:]
    assert "bug" not in server.log(), server.log()


async def test_servers_that_migrate_at_once_see_each_other_under_any_isolation(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    """A snapshot from before the lock was granted would not have the other's migrations."""
    alter(connection, {"default_transaction_isolation": "repeatable read"})
    connection.execute("CREATE SCHEMA wfc")
    source = ConnectionSource(database_url)
    runs = await asyncio.gather(*(migrate(source, Schema()) for _ in range(5)))
    names = [name for one in runs for name in one.applied]
    assert sorted(names) == [migration.name for migration in migrations()]


@pytest.mark.parametrize("limit", ["statement_timeout", "transaction_timeout"])
async def test_a_limit_of_the_database_is_told_after_one_attempt(
    database_url: str, connection: psycopg.Connection[Any], limit: str
) -> None:
    if not connection.execute("SELECT FROM pg_settings WHERE name = %s", [limit]).fetchall():
        pytest.skip(f"this PostgreSQL has no {limit}")
    connection.execute("CREATE SEQUENCE attempts")
    alter(connection, {limit: "200ms"})
    async with database_from(Settings(db_url=database_url, pool_size=1)) as database:
        store = Store(database, Schema(), "default")
        for number, run_ in enumerate((store.read, store.write), 1):
            with pytest.raises(PersistenceError, match=limit) as caught:
                await run_("SELECT nextval('attempts'), pg_sleep(60)")
            assert caught.value.reason == ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE
            assert caught.value.retry_after
            row = await store.read_once("SELECT last_value FROM attempts")
            assert read_int8(row.get_value(0, 0)) == number
        with pytest.raises(PersistenceError, match=limit):
            async for _ in store.stream("SELECT pg_sleep(60)"):
                pass


async def test_a_read_only_database_says_so(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("CREATE TABLE t (n int)")
    alter(connection, {"default_transaction_read_only": "on"})
    async with database_from(Settings(db_url=database_url, pool_size=1)) as database:
        store = Store(database, Schema(), "default")
        with pytest.raises(PersistenceError, match="the database is read-only") as caught:
            await store.write("INSERT INTO t VALUES (1)")
        assert caught.value.reason == ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE
        await store.read("SELECT 1")


async def test_a_migration_takes_longer_than_a_statement_may(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    """Here it waits for another one."""
    alter(connection, {"statement_timeout": "300ms", "transaction_timeout": "300ms"})
    with psycopg.connect(database_url) as another:
        another.execute(INDEPENDENT.encode())
        another.execute(LOCK_MIGRATIONS.encode(), ["wfc"])
        task = asyncio.create_task(migrate(ConnectionSource(database_url), Schema()))
        for _ in range(3):
            another.execute("SELECT pg_sleep(0.25)")
        assert not task.done()
        another.rollback()
        assert (await task).applied


class _LateClosing(Proxy):
    """Passes on that PostgreSQL ends a session, but not yet the end of the connection, as a backend
    does that is slow to exit."""

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *_: Any,
        lossy: bool = False,
    ) -> None:
        while data := await source.read(65_536):
            sink.write(data)
        while lossy and not sink.is_closing():
            await asyncio.sleep(0.05)
        sink.close()


async def test_connections_that_were_idle_for_too_long_are_no_outage(
    database_url: str, connection: psycopg.Connection[Any]
) -> None:
    """However many there are."""
    [behind] = parse_qs(urlparse(database_url).query)["host"]
    alter(connection, {"idle_session_timeout": "300ms"})
    connection.execute("CREATE TABLE t (n int)")
    with tempfile.TemporaryDirectory(prefix="wfe-") as directory:
        url = database_url.replace(behind, directory)
        async with (
            _LateClosing(Path(directory), Path(behind)) as proxy,
            database_from(Settings(db_url=url, pool_size=8)) as database,
        ):
            store = Store(database, Schema(), "default")
            await asyncio.gather(*(store.read("SELECT pg_sleep(0.2)") for _ in range(40)))
            assert proxy.connections >= 7
            ours = (
                "SELECT FROM pg_stat_activity WHERE application_name = 'wfe-persistence' "
                "AND datname = current_database()"
            )
            while connection.execute(ours).fetchall():
                await asyncio.sleep(0.05)
            await store.write("INSERT INTO t VALUES (1)")
            assert connection.execute("SELECT n FROM t").fetchall() == [(1,)]
