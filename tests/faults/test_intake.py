"""No caller takes the server's memory, its places for calls or its connections from the others, and
health answers all the while."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import make
from tests.support.api import Api
from tests.support.expect import Failure, eventually, fails, failure_of
from tests.support.rpcs import of_size
from tests.support.server import ServerProcess
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.store_pb2 import GetStoreInfoRequest
from wfe.persistence.v1.workflow_pb2 import GetWorkflowInstancesRequest

MB = 1_000_000
INFO = "/wfe.persistence.v1.StoreService/GetStoreInfo"
# On a machine that has other things to do as well.
HEALTH_SECONDS = 10.0


@pytest.fixture
def server(
    tmp_path: Path, database_url: str, request: pytest.FixtureRequest
) -> Iterator[ServerProcess]:
    """A server with the settings that the test is parametrized with."""
    arguments: tuple[str, ...] = getattr(request, "param", ())
    with ServerProcess(tmp_path / "log", "--db-url", database_url, *arguments) as server:
        yield server
        assert server.process.poll() is None, server.log()
    assert "bug" not in server.log(), server.log()


@asynccontextmanager
async def own_connection(server: ServerProcess) -> AsyncIterator[Api]:
    """The API over a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        yield Api(channel)


def rss(server: ServerProcess) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


class Peak:
    """The most memory that a server had inside, beyond what it had before."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.bytes = 0

    async def __aenter__(self) -> Peak:
        self._before = rss(self._server)
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, rss(self._server) - self._before)
            await asyncio.sleep(0.01)


class HealthWatch:
    """Asks for health all the time, from another process; inside, it must answer in time."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server

    async def __aenter__(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, self._server.address,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"watching\n"

    async def __aexit__(self, *_: object) -> None:
        output, _errors = await self._process.communicate(b"")
        longest = float(output)
        assert longest < HEALTH_SECONDS, f"health took {longest} s"


def watch_health(address: str) -> float:
    """The longest time that health took, until stdin is closed."""
    import select

    longest = 0.0
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while not select.select([sys.stdin], [], [], 0.02)[0]:
            began = time.monotonic()
            response = stub.Check(health_pb2.HealthCheckRequest(), timeout=60)
            assert response.status == health_pb2.HealthCheckResponse.SERVING
            if not longest:
                print("watching", flush=True)
            longest = max(longest, time.monotonic() - began)
    return longest


# Memory.


async def test_many_large_requests_at_once_take_bounded_memory(server: ServerProcess) -> None:
    async with own_connection(server) as one, own_connection(server) as other:
        for size, expected in (
            (15 * MB, {"SERVER: Received message larger than max "}),  # gRPC's own
            (8 * MB, {"MESSAGE_TOO_LARGE"}),
            (4 * MB, {"OK", "TOO_MANY_CALLS"}),
        ):
            request = of_size(GetStoreInfoRequest(), size)
            async with HealthWatch(server), Peak(server) as peak:
                ends = await asyncio.gather(
                    *(_end_of(api, request) for api in (one, other) for _ in range(40))
                )
            assert set(ends) <= expected
            # 80 of them are 320 to 1,200 MB.
            assert peak.bytes < 220 * MB


async def _end_of(api: Api, request: bytes) -> str:
    failure = await failure_of(api.unary(INFO)(request, timeout=60))
    return failure.reason or failure.message.partition("(")[0] if failure else "OK"


async def test_requests_that_are_never_completed_take_bounded_memory(
    server: ServerProcess,
) -> None:
    """What a client may send before the server wants it is little."""
    request = of_size(GetStoreInfoRequest(), 4 * MB)
    with psycopg.connect(_database(server), autocommit=False) as connection:
        connection.execute("LOCK TABLE wfc.events IN ACCESS EXCLUSIVE MODE")
        async with own_connection(server) as api, Peak(server) as peak:
            stalled = [_stalled_call(api) for _ in range(100)]
            calls = [asyncio.ensure_future(api.unary(INFO)(request)) for _ in range(100)]
            await asyncio.sleep(1)
            for call in (*stalled, *calls):
                call.cancel()
        assert peak.bytes < 150 * MB


def _database(server: ServerProcess) -> str:
    return server._arguments[1]


def _stalled_call(api: Api) -> Any:
    """A call whose request is not sent until it is cancelled."""
    return api.channel.stream_unary(INFO)(timeout=60)


# Numbers of calls.


@asynccontextmanager
async def held_calls(
    server: ServerProcess, *counts: int
) -> AsyncIterator[tuple[list[Api], list[asyncio.Task[Failure | None]]]]:
    """As many calls as given, on a connection each, that can't end before the context does."""
    async with AsyncExitStack() as stack:
        apis = [await stack.enter_async_context(own_connection(server)) for _ in counts]
        tasks = []
        async with await psycopg.AsyncConnection.connect(_database(server)) as connection:
            await connection.execute("LOCK TABLE wfc.events IN ACCESS EXCLUSIVE MODE")
            for api, count in zip(apis, counts, strict=True):
                for _ in range(count):
                    event = CreateEventRequest(event=make.event())
                    call = failure_of(api.events.CreateEvent(event, timeout=60))
                    tasks.append(asyncio.create_task(call))
            await asyncio.sleep(0.5)
            assert not any(task.done() for task in tasks)
            yield apis, tasks
        await asyncio.gather(*tasks)
        assert [task.result() for task in tasks] == [None] * len(tasks)


@pytest.mark.parametrize(
    "server", [("--max-calls-per-connection", "5", "--max-calls", "8")], indirect=True
)
async def test_too_many_calls_are_refused_and_say_when_to_come_back(server: ServerProcess) -> None:
    async with held_calls(server, 5, 2) as ([first, second], _), HealthWatch(server):
        for body in (b"", of_size(GetStoreInfoRequest(), 4 * MB)):
            with fails("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS") as failure:
                await first.unary(INFO)(body)
            assert failure.retry_after
            assert "this connection has 5 calls" in failure.message
        await second.get_store_info()
        # Streams count as well, and the whole server has a limit too.
        async with own_connection(server) as third:
            hanging = _stalled_call(third)
            await asyncio.sleep(0.2)
            for api in (second, third):
                with fails("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS") as failure:
                    await api.get_store_info()
                assert failure.retry_after
                assert "the server has 8 calls" in failure.message
            with fails("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS"):
                await _drain(first)
            # Those who watch health have as many, beside the others.
            health: Any = health_pb2_grpc.HealthStub(first.channel)
            watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(5)]
            for watch in watches:
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            with fails("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS"):
                await health.Watch(health_pb2.HealthCheckRequest()).read()
            await health.Check(health_pb2.HealthCheckRequest())
            for call in (hanging, *watches):
                call.cancel()
        await eventually(lambda: _succeeds(second))
    async with own_connection(server) as api:
        await api.get_store_info()


