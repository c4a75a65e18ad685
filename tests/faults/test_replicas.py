"""Reads from streaming replicas: they contain what their caller has written, whatever happens."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from secrets import token_hex
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

import wfe_persistence_client
from tests.support import binaries, make
from tests.support.admin import AdminServer
from tests.support.api import Api, connect
from tests.support.expect import fails, invalid
from tests.support.raw_http2 import call_with_headers
from tests.support.replicas import Member, Standby
from tests.support.rpcs import RPCS, Rpc
from tests.support.scene import Scene, create_namespace, delete_namespace
from tests.support.waiting import wait_for
from wfe.persistence.v1.event_pb2 import CreateEventRequest, GetEventRequest, ListEventsRequest
from wfe.persistence.v1.transfer_pb2 import ExportRecordsRequest, RecordKind
from wfe_persistence.rpc.services import READS, Source
from wfe_persistence_client import Event, EventNotFound

MODULE = "tests.faults.faulty_server" if "FAULT" in os.environ else "wfe_persistence"
LABEL = re.compile(r'(\w+)="([^"]*)"')
POSITION = re.compile(r"home\.\d+/[0-9A-F]{8}/[0-9A-F]{16}")


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wfe-") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture(scope="module")
def primary(directory: Path) -> Iterator[Member]:
    with Member(binaries.postgres(18), directory / "db1") as primary:
        yield primary


@pytest.fixture(scope="module")
def standby(directory: Path, primary: Member) -> Iterator[Standby]:
    with Standby(primary, directory / "db2") as standby:
        yield standby


@pytest.fixture(scope="module")
def server(directory: Path, primary: Member, standby: Standby) -> Iterator[AdminServer]:
    with AdminServer(
        directory / "log", "--db-url", primary.url, "--db-read-url", standby.url,
        "--allow-delete-namespace",
        module=MODULE,
    ) as server:  # fmt: skip
        wait_until_usable(server)
        yield server
        assert "bug" not in server.log(), server.log()


@pytest.fixture
async def own(server: AdminServer) -> AsyncIterator[Api]:
    async with connect(server.address) as channel:
        yield Api(channel)


def metric(server: AdminServer, name: str, **labels: str) -> float:
    """A number of the server's metrics; 0: there is none."""
    for line in server.get("/metrics").text.splitlines():
        found = re.fullmatch(r"wfe_persistence_(\w+)\{(.*)\} (\S+)", line)
        if found and found[1] == name and dict(LABEL.findall(found[2])) == labels:
            return float(found[3])
    return 0.0


def wait_until_usable(server: AdminServer, replica: str = "home/1", usable: float = 1) -> None:
    wait_for(lambda: metric(server, "replica_usable", standby=replica) == usable)


def wait_until_caught_up(server: AdminServer) -> None:
    wait_for(lambda: metric(server, "replica_lag_bytes", standby="home/1") == 0)


def as_metadata(given: dict[str, str]) -> list[tuple[str, str]]:
    return [(key.replace("_", "-"), value) for key, value in given.items()]


async def ask(method: Any, request: Any, **metadata: str) -> tuple[Any, dict[str, str]]:
    """The answer of a call, and the metadata behind it."""
    call = method(request, metadata=as_metadata(metadata), timeout=30)
    if isinstance(call, grpc.aio.UnaryStreamCall):
        answer = [each async for each in call]
    else:
        answer = await call
    return answer, dict(await call.trailing_metadata())


async def create(api: Api, data: str = "1", **metadata: str) -> tuple[str, str]:
    """A new event: its id, and the position of its creation."""
    request = CreateEventRequest(event=make.event(event_data_json=data))
    _, told = await ask(api.events.CreateEvent, request, **metadata)
    return request.event.id, told["wfe-lsn"]


async def test_every_write_tells_its_position(own: Api) -> None:
    positions = [(await create(own))[1] for _ in range(5)]
    assert all(POSITION.fullmatch(each) for each in positions), positions
    assert positions == sorted(set(positions))


async def test_a_read_with_a_position_contains_what_was_written(
    server: AdminServer, own: Api, standby: Standby
) -> None:
    id_, position = await create(own)
    # (On a busy machine it may take longer than reads wait.)
    await asyncio.to_thread(wait_until_caught_up, server)
    request = GetEventRequest(id=id_)
    answer, told = await ask(own.events.GetEvent, request, wfe_read="replica", wfe_lsn=position)
    assert answer.event.id == id_
    assert told["wfe-read"] == "replica"
    with standby.paused():
        id_, position = await create(own)
        request = GetEventRequest(id=id_)
        answer, told = await ask(own.events.GetEvent, request, wfe_read="replica", wfe_lsn=position)
        assert answer.event.id == id_
        assert told["wfe-read"] == "primary"
        # It is the position that does it.
        with fails("NOT_FOUND", "EVENT_NOT_FOUND"):
            await ask(own.events.GetEvent, request, wfe_read="replica")


