"""Bulk creates while servers are killed and stopped, connections to the database end, and others
want to be served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from tests.faults.conftest import Start
from tests.faults.test_transfer import end_connections
from tests.support import make
from tests.support.api import Api, connect
from tests.support.bulk import create_events, create_workflows
from tests.support.expect import eventually, fails, failure_of
from tests.support.ports import free_port
from tests.support.server import ServerProcess
from wfe.persistence.v1.event_pb2 import CreateEventRequest, CreateEventsRequest
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest
from wfe.persistence.v1.workflow_pb2 import (
    CreateNewWorkflowRequest,
    CreateWorkflowsRequest,
    WorkflowInstance,
)
from wfe_persistence_client import QueueItem as ClientItem
from wfe_persistence_client import WorkflowInstance as ClientWorkflow
from wfe_persistence_client import connect as connect_provider

pytestmark = pytest.mark.timeout(300)

COUNT = 8_000
BATCH = 200


def stored(url: str, sql: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(sql.encode()).fetchall()


def instances(count: int) -> list[WorkflowInstance]:
    pointers = [make.pointer("0"), make.pointer("1")]
    return [make.instance(id=f"w{n:06}", execution_pointers=pointers) for n in range(count)]


def parts(given: Sequence[WorkflowInstance]) -> list[CreateWorkflowsRequest]:
    return [
        CreateWorkflowsRequest(
            workflows=[
                CreateNewWorkflowRequest(instance=each, enqueue=[QueueItem(queue="q")])
                for each in given[at : at + BATCH]
            ]
        )
        for at in range(0, len(given), BATCH)
    ]


async def test_what_was_answered_is_there_after_a_kill_and_the_rest_can_be_sent_again(
    tmp_path: Path, database_url: str
) -> None:
    server = ServerProcess(tmp_path / "log", "--db-url", database_url)
    requests = parts(instances(COUNT))
    answered: list[str] = []
    with server:
        async with connect(server.address) as channel:
            api = Api(channel)
            with pytest.raises(grpc.aio.AioRpcError):  # noqa: PT012
                async for answer in api.workflows.CreateWorkflows(iter(requests)):
                    answered += [result.created.id for result in answer.results]
                    if len(answered) >= COUNT // 4:
                        server.kill()
        assert BATCH <= len(answered) < COUNT
        found = {id_ for (id_,) in stored(database_url, "SELECT id FROM wfc.workflows")}
        assert found >= set(answered)
        assert len(found) % BATCH == 0  # a request is stored as a whole here, or not at all
        server.start()
        server.wait_until_serving()
        async with connect(server.address) as channel:
            rest = requests[len(answered) // BATCH :]
            async for answer in Api(channel).workflows.CreateWorkflows(iter(rest)):
                assert all(result.created.revision == 1 for result in answer.results)
                answered += [result.created.id for result in answer.results]
    check_all(database_url, answered)


def check_all(url: str, answered: Sequence[str], table: str = "workflows") -> None:
    """All are there, once, whole, and enqueued once, in the order in which they were created."""
    expected = [f"w{n:06}" for n in range(COUNT)]
    assert list(answered) == expected
    assert [id_ for (id_,) in stored(url, "SELECT id FROM wfc.workflows ORDER BY id")] == expected
    assert stored(url, "SELECT count(*) FROM wfc.execution_pointers") == [(2 * COUNT,)]
    items = stored(url, "SELECT id FROM wfc.queue_items WHERE queue = 'q' ORDER BY n")
    assert [id_ for (id_,) in items] == expected


@pytest.mark.parametrize("disaster", ["kill", "stop", "connections"])
async def test_the_client_goes_on_by_itself(
    tmp_path: Path, database_url: str, disaster: str
) -> None:
    address = f"127.0.0.1:{free_port()}"
    options = ("--db-url", database_url, "--listen", address, "--drain-seconds", "1")
    server = ServerProcess(tmp_path / "log", *options)

    def strike() -> None:
        if disaster == "connections":
            end_connections(database_url)
            return
        if disaster == "kill":
            server.kill()
        else:
            server.stop()
        server.start()
        server.wait_until_serving()

    given = [
        ClientWorkflow(id=f"w{n:06}", workflow_definition_id="d", version=1, data={"n": n})
        for n in range(COUNT)
    ]
    for each in given:
        each.execution_pointers = [make_pointer("0"), make_pointer("1")]
    with server:
        async with connect_provider(address, timeout=60) as provider:
            answered: list[str] = []
            striking: list[asyncio.Future[None]] = []
            items = [ClientItem(queue="q", id="")]
            async for result in provider.create_workflows(given, enqueue=items):
                assert result.error is None, result.error
                answered.append(result.id)
                if len(answered) in (COUNT // 4, COUNT // 2):
                    striking.append(asyncio.ensure_future(asyncio.to_thread(strike)))
                    await asyncio.sleep(0)
            await asyncio.gather(*striking)
        assert len(striking) == 2
    check_all(database_url, answered)
    assert "bug" not in server.log()


def make_pointer(id_: str) -> Any:
    from wfe_persistence_client import ExecutionPointer

    return ExecutionPointer(id=id_, step_id=0)


async def test_a_server_that_stops_ends_the_stream_between_two_requests(start: Start) -> None:
    server, other = start("--drain-seconds", "20"), start()
    given = instances(2)
    stopping: list[asyncio.Future[int]] = []
    answered: list[str] = []

    async def requests() -> AsyncIterator[CreateWorkflowsRequest]:
        first, second = parts(given[:1])[0], parts(given[1:])[0]
        yield first
        while not answered:
            await asyncio.sleep(0.01)
        stopping.append(asyncio.ensure_future(asyncio.to_thread(server.stop)))
        await asyncio.sleep(1)
        yield second

    async with connect(server.address) as channel, connect(other.address) as second:
        with fails("UNAVAILABLE", "SHUTTING_DOWN") as failure:
            async for answer in Api(channel).workflows.CreateWorkflows(requests()):
                answered += [result.created.id for result in answer.results]
        assert failure.retry_after is not None
        assert answered == ["w000000"]
        results = await create_workflows(Api(second), given)
        assert [result.created.id for result in results] == ["w000000", "w000001"]
        assert await stopping[0] == 0


async def test_others_are_served_meanwhile_whatever_their_namespace(start: Start) -> None:
    """However few connections there are, and however many streams."""
    server = start("--pool-size", "2")
    stop = asyncio.Event()
    async with (
        connect(server.address) as channel,
        connect(server.address, namespace="other") as second,
    ):
        api, other = Api(channel), Api(second)
        await api.store.CreateNamespace(CreateNamespaceRequest(name="other"))
        event = make.event()
        await api.create_event(event)
        await other.create_event(event)
        created = 0

        async def flood() -> None:
            nonlocal created
            while not stop.is_set():
                batch = [make.event(id=make.new_id("flood")) for _ in range(1000)]
                created += len(await create_events(api, batch, batch[:500]))

        floods = [asyncio.ensure_future(flood()) for _ in range(6)]
        for _ in range(50):
            await api.get_event(event.id)
            await other.get_event(event.id)
        [result] = await create_events(other, [make.event(id="mine")])
        assert result.created.id == "mine"
        before = created
        while created < before + 10_000:
            await asyncio.sleep(0.01)
        stop.set()
        await asyncio.gather(*floods)


async def test_there_are_so_many_streams_and_no_namespace_has_all(start: Start) -> None:
    server = start("--max-bulk-streams", "4")
    stop = asyncio.Event()
    begun = 0

    async def requests() -> AsyncIterator[CreateEventsRequest]:
        yield CreateEventsRequest()
        await stop.wait()

    async def hold(api: Api) -> None:
        nonlocal begun
        async for _ in api.events.CreateEvents(requests()):
            begun += 1

    async with (
        connect(server.address) as channel,
        connect(server.address, namespace="other") as second,
    ):
        api, other = Api(channel), Api(second)
        await api.store.CreateNamespace(CreateNamespaceRequest(name="other"))
        holding = []
        for user, most in ((api, 3), (other, 1)):
            for _ in range(most):
                holding.append(asyncio.ensure_future(hold(user)))
                await until(lambda: begun == len(holding))
            failure = await failure_of(hold(user))
            assert failure is not None
            assert failure.reason == "TOO_MANY_CALLS"
            assert failure.retry_after
            # Calls are not affected.
            await user.create_event(make.event())
        stop.set()
        await asyncio.gather(*holding)

        async def is_free() -> bool:
            return await failure_of(create_events(api, [make.event()])) is None

        await eventually(is_free)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_client_that_does_not_send_on_is_not_waited_for(start: Start) -> None:
    server = start("--stall-seconds", "0.5")
    event = make.event()

    async def requests() -> AsyncIterator[CreateEventsRequest]:
        yield CreateEventsRequest(events=[CreateEventRequest(event=event)])
        await asyncio.sleep(60)

    async with connect(server.address) as channel:
        api = Api(channel)
        with fails("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS"):
            async for _ in api.events.CreateEvents(requests()):
                pass
        assert await api.get_event(event.id) == event


async def test_strangers_with_giant_requests_take_no_more_memory_than_there_is(
    start: Start,
) -> None:
    """Many large requests at once: they wait for room, or are refused, and others are served."""
    server = start("--max-request-mb", "8", "--pool-size", "2")
    large = make.event(event_data_json='"' + "x" * 3_500_000 + '"')

    async def create(api: Api) -> str:
        own = make.event(id=make.new_id("large"), event_data_json=large.event_data_json)
        failure = await failure_of(create_events(api, [own], [own], [own]))
        if failure is None:
            return "OK"
        # (To a client that is sending at that moment, grpcio tells no reason.)
        return failure.reason or failure.message

    async with connect(server.address) as channel:
        api = Api(channel)
        outcomes = asyncio.gather(*(create(api) for _ in range(12)))
        while not outcomes.done():
            await api.create_event(make.event())
            await asyncio.sleep(0.02)
        assert set(await outcomes) <= {"OK", "TOO_MANY_CALLS", "Internal error from Core"}
        assert "OK" in await outcomes
    assert "bug" not in server.log()
