"""Administrative calls: however many there are, other callers keep their connections."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import Failure, eventually, fails, failure_of
from tests.support.server import ServerProcess
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.store_pb2 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    EnsureStoreExistsRequest,
    GetStoreInfoRequest,
    ListNamespacesRequest,
    TruncateAllRequest,
)
from wfe_persistence.store import migrate, migration_history
from wfe_persistence.store.postgres.lane import CONNECTIONS, MAX_WAITING
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.schema import Schema

# With the fault of test_planted, if there is one.
MODULE = "tests.faults.faulty_server" if "FAULT" in os.environ else "wfe_persistence"

POOL = 3

CONNECTED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A look into the database, and a hand in it."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def server(log: Path, url: str, *options: str) -> ServerProcess:
    return ServerProcess(log, "--db-url", url, "--allow-delete-namespace", *options, module=MODULE)


async def create(api: Api, name: str) -> Failure | None:
    return await failure_of(
        api.store.CreateNamespace(CreateNamespaceRequest(name=name), timeout=60)
    )


async def names(api: Api) -> set[str]:
    page = await api.store.ListNamespaces(ListNamespacesRequest(page_size=1000))
    return {namespace.name for namespace in page.namespaces}


async def test_140_creates_at_once_take_two_connections_beside_the_pool(
    tmp_path: Path, database_url: str, database: psycopg.Connection[Any]
) -> None:
    most = 0
    options = ("--pool-size", str(POOL), "--no-notify")  # which would take one more
    with server(tmp_path / "log", database_url, *options) as started:
        async with connect(started.address) as channel:
            api = Api(channel)
            creates = [asyncio.create_task(create(api, f"n{i}")) for i in range(140)]
            ended: list[Failure | None] = []
            while len(ended) < 40:
                row = database.execute(CONNECTED.encode()).fetchone()
                assert row
                most = max(most, row[0])
                # Others are served meanwhile.
                await api.events.CreateEvent(CreateEventRequest(event=make.event()))
                ended = [task.result() for task in creates if task.done()]
                await asyncio.sleep(0.01)
            for task in creates:
                task.cancel()
            refused = [failure for failure in ended if failure is not None]
            assert len(refused) == 140 - CONNECTIONS - MAX_WAITING
            for failure in refused:
                assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert failure.reason == "ADMINISTRATION_BUSY"
                assert failure.retry_after
    assert CONNECTIONS < most <= POOL + CONNECTIONS
    assert "bug" not in started.log(), started.log()


async def test_waiting_ends_at_the_deadline(
    tmp_path: Path, database_url: str, database: psycopg.Connection[Any]
) -> None:
    """Two migrations wait for locks that somebody else holds, and hold up the lane."""
    with server(tmp_path / "log", database_url) as started, psycopg.connect(database_url) as locks:
        for name in ("wfc_a", "wfc_b"):
            locks.execute(migration_history.LOCK_MIGRATIONS, [name])
        async with connect(started.address) as channel:
            api = Api(channel)
            held = [asyncio.create_task(create(api, name)) for name in ("a", "a", "a", "b", "b")]

            def waiting() -> int:
                row = database.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND wait_event = 'advisory'"
                ).fetchone()
                assert row
                return int(row[0])

            async def are_held_up() -> bool:
                return waiting() == 2

            await eventually(are_held_up)
            late = await failure_of(
                api.store.CreateNamespace(CreateNamespaceRequest(name="c"), timeout=0.5)
            )
            assert late is not None
            assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert waiting() == 2
            await api.events.CreateEvent(CreateEventRequest(event=make.event()))
            locks.rollback()
            assert await asyncio.gather(*held) == [None] * 5
            assert await create(api, "c") is None
            assert await names(api) == {"default", "a", "b", "c"}


async def test_table_locks_of_truncates_take_no_more_than_their_share_of_the_pool(
    tmp_path: Path, database_url: str
) -> None:
    with (
        server(
            tmp_path / "log", database_url, "--allow-truncate", "--pool-size", str(POOL)
        ) as started,
        psycopg.connect(database_url) as reader,
    ):
        async with connect(started.address) as channel:
            api = Api(channel)
            await create(api, "other")
            reader.execute("SELECT FROM wfc.workflows")  # until the end of its transaction
            truncates = [
                asyncio.create_task(failure_of(api.store.TruncateAll(TruncateAllRequest())))
                for _ in range(20)
            ]
            await asyncio.sleep(0.3)
            assert not any(task.done() for task in truncates)
            for _ in range(20):
                await api.events.CreateEvent(
                    CreateEventRequest(event=make.event()),
                    metadata=(("wfe-namespace", "other"),),
                    timeout=5,
                )
            reader.rollback()
            assert await asyncio.gather(*truncates) == [None] * 20


async def test_number_of_namespaces_is_limited_whoever_creates_them(
    tmp_path: Path, database_url: str
) -> None:
    """Two servers create at once, and other servers' stores do not count."""
    await migrate.migrate(ConnectionSource(database_url), Schema("wfc_foreign"))
    with ExitStack() as servers:
        addresses = [
            servers.enter_context(
                server(tmp_path / f"log{i}", database_url, "--max-namespaces", "5")
            ).address
            for i in range(2)
        ]
        async with AsyncExitStack() as stack:
            apis = [Api(await stack.enter_async_context(connect(a))) for a in addresses]
            failures = await asyncio.gather(*(create(apis[i % 2], f"n{i}") for i in range(16)))
            refused = [failure for failure in failures if failure is not None]
            assert len(refused) == 11
            for failure in refused:
                assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert (failure.reason, failure.retry_after) == ("TOO_MANY_NAMESPACES", None)
                assert failure.metadata == {"limit": "5"}
            there = await names(apis[0]) - {"default"}
            assert there == {f"n{i}" for i in range(16) if failures[i] is None}
            # One that exists is not a new one, and a deleted one makes room.
            name = min(there)
            assert await create(apis[0], name) is None
            await apis[0].store.DeleteNamespace(DeleteNamespaceRequest(name=name))
            assert await create(apis[1], "another") is None
            with fails("RESOURCE_EXHAUSTED", "TOO_MANY_NAMESPACES"):
                await apis[0].store.CreateNamespace(CreateNamespaceRequest(name=name))


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        (("--listen", "127.0.0.1:0"), True),
        (("--listen", "127.0.0.1:0", "--no-allow-create-namespace"), False),
        (("--listen", "0.0.0.0:0", "--insecure"), False),
        (("--listen", "0.0.0.0:0", "--insecure", "--allow-create-namespace"), True),
    ],
)
async def test_create_namespace_is_enabled_on_loopback_or_by_its_flag(
    tmp_path: Path, database_url: str, options: tuple[str, ...], allowed: bool
) -> None:
    with server(tmp_path / "log", database_url, *options) as started:
        async with connect(started.address.replace("0.0.0.0", "127.0.0.1")) as channel:
            api = Api(channel)
            info = await api.store.GetStoreInfo(GetStoreInfoRequest())
            assert info.capabilities.create_namespace == allowed
            failure = await create(api, "n")
            assert (failure is None) == allowed
            if failure is not None:
                assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
                assert failure.reason == "CREATE_NAMESPACE_NOT_ALLOWED"
            assert await names(api) == ({"default", "n"} if allowed else {"default"})
            await api.store.EnsureStoreExists(EnsureStoreExistsRequest())  # is not affected
