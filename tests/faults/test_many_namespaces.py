"""One namespace in trouble is no trouble for the others, nor for the start of a server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import eventually, fails, failure_of
from tests.support.server import ServerProcess
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.store_pb2 import (
    CreateNamespaceRequest,
    GetStoreInfoRequest,
    ListNamespacesRequest,
)
from wfe_persistence.store import migration_files, migration_history
from wfe_persistence.store.schema import Schema

# With the fault of test_planted, if there is one.
MODULE = "tests.faults.faulty_server" if "FAULT" in os.environ else "wfe_persistence"

LATEST = migration_files.latest_version()

WAITS_FOR_A_TABLE = """
SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
WHERE d.datname = current_database() AND l.locktype = 'relation' AND NOT l.granted
"""


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A look into the database, and a hand in it."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def make_old(database: psycopg.Connection[Any], *names: str) -> None:
    """Namespaces as the first version of the schema made them."""
    first = migration_files.migrations()[0]
    for name in names:
        schema = Schema().for_namespace(name)
        database.execute(f'CREATE SCHEMA "{schema.name}"'.encode())
        for sql in (migration_history.CREATE_MIGRATIONS_TABLE, first.sql(schema)):
            database.execute(schema.qualify(sql).encode())
        database.execute(
            schema.qualify(migration_history.RECORD_MIGRATION).encode(),
            migration_history.record_values(first),
        )


def put_in_the_way(database: psycopg.Connection[Any], name: str) -> None:
    """A table of somebody else, named as an index that the second migration makes."""
    database.execute(f"CREATE TABLE wfc_{name}.workflows_runnable ()".encode())


def make_newer(database: psycopg.Connection[Any], name: str) -> None:
    """What a server that is newer than this one leaves behind."""
    database.execute(
        f"INSERT INTO wfc_{name}.wfe_migrations (version, name, checksum) "
        "VALUES (%s, 'of the future', '')".encode(),
        [LATEST + 1],
    )


def version(database: psycopg.Connection[Any], name: str) -> int:
    row = database.execute(
        f"SELECT max(version) FROM wfc_{name}.wfe_migrations".encode()
    ).fetchone()
    assert row
    found: int = row[0]
    return found


def migrate_up(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", MODULE, "migrate", "up", "--db-url", url],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


async def health(api: Api, namespace: str) -> str:
    stub: Any = health_pb2_grpc.HealthStub(api.channel)
    service = f"{namespace}/wfe.persistence.v1.WorkflowService"
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def create_event(api: Api, namespace: str) -> None:
    await api.events.CreateEvent(
        CreateEventRequest(event=make.event()), metadata=(("wfe-namespace", namespace),)
    )


async def is_served(api: Api, namespace: str) -> bool:
    await create_event(api, namespace)
    return await health(api, namespace) == "SERVING"


async def test_namespace_that_cannot_be_migrated_fails_alone(
    tmp_path: Path, database_url: str, database: psycopg.Connection[Any]
) -> None:
    """It has a typed error and its own health, and it comes back when the cause is gone."""
    make_old(database, "blocked", "old", "older_still", "newer")
    put_in_the_way(database, "blocked")
    with ServerProcess(tmp_path / "log", "--db-url", database_url, module=MODULE) as server:
        make_newer(database, "newer")
        async with connect(server.address) as channel:
            api = Api(channel)
            for _ in range(2):  # the second time from memory
                with fails("FAILED_PRECONDITION", "SCHEMA_OUTDATED") as failure:
                    await create_event(api, "blocked")
                assert failure.metadata == {"namespace": "blocked"}
                with fails("FAILED_PRECONDITION", "SCHEMA_TOO_NEW"):
                    await create_event(api, "newer")
                assert await health(api, "blocked") == "NOT_SERVING"
                assert await health(api, "newer") == "NOT_SERVING"
                for name in ("default", "old", "older_still"):
                    assert await is_served(api, name)
            answer = await health_of_server(api)
            assert answer == "SERVING"
            assert (version(database, "blocked"), version(database, "old")) == (1, LATEST)
            assert "workflows_runnable" in server.log()  # why it failed

            database.execute("DROP TABLE wfc_blocked.workflows_runnable")

            async def is_back() -> bool:
                return await health(api, "blocked") == "SERVING"

            await eventually(is_back)
            assert await is_served(api, "blocked")
    assert "bug" not in server.log(), server.log()


async def health_of_server(api: Api) -> str:
    stub: Any = health_pb2_grpc.HealthStub(api.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest())
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def test_create_of_a_namespace_with_something_in_the_way_is_a_typed_error(
    tmp_path: Path, database_url: str, database: psycopg.Connection[Any]
) -> None:
    make_old(database, "blocked")
    put_in_the_way(database, "blocked")
    with ServerProcess(tmp_path / "log", "--db-url", database_url, module=MODULE) as server:
        async with connect(server.address) as channel:
            api = Api(channel)
            with fails("FAILED_PRECONDITION", "SCHEMA_OUTDATED"):
                await api.store.CreateNamespace(CreateNamespaceRequest(name="blocked"))
            await api.store.CreateNamespace(CreateNamespaceRequest(name="fresh"))
            assert await is_served(api, "fresh")


async def test_old_namespace_used_by_many_calls_at_once_is_migrated_once(
    tmp_path: Path, database_url: str, database: psycopg.Connection[Any]
) -> None:
    names = [f"old{i}" for i in range(8)]
    make_old(database, *names)
    with ServerProcess(tmp_path / "log", "--db-url", database_url, module=MODULE) as server:
        async with connect(server.address) as channel:
            api = Api(channel)
            await asyncio.gather(*(create_event(api, name) for name in names * 20))
    assert [version(database, name) for name in names] == [LATEST] * 8
    for name in names:
        assert server.log().count(f"namespace {name}: migrated") == 1


def test_migrate_up_brings_all_but_the_failing_ones_up(
    database_url: str, database: psycopg.Connection[Any]
) -> None:
    assert migrate_up(database_url).returncode == 0
    make_old(database, "a_old", "blocked", "newer", "z_old")
    put_in_the_way(database, "blocked")
    make_newer(database, "newer")
    done = migrate_up(database_url)
    assert done.returncode == 1
    failed = [line for line in done.stderr.splitlines() if ": failed: " in line]
    assert sorted(line.partition(":")[0] for line in failed) == ["blocked", "newer"], done.stderr
    assert 'relation "workflows_runnable" already exists' in done.stderr
    assert "Traceback" not in done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert set(lines) == {"default", "a_old", "z_old"}
    assert lines["default"].startswith("up to date")
    for name in ("a_old", "z_old"):
        assert lines[name].startswith("applied ")
        assert version(database, name) == LATEST
    assert version(database, "blocked") == 1
    again = migrate_up(database_url)
    assert (again.returncode, again.stderr.count(": failed: ")) == (1, 2)
    database.execute("DROP TABLE wfc_blocked.workflows_runnable")
    database.execute("DELETE FROM wfc_newer.wfe_migrations WHERE name = 'of the future'")
    assert migrate_up(database_url).returncode == 0


async def test_start_does_not_touch_the_namespaces(
    tmp_path: Path, database_url: str, database: psycopg.Connection[Any]
) -> None:
    """Every table of theirs is locked while the server starts and serves; whoever looked into one
    would wait for its lock. (What they are called and how large they are, the catalog tells.)"""
    names = [f"shut{i}" for i in range(5)]
    assert migrate_up(database_url).returncode == 0
    make_old(database, *names, "open")
    tables = database.execute(
        "SELECT schemaname, tablename FROM pg_tables WHERE starts_with(schemaname, 'wfc_shut')"
    ).fetchall()
    assert len(tables) >= 7 * len(names)
    with psycopg.connect(database_url) as locks:
        for schema, table in tables:
            locks.execute(f'LOCK TABLE "{schema}"."{table}" IN ACCESS EXCLUSIVE MODE'.encode())
        server = ServerProcess(tmp_path / "log", "--db-url", database_url, module=MODULE)
        server.start()
        try:
            async with connect(server.address) as channel:
                api = Api(channel)

                async def serves() -> bool:
                    row = database.execute(WAITS_FOR_A_TABLE).fetchone()
                    assert row == (0,), "the start waits for a lock"
                    return await health_of_server(api) == "SERVING"

                await eventually(serves, 60)
                await create_event(api, "default")
                assert await is_served(api, "open")  # brought up to date meanwhile
                await api.store.CreateNamespace(CreateNamespaceRequest(name="fresh"))
                assert await is_served(api, "fresh")
                late = await failure_of(
                    api.store.GetStoreInfo(
                        GetStoreInfoRequest(), metadata=(("wfe-namespace", "shut0"),), timeout=0.3
                    )
                )
                assert late is not None
                assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED  # by client or by server
                assert await health_of_server(api) == "SERVING"
                locks.rollback()
                await api.store.ListNamespaces(ListNamespacesRequest())
                for name in names:
                    assert await is_served(api, name)
        finally:
            server.stop()
    assert "bug" not in server.log(), server.log()
