"""Streams whose clients read slowly, not at all, or only a part: they cost nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import psycopg
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import fails
from tests.support.scene import never_due
from tests.support.server import ServerProcess
from wfe.persistence.v1.workflow_pb2 import (
    GetWorkflowInstancesRequest,
    ListWorkflowsRequest,
    WorkflowFilter,
    WorkflowView,
)

CONNECTIONS = 4
STALL_SECONDS = 2
MB = 1_000_000
LARGE = 100_000
IDS = [f"w-{n:04}" for n in range(1000)]

# Compressed it is small, so that it is stored quickly; on the wire it is 100 MB.
COPIES = f"""
    INSERT INTO wfc.workflows (id, name, definition_id, version, data, status, create_time)
    SELECT 'w-' || to_char(n, 'FM0000'), 'w-' || to_char(n, 'FM0000'), 'd', 1,
        to_jsonb(repeat('x', {LARGE})), 'Suspended', now()
    FROM generate_series(0, 999) n
"""
POINTERS = """
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal, id, step_id, status)
    SELECT 'large', n, n, 0, 'Complete' FROM generate_series(1, 100000) n
"""
BUSY = """
    SELECT count(*) FROM pg_stat_activity WHERE application_name = 'wfe-persistence'
        AND datname = current_database() AND state <> 'idle'
"""

Stream = grpc.aio.UnaryStreamCall[Any, Any]


@pytest.fixture
def server(tmp_path: Path, database_url: str) -> Iterator[ServerProcess]:
    """A server with few connections and a thousand workflows, of 100 kB each."""
    with ServerProcess(
        tmp_path / "log",
        *("--db-url", database_url),
        *("--pool-size", str(CONNECTIONS)),
        *("--stall-seconds", str(STALL_SECONDS)),
    ) as server:
        with psycopg.connect(database_url) as connection:
            connection.execute(COPIES.encode())
        yield server


@pytest.fixture
async def api(server: ServerProcess) -> AsyncIterator[Api]:
    async with connect(server.address) as channel:
        yield Api(channel)


def stream(api: Api, ids: list[str] = IDS) -> Stream:
    call: Stream = api.workflows.GetWorkflowInstances(
        GetWorkflowInstancesRequest(ids=ids), timeout=3600
    )
    return call


async def begun(call: Stream, messages: int = 1) -> None:
    for _ in range(messages):
        answer: Any = await call.read()
        assert answer.instance.id in IDS


async def eventually(holds: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.05)


async def idle(database_url: str) -> bool:
    """Whether none of the server's connections runs a statement."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        row = await (await connection.execute(BUSY)).fetchone()
        return row == (0,)


async def test_streams_that_are_not_read_hold_no_connection(
    server: ServerProcess, api: Api, database_url: str
) -> None:
    streams = [stream(api) for _ in range(20)]
    await asyncio.gather(*map(begun, streams))
    await eventually(lambda: idle(database_url))
    instance = never_due()
    await api.create_new_workflow(instance)
    for _ in range(CONNECTIONS):
        assert (await api.get_workflow_instance(instance.id)).id == instance.id
    health: Any = health_pb2_grpc.HealthStub(api.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert not any(call.done() for call in streams)
    for call in streams:
        call.cancel()


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return (
        struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream_id) + payload
    )


