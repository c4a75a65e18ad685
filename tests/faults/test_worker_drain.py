"""Several processes (`--workers`) that stop, get more connections, or are flooded: none is left
behind, connections move on, and each namespace gets its turns from each of them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import psycopg
import pytest

from tests.faults.faulty_workers import HANGS
from tests.faults.test_fairness import Caller, assert_only_refused_for_being_busy
from tests.support import make
from tests.support.api import Api
from tests.support.expect import eventually
from tests.support.waiting import wait_for
from tests.support.workers import Server, accepted, connections, several
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest

FOR_EVER = "600"


def processes_of(server: Server) -> list[psutil.Process]:
    return [psutil.Process(server.process.pid), *server.workers]


@asynccontextmanager
async def held_calls(
    server: Server, url: str, count: int
) -> AsyncIterator[list[asyncio.Task[grpc.StatusCode]]]:
    """Writes on as many connections, which wait in the database; how they end. Each worker has some
    of them: there are more connections if one got no time to accept any."""

    async def write(api: Api) -> grpc.StatusCode:
        call = api.events.CreateEvent(CreateEventRequest(event=make.event()), timeout=120)
        return await call.code()

    async with AsyncExitStack() as stack:
        apis: list[Api] = []
        while not apis or not all(accepted(server).values()):
            assert len(apis) < 20 * count, accepted(server)
            apis += await stack.enter_async_context(connections(server, count))
        lock = await stack.enter_async_context(await psycopg.AsyncConnection.connect(url))
        await lock.execute("LOCK TABLE wfc.events IN ACCESS EXCLUSIVE MODE")
        calls = [asyncio.create_task(write(api)) for api in apis]
        running = 'wfe_persistence_calls_in_progress{grpc_method="CreateEvent"'
        await asyncio.to_thread(wait_for, lambda: server.metric(running) == len(calls))
        yield calls
        await lock.rollback()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_while_draining_ends_the_calls_of_all(
    tmp_path: Path, database_url: str, second: signal.Signals
) -> None:
    with several(
        tmp_path, database_url, "--drain-delay", "0", "--drain-seconds", FOR_EVER
    ) as server:
        processes = processes_of(server)
        async with held_calls(server, database_url, 4) as calls:
            server.process.send_signal(signal.SIGTERM)
            # The supervisor's, and that of each worker.
            await asyncio.to_thread(wait_for, lambda: server.log().count("SIGTERM: draining") == 3)
            await asyncio.sleep(0.3)
            assert not any(call.done() for call in calls)
            while not all(call.done() for call in calls):
                server.process.send_signal(second)
                await asyncio.sleep(0.1)
            assert {await call for call in calls} == {grpc.StatusCode.UNAVAILABLE}
            assert await asyncio.to_thread(server.process.wait, 60) == 0
        # Said once by each: by the workers, too, whatever signal it was.
        assert server.log().count("again: ending the calls in progress") == 3
        assert not any(process.is_running() for process in processes)
    assert "Traceback" not in server.log()


@pytest.fixture
def hanging(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FAULT", "hang")
    return several(
        tmp_path, database_url, "--drain-delay", "0", "--drain-seconds", "2",
        module="tests.faults.faulty_workers",
    )  # fmt: skip


async def test_a_worker_that_is_stopped_does_not_keep_the_server_from_ending(
    hanging: Server, database_url: str
) -> None:
    with hanging as server:
        processes = processes_of(server)
        stopped = server.workers[0]
        stopped.suspend()
        async with connections(server, 2) as apis:  # on the other one
            for api in apis:
                await api.get_workflow_instances([])
            assert await asyncio.to_thread(server.stop) == 1
        said = server.log()
        assert "1 workers have not stopped after 8 s: killing them" in said
        assert not any(process.is_running() for process in processes)
        assert said.count('"message": "stopped"') == 2  # the supervisor, too


async def test_a_worker_whose_event_loop_hangs_in_the_drain_says_where_and_ends(
    hanging: Server, database_url: str
) -> None:
    with hanging as server:
        processes = processes_of(server)
        async with held_calls(server, database_url, 4) as calls:
            server.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(wait_for, lambda: server.log().count("SIGTERM: draining") == 3)
            os.kill(server.workers[0].pid, HANGS)
            assert await asyncio.to_thread(server.process.wait, 60) == 1
            assert {await call for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        said = server.log()
        # By itself, before the supervisor would have killed it.
        assert re.search(r"Timeout \(0:00:04\)!", said)
        assert "faulty_workers.py" in said.split("Timeout", 1)[1]
        assert "killing" not in said
        assert not any(process.is_running() for process in processes)


async def test_old_connections_move_to_a_worker_that_has_few(
    tmp_path: Path, database_url: str
) -> None:
    age = ("--max-connection-age", "2", "--max-connection-grace", "30")
    with several(tmp_path, database_url, *age) as server:
        away = server.workers[0]
        away.suspend()
        try:
            async with connections(server, 6) as apis:
                assert accepted(server)[away.pid] == 0
                away.resume()

                async def is_even() -> bool:
                    # No call fails: those in progress end before their connection does.
                    await asyncio.gather(*(api.get_workflow_instances([]) for api in apis))
                    count = accepted(server)
                    return len(count) == 2 and min(count.values()) >= 2

                await eventually(is_even, 60)
        finally:
            away.resume()


async def test_flood_over_many_connections_does_not_reach_another_namespace(
    tmp_path: Path, database_url: str
) -> None:
    """Of any worker: each has a pool of its own, and its own turns."""
    small = ("--pool-size", "2", "--max-waiting", "20", "--pool-timeout", "60")
    faulty = "tests.faults.faulty_workers" if "FAULT" in os.environ else "wfe_persistence"
    calls = 20
    log: list[str] = []
    with several(tmp_path, database_url, *small, module=faulty) as server:
        async with (
            connections(server, 8, "flood") as flood,
            connections(server, 4, "victim") as victim,
        ):
            flooding = [Caller("flood", api, log) for api in flood]
            victims = [Caller("victim", api, log) for api in victim]
            for caller in (flooding[0], victims[0]):
                await caller.api.store.CreateNamespace(CreateNamespaceRequest(name=caller.name))
            served = asyncio.Event()

            async def go_on(caller: Caller) -> None:
                while not served.is_set():
                    await caller.call()
                    await asyncio.sleep(0.05)

            flooders = [asyncio.create_task(go_on(flooding[n % 8])) for n in range(400)]

            async def all_are_flooded() -> bool:
                return all(caller.failures for caller in flooding)

            await eventually(all_are_flooded, 60)
            await asyncio.gather(*(_call_often(caller, calls) for caller in victims))
            served.set()
            await asyncio.gather(*flooders)
    for caller in victims:
        assert not caller.failures, caller.failures[0]
    assert log.count("victim") == 4 * calls
    assert log.count("flood") > 4 * calls  # a flood, but not refused altogether
    for caller in flooding:
        assert_only_refused_for_being_busy(caller)


async def _call_often(caller: Caller, times: int) -> None:
    for _ in range(times):
        await caller.call()