async def test_a_read_waits_for_the_replica(
    directory: Path, primary: Member, standby: Standby
) -> None:
    """For the stated time; so it is answered by the replica once that goes on."""
    with AdminServer(
        directory / "patient", "--db-url", primary.url, "--db-read-url", standby.url,
        "--replica-wait", "60", "--replica-max-lag", "60",
    ) as server:  # fmt: skip
        wait_until_usable(server)
        async with connect(server.address) as channel:
            api = Api(channel)
            with standby.paused():
                id_, position = await create(api)
                request = GetEventRequest(id=id_)
                read = asyncio.create_task(
                    ask(api.events.GetEvent, request, wfe_read="replica", wfe_lsn=position)
                )
                lists = asyncio.create_task(
                    ask(api.events.ListEvents, ListEventsRequest(), wfe_lsn=position)
                )
                # (The first attempt of each, and then looks while they wait.)
                sql = (
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = "
                    "'wfe-persistence' AND query LIKE '%hot_standby_feedback%' "
                    "AND clock_timestamp() - state_change < interval '100 ms'"
                )
                await asyncio.to_thread(wait_for, lambda: standby.execute(sql))
                assert not read.done()
                assert not lists.done()
            answer, told = await read
            assert (answer.event.id, told["wfe-read"]) == (id_, "replica")
            answer, told = await lists
            assert id_ in [event.id for event in answer.events]
            assert told["wfe-read"] == "replica"


async def test_what_a_position_does_not_tell(own: Api) -> None:
    """That of another database, of another cluster, or of a timeline that the replica may not be
    on: nothing that a replica has; nor has it what is no position at all."""
    id_, position = await create(own)
    database, timeline, lsn = position.split("/")
    for strange in (
        f"other.{database.partition('.')[2]}/{timeline}/{lsn}",
        f"home.1234567/{timeline}/{lsn}",
        f"{database}/{int(timeline, 16) + 1:08X}/{lsn}",
        f"{database}/FFFFFFFF/{lsn}",
        f"{database}/{timeline}/{'F' * 16}",
        f"home.{'9' * 20}/{timeline}/{lsn}",
        f"{database}/{timeline}/-{lsn[1:]}",
        f"{database}/{timeline}/{lsn}0",
        f"{database}/{timeline}/{lsn}".lower().replace("0", "o"),
        "unknown",
        "home/1/2",
        "-1",
        "%s'; --",
        "x" * 6000,
    ):
        request = GetEventRequest(id=id_)
        answer, told = await ask(own.events.GetEvent, request, wfe_read="replica", wfe_lsn=strange)
        assert (answer.event.id, told["wfe-read"]) == (id_, "primary"), strange
        export_request = ExportRecordsRequest(kinds=[RecordKind.RECORD_KIND_EVENT])
        metadata = as_metadata({"wfe_lsn": strange})
        exported = own.transfer.ExportRecords(export_request, metadata=metadata, timeout=60)
        assert id_ in [r.event.id async for each in exported for r in each.records]


async def test_metadata_that_are_not_what_they_should_be(server: AdminServer, own: Api) -> None:
    id_, position = await create(own)
    await asyncio.to_thread(wait_until_caught_up, server)
    get = own.events.GetEvent, GetEventRequest(id=id_)
    for wrong in ("both", "Replica", "replica,primary", "x" * 6000):
        with invalid("wfe-read", reason="FORMAT"):
            await ask(*get, wfe_read=wrong)
    # Twice the same is the same; of different ones, what is never wrong counts.
    other = position[:-1] + ("0" if position[-1] != "0" else "1")
    for metadata, expected in (
        ([("wfe-lsn", position)] * 2, "replica"),
        ([("wfe-lsn", other), ("wfe-lsn", position)], "primary"),
        ([("wfe-read", "primary")], "primary"),
    ):
        call = own.events.GetEvent(
            get[1], metadata=[("wfe-read", "replica"), *metadata], timeout=30
        )
        assert (await call).event.id == id_
        assert dict(await call.trailing_metadata())["wfe-read"] == expected
    # Too much of it is nothing that the server sees, whatever it is.
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(*get, wfe_lsn="x" * 1_000_000)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await ask(*get))[0].event.id == id_
    # No client library sends bytes that are not ASCII.
    path = "/wfe.persistence.v1.EventService/ListEvents"
    for strange in (b"\xc3\xa4", b"home.\xff", b"\x80" * 100, b""):
        answer = await call_with_headers(server.address, path, (b"wfe-lsn", strange))
        assert b"wfe-read\x07primary" in answer, answer
        assert b"grpc-status\x010" in answer, answer
    answer = await call_with_headers(server.address, path, (b"wfe-read", b"r\xc3\xa9plica"))
    assert b"grpc-status\x013" in answer, answer  # INVALID_ARGUMENT