async def _drain(api: Api) -> None:
    async for _ in api.workflows.GetWorkflowInstances(GetWorkflowInstancesRequest()):
        pass


async def _succeeds(api: Api) -> bool:
    return await failure_of(api.get_store_info()) is None


async def test_requests_that_do_not_come_hold_up_nobody_for_long(server: ServerProcess) -> None:
    async with own_connection(server) as slow, own_connection(server) as other, HealthWatch(server):
        stalled = [_stalled_call(slow) for _ in range(25)]
        await asyncio.sleep(0.5)
        # Another connection has places left.
        for _ in range(20):
            await other.unary(INFO)(b"", timeout=20)
        # And what waits for those of the same one frees them.
        await slow.unary(INFO)(b"", timeout=50)
        ended = [failure for call in stalled if call.done() and (failure := await failure_of(call))]
        assert ended
        assert {failure.reason for failure in ended} == {"TOO_MANY_CALLS"}
        for call in stalled:
            call.cancel()


async def test_health_answers_during_a_flood(server: ServerProcess) -> None:
    async with own_connection(server) as api, HealthWatch(server):
        ends = await asyncio.gather(*(_end_of(api, b"") for _ in range(3000)))
    assert set(ends) <= {"OK", "TOO_MANY_CALLS", "NAMESPACE_BUSY"}


# Connections.


def few_connections(tmp_path: Path, url: str, descriptors: int) -> ServerProcess:
    return ServerProcess(
        tmp_path / "log", "--db-url", url, "--pool-size", "2",
        module="tests.faults.few_descriptors_server",
        env=os.environ | {"DESCRIPTORS": str(descriptors)},
    )  # fmt: skip