def headers(path: str) -> bytes:
    """The headers of a call, each a literal."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(
        b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in field)
        for field in fields.items()
    )


DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, ACK, END_HEADERS = 1, 1, 4
NO_WINDOW = struct.pack("!HI", 4, 0)


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        ("WorkflowService/ListWorkflows", ListWorkflowsRequest(page_size=30)),
        ("WorkflowService/GetWorkflowInstances", GetWorkflowInstancesRequest(ids=IDS[:30])),
    ],
)
async def test_client_that_takes_no_byte_holds_no_connection(
    server: ServerProcess, api: Api, database_url: str, path: str, request_: Message
) -> None:
    """Not even with a list, whose response is complete before it is sent."""
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, NO_WINDOW))
    writer.write(frame(SETTINGS, ACK, 0))
    body = request_.SerializeToString()
    waiting = set(range(1, 2 * 20, 2))
    for stream_id in sorted(waiting):
        writer.write(frame(HEADERS, END_HEADERS, stream_id, headers(f"/wfe.persistence.v1.{path}")))
        writer.write(frame(DATA, END_STREAM, stream_id, struct.pack("!BI", 0, len(body)) + body))
    async with asyncio.timeout(30):
        while waiting:  # the headers come with the response
            length, kind, _, stream_id = struct.unpack("!IBBI", b"\0" + await reader.readexactly(9))
            await reader.readexactly(length)
            assert kind != DATA
            if kind == HEADERS:
                waiting.discard(stream_id)
    await eventually(lambda: idle(database_url))
    await asyncio.gather(*(api.get_workflow_instance(id_) for id_ in IDS[: CONNECTIONS * 2]))
    writer.close()


async def test_stream_that_is_not_read_on_is_ended(api: Api) -> None:
    call = stream(api)
    await begun(call)
    await asyncio.sleep(STALL_SECONDS * 2)
    with fails("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED") as failure:
        while await call.read() is not grpc.aio.EOF:
            pass
    assert "has not read on" in failure.message


async def test_cancelled_streams_free_their_connections(api: Api) -> None:
    for read in (0, 1, 20):
        for _ in range(CONNECTIONS * 2):
            call = stream(api)
            await begun(call, read)
            call.cancel()
    await asyncio.gather(*(api.get_workflow_instance(id_) for id_ in IDS[:50]))


async def test_memory_is_bounded_whatever_clients_do(server: ServerProcess, api: Api) -> None:
    """The same id very often, streams cancelled at once or later, or never read."""
    process = psutil.Process(server.process.pid)
    assert [w.id for w in await api.get_workflow_instances(IDS)] == IDS
    most = process.memory_info().rss + 150 * MB
    with contextlib.suppress(grpc.aio.AioRpcError):
        call = stream(api, IDS[:1] * 400_000)
        await begun(call, 20_000)
        call.cancel()
        await asyncio.sleep(1)
        assert process.memory_info().rss < most
    for read in (0, 1, 5, 20, 100):
        call = stream(api)
        await begun(call, read)
        call.cancel()
        assert process.memory_info().rss < most
    streams = [stream(api) for _ in range(20)]
    await asyncio.gather(*map(begun, streams))
    await asyncio.sleep(1)
    assert process.memory_info().rss < most
    for call in streams:
        call.cancel()


@pytest.mark.parametrize("asked", [60, None])
async def test_deadline_is_at_most_the_servers(
    tmp_path: Path, database_url: str, asked: float | None
) -> None:
    with ServerProcess(
        tmp_path / "log", "--db-url", database_url, "--max-deadline", "0.5"
    ) as server:
        async with (
            connect(server.address) as channel,
            await psycopg.AsyncConnection.connect(database_url) as other,
        ):
            api = Api(channel)
            await other.execute("LOCK TABLE wfc.workflows IN ACCESS EXCLUSIVE MODE")
            with fails("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"):
                await api.workflows.GetWorkflowInstances(
                    GetWorkflowInstancesRequest(ids=[make.new_id()]), timeout=asked
                ).read()


async def test_large_lists_leave_connections_for_others(tmp_path: Path, database_url: str) -> None:
    arguments = ("--pool-size", str(CONNECTIONS), "--pool-timeout", "2")
    with ServerProcess(tmp_path / "log", "--db-url", database_url, *arguments) as server:
        async with connect(server.address) as channel:
            api = Api(channel)
            await api.create_event(make.event(id="e"))
            for id_ in ("large", "written"):
                await api.create_new_workflow(never_due(id=id_))
            with psycopg.connect(database_url) as connection:
                connection.execute(POINTERS.encode())
            listed, ended = 0, False

            async def lists() -> None:
                """One after the other. They wait for each other, and may do so in vain."""
                nonlocal listed
                request = ListWorkflowsRequest(
                    filter=WorkflowFilter(name_prefix="large"),
                    view=WorkflowView.WORKFLOW_VIEW_FULL,
                )
                while not ended:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        await api.workflows.ListWorkflows(request)
                        listed += 1

            readers = [asyncio.create_task(lists()) for _ in range(2 * CONNECTIONS)]
            for revision in range(1, 6):
                await asyncio.sleep(0.3)
                await api.commit_workflow(patch=make.patch("written"), expected_revision=revision)
                assert (await api.get_event("e")).id == "e"
            ended = True
            await asyncio.gather(*readers)
            assert listed > 0
