"""Metrics, over real scrapes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.support import make
from tests.support.admin import AdminServer
from tests.support.api import Api, connect
from wfe.persistence.v1.event_pb2 import CreateEventRequest, GetEventRequest
from wfe.persistence.v1.queue_pb2 import EnqueueRequest
from wfe.persistence.v1.subscription_pb2 import (
    CreateEventSubscriptionRequest,
    RenewSubscriptionTokenRequest,
    SetSubscriptionTokenRequest,
)
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    CreateNewWorkflowRequest,
    GetWorkflowInstanceRequest,
)
from wfe_persistence import metrics
from wfe_persistence.store.migration_files import latest_version
from wfe_persistence.store.tables import TABLES

OPEN_METRICS: Final = "application/openmetrics-text; version=1.0.0"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def server(tmp_path: Path, database_url: str) -> Iterator[AdminServer]:
    with AdminServer(tmp_path / "log", "--db-url", database_url) as server:
        yield server
    assert "bug" not in server.log()


@pytest.fixture
async def api(server: AdminServer) -> AsyncIterator[Api]:
    async with connect(server.address) as channel:
        yield Api(channel)


class Scrape:
    """What one scrape says."""

    def __init__(self, server: AdminServer) -> None:
        answer = server.get("/metrics")
        assert answer.status == 200
        self.families = {family.name: family for family in parse_text(answer.text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples with this name and these labels."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


async def eventually(server: AdminServer, name: str, value: float, **labels: str) -> Scrape:
    """The first scrape in which a number is at least this."""
    deadline = time.monotonic() + 30
    while True:
        scrape = await asyncio.to_thread(Scrape, server)
        if scrape.total(name, **labels) >= value:
            return scrape
        assert time.monotonic() < deadline, (name, labels, scrape.total(name, **labels))
        await asyncio.sleep(0.05)


async def test_calls_are_counted(server: AdminServer, api: Api) -> None:
    before = Scrape(server)
    assert before.total("grpc_server_handled_total", grpc_method="CreateEvent") == 0
    sizes = 0
    for _ in range(3):
        request = CreateEventRequest(event=make.event())
        sizes += request.ByteSize()
        created = await api.events.CreateEvent(request)
        await api.events.GetEvent(GetEventRequest(id=created.id))
    with pytest.raises(grpc.aio.AioRpcError):
        await api.workflows.GetWorkflowInstance(GetWorkflowInstanceRequest(id="none"))
    with pytest.raises(grpc.aio.AioRpcError):
        await api.events.CreateEvent(CreateEventRequest())

    # A client may see the end of its call before the server has counted it.
    scrape = await eventually(server, "grpc_server_handled_total", 8)
    service = "wfe.persistence.v1.EventService"
    of_create = {"grpc_service": service, "grpc_method": "CreateEvent", "grpc_type": "unary"}
    assert scrape.total("grpc_server_handled_total", **of_create, grpc_code="OK") == 3
    assert scrape.total("grpc_server_handled_total", **of_create, grpc_code="INVALID_ARGUMENT") == 1
    assert scrape.total("grpc_server_handling_seconds_count", **of_create) == 4
    assert 0 < scrape.total("grpc_server_handling_seconds_sum", **of_create) < 60
    assert scrape.total("wfe_persistence_received_bytes_total", **of_create) == sizes
    assert scrape.total("wfe_persistence_sent_bytes_total", **of_create) > 0
    assert (
        scrape.total(
            "grpc_server_handled_total", grpc_method="GetWorkflowInstance", grpc_code="NOT_FOUND"
        )
        == 1
    )
    assert scrape.total("wfe_persistence_call_errors_total", reason="WORKFLOW_NOT_FOUND") == 1
    assert scrape.total("wfe_persistence_call_errors_total", reason="INVALID_FIELD") == 1
    assert scrape.total("wfe_persistence_namespaces_loaded") == 1
    # A scrape looks at what goes up and down before it looks at what is counted.
    after = await asyncio.to_thread(Scrape, server)
    assert after.total("wfe_persistence_calls_in_progress") == 0
    assert scrape.total("process_cpu_seconds_total") > 0


async def test_hang_ups_are_counted(server: AdminServer, api: Api, database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as blocker:
        await blocker.execute("LOCK TABLE wfc.events")
        call = api.events.CreateEvent(CreateEventRequest(event=make.event()))
        await eventually(server, "wfe_persistence_calls_in_progress", 1, grpc_method="CreateEvent")
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        scrape = await eventually(
            server, "grpc_server_handled_total", 1, grpc_method="CreateEvent", grpc_code="CANCELLED"
        )
        assert scrape.total("wfe_persistence_calls_in_progress") == 0


async def test_the_database_is_measured(server: AdminServer, api: Api, database_url: str) -> None:
    created = await api.events.CreateEvent(CreateEventRequest(event=make.event()))
    for _ in range(2):
        await api.events.GetEvent(GetEventRequest(id=created.id))
    scrape = await eventually(server, "grpc_server_handled_total", 3)
    name = "wfe_persistence_database_round_trip_seconds"
    assert scrape.total(f"{name}_count", statement="CREATE_EVENT") == 1
    assert scrape.total(f"{name}_count", statement="GET_EVENT") == 2
    assert 0 < scrape.total(f"{name}_sum", statement="GET_EVENT") < 60
    assert scrape.total(f"{name}_count", statement="OTHER") == 0
    assert scrape.total("wfe_persistence_pool_max_connections") == 10
    assert scrape.total("wfe_persistence_pool_connections") >= 1
    assert scrape.total("wfe_persistence_prepared_statements") >= 2
    assert scrape.total("wfe_persistence_pool_wait_seconds_count") >= 3

    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE wfc.events RENAME TO gone")
        with pytest.raises(grpc.aio.AioRpcError):
            await api.events.GetEvent(GetEventRequest(id=created.id))
        connection.execute("ALTER TABLE wfc.gone RENAME TO events")
    scrape = Scrape(server)
    assert scrape.total("wfe_persistence_database_errors_total", sqlstate_class="42") >= 1


async def test_waiting_for_a_connection_is_seen(tmp_path: Path, database_url: str) -> None:
    with AdminServer(tmp_path / "log", "--db-url", database_url, "--pool-size", "1") as server:
        async with (
            connect(server.address) as channel,
            await psycopg.AsyncConnection.connect(database_url) as blocker,
        ):
            api = Api(channel)
            await blocker.execute("LOCK TABLE wfc.events")
            calls = [
                asyncio.ensure_future(
                    api.events.CreateEvent(CreateEventRequest(event=make.event()))
                )
                for _ in range(3)
            ]
            scrape = await eventually(server, "wfe_persistence_pool_waiting_calls", 2)
            assert scrape.total("wfe_persistence_pool_connections", state="in_use") == 1
            await blocker.rollback()
            await asyncio.gather(*calls)
            scrape = await eventually(server, "grpc_server_handled_total", 3)
            assert scrape.total("wfe_persistence_pool_waiting_calls") == 0


async def test_deadlocks_are_counted(server: AdminServer, api: Api, database_url: str) -> None:
    events = [
        (await api.events.CreateEvent(CreateEventRequest(event=make.event()))).id for _ in range(2)
    ]
    first, second = sorted(events)
    request = CommitWorkflowRequest(instance=make.instance(id=make.new_id()))
    await api.workflows.CreateNewWorkflow(CreateNewWorkflowRequest(instance=request.instance))
    request.processed_event_ids.extend(events)
    update = "UPDATE wfc.events SET is_processed = is_processed WHERE id = %s"
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute("SET deadlock_timeout = '60s'")  # so that the server is its victim
        await other.execute(update, [second])
        call = asyncio.ensure_future(api.workflows.CommitWorkflow(request))
        async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as looker:
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while (await (await looker.execute(waits)).fetchone()) == (0,):
                await asyncio.sleep(0.01)
        await other.execute(update, [first])
        # The other one goes on before the server has heard of it.
        scrape = await eventually(server, "wfe_persistence_database_retries_total", 1)
        assert scrape.total("wfe_persistence_deadlocks_total") == 1
        assert scrape.total("wfe_persistence_database_errors_total", sqlstate_class="40") == 1
        assert scrape.total("wfe_persistence_database_retries_total", reason="40P01") == 1
    await call


async def test_stores_are_counted(
    tmp_path: Path, database_url: str, server: AdminServer, api: Api
) -> None:
    await api.events.CreateEvent(CreateEventRequest(event=make.event()))
    # Due "at once", and in the far future.
    now = Timestamp()
    now.GetCurrentTime()
    at_once = make.instance(next_execution=0, create_time=now)
    for instance in (at_once, make.instance(next_execution=2**52)):
        await api.workflows.CreateNewWorkflow(CreateNewWorkflowRequest(instance=instance))
    await api.subscriptions.CreateEventSubscription(
        CreateEventSubscriptionRequest(subscription=make.subscription())
    )
    await api.queues.Enqueue(EnqueueRequest(items=[make.item("metrics")]))
    # The next look of this server is in a minute; another one looks at once.
    with AdminServer(tmp_path / "other", "--db-url", database_url) as other:
        name = "wfe_persistence_store"
        scrape = await eventually(other, f"{name}_last_look_timestamp_seconds", 1)
    of = {"namespace": "default"}
    assert scrape.total(f"{name}_workflows", **of) == 2
    assert scrape.total(f"{name}_unprocessed_events", **of) == 1
    assert scrape.total(f"{name}_subscriptions", **of, state="open") == 1
    assert scrape.total(f"{name}_subscriptions", **of, state="held") == 0
    assert scrape.total(f"{name}_commands", **of) == 0
    assert scrape.total(f"{name}_queue_items", **of) == 1
    assert scrape.total(f"{name}_queue_items", **of, state="waiting") == 1
    assert scrape.total(f"{name}_schema_version", **of) == latest_version()
    tables = {s.labels["table"] for s in scrape.samples if s.name == f"{name}_index_bytes"}
    assert tables == set(TABLES)
    assert scrape.total(f"{name}_data_bytes", **of, table="events") >= 8192
    assert scrape.total(f"{name}_dead_rows", **of) >= 0
    runnable = scrape.total(f"{name}_runnable_workflows", **of)
    assert runnable == 1
    assert 0 < scrape.total(f"{name}_oldest_runnable_age_seconds", **of) < 600
    assert scrape.total("wfe_persistence_store_looks_failed_total") == 0


async def test_claims_are_counted(server: AdminServer, api: Api) -> None:
    subscription = make.subscription()
    created = await api.subscriptions.CreateEventSubscription(
        CreateEventSubscriptionRequest(subscription=subscription)
    )
    id_, minute = created.id, Duration(seconds=60)
    await api.subscriptions.SetSubscriptionToken(
        SetSubscriptionTokenRequest(id=id_, token="t", worker_id="w", duration=minute)
    )
    await api.subscriptions.RenewSubscriptionToken(
        RenewSubscriptionTokenRequest(id=id_, token="t", duration=minute)
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await api.subscriptions.RenewSubscriptionToken(
            RenewSubscriptionTokenRequest(id=id_, token="x", duration=minute)
        )
    scrape = Scrape(server)
    for what in ("taken", "renewed", "lost"):
        name = f"wfe_persistence_claims_{what}_total"
        assert scrape.total(name, kind="subscription") == 1, what


async def test_the_event_loop_is_watched(server: AdminServer) -> None:
    await eventually(server, "wfe_persistence_event_loop_lag_seconds_count", 2)


def test_both_formats(server: AdminServer) -> None:
    text = server.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=")
    open_metrics = server.get("/metrics", {"Accept": OPEN_METRICS})
    assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
    assert open_metrics.text.endswith("# EOF\n")
    names = {family.name for family in parse_open(open_metrics.text)}  # type: ignore[no-untyped-call]
    assert {metric.name.removesuffix("_total") for metric in metrics.METRICS} <= names
    assert "wfe_persistence_build" in names


def test_config_has_no_secrets(tmp_path: Path, database_url: str) -> None:
    url = database_url.replace("postgres@", "postgres:hunter2@")
    with AdminServer(tmp_path / "log", "--db-url", url, "--pool-size", "3") as server:
        answer = server.get("/config")
        scraped = server.get("/metrics").text
    assert answer.status == 200
    assert "hunter2" not in answer.text + scraped
    shown = json.loads(answer.text)
    assert shown["settings"]["pool-size"] == {"value": 3, "source": "flag", "from": "--pool-size"}
    assert shown["settings"]["db-url"]["value"] == "***"


# ----- the rules for names: https://prometheus.io/docs/practices/naming/ -----

NAME: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
# What promtool's linter wants to be base units, and the words for other ones.
OTHER_UNITS: Final = re.compile(
    r"_(milli|micro|nano)?(second|byte|minutes?|hours?|days?|ms|us|ns|kb|mb|percent|kilobytes|"
    r"megabytes|milliseconds|microseconds|nanoseconds)(_|$)"
)
TYPES: Final = re.compile(r"_(counter|gauge|histogram|metric|count|sum|bucket|info)$")
RESERVED: Final = {"le", "quantile", "job", "instance"}


@pytest.mark.parametrize("metric", metrics.METRICS, ids=lambda m: str(m.name))
def test_names_follow_the_rules(metric: metrics.Metric) -> None:
    assert NAME.fullmatch(metric.name)
    assert metric.name.startswith((metrics.PREFIX, "grpc_server_"))
    assert metric.name.endswith("_total") == isinstance(metric, metrics.Counter)
    assert not OTHER_UNITS.search(metric.name)
    assert not TYPES.search(metric.name)
    if isinstance(metric, metrics.Histogram):
        assert metric.name.endswith(("_seconds", "_bytes"))
        assert list(metric.bounds) == sorted(set(metric.bounds))
    assert metric.help[0].isupper()
    assert metric.help.endswith(".")
    assert len(set(metric.labels)) == len(metric.labels)
    for label in metric.labels:
        assert NAME.fullmatch(label)
        assert label not in RESERVED
        assert label not in metric.name.split("_")


def test_names_are_unique() -> None:
    names = [metric.name for metric in metrics.METRICS]
    assert len(set(names)) == len(names)
