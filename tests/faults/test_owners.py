"""Servers whose schemas' names overlap, on one database: each touches only its own stores."""

from __future__ import annotations

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
from tests.support.expect import fails
from tests.support.server import ServerProcess
from wfe.persistence.v1.event_pb2 import CreateEventRequest, GetEventRequest
from wfe.persistence.v1.store_pb2 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    EnsureStoreExistsRequest,
    GetStoreInfoRequest,
    ListNamespacesRequest,
)
from wfe_persistence.store import migration_files, migration_history
from wfe_persistence.store.schema import Schema

# With the fault of test_planted, if there is one.
MODULE = "tests.faults.faulty_server" if "FAULT" in os.environ else "wfe_persistence"

WITHIN = (("wfe-namespace", "test"),)


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A look into the database, and a hand in it."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def make_old(database: psycopg.Connection[Any], schema: Schema, version: int = 3) -> None:
    """A store as servers made it that did not record owners."""
    database.execute(f'CREATE SCHEMA "{schema.name}"'.encode())
    database.execute(schema.qualify(migration_history.CREATE_MIGRATIONS_TABLE).encode())
    for old in migration_files.migrations()[:version]:
        database.execute(old.sql(schema).encode())
        database.execute(
            schema.qualify(migration_history.RECORD_MIGRATION).encode(),
            migration_history.record_values(old),
        )


def arguments(url: str, schema: str, *options: str) -> tuple[str, ...]:
    return ("--db-url", url, "--schema", schema, *options)


