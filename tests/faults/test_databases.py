"""One of two databases of a service goes away under load: only its namespaces notice, and they come
back."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import make
from tests.support.admin import AdminServer
from tests.support.api import Api, connect
from tests.support.expect import eventually, read_failure
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest, ListNamespacesRequest
from wfe_persistence.embedded import EmbeddedPostgres

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

PLACES = {"here": "home", "there": "far", "unused": "far"}


class Databases:
    """Two PostgreSQLs, each in a directory of its own, by the names that they have in a service."""

    def __init__(self, directory: Path) -> None:
        self._directories = {name: directory / name for name in ("home", "far")}
        self._running = {name: self._started(name) for name in self._directories}
        self.urls = {name: postgres.url for name, postgres in self._running.items()}

    def _started(self, name: str) -> EmbeddedPostgres:
        return EmbeddedPostgres(self._directories[name]).__enter__()

    def stop(self, name: str) -> None:
        self._running.pop(name).__exit__(None, None, None)

    def start(self, name: str) -> None:
        self._running[name] = self._started(name)

    def close(self) -> None:
        for name in list(self._running):
            self.stop(name)


@pytest.fixture(scope="module")
def databases() -> Iterator[Databases]:
    with tempfile.TemporaryDirectory(prefix="wfe-") as path:
        found = Databases(Path(path))
        try:
            yield found
        finally:
            found.close()


@asynccontextmanager
async def serving(log: Path, databases: Databases, *arguments: str) -> AsyncIterator[AdminServer]:
    server = AdminServer(
        log,
        *("--db-url", databases.urls["home"], "--database", f"far={databases.urls['far']}"),
        *("--pool-size", "4", "--pool-timeout", "1", *arguments),
        module="tests.faults.faulty_server" if "FAULT" in os.environ else "wfe_persistence",
    )
    await asyncio.to_thread(server.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)
        assert "bug" not in server.log(), server.log()


@asynccontextmanager
async def api_in(server: AdminServer, namespace: str = "") -> AsyncIterator[Api]:
    async with connect(server.address, namespace=namespace) as channel:
        yield Api(channel)


async def create_namespaces(server: AdminServer) -> None:
    async with api_in(server) as api:
        for name, database in PLACES.items():
            await api.store.CreateNamespace(CreateNamespaceRequest(name=name, database=database))


class Load:
    """Creates events in a namespace, a few at a time, until it is stopped."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.stored: list[str] = []
        self.failures: Counter[str] = Counter()
        self._stopped = False
        self._tasks = [asyncio.create_task(self._run()) for _ in range(4)]

    async def _run(self) -> None:
        while not self._stopped:
            event = make.event()
            try:
                await self._api.create_event(event)
            except grpc.aio.AioRpcError as exc:
                self.failures[read_failure(exc).reason] += 1
                await asyncio.sleep(0.01)
            else:
                self.stored.append(event.id)

    async def stop(self) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)


async def health_of(server: AdminServer, name: str) -> int:
    async with connect(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        return int(answer.status)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(("victim", "of_victim", "of_other"),
                         [("far", "there", "here"), ("home", "here", "there")])  # fmt: skip
async def test_only_the_namespaces_of_a_database_that_is_away_fail(
    tmp_path: Path, databases: Databases, victim: str, of_victim: str, of_other: str, workers: str
) -> None:
    async with serving(tmp_path / "first", databases) as server:
        await create_namespaces(server)
    async with (
        serving(tmp_path / "log", databases, "--workers", workers) as server,
        api_in(server, of_victim) as of_this,
        api_in(server, of_other) as of_that,
    ):
        this, that = Load(of_this), Load(of_that)

        async def both_go_on() -> bool:
            before = len(this.stored), len(that.stored)
            await asyncio.sleep(0.05)
            return all(after > count for after, count in zip(
                (len(this.stored), len(that.stored)), before, strict=True))  # fmt: skip

        await eventually(both_go_on)
        assert not this.failures
        await asyncio.to_thread(databases.stop, victim)
        try:

            async def is_noticed() -> bool:
                return await health_of(server, f"database:{victim}") == NOT_SERVING

            await eventually(is_noticed)
            stored = len(that.stored)

            async def the_other_goes_on() -> bool:
                return len(that.stored) > stored + 100

            await eventually(the_other_goes_on)
            assert await health_of(server, "") == SERVING
            other = "home" if victim == "far" else "far"
            assert await health_of(server, f"database:{other}") == SERVING
            answer = await asyncio.to_thread(server.get, "/readyz?verbose")
            assert answer.status == 200, answer
            if workers == "1":
                name = "database" if victim == "home" else "database-far"
                assert f"[-]{name} failed" in answer.text
                metrics = (await asyncio.to_thread(server.get, "/metrics")).text
                assert f'wfe_persistence_postgres_reachable{{database="{victim}"}} 0' in metrics
                assert f'wfe_persistence_postgres_reachable{{database="{other}"}} 1' in metrics
            if victim == "home":
                # One that nobody has called yet is known, too.
                async with api_in(server, "unused") as unused:
                    await unused.create_event(make.event())
            else:
                async with api_in(server) as api:
                    page = await api.store.ListNamespaces(ListNamespacesRequest())
                    found = {each.name: each for each in page.namespaces}
                    assert found["there"].unavailable
                    assert not found["here"].unavailable
        finally:
            await asyncio.to_thread(databases.start, victim)
        await eventually(both_go_on)
        await asyncio.gather(this.stop(), that.stop())
        assert not that.failures
        assert this.failures
        assert this.failures.keys() <= {"DATABASE_UNAVAILABLE", "COMMIT_OUTCOME_UNKNOWN"}
        for api, load in ((of_this, this), (of_that, that)):
            for id_ in load.stored:
                assert (await api.get_event(id_)).id == id_
