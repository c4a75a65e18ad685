"""What is acknowledged survives: the server killed, PostgreSQL killed, answers lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.faults.load import Load
from tests.faults.proxy import Proxy
from tests.support import make
from tests.support.api import Api, connect
from tests.support.embedded import postgres_processes, postmaster
from tests.support.expect import fails
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for
from wfe.persistence.v1.event_pb2 import CreateEventRequest, GetEventRequest
from wfe.persistence.v1.workflow_pb2 import (
    CreateNewWorkflowRequest,
    GetWorkflowInstanceRequest,
    PersistWorkflowRequest,
)
from wfe_persistence.embedded import EmbeddedPostgres

# A run that has hardly written anything when the fault comes proves nothing.
LEAST_WRITES = 100


async def under_load(
    address: str, fault: Callable[[], Awaitable[str]], *, after: float = 0.5
) -> Load:
    """Run the load, let the fault happen in the middle, go on for a while, check everything.

    The fault answers the address to go on with.
    """
    load = Load(address)
    running = asyncio.create_task(load.run())
    deadline = time.monotonic() + 20
    while load.writes < LEAST_WRITES and time.monotonic() < deadline and not running.done():
        await asyncio.sleep(0.05)
    assert load.writes >= LEAST_WRITES
    address = await fault()
    await asyncio.sleep(after)
    load.stop()
    await running
    await load.check(address)
    return load


def restart(server: ServerProcess) -> None:
    server.start()
    server.wait_until_serving()


@pytest.mark.parametrize("seed", range(3))
async def test_server_killed_in_the_middle_loses_nothing(
    tmp_path: Path, data_dir: Path, seed: int
) -> None:
    """With the embedded PostgreSQL, which the next server finds running."""
    server = ServerProcess(tmp_path / "log", "--data-dir", str(data_dir))
    with server:

        async def kill() -> str:
            await asyncio.sleep(0.05 * seed)
            server.kill()
            await asyncio.to_thread(restart, server)
            return server.address

        load = await under_load(server.address, kill, after=0)
        assert load.failures, "the fault did not reach the clients"
    # The last user stops the embedded PostgreSQL (which is gone a moment after its pid file).
    await asyncio.to_thread(wait_for, lambda: not postgres_processes(data_dir), 2)


@pytest.fixture
def own_postgres(data_dir: Path) -> EmbeddedPostgres:
    """A PostgreSQL that the test may kill."""
    return EmbeddedPostgres(data_dir)


def socket_dir(url: str) -> Path:
    return Path(parse_qs(urlparse(url).query)["host"][0])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT, signal.SIGINT])
async def test_postgres_ended_in_the_middle_loses_nothing(
    tmp_path: Path, data_dir: Path, own_postgres: EmbeddedPostgres, number: signal.Signals
) -> None:
    """Killed, immediate and fast shutdown. The server lives on and serves again by itself."""
    with own_postgres:
        url = own_postgres.url
        with ServerProcess(tmp_path / "log", "--db-url", url) as server:

            async def end_postgres() -> str:
                os.kill(postmaster(data_dir), number)
                await asyncio.to_thread(wait_for, lambda: not postgres_processes(data_dir))
                await asyncio.to_thread(wait_for_status, server.address, "NOT_SERVING")
                await asyncio.to_thread(own_postgres.start)
                await asyncio.to_thread(server.wait_until_serving)
                return server.address

            # Calls wait for a connection, so a short outage need not fail a single one.
            await under_load(server.address, end_postgres)
            assert "not serving: the database can't be reached" in server.log()
            assert "bug" not in server.log()


def status_of(address: str, service: str = "") -> str:
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def wait_for_status(address: str, status: str, seconds: float = 30) -> None:
    wait_for(lambda: status_of(address) == status, seconds)


async def test_server_without_a_database_waits_for_it(
    tmp_path: Path, own_postgres: EmbeddedPostgres
) -> None:
    with own_postgres:
        url = own_postgres.url
        own_postgres.stop()
        server = ServerProcess(tmp_path / "log", "--db-url", url, "--pool-timeout", "0.5")
        server.start()
        try:
            assert status_of(server.address) == "NOT_SERVING"
            assert status_of(server.address, "wfe.persistence.v1.EventService") == "NOT_SERVING"
            assert status_of(server.address, "liveness") == "SERVING"
            async with connect(server.address) as channel:
                with fails("UNAVAILABLE", "DATABASE_UNAVAILABLE") as failure:
                    await Api(channel).events.GetEvent(GetEventRequest(id="e"))
                assert failure.retry_after
            own_postgres.start()
            server.wait_until_serving()
        finally:
            assert server.stop() == 0


async def test_write_whose_answer_is_lost_says_so_and_may_be_repeated(
    tmp_path: Path, database_url: str
) -> None:
    directory = tmp_path / "proxy"
    directory.mkdir()
    behind = socket_dir(database_url)
    url = database_url.replace(str(behind), str(directory))
    async with Proxy(directory, behind) as proxy:
        server = ServerProcess(tmp_path / "log", "--db-url", url, "--pool-size", "1")
        await asyncio.to_thread(server.__enter__)
        try:
            async with connect(server.address) as channel:
                api = Api(channel)
                request = CreateEventRequest(event=make.event())
                proxy.drop_answer_to = request.event.id.encode()
                with fails("UNAVAILABLE", "COMMIT_OUTCOME_UNKNOWN"):
                    await api.events.CreateEvent(request)
                proxy.drop_answer_to = None
                with psycopg.connect(database_url) as connection:
                    rows = connection.execute("SELECT id FROM wfc.events").fetchall()
                assert rows == [(request.event.id,)]
                await api.events.CreateEvent(request)
                with psycopg.connect(database_url) as connection:
                    rows = connection.execute("SELECT id FROM wfc.events").fetchall()
                assert rows == [(request.event.id,)]
        finally:
            await asyncio.to_thread(server.stop)


def test_second_server_on_the_same_port_is_refused(tmp_path: Path, database_url: str) -> None:
    with ServerProcess(tmp_path / "first", "--db-url", database_url) as first:
        second = ServerProcess(
            tmp_path / "second", "--db-url", database_url, "--listen", first.address
        )
        with pytest.raises(AssertionError, match="can't listen"):
            second.start()
        assert second.process.returncode == 1


async def test_deadline_that_passes_in_the_database_writes_nothing(
    tmp_path: Path, database_url: str
) -> None:
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        async with connect(server.address) as channel:
            api = Api(channel)
            instance = make.instance()
            await api.workflows.CreateNewWorkflow(CreateNewWorkflowRequest(instance=instance))
            async with await psycopg.AsyncConnection.connect(database_url) as other:
                await other.execute("SELECT FROM wfc.workflows FOR UPDATE")
                with pytest.raises(grpc.aio.AioRpcError) as late:
                    await api.workflows.PersistWorkflow(
                        PersistWorkflowRequest(instance=instance), timeout=0.3
                    )
                assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                await asyncio.sleep(0.3)  # the cancel request is on its way
            answer = await api.workflows.GetWorkflowInstance(
                GetWorkflowInstanceRequest(id=instance.id)
            )
            assert answer.instance.revision == 1


async def test_call_without_a_deadline_gets_the_servers(tmp_path: Path, database_url: str) -> None:
    with ServerProcess(
        tmp_path / "log", "--db-url", database_url, "--default-deadline", "0.4"
    ) as server:
        async with connect(server.address) as channel:
            api = Api(channel)
            instance = make.instance()
            await api.workflows.CreateNewWorkflow(CreateNewWorkflowRequest(instance=instance))
            async with await psycopg.AsyncConnection.connect(database_url) as other:
                await other.execute("SELECT FROM wfc.workflows FOR UPDATE")
                with fails("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"):
                    await api.workflows.PersistWorkflow(PersistWorkflowRequest(instance=instance))


async def test_twenty_servers_start_at_once_on_an_empty_database(
    tmp_path: Path, database_url: str
) -> None:
    servers = [
        ServerProcess(tmp_path / f"log{i}", "--db-url", database_url, "--pool-size", "2")
        for i in range(20)
    ]
    try:
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers))
        await asyncio.gather(*(asyncio.to_thread(server.wait_until_serving) for server in servers))
        event = make.event()
        async with connect(servers[0].address) as channel:
            await Api(channel).events.CreateEvent(CreateEventRequest(event=event))
        async with connect(servers[19].address) as channel:
            answer = await Api(channel).events.GetEvent(GetEventRequest(id=event.id))
        assert answer.event == event
    finally:
        codes = await asyncio.gather(*(asyncio.to_thread(server.stop) for server in servers))
    assert codes == [0] * 20
