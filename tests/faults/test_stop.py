"""SIGTERM: a server stops in order, and tells every call why it ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import eventually, fails
from tests.support.server import ServerProcess
from wfe.persistence.v1.store_pb2 import GetStoreInfoRequest
from wfe.persistence.v1.workflow_pb2 import (
    CreateNewWorkflowRequest,
    PersistWorkflowRequest,
    PersistWorkflowResponse,
)
from wfe_persistence.rpc.services import SERVICES

Held = asyncio.Future[PersistWorkflowResponse]
Start = Callable[..., ServerProcess]

FOR_EVER = "600"


@pytest.fixture
async def start(tmp_path: Path, database_url: str) -> AsyncIterator[Start]:
    """Starts a server; what is still running at the end is killed."""
    servers = []

    def start(*arguments: str) -> ServerProcess:
        server = ServerProcess(tmp_path / "log", "--db-url", database_url, *arguments)
        servers.append(server)
        return server.__enter__()

    yield start
    for server in servers:
        server.kill()
        assert "bug" not in server.log()
        assert "Traceback" not in server.log()


@asynccontextmanager
async def held_call(api: Api, url: str) -> AsyncIterator[tuple[Held, psycopg.AsyncConnection[Any]]]:
    """A write that waits in the database for as long as the connection holds its transaction."""
    instance = make.instance()
    await api.workflows.CreateNewWorkflow(CreateNewWorkflowRequest(instance=instance))
    async with await psycopg.AsyncConnection.connect(url) as other:
        await other.execute("SELECT FROM wfc.workflows FOR UPDATE")
        call = asyncio.ensure_future(
            api.workflows.PersistWorkflow(PersistWorkflowRequest(instance=instance))
        )
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as observer:
            await eventually(lambda: _any(_waits_for_lock(observer)))
        yield call, other


async def _any(number: Awaitable[int]) -> bool:
    return await number > 0


async def _waits_for_lock(observer: psycopg.AsyncConnection[Any]) -> int:
    """The backend that waits for a lock; 0: none does."""
    cursor = await observer.execute("SELECT pid FROM pg_locks WHERE NOT granted")
    row = await cursor.fetchone()
    return row[0] if row else 0


def revision(url: str) -> int:
    with psycopg.connect(url) as connection:
        [(found,)] = connection.execute("SELECT revision FROM wfc.workflows").fetchall()
    return int(found)


async def refused(api: Api) -> bool:
    """Whether calls are refused as they should be; anything else than that, or OK, is an error."""
    try:
        await api.store.GetStoreInfo(GetStoreInfoRequest())
    except grpc.aio.AioRpcError:
        with fails("UNAVAILABLE", "SHUTTING_DOWN") as failure:
            await api.store.GetStoreInfo(GetStoreInfoRequest())
        assert failure.retry_after
        return True
    return False


async def _check(channel: grpc.aio.Channel, service: str) -> int:
    health: Any = health_pb2_grpc.HealthStub(channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


async def exit_status(server: ServerProcess) -> int:
    return await asyncio.to_thread(server.process.wait, 20)


async def test_calls_under_way_finish_while_others_are_refused(
    start: Start, database_url: str
) -> None:
    server = await asyncio.to_thread(start, "--drain-seconds", FOR_EVER)
    async with (
        connect(server.address) as channel,
        connect(server.address) as late,
        held_call(Api(channel), database_url) as (call, lock),
    ):
        server.process.send_signal(signal.SIGTERM)
        await eventually(lambda: refused(Api(channel)))
        assert await refused(Api(late)), "over a new connection as well"
        await lock.rollback()
        assert (await call).revision == 2
    assert await exit_status(server) == 0


async def test_calls_that_outlast_the_drain_end_and_have_written_nothing(
    start: Start, database_url: str
) -> None:
    """One that runs in the database, one that waits for a connection, one that never gets its
    request."""
    server = await asyncio.to_thread(start, "--drain-seconds", "0.3", "--pool-size", "1")
    async with connect(server.address) as channel:
        api = Api(channel)
        async with held_call(api, database_url) as (call, _):
            waiting = asyncio.ensure_future(
                api.workflows.CreateNewWorkflow(CreateNewWorkflowRequest(instance=make.instance()))
            )
            method: Any = channel.stream_unary("/wfe.persistence.v1.EventService/CreateEvent")
            unsent: Any = method()
            # All three have arrived when a later one on the same connection is answered.
            await asyncio.sleep(0)
            await _check(channel, "")
            server.process.send_signal(signal.SIGTERM)
            for each in (call, waiting, unsent):
                with fails("UNAVAILABLE", "SHUTTING_DOWN") as failure:
                    await each
                assert failure.retry_after
            assert await exit_status(server) == 0
    assert revision(database_url) == 1
    assert "calls are still under way" in server.log()


async def test_a_database_that_does_not_answer_leaves_the_outcome_unknown(
    start: Start, database_url: str
) -> None:
    server = await asyncio.to_thread(start, "--drain-seconds", "0.1")
    async with (
        connect(server.address) as channel,
        held_call(Api(channel), database_url) as (call, _),
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as observer,
    ):
        backend = await _waits_for_lock(observer)
        os.kill(backend, signal.SIGSTOP)
        try:
            server.process.send_signal(signal.SIGTERM)
            with fails("UNAVAILABLE", "COMMIT_OUTCOME_UNKNOWN"):
                await call
            assert await exit_status(server) == 0
        finally:
            os.kill(backend, signal.SIGCONT)


async def test_during_the_delay_health_is_bad_and_calls_are_answered(
    start: Start, database_url: str
) -> None:
    server = await asyncio.to_thread(start, "--drain-delay", "1.5", "--drain-seconds", FOR_EVER)
    async with connect(server.address) as channel:
        api = Api(channel)

        async def serving(name: str) -> bool:
            return await _check(channel, name) == health_pb2.HealthCheckResponse.SERVING

        async with held_call(api, database_url) as (call, lock):
            server.process.send_signal(signal.SIGTERM)
            for name in ("", *(s.name for s in SERVICES), f"default/{SERVICES[0].name}"):
                await eventually(lambda: _not(serving(name)))  # noqa: B023 — awaited at once
            answered = 0
            while not await refused(api):
                answered += 1
            assert answered > 10
            assert not await serving("")
            assert await serving("liveness"), "nobody shall kill it for that"
            await lock.rollback()
            await call
    assert await exit_status(server) == 0


async def _not(condition: Any) -> bool:
    return not await condition


async def test_streams_of_health_and_reflection_hold_nothing_up(start: Start) -> None:
    server = await asyncio.to_thread(start, "--drain-seconds", FOR_EVER)
    async with connect(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        names = ("", SERVICES[0].name, f"default/{SERVICES[0].name}")
        watches = [health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in names]
        for watch in watches:
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        untyped: Any = channel
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(untyped)
        listing = reflection.ServerReflectionInfo()
        await listing.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await listing.read()
        server.process.send_signal(signal.SIGTERM)
        for watch in watches[:2]:  # a namespace is only looked at every second
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for watch in watches:
            with fails("UNAVAILABLE", "SHUTTING_DOWN"):
                while await watch.read() is not grpc.aio.EOF:
                    pass
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await listing.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await exit_status(server) == 0


@pytest.mark.parametrize("phase", ["delay", "drain"])
async def test_a_later_second_signal_cuts_the_drain_short(
    start: Start, database_url: str, phase: str
) -> None:
    delay = FOR_EVER if phase == "delay" else "0"
    server = await asyncio.to_thread(start, "--drain-delay", delay, "--drain-seconds", FOR_EVER)
    async with connect(server.address) as channel:
        api = Api(channel)
        async with held_call(api, database_url) as (call, _):
            server.process.send_signal(signal.SIGTERM)
            await eventually(lambda: _said(server, "SIGTERM: draining"))
            server.process.send_signal(signal.SIGTERM)  # as supervisors do
            await asyncio.sleep(0.3)
            assert not call.done()
            assert await refused(api) == (phase == "drain")
            while not call.done():
                server.process.send_signal(signal.SIGINT)
                await asyncio.sleep(0.1)
            with fails("UNAVAILABLE", "SHUTTING_DOWN"):
                await call
            assert await exit_status(server) == 0
    assert revision(database_url) == 1
    assert server.log().count("ending the calls in progress") == 1


async def _said(server: ServerProcess, text: str) -> bool:
    return text in server.log()


async def test_a_unix_socket_is_drained_as_well(
    start: Start, database_url: str, data_dir: Path
) -> None:
    listen = f"unix:{data_dir}/socket"
    server = await asyncio.to_thread(start, "--listen", listen, "--drain-seconds", FOR_EVER)
    async with connect(server.address) as channel:
        async with held_call(Api(channel), database_url) as (call, lock):
            server.process.send_signal(signal.SIGTERM)
            await eventually(lambda: refused(Api(channel)))
            await lock.rollback()
            await call
        assert await exit_status(server) == 0
    assert os.listdir(data_dir) == []


async def test_a_stop_that_hangs_says_so_and_ends(tmp_path: Path, database_url: str) -> None:
    with ServerProcess(
        tmp_path / "log", "--db-url", database_url, "--drain-delay", "0", "--drain-seconds", "0.1",
        module="tests.faults.faulty_server",
        env={**os.environ, "FAULT": "a stop that never ends"},
    ) as server:  # fmt: skip
        assert await asyncio.to_thread(server.stop) == 1
    assert re.search(
        r"not stopped after 1\.1 s, giving up; unfinished: .*Serving.run", server.log()
    )
    assert "Timeout" in server.log()
    assert "most recent call first" in server.log()