LASTING = ("Watch", "WatchWorkflows", "ExportRecords")
"""Those have tests of their own."""
READING = [rpc for rpc in RPCS.values() if rpc.name in READS and rpc.name not in LASTING]


@pytest.mark.parametrize("rpc", READING, ids=str)
async def test_each_rpc_reads_where_the_table_says(server: AdminServer, own: Api, rpc: Rpc) -> None:
    """By itself, and as the client wishes; and a replica can answer all that it is asked."""
    source = READS[rpc.name]
    by_itself = "replica" if source is Source.REPLICA else "primary"
    at_will = "primary" if source is Source.PRIMARY else "replica"
    wishes: list[tuple[dict[str, str], str]] = [
        ({}, by_itself), ({"wfe_read": "replica"}, at_will), ({"wfe_read": "primary"}, "primary"),
    ]  # fmt: skip
    async with Scene(own, rpc) as scene:
        _, position = await create(own)
        for wish, expected in wishes:
            call: Any = (own.channel.unary_stream if rpc.streams else own.channel.unary_unary)(
                rpc.path
            )
            _, told = await ask(call, scene.request.SerializeToString(), wfe_lsn=position, **wish)
            assert told["wfe-read"] == expected, wish


async def test_a_replica_that_lags_is_left_out(
    server: AdminServer, own: Api, standby: Standby
) -> None:
    """So what is read without a position is at most so old, and nobody waits for it."""
    with standby.paused():
        id_, _ = await create(own)
        lists = own.events.ListEvents, ListEventsRequest()
        answer, told = await ask(*lists)
        assert told["wfe-read"] == "replica"
        assert id_ not in [event.id for event in answer.events]
        await asyncio.to_thread(
            wait_for, lambda: metric(server, "replica_lag_seconds", standby="home/1") > 2
        )
        assert metric(server, "replica_usable", standby="home/1") == 0
        answer, told = await ask(*lists)
        assert told["wfe-read"] == "primary"
        assert id_ in [event.id for event in answer.events]
        assert metric(server, "replica_lag_bytes", standby="home/1") > 0
        said = "replica home/1 is left out: it lags by more than 2 s"
        await asyncio.to_thread(wait_for, lambda: said in server.log())
    await asyncio.to_thread(wait_until_usable, server)
    assert (await ask(*lists))[1]["wfe-read"] == "replica"


async def test_a_replica_that_answers_nobody_is_left_out(
    server: AdminServer, own: Api, standby: Standby
) -> None:
    """Reads that are there already go on at the primary as soon as it is given up."""
    position = (await create(own))[1]
    with standby.frozen():
        reads = [
            ask(own.events.ListEvents, ListEventsRequest(), wfe_lsn=position) for _ in range(5)
        ]
        assert {told["wfe-read"] for _, told in await asyncio.gather(*reads)} == {"primary"}
        await asyncio.to_thread(wait_until_usable, server, usable=0)
        _, told = await ask(own.events.ListEvents, ListEventsRequest())
        assert told["wfe-read"] == "primary"
    await asyncio.to_thread(wait_until_usable, server)


@pytest.fixture
async def large(own: Api) -> AsyncIterator[str]:
    """A namespace that is too large to be read before anybody wants to."""
    name = make.new_namespace()
    await create_namespace(own, name)
    for _ in range(12):
        await create(own, f'"{token_hex(500_000)}"', wfe_namespace=name)
    yield name
    await delete_namespace(own, name)


async def begin_export(api: Api, **metadata: str) -> tuple[Any, str]:
    """An export whose client does not read on, and its first cursor."""
    request = ExportRecordsRequest(hold=Duration(seconds=60))
    stream: Any = api.transfer.ExportRecords(request, metadata=as_metadata(metadata))
    return stream, (await stream.read()).cursor


