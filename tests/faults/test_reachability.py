"""A database that can't be reached, or not as often as wanted: what is said, and what fails."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import eventually, fails, failure_of
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for
from tests.test_cli import run
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.database import database_from
from wfe_persistence.embedded import EmbeddedPostgres
from wfe_persistence.errors import PersistenceError
from wfe_persistence.settings import Settings
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

CANARY = "s3cret-canary"


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL of this file's own, which asks the role `app` for its password."""
    with (
        tempfile.TemporaryDirectory(prefix="wfe-") as path,
        EmbeddedPostgres(Path(path)) as postgres,
    ):
        [hba] = Path(path).glob("*/pg_hba.conf")
        hba.write_text("local all app scram-sha-256\n" + hba.read_text())
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")
            connection.execute(f"CREATE ROLE app LOGIN PASSWORD '{CANARY}'".encode())
        yield postgres


@pytest.fixture
def admin(postgres: EmbeddedPostgres) -> Iterator[psycopg.Connection[Any]]:
    """A superuser, and a database `app` of the role `app` as it was at first."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS app WITH (FORCE)")
        connection.execute("CREATE DATABASE app OWNER app")
        connection.execute(f"ALTER ROLE app PASSWORD '{CANARY}' CONNECTION LIMIT -1".encode())
        yield connection


@pytest.fixture
def url(postgres: EmbeddedPostgres, admin: psycopg.Connection[Any]) -> str:
    """The connection string of the role `app`."""
    return postgres.url.replace("postgres@/postgres", f"app:{CANARY}@/app")


@asynccontextmanager
async def started(log: Path, *arguments: str) -> AsyncIterator[ServerProcess]:
    """A server that listens, whether it serves or not."""
    server = ServerProcess(log, *arguments)
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)
        assert CANARY not in server.log()
        assert "bug" not in server.log(), server.log()


def messages(server: ServerProcess, part: str) -> list[str]:
    """The log messages with a text in them."""
    entries = [json.loads(line) for line in server.log().splitlines()]
    return [entry["message"] for entry in entries if part in entry["message"]]


def logged(server: ServerProcess, part: str) -> Any:
    async def is_logged() -> bool:
        return bool(messages(server, part))

    return eventually(is_logged)


WRONG = [
    (
        "ALTER ROLE app PASSWORD 'another'",
        'password authentication failed for user "app"',
        f"ALTER ROLE app PASSWORD '{CANARY}'",
    ),
    ("DROP DATABASE app", 'database "app" does not exist', "CREATE DATABASE app OWNER app"),
    (
        "ALTER DATABASE app OWNER TO postgres",
        "permission denied for database app",
        "ALTER DATABASE app OWNER TO app",
    ),
    (
        "ALTER ROLE app CONNECTION LIMIT 0",
        'too many connections for role "app"',
        "ALTER ROLE app CONNECTION LIMIT -1",
    ),
    (
        "ALTER DATABASE app SET default_transaction_read_only = on",
        "the database is read-only",
        "ALTER DATABASE app RESET default_transaction_read_only",
    ),
]


@pytest.mark.parametrize(("harm", "said", "cure"), WRONG)
async def test_a_start_that_fails_says_why_and_goes_on_when_it_can(
    tmp_path: Path, admin: psycopg.Connection[Any], url: str, harm: str, said: str, cure: str
) -> None:
    admin.execute(harm.encode())
    up = await asyncio.to_thread(run, "migrate", "up", "--db-url", url)
    status = await asyncio.to_thread(run, "migrate", "status", "--db-url", url)
    assert up.returncode == 1
    assert said in up.stderr
    if "connect" in said or "password" in said or "exist" in said:
        assert said in status.stderr
    for done in (up, status):
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert CANARY not in done.stdout + done.stderr
    async with started(tmp_path / "log", "--db-url", url) as server:
        await logged(server, said)
        async with connect(server.address) as channel:
            failure = await failure_of(Api(channel).create_event(make.event()))
            assert failure is not None
            assert failure.reason in ("DATABASE_UNAVAILABLE", "SCHEMA_OUTDATED"), failure
        admin.execute(cure.encode())
        await asyncio.to_thread(server.wait_until_serving)
    assert len(messages(server, said)) <= 2, "once for the connection, once for the server"


async def test_a_server_that_nobody_listens_for_says_so(tmp_path: Path) -> None:
    url = f"postgresql://u:{CANARY}@127.0.0.1:1/x"
    async with started(tmp_path / "log", "--db-url", url) as server:
        await logged(server, "Connection refused")
    status = await asyncio.to_thread(run, "migrate", "status", "--db-url", url)
    assert (status.returncode, "Connection refused" in status.stderr) == (1, True)
    assert CANARY not in status.stderr


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_a_pool_larger_than_the_limit_serves_with_what_it_gets(
    tmp_path: Path, admin: psycopg.Connection[Any], url: str, limit: int
) -> None:
    admin.execute(f"ALTER ROLE app CONNECTION LIMIT {limit}".encode())
    async with started(tmp_path / "log", "--db-url", url) as server:
        await asyncio.to_thread(server.wait_until_serving)
        async with connect(server.address) as channel:
            api = Api(channel)
            for _ in range(5):
                await asyncio.gather(*(api.create_event(make.event()) for _ in range(40)))
        await logged(server, "can't make more connections")
    assert len(messages(server, "can't make more connections")) == 1


async def test_a_namespace_is_created_where_the_pool_has_all_connections(
    tmp_path: Path, admin: psycopg.Connection[Any], url: str
) -> None:
    admin.execute("ALTER ROLE app CONNECTION LIMIT 2")
    async with started(tmp_path / "log", "--db-url", url) as server:
        await asyncio.to_thread(server.wait_until_serving)
        async with connect(server.address) as channel:
            api = Api(channel)
            await asyncio.gather(*(api.create_event(make.event()) for _ in range(40)))
            await api.ensure_store_exists()
            await asyncio.gather(*(api.create_event(make.event()) for _ in range(40)))


async def test_calls_fail_at_once_while_the_database_is_away(
    tmp_path: Path, data_dir: Path
) -> None:
    """Hundreds of them take no longer than one that waits would; and its return is noticed."""
    with EmbeddedPostgres(data_dir) as postgres:
        async with started(
            tmp_path / "log", "--db-url", postgres.url, "--pool-timeout", "20"
        ) as server:
            await asyncio.to_thread(server.wait_until_serving)
            async with connect(server.address) as channel:
                api = Api(channel)
                await asyncio.gather(*(api.create_event(make.event()) for _ in range(40)))
                await asyncio.to_thread(postgres.stop)
                try:
                    async with asyncio.timeout(20):
                        for _ in range(500):
                            with fails("UNAVAILABLE", "DATABASE_UNAVAILABLE") as failure:
                                await api.create_event(make.event())
                            assert failure.retry_after
                    await asyncio.to_thread(
                        wait_for,
                        lambda: run("health", "--target", server.address).stdout == "NOT_SERVING\n",
                    )
                finally:
                    await asyncio.to_thread(postgres.start)
                await asyncio.to_thread(server.wait_until_serving)
                await api.create_event(make.event())
        assert messages(server, "the database can be reached again")
        assert messages(server, "can't connect to the database")


async def test_calls_that_wait_end_when_the_database_is_away() -> None:
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    async with database_from(Settings(db_url=url, pool_size=2, pool_timeout=600)) as database:
        store = Store(database, Schema(), "default")
        async with asyncio.timeout(60):
            ends = await asyncio.gather(
                *(store.read("SELECT 1") for _ in range(20)), return_exceptions=True
            )
    for end in ends:
        assert isinstance(end, PersistenceError)
        assert end.reason == ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE
        assert "Connection refused" in end.detail


class _FailsOnce(ConnectionSource):
    """Where a connection was made, the next attempt fails, and the ones after it do not."""

    attempts = 0

    async def conninfo(self) -> str:
        type(self).attempts += 1
        if self.attempts == 2:
            raise psycopg.OperationalError("the network had a hiccup")
        return await super().conninfo()


async def test_one_broken_connection_is_no_outage(database_url: str) -> None:
    """Nor is one attempt that fails: the call that needs the connection waits for the next."""
    async with Database(
        _FailsOnce(database_url),
        pool_size=1,
        pool_timeout=60,
        prepare=True,
        max_prepared_bytes=1_000_000,
        max_waiting=10,
    ) as database:
        store = Store(database, Schema(), "default")
        await store.read("SELECT 1")
        with psycopg.connect(database_url, autocommit=True) as another:
            another.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'wfe-persistence' AND datname = current_database()"
            )
        ends = await asyncio.gather(*(store.read("SELECT 1") for _ in range(5)))
        assert len(ends) == 5
        assert _FailsOnce.attempts >= 3
        assert not database.is_away


async def test_a_password_is_rotated_under_load(
    tmp_path: Path, admin: psycopg.Connection[Any], url: str
) -> None:
    """No call fails: the file has the new password by the time the old connections end."""
    password = tmp_path / "password"
    password.write_text(CANARY + "\n")
    plain = tmp_path / "url"
    plain.write_text(url.replace(f":{CANARY}", "") + "\n")
    async with started(
        tmp_path / "log", "--db-url-file", str(plain), "--db-password-file", str(password)
    ) as server:
        await asyncio.to_thread(server.wait_until_serving)
        async with connect(server.address) as channel:
            api = Api(channel)
            for number in range(4):
                new = f"{CANARY}-{number}"
                admin.execute(f"ALTER ROLE app PASSWORD '{new}'".encode())
                password.write_text(new)
                calls = [api.get_store_info() for _ in range(50)]
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"
                )
                await asyncio.gather(*calls)
                await asyncio.gather(*(api.create_event(make.event()) for _ in range(50)))
