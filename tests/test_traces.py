"""Traces: a span a call, in the trace of the host, at a collector that decodes it; and nothing
without `--traces otlp`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import psycopg
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_span_id, format_trace_id

from tests.support import make
from tests.support.api import Api
from tests.support.api import connect as connect_stubs
from tests.support.collector import Collector, collector, values
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for
from wfe.persistence.v1.workflow_pb2 import CreateNewWorkflowRequest, GetWorkflowInstanceRequest
from wfe_persistence.cli.logs import JsonFormatter, TextFormatter
from wfe_persistence.time_spent import CURRENT, TimeSpent
from wfe_persistence_client import Event, WorkflowNotFound, connect

CANARY = "canary-51e0"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"

ERROR = 2  # as a status of a span


@pytest.fixture(params=["grpc", "http/protobuf"])
def both(request: pytest.FixtureRequest) -> Iterator[Collector]:
    with collector(request.param) as started:
        yield started


@pytest.fixture
def one() -> Iterator[Collector]:
    with collector("http/protobuf") as started:
        yield started


def tracing(
    tmp_path: Path, database_url: str, variables: dict[str, str], *arguments: str
) -> ServerProcess:
    return ServerProcess(
        tmp_path / "log",
        *("--db-url", database_url, "--traces", "otlp", "--log-format", "json", *arguments),
        env={**os.environ, **variables},
    )


async def only(spans: Collector, method: str) -> Span:
    await asyncio.to_thread(wait_for, lambda: spans.named(method))
    [span] = spans.named(method)
    return span


async def test_a_call_of_the_client_goes_on_in_the_trace_of_its_host(
    both: Collector, tmp_path: Path, database_url: str
) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("host")
    with tracing(tmp_path, database_url, both.variables, "--log-level", "debug") as server:
        async with connect(server.address, namespace="traced") as provider:
            await provider.create_namespace("traced")
            assert await provider.get_events("none", "none") == []  # looks the namespace up
            with tracer.start_as_current_span("step") as host:
                event = await provider.create_event(
                    Event(event_name="paid", event_key="1", event_data={"secret": CANARY})
                )
            # Outside of it a call begins a trace of its own.
            await provider.get_event(event)
        span = await only(both, "CreateEvent")
        read = await only(both, "GetEvent")
    of_host = host.get_span_context()
    assert format_trace_id(of_host.trace_id) == span.trace_id.hex()
    assert format_span_id(of_host.span_id) == span.parent_span_id.hex()
    assert span.name == "wfe.persistence.v1.EventService/CreateEvent"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.end_time_unix_nano > span.start_time_unix_nano
    assert span.status.code == 0
    found = values(span.attributes)
    database = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    host_name, _, port = server.address.rpartition(":")
    assert (
        found.items()
        >= {
            "rpc.system.name": "grpc",
            "rpc.method": "wfe.persistence.v1.EventService/CreateEvent",
            "rpc.response.status_code": "OK",
            "server.address": host_name,
            "server.port": int(port),
            "client.address": "127.0.0.1",
            "db.system.name": "postgresql",
            "db.namespace": f"{database}|wfc_traced",
            "db.query.summary": "CREATE_EVENT",
            "db.response.returned_rows": 1,
            "wfe.namespace": "traced",
            "wfe.round_trips": 1,
            "wfe.retries": 0,
        }.items()
    )
    assert "error.type" not in found
    assert (read.parent_span_id, read.trace_id != span.trace_id) == (b"", True)
    assert both.resource["service.name"] == "wfe-persistence"
    assert all(CANARY.encode() not in data for data in both.received)
    lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    [call] = [line for line in lines if line.get("rpc") == "CreateEvent"]
    assert (call["trace_id"], call["span_id"]) == (span.trace_id.hex(), span.span_id.hex())


async def test_what_a_caller_did_wrong_is_no_error_of_the_server(
    one: Collector, tmp_path: Path, database_url: str
) -> None:
    with tracing(tmp_path, database_url, one.variables) as server:
        async with connect(server.address, token=None) as provider:
            with pytest.raises(WorkflowNotFound):
                await provider.get_workflow_instance("none")
        span = await only(one, "GetWorkflowInstance")
    found = values(span.attributes)
    assert span.status.code == 0
    assert found["rpc.response.status_code"] == "NOT_FOUND"
    assert found["wfe.reason"] == "WORKFLOW_NOT_FOUND"
    assert "error.type" not in found


async def test_a_deadline_that_passes_is_an_error(
    one: Collector, tmp_path: Path, database_url: str
) -> None:
    with tracing(tmp_path, database_url, one.variables, "--max-deadline", "0.5") as server:
        async with (
            connect_stubs(server.address) as channel,
            await psycopg.AsyncConnection.connect(database_url) as blocker,
        ):
            await blocker.execute("LOCK TABLE wfc.workflows IN ACCESS EXCLUSIVE MODE")
            request = CreateNewWorkflowRequest(instance=make.instance(description=CANARY))
            metadata = [
                ("x-request-id", "order 17"),
                ("authorization", f"Bearer {CANARY}"),
                ("traceparent", f"00-{TRACE}-{PARENT}-01"),
                ("tracestate", "vendor=1"),
            ]
            call = Api(channel).workflows.CreateNewWorkflow(request, metadata=metadata)
            assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        span = await only(one, "CreateNewWorkflow")
    found = values(span.attributes)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.trace_state == "vendor=1"
    assert span.status.code == ERROR
    assert "DEADLINE_EXCEEDED" in span.status.message
    assert found["error.type"] == found["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert found["wfe.request_id"] == "order?17"
    assert all(CANARY.encode() not in data for data in one.received)


async def test_retries_and_the_state_of_the_last_error(
    one: Collector, tmp_path: Path, database_url: str
) -> None:
    """Two calls that take the same locks in turn: one of them is a victim, and run again."""
    with tracing(tmp_path, database_url, one.variables) as server:
        async with connect_stubs(server.address) as channel:
            api = Api(channel)
            instance = make.instance()
            await api.create_new_workflow(instance)
            async with await psycopg.AsyncConnection.connect(database_url) as other:
                # The row is being written: the statement of the server meets it, and fails.
                await other.execute("SET lock_timeout = 0")
                await other.execute("UPDATE wfc.workflows SET description = 'x'")
                call = asyncio.ensure_future(api.persist_workflow(instance))
                await asyncio.sleep(0.3)
                await other.commit()
                await call
        span = await only(one, "PersistWorkflow")
    found = values(span.attributes)
    assert found["wfe.round_trips"] > 1
    assert found["db.query.summary"].startswith("PERSIST_WORKFLOW")


@pytest.mark.parametrize(("flags", "spans"), [("00", 0), ("01", 1)])
async def test_the_parent_decides_about_sampling(
    one: Collector, tmp_path: Path, database_url: str, flags: str, spans: int
) -> None:
    with tracing(tmp_path, database_url, one.variables) as server:
        async with connect_stubs(server.address) as channel:
            api = Api(channel)
            metadata = [("traceparent", f"00-{TRACE}-{PARENT}-{flags}")]
            await api.workflows.GetWorkflowInstance(
                GetWorkflowInstanceRequest(id="none"), metadata=metadata
            ).code()
            await api.get_workflow_instances([])
        await only(one, "GetWorkflowInstances")
    assert len(one.named("GetWorkflowInstance")) == spans


async def test_what_is_there_at_the_stop_is_exported(
    one: Collector, tmp_path: Path, database_url: str
) -> None:
    variables = one.variables | {
        "OTEL_BSP_SCHEDULE_DELAY": "3600000",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=orders,site=b",
        "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={CANARY}",
    }
    with tracing(tmp_path, database_url, variables) as server:
        async with connect_stubs(server.address) as channel:
            await Api(channel).get_workflow_instances([])
        assert one.spans == []
    assert len(one.named("GetWorkflowInstances")) == 1
    assert one.resource.items() >= {"service.name": "orders", "site": "b"}.items()
    assert one.headers[0]["api-key"] == CANARY
    assert CANARY not in server.log()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("answers", [False, None], ids=["silent", "gone"])
async def test_no_call_notices_a_collector_that_does_not_answer(
    tmp_path: Path, database_url: str, protocol: str, answers: bool | None
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if answers is False:
            silent.listen()
        variables = {
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTEL_BSP_SCHEDULE_DELAY": "10",
            "OTEL_BSP_MAX_QUEUE_SIZE": "4",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        }
        with tracing(tmp_path, database_url, variables) as server:
            async with connect_stubs(server.address) as channel:
                for _ in range(100):
                    await Api(channel).get_workflow_instances([])
            await asyncio.to_thread(wait_for, lambda: '"traces: ' in server.log())
            assert server.stop() == 0
    said = [line for line in server.log().splitlines() if '"traces: ' in line]
    assert len(said) < 6, said  # of each kind one: the queue, the export, the stop
    assert "Traceback" not in server.log()


def test_nothing_is_loaded_without(tmp_path: Path, database_url: str) -> None:
    names = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    with ServerProcess(tmp_path / "off", "--db-url", database_url, env=names) as server:
        pass
    assert "wfe_persistence.app" in server.log()
    assert "opentelemetry" not in server.log()
    assert " requests" not in server.log()


def refused(tmp_path: Path, database_url: str, variables: dict[str, str]) -> str:
    server = tracing(tmp_path, database_url, variables)
    with pytest.raises(AssertionError, match="the server ended \\(1\\)"):
        server.start()
    return server.log()


def test_without_the_packages(tmp_path: Path, database_url: str) -> None:
    hidden = tmp_path / "hidden" / "opentelemetry"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('no module here')")
    log = refused(tmp_path, database_url, {"PYTHONPATH": str(hidden.parent)})
    assert "wfe-persistence[server,otel]" in log
    assert "Traceback" not in log


def test_a_protocol_that_does_not_exist(tmp_path: Path, database_url: str) -> None:
    log = refused(tmp_path, database_url, {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"})
    assert "there are grpc and http/protobuf" in log
    assert "Traceback" not in log


class ACall:
    def names(self) -> dict[str, str]:
        return {"request_id": "r1", "trace_id": TRACE}


def test_lines_of_a_call_name_it() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "careful", (), None)
    spent = TimeSpent(call=ACall())
    token = CURRENT.set(spent)
    try:
        assert json.loads(JsonFormatter().format(record))["trace_id"] == TRACE
        assert f"careful (request_id=r1 trace_id={TRACE})" in TextFormatter().format(record)
        spent.call = None  # it has ended
        assert "trace_id" not in JsonFormatter().format(record)
        assert TextFormatter().format(record) == "careful"
    finally:
        CURRENT.reset(token)
