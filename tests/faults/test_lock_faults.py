"""Locks when things go wrong: writes that outlive them, servers that are killed or stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.faults.stopping import stopped_backend, stopped_before
from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import eventually, fails, failure_of
from tests.support.scene import never_due
from tests.support.server import ServerProcess
from wfe.persistence.v1.workflow_pb2 import PersistWorkflowRequest

MODULE = "tests.faults.faulty_server" if "FAULT" in os.environ else "wfe_persistence"
SHORT = Duration(nanos=500_000_000)
LONG = Duration(seconds=60)


@pytest.fixture
def server(tmp_path: Path, database_url: str) -> Iterator[ServerProcess]:
    """A server that the test may kill."""
    with ServerProcess(tmp_path / "log", "--db-url", database_url, module=MODULE) as server:
        yield server


async def is_waiting(call: asyncio.Future[Any]) -> bool:
    """Whether a call is still not answered after a while in which it could have been."""
    return not (await asyncio.wait([call], timeout=0.5))[0]


async def test_who_takes_over_an_expired_lock_waits_for_the_write_under_it(
    server: ServerProcess, database_url: str
) -> None:
    """The write was begun in time. So it is made before the next holder reads anything."""
    async with connect(server.address) as channel:
        api = Api(channel)
        instance, resource = never_due(), make.new_id("resource")
        await api.create(instance)
        token = (await api.acquire_lock(resource, ttl=SHORT)).token
        write = PersistWorkflowRequest(instance=instance, held_lock_tokens=[token])
        with stopped_before(database_url, ("workflows", "UPDATE")):
            writing = asyncio.ensure_future(api.workflows.PersistWorkflow(write))
            await stopped_backend(database_url)

            async def has_expired() -> bool:
                return not (await api.list_locks(resource_prefix=resource)).locks

            await eventually(has_expired)
            taking = asyncio.ensure_future(api.acquire_lock(resource, ttl=LONG))
            assert await is_waiting(taking)
            assert not writing.done()
        assert (await taking).acquired
        revision = (await api.get_workflow_instance(instance.id)).revision
        assert revision == (await writing).revision == instance.revision + 1
        with fails("FAILED_PRECONDITION", "LEASE_LOST"):
            await api.workflows.PersistWorkflow(write)


async def test_locks_outlive_their_server_and_no_holder_is_lost(server: ServerProcess) -> None:
    resource = make.new_id("resource")
    async with connect(server.address) as channel:
        api = Api(channel)
        first = await api.acquire_lock(resource, owner="me", ttl=LONG)
        waiting = asyncio.ensure_future(failure_of(api.acquire_lock(resource, wait=LONG)))
        assert await is_waiting(waiting)
        await asyncio.to_thread(server.kill)
        failure = await waiting
        assert failure is not None
        assert failure.code is not None
        assert failure.code.name == "UNAVAILABLE"
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(server.wait_until_serving)
    async with connect(server.address) as channel:
        api = Api(channel)
        assert (await api.acquire_lock(resource)).holder.owner == "me"
        await api.renew_locks(first.token, ttl=LONG)
        assert await api.release_lock(first.token)
        assert (await api.acquire_lock(resource)).acquired


async def test_a_server_that_stops_calls_off_those_who_wait(server: ServerProcess) -> None:
    """At once, so that they go on at another server; the calls in progress are not waited for."""
    resource = make.new_id("resource")
    async with connect(server.address) as channel:
        api = Api(channel)
        await api.acquire_lock(resource, ttl=LONG)
        waiting = [
            asyncio.ensure_future(failure_of(api.acquire_lock(resource, wait=LONG)))
            for _ in range(5)
        ]
        assert await is_waiting(waiting[0])
        stopping = asyncio.ensure_future(asyncio.to_thread(server.stop))
        failures = await asyncio.gather(*waiting)
        await stopping
    assert {failure.reason for failure in failures if failure} == {"SHUTTING_DOWN"}
    assert all(failure and failure.retry_after is not None for failure in failures)
    assert "ending them" not in server.log()


async def test_a_lock_released_through_another_server_is_noticed(
    server: ServerProcess, tmp_path: Path, database_url: str
) -> None:
    resource = make.new_id("resource")
    with ServerProcess(tmp_path / "other", "--db-url", database_url) as other:
        async with connect(server.address) as here, connect(other.address) as there:
            first = await Api(there).acquire_lock(resource, ttl=LONG)
            waiting = asyncio.ensure_future(Api(here).acquire_lock(resource, wait=LONG))
            assert await is_waiting(waiting)
            assert await Api(there).release_lock(first.token)
            assert (await waiting).acquired


async def test_many_who_wait_need_no_connection(tmp_path: Path, database_url: str) -> None:
    """A pool of two serves others meanwhile."""
    with ServerProcess(tmp_path / "log", "--db-url", database_url, "--pool-size", "2") as server:
        async with connect(server.address) as channel:
            api = Api(channel)
            resource = make.new_id("resource")
            token = (await api.acquire_lock(resource, ttl=LONG)).token
            waiting = [
                asyncio.ensure_future(api.acquire_lock(resource, ttl=SHORT, wait=LONG))
                for _ in range(200)
            ]
            assert await is_waiting(waiting[0])
            for _ in range(20):
                await api.create(never_due())
            for call in waiting:
                call.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            # The server may not know yet that they have gone: some may get it for a moment.
            assert await api.release_lock(token)
            assert (await api.acquire_lock(resource, wait=LONG)).acquired
