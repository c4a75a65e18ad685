"""Servers of two releases on one store: the older one goes on for as long as the store's newest
migration allows it, and comes to no harm if it does not.

The previous release is this one, unless `--previous-release` names the Python of another one. The
next one is this one with a migration more (`next_release_server.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import eventually, fails, failure_of, read_failure
from tests.support.server import ServerProcess
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest, GetStoreInfoResponse
from wfe_persistence.store import migration_files

Answer = TypeVar("Answer")

LATEST = migration_files.latest_version()
NEXT = "tests.faults.next_release_server"
NAMESPACES = ("default", "shop")

# What an expanding migration does: a column, an index, a type that holds more. Statements that are
# prepared on each connection return the columns whose type it changes.
EXPANDING = """
ALTER TABLE wfc.workflows ADD COLUMN note text NOT NULL DEFAULT '';
ALTER TABLE wfc.workflows ALTER COLUMN description TYPE varchar;
ALTER TABLE wfc.events ADD COLUMN note text NOT NULL DEFAULT '';
ALTER TABLE wfc.events ALTER COLUMN event_key TYPE varchar;
CREATE INDEX {prefix}events_note ON wfc.events (note);
"""
# And a contracting one: what servers that know nothing of it still write.
CONTRACTING = """
ALTER TABLE wfc.workflows DROP COLUMN description;
"""


@dataclass
class Fleet:
    """Two releases and the database that they share."""

    url: str
    folder: Path
    previous_python: str
    oldest: int = LATEST
    """The schema version of the previous release."""

    def __post_init__(self) -> None:
        self.migrations.mkdir()
        said = self.run_old("version", "--json")
        self.oldest = int(json.loads(said.stdout)["schema"])

    @property
    def migrations(self) -> Path:
        """The directory of those that only the next release has."""
        return self.folder / "migrations"

    @property
    def next_env(self) -> dict[str, str]:
        """The environment of the next release."""
        return {**os.environ, "NEXT_MIGRATIONS": str(self.migrations)}

    def release(self, number: int, oldest_server: int, sql: str) -> None:
        """Have the next release include this migration."""
        (self.migrations / f"{number:04}_next.sql").write_text(
            f"-- Of the next release.\n-- oldest server: {oldest_server}\n{sql}"
        )

    def old(self, *options: str) -> ServerProcess:
        """A server of the previous release, not started."""
        return ServerProcess(
            self.folder / "old.log", "--db-url", self.url, *options, python=self.previous_python
        )

    def new(self) -> ServerProcess:
        """A server of the next release, not started."""
        return ServerProcess(
            self.folder / "new.log", "--db-url", self.url, module=NEXT, env=self.next_env
        )

    def run_old(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command of the previous release."""
        return subprocess.run(
            [self.previous_python, "-m", "wfe_persistence", *command],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def migrate_with_new(self) -> None:
        """`migrate up` of the next release."""
        subprocess.run(
            [sys.executable, "-m", NEXT, "migrate", "up", "--db-url", self.url],
            timeout=60, check=True, env=self.next_env, capture_output=True,
        )  # fmt: skip


@pytest.fixture
def fleet(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Fleet:
    return Fleet(database_url, tmp_path, request.config.getoption("--previous-release"))


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A look into the database, and a hand in it."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@dataclass
class Client:
    """Works on a server, and repeats a call that says that it may be repeated."""

    api: Api
    rounds: int = 0
    """How often it has made each call with success."""
    repeated: Counter[str] = field(default_factory=Counter)
    stopped: bool = False

    async def run(self) -> None:
        """Make all calls over and over until `stopped`."""
        while not self.stopped:
            await self._round()
            self.rounds += 1

    async def _round(self) -> None:
        api, call = self.api, self._call
        instance, event, command = make.full_instance(), make.event(), make.command()
        await call(lambda: api.create_new_workflow(instance))
        await call(lambda: api.persist_workflow(instance))
        stored = await call(lambda: api.get_workflow_instance(instance.id))
        assert stored.description == instance.description
        [stored] = await call(lambda: api.get_workflow_instances([instance.id]))
        assert stored.description == instance.description
        assert (await call(lambda: api.list_workflows(page_size=3))).instances
        await call(lambda: api.create_event(event))
        assert (await call(lambda: api.get_event(event.id))).event_key == event.event_key
        assert (await call(lambda: api.list_events(page_size=3))).events
        await call(lambda: api.schedule_command(command))
        claims = await call(lambda: api.claim_commands(limit=5))
        await call(lambda: api.complete_commands(*(claim.lease_token for claim in claims)))

    async def _call(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        while True:
            try:
                async with asyncio.timeout(30):
                    return await call()
            except grpc.aio.AioRpcError as exc:
                failure = read_failure(exc)
                if failure.retry_after is None:
                    raise
                self.repeated[failure.reason] += 1
                await asyncio.sleep(failure.retry_after)


@asynccontextmanager
async def serving(server: ServerProcess) -> AsyncIterator[ServerProcess]:
    """A server that runs while the others, and their clients, go on."""
    await asyncio.to_thread(server.__enter__)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


@asynccontextmanager
async def load(*servers: ServerProcess) -> AsyncIterator[list[Client]]:
    """Clients at work on each server, in each namespace. No call of theirs may fail for good."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        clients = []
        for server in servers:
            for namespace in NAMESPACES:
                channel = connect(server.address, namespace=namespace)
                await stack.enter_async_context(channel)
                clients += [Client(Api(channel)) for _ in range(2)]
        for client in clients:
            group.create_task(client.run())
        try:
            yield clients
        finally:
            for client in clients:
                client.stopped = True


async def work(*clients: Client) -> None:
    """Wait until each has made all calls some more times."""
    goals = [client.rounds + 10 for client in clients]

    async def is_done() -> bool:
        return all(c.rounds >= goal for c, goal in zip(clients, goals, strict=True))

    await eventually(is_done, 60)


async def health(server: ServerProcess, service: str = "") -> str:
    async with connect(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def is_refused(server: ServerProcess, reason: str, namespace: str = "default") -> bool:
    """Whether a write is refused for this reason. (For a few seconds, it may not be yet.)"""
    async with connect(server.address, namespace=namespace) as channel:
        failure = await failure_of(Api(channel).create_event(make.event()))
    return failure is not None and failure.reason == reason


async def is_served(server: ServerProcess, namespace: str = "default") -> bool:
    async with connect(server.address, namespace=namespace) as channel:
        return await failure_of(Api(channel).create_event(make.event())) is None


async def create_shop(server: ServerProcess) -> None:
    async with connect(server.address) as channel:
        await Api(channel).store.CreateNamespace(CreateNamespaceRequest(name="shop"))


def statement(database: psycopg.Connection[Any], sql: str, *params: int) -> None:
    database.execute(sql.encode(), params)


@pytest.mark.timeout(240)
async def test_releases_work_side_by_side_while_the_newest_migration_allows_it(
    fleet: Fleet,
) -> None:
    with fleet.old() as old:
        await create_shop(old)
        async with load(old) as on_old:
            await work(*on_old)  # so that every connection has prepared every statement
            fleet.release(LATEST + 1, fleet.oldest, EXPANDING)
            async with serving(fleet.new()) as new:
                async with load(new) as on_new:
                    await work(*on_old, *on_new)
                assert (await info(new)).schema_version == LATEST + 1
                assert await health(old) == "SERVING"
                assert await health(old, "shop/wfe.persistence.v1.EventService") == "SERVING"

                # It neither migrates nor complains; nor do its commands.
                async with connect(old.address) as channel:
                    ensured = await Api(channel).ensure_store_exists()
                assert ensured.schema_version == LATEST + 1
                assert not ensured.applied_migrations
        print([(c.rounds, c.repeated) for c in (*on_old, *on_new)])
        up = fleet.run_old("migrate", "up", "--db-url", fleet.url)
        assert (up.returncode, up.stderr) == (0, "")
        assert f"default: left as it is: newer (version {LATEST + 1})" in up.stdout
        status = fleet.run_old("migrate", "status", "--db-url", fleet.url)
        assert status.returncode == 0
        assert f"the oldest server that may use the store has schema version {fleet.oldest}" in (
            status.stdout
        )
        assert "may go on using it" in status.stdout
    # What comes up again in the middle of the upgrade, serves.
    with fleet.old() as old:
        async with load(old) as on_old:
            await work(*on_old)
    assert "which this server" in old.log()
    for server in (old, new):
        assert "bug" not in server.log(), server.log()


@pytest.mark.timeout(240)
async def test_a_release_that_is_too_old_stops_serving_and_lives(
    fleet: Fleet, database: psycopg.Connection[Any]
) -> None:
    with fleet.old() as old:
        await create_shop(old)
        assert await is_served(old, "shop")
        fleet.release(LATEST + 1, LATEST + 1, CONTRACTING)
        fleet.migrate_with_new()
        await refuses(old)
        up = fleet.run_old("migrate", "up", "--db-url", fleet.url)
        assert up.returncode == 1
        for name in NAMESPACES:
            assert f"{name}: failed: the store has schema version {LATEST + 1}" in up.stderr
        status = fleet.run_old("migrate", "status", "--db-url", fleet.url)
        assert status.returncode == 1
        assert "may not use it" in status.stdout

        restarted = fleet.old()
        await asyncio.to_thread(restarted.start)
        try:
            await refuses(restarted)
            # As if the store had been restored.
            for schema in ("wfc", "wfc_shop"):
                statement(database, f"ALTER TABLE {schema}.workflows ADD COLUMN description text")
                statement(database, f"DELETE FROM {schema}.wfe_migrations WHERE version > {LATEST}")
            for server in (old, restarted):
                await asyncio.to_thread(server.wait_until_serving)
                for namespace in NAMESPACES:
                    await eventually(partial(is_served, server, namespace))
        finally:
            await asyncio.to_thread(restarted.stop)
    assert "bug" not in old.log(), old.log()


async def refuses(server: ServerProcess) -> None:
    """It says in its health, to its callers and in its log that it is too old, and lives."""

    async def is_not_serving() -> bool:
        return await health(server) == "NOT_SERVING"

    await eventually(is_not_serving)
    assert await health(server, "liveness") == "SERVING"
    for namespace in NAMESPACES:
        await eventually(partial(is_refused, server, "SCHEMA_TOO_NEW", namespace))
    assert f"not serving: the store has schema version {LATEST + 1}, which only" in server.log()
    assert server.process.poll() is None


async def test_a_single_namespace_that_is_too_new_is_refused_alone(
    fleet: Fleet, database: psycopg.Connection[Any]
) -> None:
    with fleet.old() as old:
        await create_shop(old)
        assert await is_served(old, "shop")
        statement(
            database,
            "INSERT INTO wfc_shop.wfe_migrations (version, name, checksum, oldest_server) "
            "VALUES (%s, 'next', '', %s)", LATEST + 1, LATEST + 1,
        )  # fmt: skip
        await eventually(lambda: is_refused(old, "SCHEMA_TOO_NEW", "shop"))
        async with connect(old.address, namespace="shop") as channel:
            with fails("FAILED_PRECONDITION", "SCHEMA_TOO_NEW") as failure:
                await Api(channel).ensure_store_exists()
        assert failure.metadata == {
            "schema_version": str(LATEST + 1),
            "oldest_server": str(LATEST + 1),
            "latest_version": str(fleet.oldest),
        }
        assert await health(old, "shop/wfe.persistence.v1.EventService") == "NOT_SERVING"
        assert await is_served(old)
        assert await health(old) == "SERVING"
        statement(database, "UPDATE wfc_shop.wfe_migrations SET oldest_server = %s", fleet.oldest)
        assert await is_served(old, "shop")


async def test_a_running_server_whose_store_is_given_to_others_lives(
    fleet: Fleet, database: psycopg.Connection[Any]
) -> None:
    with fleet.old() as old:
        assert await is_served(old)
        statement(database, "UPDATE wfc.wfe_store SET owner_schema = 'other'")
        await eventually(lambda: is_refused(old, "STORE_NOT_OWNED"))
        assert await health(old) == "NOT_SERVING"
        assert "schema wfc is the namespace default of servers with --schema other" in old.log()
        statement(database, "UPDATE wfc.wfe_store SET owner_schema = 'wfc'")
        await asyncio.to_thread(old.wait_until_serving)
        assert await is_served(old)


async def info(server: ServerProcess) -> GetStoreInfoResponse:
    async with connect(server.address) as channel:
        return await Api(channel).get_store_info()