async def export(api: Api, after: str = "", **metadata: str) -> set[str]:
    """The ids of the events of an export."""
    request = ExportRecordsRequest(after=after, hold=Duration(seconds=60))
    responses = api.transfer.ExportRecords(request, metadata=as_metadata(metadata), timeout=60)
    return {r.event.id async for each in responses for r in each.records if r.HasField("event")}


def snapshots(member: Member) -> list[str]:
    """The snapshots that transactions have exported."""
    return os.listdir(member.directory / "data" / "pg_snapshots")


async def test_an_export_is_read_from_a_replica_and_resumed_there(
    own: Api, standby: Standby, primary: Member, large: str
) -> None:
    _, position = await create(own, wfe_namespace=large)
    stream, cursor = await begin_export(own, wfe_namespace=large, wfe_lsn=position)
    assert [len(snapshots(each)) for each in (standby, primary)] == [1, 0]
    stream.cancel()
    late, position = await create(own, wfe_namespace=large)
    found = await export(own, cursor, wfe_namespace=large)
    assert len(found) == 13
    assert late not in found
    assert late in await export(own, wfe_namespace=large, wfe_lsn=position)
    # The snapshot was given up at the end of the export that had resumed it.
    with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
        await export(own, cursor, wfe_namespace=large)
    with standby.paused():
        late, position = await create(own, wfe_namespace=large)
        assert late in await export(own, wfe_namespace=large, wfe_lsn=position)
    stream, _ = await begin_export(own, wfe_namespace=large, wfe_read="primary")
    assert [len(snapshots(each)) for each in (standby, primary)] == [0, 1]
    stream.cancel()


async def test_an_export_needs_a_replica_whose_rows_stay(
    own: Api, standby: Standby, large: str
) -> None:
    """Else a vacuum of the primary would end it, sooner or later."""
    standby.execute("ALTER SYSTEM SET hot_standby_feedback = off")
    standby.execute("SELECT pg_reload_conf()")
    try:
        await asyncio.sleep(1)  # several looks
        before = snapshots(standby)
        stream, _ = await begin_export(own, wfe_namespace=large)
        assert snapshots(standby) == before
        stream.cancel()
    finally:
        standby.execute("ALTER SYSTEM RESET hot_standby_feedback")
        standby.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("what", ["lifecycle", "workflows"])
async def test_who_is_behind_in_a_feed_reads_from_a_replica(
    server: AdminServer, own: Api, standby: Standby, what: str, paused: bool
) -> None:
    """What the replica does not have yet comes from the primary: nothing is left out."""
    watch: Any = own.watch if what == "lifecycle" else own.watch_workflows
    heartbeat = Duration(seconds=1)
    async with watch(heartbeat=heartbeat) as responses:
        cursor = (await anext(responses)).cursor
    ids = [make.new_id("workflow") for _ in range(5)]

    def count(outcome: str) -> float:
        return metric(server, "replica_reads_total", standby="home/1", outcome=outcome)

    async with AsyncExitStack() as stack:
        if paused:
            stack.enter_context(standby.paused())
        for id_ in ids:
            if what == "lifecycle":
                await own.publish(make.lifecycle_event(workflow_id=id_))
            else:
                await own.create_new_workflow(make.instance(id=id_))
        if not paused:
            await asyncio.to_thread(wait_until_caught_up, server)
        outcome = "behind" if paused else "replica"
        before = count(outcome)
        found: list[str] = []
        async with watch(after=cursor, heartbeat=heartbeat) as responses:
            while not set(ids) <= set(found):
                answer = await anext(responses)
                if what == "lifecycle":
                    found += [each.event.workflow_id for each in answer.events]
                else:
                    found += [each.instance.id for each in answer.changes]
    assert [id_ for id_ in found if id_ in ids] == ids
    assert count(outcome) > before


async def test_a_provider_reads_what_it_has_written(server: AdminServer, standby: Standby) -> None:
    """By itself, whatever the replica has; another one, that has not written it, need not."""
    async with (
        wfe_persistence_client.connect(server.address, reads="replica") as provider,
        wfe_persistence_client.connect(server.address, reads="replica") as other,
    ):
        with standby.paused():
            event = Event(event_name="paid", event_key=make.new_id("key"), event_data={})
            id_ = await provider.create_event(event)
            assert (await provider.get_event(id_)).event_key == event.event_key
            page = await provider.get_events(event.event_name, event.event_key, event.event_time)
            assert page == [id_]
            with pytest.raises(EventNotFound):
                await other.get_event(id_)
            assert (await other.with_reads("primary").get_event(id_)).id == id_