async def test_idle_connections_make_room_when_descriptors_run_short(
    tmp_path: Path, database_url: str
) -> None:
    with few_connections(tmp_path, database_url, 100) as server:
        async with AsyncExitStack() as stack:
            watching = await stack.enter_async_context(own_connection(server))
            stub: Any = health_pb2_grpc.HealthStub(watching.channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            apis = []
            for _ in range(150):
                api = await stack.enter_async_context(own_connection(server))
                await api.unary(INFO)(b"", timeout=30, wait_for_ready=True)
                apis.append(api)
            # There are enough that do nothing, not even watch; and they connect again.
            assert not watch.done()
            await apis[0].unary(INFO)(b"", timeout=30, wait_for_ready=True)
            watch.cancel()
        assert "idle ones" in server.log()


async def test_connections_that_only_watch_health_make_room_too(
    tmp_path: Path, database_url: str
) -> None:
    """Anybody may watch it, for as long as they like."""
    with ServerProcess(
        tmp_path / "log", "--db-url", database_url, "--max-connections", "20"
    ) as server:
        async with AsyncExitStack() as stack:
            for _ in range(30):
                api = await stack.enter_async_context(own_connection(server))
                stub: Any = health_pb2_grpc.HealthStub(api.channel)
                stub.Watch(health_pb2.HealthCheckRequest())
            for _ in range(10):
                api = await stack.enter_async_context(own_connection(server))
                await api.unary(INFO)(b"", timeout=30, wait_for_ready=True)


@pytest.mark.parametrize("server", [("--max-connection-idle", "0.5")], indirect=True)
async def test_connection_that_is_idle_for_long_is_closed(server: ServerProcess) -> None:
    async with own_connection(server) as api, own_connection(server) as watching:
        await api.get_store_info()
        stub: Any = health_pb2_grpc.HealthStub(watching.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        await eventually(lambda: _is_count(server, 1))
        assert not watch.done()
        await api.get_store_info()
        watch.cancel()


async def _is_count(server: ServerProcess, count: int) -> bool:
    return len(_connections(server)) == count


def _connections(server: ServerProcess) -> list[Any]:
    port = int(server.address.rpartition(":")[2])
    return [
        connection
        for connection in psutil.Process(server.process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == port
    ]


@pytest.mark.parametrize(
    "server", [("--max-connection-age", "0.5", "--max-connection-grace", "10")], indirect=True
)
async def test_old_connection_is_replaced_without_a_failed_call(server: ServerProcess) -> None:
    async with own_connection(server) as api:
        ports = set()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            await asyncio.gather(*(api.get_store_info() for _ in range(10)))
            ports |= {connection.raddr.port for connection in _connections(server)}
        assert len(ports) > 1


# What the log says.


async def test_clients_that_hang_up_are_no_errors(server: ServerProcess) -> None:
    ids: list[str] = []
    async with own_connection(server) as api:
        large_data = make.instance(data_json=f'"{"x" * 200_000}"')
        for _ in range(20):
            large_data.id = make.new_id()
            ids.append((await api.create_new_workflow(large_data)).id)
    large = of_size(GetStoreInfoRequest(), 1 * MB)
    request = GetWorkflowInstancesRequest(ids=ids)

    async def hang_up(number: int, delay: float) -> None:
        async with own_connection(server) as api:
            health: Any = health_pb2_grpc.HealthStub(api.channel)
            calls: list[Any] = [
                api.events.CreateEvent(CreateEventRequest(event=make.event())),
                *(api.unary(INFO)(b"\xff" * size) for size in (10, 1000, 50_000) * 5),
                api.unary(INFO)(large),
                api.channel.stream_unary(INFO)(),
                api.workflows.GetWorkflowInstances(request),
                health.Check(health_pb2.HealthCheckRequest(service="default/nothing")),
                health.Watch(health_pb2.HealthCheckRequest()),
            ]
            tasks = [asyncio.create_task(_ended(call)) for call in calls]
            # The server's writes to these wait for somebody who reads.
            calls += [api.workflows.GetWorkflowInstances(request) for _ in range(5)]
            await asyncio.sleep(delay)
            if number % 2:
                for call in calls:
                    call.cancel()
            else:  # the connection, and with it all its calls
                await api.channel.close()
            # Clients of an older gRPC may wait for ever for a call on a channel that was closed.
            _, waiting = await asyncio.wait(tasks, timeout=5)
            for task in waiting:
                task.cancel()

    for delay in (0.0, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.5):
        await asyncio.gather(*(hang_up(number, delay) for number in range(20)))
    async with own_connection(server) as api:
        await api.get_store_info()
    for word in ("Traceback", "error", "ERROR", "xception", "bug"):
        assert word not in server.log(), server.log()


async def _ended(call: Any) -> None:
    try:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.CancelledError):
        pass


@pytest.mark.parametrize("server", [("--max-calls-per-connection", "1")], indirect=True)
async def test_the_same_refusal_is_logged_once_a_minute(server: ServerProcess) -> None:
    async with own_connection(server) as holding, own_connection(server) as api:
        hanging = _stalled_call(holding)
        await asyncio.sleep(0.2)
        for _ in range(500):
            with fails("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS"):
                await holding.unary(INFO)(b"")
        hanging.cancel()
        with psycopg.connect(_database(server), autocommit=True) as connection:
            connection.execute("DROP TABLE wfc.events CASCADE")
        for _ in range(500):
            with fails("FAILED_PRECONDITION", "SCHEMA_OUTDATED"):
                await api.get_event(make.new_id())
    lines = [line for line in server.log().splitlines() if "warning" in line]
    assert 1 <= sum("TOO_MANY_CALLS" in line for line in lines) <= 2, lines
    assert 1 <= sum("refused a statement" in line for line in lines) <= 2, lines


if __name__ == "__main__":
    print(watch_health(sys.argv[1]))
