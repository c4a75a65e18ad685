"""One namespace floods the server: only it is refused, and the others get their turns."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psycopg
import pytest

from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import Failure, eventually, fails, failure_of
from tests.support.server import ServerProcess
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest
from wfe.persistence.v1.workflow_pb2 import CreateNewWorkflowRequest

CONNECTIONS = 2
MAX_WAITING = 50
FLOOD = 400


@pytest.fixture
def server(tmp_path: Path, database_url: str) -> Iterator[ServerProcess]:
    """A server with two connections (with the fault of test_planted, if there is one)."""
    with ServerProcess(
        tmp_path / "log", "--db-url", database_url,
        "--pool-size", str(CONNECTIONS), "--max-waiting", str(MAX_WAITING), "--pool-timeout", "60",
        module="tests.faults.faulty_server" if "FAULT" in os.environ else "wfe_persistence",
    ) as server:  # fmt: skip
        yield server
    assert "bug" not in server.log(), server.log()


@dataclass
class Caller:
    """Who calls in one namespace, and how the calls end, in `log` with those of others."""

    name: str
    api: Api
    log: list[str]
    failures: list[Failure] = field(default_factory=list)

    async def call(self) -> None:
        # (A call that is not run together with others of its kind.)
        failure = await failure_of(self.api.create(make.instance()))
        if failure:
            self.failures.append(failure)
        else:
            self.log.append(self.name)


@pytest.fixture
async def callers(server: ServerProcess) -> AsyncIterator[tuple[Caller, Caller]]:
    """The one that floods, and its victim; both known to the server."""
    log: list[str] = []
    async with (
        connect(server.address, namespace="flood") as flood,
        connect(server.address, namespace="victim") as victim,
    ):
        callers = (Caller("flood", Api(flood), log), Caller("victim", Api(victim), log))
        for caller in callers:
            await caller.api.store.CreateNamespace(CreateNamespaceRequest(name=caller.name))
            await caller.call()
        assert log == ["flood", "victim"]
        log.clear()
        yield callers


def assert_only_refused_for_being_busy(caller: Caller) -> None:
    for failure in caller.failures:
        assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED, failure
        assert failure.reason == "NAMESPACE_BUSY", failure
        assert failure.retry_after, failure


async def test_flood_is_refused_while_another_namespace_is_served(
    callers: tuple[Caller, Caller],
) -> None:
    flood, victim = callers
    calls = 30
    served = asyncio.Event()

    async def flooding() -> None:
        while not served.is_set():
            await flood.call()
            await asyncio.sleep(0.05)  # or the refusals alone would keep both processes busy

    flooders = [asyncio.create_task(flooding()) for _ in range(FLOOD)]

    async def is_flooded() -> bool:
        return bool(flood.failures)

    await eventually(is_flooded)
    for _ in range(calls):
        await victim.call()
    served.set()
    await asyncio.gather(*flooders)
    assert not victim.failures, victim.failures[0]
    assert flood.log.count("victim") == calls
    assert flood.log.count("flood") > calls  # a flood, but not refused altogether
    assert_only_refused_for_being_busy(flood)


async def test_calls_behind_a_full_queue_get_every_second_turn(
    callers: tuple[Caller, Caller], database_url: str
) -> None:
    """While nothing moves, the flood's queue fills up. Then all that waits is let go."""
    flood, victim = callers
    calls = 20
    with psycopg.connect(database_url) as connection:
        connection.execute("LOCK TABLE wfc_flood.workflows IN ACCESS EXCLUSIVE MODE")
        flooding = [asyncio.create_task(flood.call()) for _ in range(FLOOD)]

        async def is_full() -> bool:
            return len(flood.failures) == FLOOD - CONNECTIONS - MAX_WAITING

        await eventually(is_full)
        waiting = [asyncio.create_task(victim.call()) for _ in range(calls)]
        # When calls of the flood that were sent after them on the same connection are refused,
        # they wait at the gate.
        for _ in range(10):
            with fails("RESOURCE_EXHAUSTED", "NAMESPACE_BUSY"):
                await victim.api.workflows.CreateNewWorkflow(
                    CreateNewWorkflowRequest(instance=make.instance()),
                    metadata=(("wfe-namespace", "flood"),),
                )
        assert not any(task.done() for task in waiting)
        assert not flood.log
    await asyncio.gather(*flooding, *waiting)
    assert not victim.failures, victim.failures[0]
    assert flood.log.count("victim") == calls
    assert flood.log.count("flood") == CONNECTIONS + MAX_WAITING
    last = max(i for i, name in enumerate(flood.log) if name == "victim")
    # The calls that were running already, a turn of the flood for each of the victim's, and what
    # two connections answer at once.
    assert flood.log[:last].count("flood") <= CONNECTIONS + calls + 10, flood.log
    assert len(flood.failures) == FLOOD - CONNECTIONS - MAX_WAITING
    assert_only_refused_for_being_busy(flood)
