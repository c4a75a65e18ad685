"""The server in front of a database that stops answering, or that others have locked."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import psycopg
import pytest

from tests.faults.proxy import Proxy
from tests.faults.test_crashes import status_of, wait_for_status
from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import eventually, failure_of
from tests.support.server import ServerProcess
from wfe.persistence.v1.event_pb2 import (
    CreateEventRequest,
    GetEventRequest,
    ListEventsRequest,
)
from wfe_persistence.store.postgres.watch import LOCK_SECONDS

NOTICED = 5.0
"""Health notices within 3 s, but the machine may be busy. It took up to 10 s."""
ROW_LOCKED = "StatusCode.ABORTED ROW_LOCKED"

GIVEN_UP = 15.0
"""Calls are given up within 5 s. They took the whole default deadline of 30 s."""


@pytest.fixture
async def proxy(tmp_path: Path, database_url: str) -> AsyncIterator[Proxy]:
    directory = tmp_path / "proxy"
    directory.mkdir()
    [behind] = parse_qs(urlparse(database_url).query)["host"]
    async with Proxy(directory, Path(behind)) as proxy:
        yield proxy


@pytest.fixture
async def server(tmp_path: Path, proxy: Proxy, database_url: str) -> AsyncIterator[ServerProcess]:
    """A server behind the proxy (with the fault of test_planted, if there is one)."""
    [behind] = parse_qs(urlparse(database_url).query)["host"]
    url = database_url.replace(behind, str(tmp_path / "proxy"))
    server = ServerProcess(
        tmp_path / "log",
        "--db-url",
        url,
        "--pool-size",
        "4",
        module="tests.faults.faulty_server" if "FAULT" in os.environ else "wfe_persistence",
    )
    await asyncio.to_thread(server.__enter__)
    yield server
    assert await asyncio.to_thread(server.stop) == 0
    assert "bug" not in server.log(), server.log()


async def test_stalled_database_is_noticed_by_health_and_by_calls_without_a_deadline(
    server: ServerProcess, proxy: Proxy
) -> None:
    async with connect(server.address) as channel:
        api = Api(channel)
        request = CreateEventRequest(event=make.event())
        await api.events.CreateEvent(CreateEventRequest(event=make.event()))
        proxy.stall()
        stalled = time.monotonic()
        write = asyncio.create_task(failure_of(api.events.CreateEvent(request)))
        read = asyncio.create_task(failure_of(api.events.GetEvent(GetEventRequest(id="e"))))
        await asyncio.to_thread(wait_for_status, server.address, "NOT_SERVING", NOTICED)
        async with asyncio.timeout(GIVEN_UP - (time.monotonic() - stalled)):
            failures = await asyncio.gather(write, read)
        assert [f and f.reason for f in failures] == [
            "COMMIT_OUTCOME_UNKNOWN",
            "DATABASE_UNAVAILABLE",
        ]
        assert all(f and f.retry_after for f in failures)
        proxy.flow()
        await asyncio.to_thread(server.wait_until_serving)
        await api.events.CreateEvent(request)
        answer = await api.events.GetEvent(GetEventRequest(id=request.event.id))
        assert answer.event == request.event
    assert "the database has stopped answering" in server.log()


@contextmanager
def locked(url: str, table: str) -> Iterator[None]:
    """An outsider's exclusive lock on a whole table."""
    with psycopg.connect(url) as connection:
        connection.execute(f"LOCK TABLE wfc.{table} IN ACCESS EXCLUSIVE MODE".encode())
        yield
        connection.rollback()


async def test_a_database_that_is_only_busy_stays_healthy(
    server: ServerProcess, database_url: str
) -> None:
    """All connections wait for a lock, and nothing is heard on any of them."""
    async with connect(server.address) as channel:
        api = Api(channel)
        with locked(database_url, "events"):
            calls = [
                asyncio.create_task(failure_of(api.create_event(make.event()))) for _ in range(4)
            ]
            until = time.monotonic() + 7
            while time.monotonic() < until:
                assert await asyncio.to_thread(status_of, server.address) == "SERVING"
                await asyncio.sleep(0.1)
        # The look needs a connection too, so calls beyond their part have been called off.
        failures = await asyncio.gather(*calls)
        assert {f.reason for f in failures if f} <= {"ROW_LOCKED"}


async def test_calls_that_need_another_table_than_the_locked_one_go_on(
    server: ServerProcess, database_url: str
) -> None:
    """However many wait for the locked one, and call again when they are called off."""
    failures: Counter[str] = Counter()
    async with connect(server.address) as channel:
        api = Api(channel)
        instance = make.instance()
        await api.create_new_workflow(instance)
        unlocked = asyncio.Event()

        async def waiting() -> None:
            while not unlocked.is_set():
                failure = await failure_of(api.create_event(make.event()))
                if failure:
                    failures[f"{failure.code} {failure.reason}"] += 1
                    assert failure.retry_after

        async def listing() -> None:
            while not unlocked.is_set():
                failure = await failure_of(api.events.ListEvents(ListEventsRequest(page_size=10)))
                if failure:
                    failures[f"{failure.code} {failure.reason}"] += 1

        async def called_off() -> bool:
            return failures[ROW_LOCKED] > 20

        with locked(database_url, "events"):
            callers = [asyncio.create_task(waiting()) for _ in range(16)]
            callers += [asyncio.create_task(listing()) for _ in range(8)]
            for _ in range(1000):
                await api.get_workflow_instance(instance.id)
            await eventually(called_off)
            for _ in range(1000):
                await api.get_workflow_instance(instance.id)
            unlocked.set()
        await asyncio.gather(*callers)
        await asyncio.gather(*(api.create_event(make.event()) for _ in range(50)))
    assert set(failures) == {ROW_LOCKED}, failures
    assert "wait for locks of other sessions" in server.log()


async def test_call_that_waits_for_a_lock_while_there_is_room_is_left_alone(
    server: ServerProcess, database_url: str
) -> None:
    async with connect(server.address) as channel:
        api = Api(channel)
        with locked(database_url, "events"):
            call = asyncio.create_task(failure_of(api.create_event(make.event())))
            until = time.monotonic() + LOCK_SECONDS + 2
            while time.monotonic() < until:
                await api.create_new_workflow(make.instance())
                await asyncio.sleep(0.05)
            assert not call.done()
        assert await call is None