class Servers:
    """Starts servers on one database."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory = directory
        self.url = url

    def of(self, schema: str, *options: str) -> ServerProcess:
        """The server of a schema, not started yet."""
        return ServerProcess(
            self._directory / f"{schema}.log",
            *arguments(self.url, schema, "--allow-delete-namespace", *options),
            module=MODULE,
        )

    def refused(self, schema: str, *options: str) -> str:
        """What a server says that must end at its start."""
        done = subprocess.run(
            [sys.executable, "-m", MODULE, "serve",
             *arguments(self.url, schema, "--listen", "127.0.0.1:0", *options)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        return done.stderr

    def migrate_up(self, schema: str) -> dict[str, str]:
        """What `migrate up` says of each namespace."""
        done = subprocess.run(
            [sys.executable, "-m", MODULE, "migrate", "up",
             *arguments(self.url, schema)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.fixture
def servers(tmp_path: Path, database_url: str) -> Servers:
    return Servers(tmp_path, database_url)


async def listed(api: Api) -> list[tuple[str, str]]:
    page = await api.store.ListNamespaces(ListNamespacesRequest())
    return [(n.name, n.schema) for n in page.namespaces]


async def see_nothing_of_test(api: Api) -> None:
    """What a server does with its namespace `test` where `app_test` is the store of others."""
    assert await listed(api) == [("default", "app")]
    for call in (
        api.events.GetEvent(GetEventRequest(id="e"), metadata=WITHIN),
        api.store.GetStoreInfo(GetStoreInfoRequest(), metadata=WITHIN),
        api.store.EnsureStoreExists(EnsureStoreExistsRequest(), metadata=WITHIN),
        api.store.DeleteNamespace(DeleteNamespaceRequest(name="test", force=True)),
    ):
        with fails("NOT_FOUND", "NAMESPACE_NOT_FOUND"):
            await call
    with fails("FAILED_PRECONDITION", "STORE_NOT_OWNED") as failure:
        await api.store.CreateNamespace(CreateNamespaceRequest(name="test"))
    assert failure.metadata == {"namespace": "test"}
    stub: Any = health_pb2_grpc.HealthStub(api.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(
            health_pb2.HealthCheckRequest(service="test/wfe.persistence.v1.WorkflowService")
        )
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_store_of_other_servers_is_no_namespace(servers: Servers) -> None:
    event = make.event()
    with servers.of("app_test") as theirs, servers.of("app") as ours:
        async with connect(theirs.address) as channel, connect(ours.address) as our_channel:
            api = Api(channel)
            await api.events.CreateEvent(CreateEventRequest(event=event))
            await see_nothing_of_test(Api(our_channel))
            assert set(servers.migrate_up("app")) == {"default"}
            answer = await api.events.GetEvent(GetEventRequest(id=event.id))
            assert answer.event == event
            assert await listed(api) == [("default", "app_test")]


@pytest.mark.parametrize("options", [(), ("--no-migrate",)], ids=["migrate", "no-migrate"])
async def test_server_does_not_start_on_a_namespace_of_others(
    servers: Servers, options: tuple[str, ...]
) -> None:
    event = make.event()
    with servers.of("app") as ours:
        async with connect(ours.address) as channel:
            api = Api(channel)
            await api.store.CreateNamespace(CreateNamespaceRequest(name="test"))
            await api.events.CreateEvent(CreateEventRequest(event=event), metadata=WITHIN)
            said = servers.refused("app_test", *options)
            assert "schema app_test is the namespace test of servers with --schema app" in said
            answer = await api.events.GetEvent(GetEventRequest(id=event.id), metadata=WITHIN)
            assert answer.event == event
            assert await listed(api) == [("default", "app"), ("test", "app_test")]


async def test_one_schema_can_be_the_namespace_of_only_one(servers: Servers) -> None:
    """`app_a_b` is `b` of `app_a`, or `a_b` of `app`."""
    with servers.of("app") as ours, servers.of("app_a") as theirs:
        async with connect(ours.address) as channel, connect(theirs.address) as their_channel:
            ours_api, theirs_api = Api(channel), Api(their_channel)
            await theirs_api.store.CreateNamespace(CreateNamespaceRequest(name="b"))
            with fails("FAILED_PRECONDITION", "STORE_NOT_OWNED"):
                await ours_api.store.CreateNamespace(CreateNamespaceRequest(name="a_b"))
            assert await listed(ours_api) == [("default", "app")]
            await theirs_api.store.DeleteNamespace(DeleteNamespaceRequest(name="b"))
            await ours_api.store.CreateNamespace(CreateNamespaceRequest(name="a_b"))
            assert await listed(theirs_api) == [("default", "app_a")]
            assert await listed(ours_api) == [("default", "app"), ("a_b", "app_a_b")]


async def test_old_store_belongs_to_the_server_that_is_started_on_it(
    servers: Servers, database: psycopg.Connection[Any]
) -> None:
    base = Schema("app")
    make_old(database, base)
    make_old(database, base.for_namespace("test"))
    with servers.of("app_test"), servers.of("app") as ours:
        async with connect(ours.address) as channel:
            await see_nothing_of_test(Api(channel))


async def test_old_store_belongs_to_the_server_that_is_called_with_its_name(
    servers: Servers, database: psycopg.Connection[Any]
) -> None:
    base = Schema("app")
    make_old(database, base)
    make_old(database, base.for_namespace("test"))
    with servers.of("app") as ours:
        async with connect(ours.address) as channel:
            api = Api(channel)
            await api.events.CreateEvent(CreateEventRequest(event=make.event()), metadata=WITHIN)
            said = servers.refused("app_test")
            assert "schema app_test is the namespace test of servers with --schema app" in said
            await api.store.DeleteNamespace(DeleteNamespaceRequest(name="test", force=True))
    claim = "schema app_test had no recorded owner: from now on it is the namespace test"
    assert ours.log().count(claim) == 1


async def test_migrating_all_claims_nothing_that_nobody_has_named(
    servers: Servers, database: psycopg.Connection[Any]
) -> None:
    base = Schema("app")
    make_old(database, base)
    make_old(database, base.for_namespace("test"))
    lines = servers.migrate_up("app")
    assert set(lines) == {"default", "test"}
    assert lines["test"].startswith("applied ")
    with servers.of("app") as ours:
        async with connect(ours.address) as channel:
            api = Api(channel)
            assert await listed(api) == [("default", "app"), ("test", "app_test")]
            with fails("FAILED_PRECONDITION", "STORE_NOT_OWNED"):
                await api.store.DeleteNamespace(DeleteNamespaceRequest(name="test", force=True))
            with servers.of("app_test", "--no-migrate"):
                await see_nothing_of_test(api)


@pytest.mark.parametrize("version", [1, 3])
async def test_old_namespace_is_deleted_only_after_it_was_claimed(
    servers: Servers, database: psycopg.Connection[Any], version: int
) -> None:
    make_old(database, Schema("app").for_namespace("test"), version)
    delete = DeleteNamespaceRequest(name="test", force=True)
    with servers.of("app") as ours:
        async with connect(ours.address) as channel:
            api = Api(channel)
            with fails("FAILED_PRECONDITION", "STORE_NOT_OWNED"):
                await api.store.DeleteNamespace(delete)
            await api.store.CreateNamespace(CreateNamespaceRequest(name="test"))
            await api.store.DeleteNamespace(delete)
            assert await listed(api) == [("default", "app")]


async def test_claim_without_a_migration(
    servers: Servers, database: psycopg.Connection[Any]
) -> None:
    """What `migrate up` has left without an owner gets one when its name is used."""
    base = Schema("app")
    make_old(database, base)
    make_old(database, base.for_namespace("test"))
    servers.migrate_up("app")
    with servers.of("app", "--no-migrate") as ours:
        async with connect(ours.address) as channel:
            api = Api(channel)
            await api.events.CreateEvent(CreateEventRequest(event=make.event()), metadata=WITHIN)
            await api.store.DeleteNamespace(DeleteNamespaceRequest(name="test", force=True))


def test_owner_of_a_script_is_the_namespace_it_is_for(
    servers: Servers, database: psycopg.Connection[Any]
) -> None:
    def script(*options: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", MODULE, "migrate", "sql", "--schema", "app",
             *options],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip

    database.execute(script().encode())
    database.execute(script("--namespace", "test").encode())
    lines = servers.migrate_up("app")
    assert set(lines) == {"default", "test"}
    assert all(line.startswith("up to date") for line in lines.values())
    assert "app_test is the namespace test" in servers.refused("app_test")


def test_store_that_was_renamed_can_be_claimed_by_hand(
    servers: Servers, database: psycopg.Connection[Any]
) -> None:
    """As docs/scaling.md says."""
    servers.migrate_up("app")
    database.execute("ALTER SCHEMA app RENAME TO moved")
    assert "schema moved is the namespace default of servers with --schema app" in (
        servers.refused("moved")
    )
    database.execute("UPDATE moved.wfe_store SET owner_schema = 'moved', namespace = 'default'")
    assert set(servers.migrate_up("moved")) == {"default"}


async def test_objects_of_others_are_never_deleted(
    servers: Servers, database: psycopg.Connection[Any]
) -> None:
    """Neither those in the schema nor those elsewhere that depend on it."""
    created = {
        "FUNCTION": "app_test.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SEQUENCE": "app_test.s",
        "TYPE": "app_test.t AS ENUM ('a')",
        "DOMAIN": "app_test.d AS int",
        "VIEW": "public.v AS SELECT id FROM app_test.workflows",
        "MATERIALIZED VIEW": "app_test.m AS SELECT 1",
    }
    with servers.of("app") as ours:
        async with connect(ours.address) as channel:
            api = Api(channel)
            await api.store.CreateNamespace(CreateNamespaceRequest(name="test"))
            for kind, definition in created.items():
                database.execute(f"CREATE {kind} {definition}".encode())
                with fails("FAILED_PRECONDITION", "NAMESPACE_NOT_EMPTY"):
                    await api.store.DeleteNamespace(DeleteNamespaceRequest(name="test", force=True))
                await api.events.CreateEvent(
                    CreateEventRequest(event=make.event()), metadata=WITHIN
                )
                database.execute(f"DROP {kind} {definition.split(' ')[0]}".encode())
            await api.store.DeleteNamespace(DeleteNamespaceRequest(name="test", force=True))
            assert await listed(api) == [("default", "app")]
    row = database.execute("SELECT to_regnamespace('app_test')").fetchone()
    assert row == (None,)


@pytest.mark.parametrize("table", ["_sqlx_migrations", "_wfe_sqlx_migrations"])
async def test_namespace_with_the_migrations_of_a_host_is_deleted_with_force(
    servers: Servers, database: psycopg.Connection[Any], table: str
) -> None:
    with servers.of("app") as ours:
        async with connect(ours.address) as channel:
            api = Api(channel)
            await api.store.CreateNamespace(CreateNamespaceRequest(name="test"))
            database.execute(f"CREATE TABLE app_test.{table} (version bigint PRIMARY KEY)".encode())
            database.execute("CREATE TABLE app_test.of_others ()")
            for force in (False, True):
                with fails("FAILED_PRECONDITION", "NAMESPACE_NOT_EMPTY"):
                    await api.store.DeleteNamespace(
                        DeleteNamespaceRequest(name="test", force=force)
                    )
            database.execute("DROP TABLE app_test.of_others")
            with fails("FAILED_PRECONDITION", "NAMESPACE_NOT_EMPTY"):
                await api.store.DeleteNamespace(DeleteNamespaceRequest(name="test"))
            await api.store.DeleteNamespace(DeleteNamespaceRequest(name="test", force=True))
            assert await listed(api) == [("default", "app")]
