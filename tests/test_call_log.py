"""The log of calls: slow ones with what took the time, and nothing of what was sent."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api, connect
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for
from wfe.persistence.v1.workflow_pb2 import CreateNewWorkflowRequest
from wfe_persistence.time_spent import TimeSpent

CANARY = "canary-7f3a"


class Server(ServerProcess):
    """A server that logs JSON."""

    def __init__(self, tmp_path: Path, database_url: str, *arguments: str) -> None:
        super().__init__(
            tmp_path / "log", "--db-url", database_url, "--log-format", "json", *arguments
        )

    def calls(self, word: str) -> list[dict[str, Any]]:
        """The lines whose message begins so."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"].startswith(word)]


@pytest.fixture
async def slow(tmp_path: Path, database_url: str) -> AsyncIterator[Server]:
    """A server to which every call of more than 200 ms is slow."""
    with Server(tmp_path, database_url, "--slow-call", "0.2") as server:
        yield server


async def test_a_call_that_waits_for_the_database(slow: Server, database_url: str) -> None:
    async with (
        connect(slow.address) as channel,
        await psycopg.AsyncConnection.connect(database_url) as blocker,
    ):
        api = Api(channel)
        await api.create_new_workflow(make.instance())  # it is prepared now, and fast
        await blocker.execute("LOCK TABLE wfc.workflows IN ACCESS EXCLUSIVE MODE")
        request = CreateNewWorkflowRequest(instance=make.instance(description=CANARY))
        call = api.workflows.CreateNewWorkflow(
            request, metadata=[("x-request-id", "order 17")], timeout=20
        )
        done = asyncio.ensure_future(call.code())
        await asyncio.sleep(0.5)  # that long it has been slow for
        await blocker.rollback()
        assert await done == grpc.StatusCode.OK
    await asyncio.to_thread(wait_for, lambda: slow.calls("slow call"))
    [line] = slow.calls("slow call")
    assert line["level"] == "warning"
    assert (line["rpc"], line["outcome"]) == ("CreateNewWorkflow", "OK")
    assert line["request_id"] == "order?17"
    assert line["slowest_statement"] == "CREATE_NEW_WORKFLOW"
    assert line["round_trips"] >= 1
    assert line["seconds"] >= line["database_seconds"] > 0.2
    assert CANARY not in slow.log()


async def test_a_wait_that_was_asked_for_is_not_slow(slow: Server) -> None:
    async with connect(slow.address) as channel:
        answer = await Api(channel).dequeue(queues=[make.queue()], wait=Duration(nanos=600_000_000))
    assert not answer.items
    assert slow.calls("slow call") == []


async def test_at_most_one_a_minute_of_a_method(slow: Server, database_url: str) -> None:
    async with (
        connect(slow.address) as channel,
        await psycopg.AsyncConnection.connect(database_url) as blocker,
    ):
        api = Api(channel)
        await blocker.execute("LOCK TABLE wfc.workflows IN ACCESS EXCLUSIVE MODE")
        calls = [asyncio.create_task(api.create_new_workflow(make.instance())) for _ in range(5)]
        await asyncio.sleep(0.5)
        await blocker.rollback()
        await asyncio.gather(*calls)
        await asyncio.to_thread(wait_for, lambda: slow.calls("slow call"))
        assert await api.get_workflow_instances([]) == []
    assert len(slow.calls("slow call")) == 1


async def test_every_call_at_the_level_debug(tmp_path: Path, database_url: str) -> None:
    with Server(tmp_path, database_url, "--log-level", "debug", "--slow-call", "0") as server:
        async with connect(server.address) as channel:
            api = Api(channel)
            await api.create_new_workflow(make.instance(description=CANARY))
            with pytest.raises(grpc.aio.AioRpcError):
                await api.get_workflow_instance("none")
        # A client may see the end of its call before it is logged.
        await asyncio.to_thread(wait_for, lambda: len(server.calls("call: ")) == 2)
        created, read = server.calls("call: ")
    assert (created["rpc"], created["outcome"]) == ("CreateNewWorkflow", "OK")
    assert (read["rpc"], read["outcome"]) == ("GetWorkflowInstance", "WORKFLOW_NOT_FOUND")
    assert "error" in read
    assert created["level"] == read["level"] == "debug"
    assert server.calls("slow call") == []
    assert CANARY not in server.log()


def test_parts_of_the_time() -> None:
    spent = TimeSpent()
    spent.add_round_trip(0.3, "A")
    spent.add_round_trip(0.1, "B")
    spent.connecting = 0.05
    parts = spent.parts()
    assert parts["database_seconds"] == 0.4
    assert parts["connection_seconds"] == 0.05
    assert (parts["slowest_statement"], parts["round_trips"]) == ("A", 2)
    assert "retries" not in parts
    assert "wait_seconds" not in parts
