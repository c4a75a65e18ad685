"""MoveNamespace over the wire: what callers, watchers and operators see of it."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.cli.program import environment, on_terminal
from tests.support import binaries, make, ports
from tests.support.api import Api, connect
from tests.support.expect import fails
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess
from wfe.persistence.v1 import store_pb2 as pb
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.lock_pb2 import AcquireLockRequest, RenewLocksRequest
from wfe.persistence.v1.transfer_pb2 import ImportRecordsRequest, Record
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    CreateNewWorkflowRequest,
    NextDefinitionSequenceRequest,
)

LOGICAL = {"wal_level": "logical"}
MINUTE = Duration(seconds=60)


@dataclass
class Service:
    """Two PostgreSQLs, and a server that knows both."""

    home: PostgresServer
    b: PostgresServer
    server: ServerProcess


@contextmanager
def service(
    directory: Path, home: dict[str, str], b: dict[str, str], *options: str, access: str = ""
) -> Iterator[Service]:
    program = binaries.postgres(18)
    with (
        PostgresServer(program, directory / "home", home, access) as home_server,
        PostgresServer(program, directory / "b", b, access) as b_server,
        ServerProcess(
            directory / "log", "--db-url", home_server.url, "--database", f"b={b_server.url}",
            "--log-level", "debug", *options,
        ) as server,
    ):  # fmt: skip
        yield Service(home_server, b_server, server)


@pytest.fixture(scope="module")
def moving(run_dir: Path) -> Iterator[Service]:
    """A service whose databases allow logical replication."""
    directory = run_dir / "moving"
    directory.mkdir(0o711)
    with service(directory, LOGICAL, LOGICAL) as found:
        yield found
        assert '"message": "bug' not in found.server.log()


@asynccontextmanager
async def calls(of: Service, name: str) -> AsyncIterator[tuple[Api, Any]]:
    """The API, and the metadata of calls in a new namespace at home."""
    async with connect(of.server.address) as channel:
        api = Api(channel)
        await api.store.CreateNamespace(pb.CreateNamespaceRequest(name=name, database="home"))
        yield api, (("wfe-namespace", name),)


async def move(api: Api, name: str, database: str, **fields: Any) -> list[Any]:
    request = pb.MoveNamespaceRequest(name=name, database=database, **fields)
    return [response async for response in api.store.MoveNamespace(request)]


async def next_number(api: Api, inside: Any) -> int:
    request = NextDefinitionSequenceRequest(definition_id="order")
    return (await api.workflows.NextDefinitionSequence(request, metadata=inside)).number


async def database_of(api: Api, name: str) -> str:
    listed = await api.store.ListNamespaces(pb.ListNamespacesRequest(page_size=1000))
    return next(each.database for each in listed.namespaces if each.name == name)


@pytest.mark.parametrize("way", [pb.MOVE_WAY_LOGICAL_REPLICATION, pb.MOVE_WAY_COPY])
async def test_all_that_a_namespace_has_goes_along(
    moving: Service, way: pb.MoveWay.ValueType
) -> None:
    name = f"whole_{way}"
    async with calls(moving, name) as (api, inside):
        create = CreateNewWorkflowRequest(instance=make.full_instance())
        created = await api.workflows.CreateNewWorkflow(create, metadata=inside)
        commit = CommitWorkflowRequest(
            patch=make.patch(created.id), expected_revision=created.revision,
            request_id=make.request_id(),
        )  # fmt: skip
        committed = await api.workflows.CommitWorkflow(commit, metadata=inside)
        lock = await api.locks.AcquireLock(
            AcquireLockRequest(resource="r", owner="o", ttl=MINUTE), metadata=inside
        )
        numbers = [await next_number(api, inside) for _ in range(3)]

        said = await move(api, name, "b", way=way)

        phases = [each.phase for each in said]
        assert phases[0] == pb.MOVE_PHASE_PLANNED
        assert phases[-1] == pb.MOVE_PHASE_MOVED
        assert phases == sorted(phases)
        assert said[-1].way == way
        assert said[-1].HasField("pause")
        assert await database_of(api, name) == "b"
        # The keys of requests: the same commit again is recognized, and so is the create.
        assert await api.workflows.CommitWorkflow(commit, metadata=inside) == committed
        again = await api.workflows.CreateNewWorkflow(create, metadata=inside)
        assert again.id == created.id
        # Leases, epochs, sequences.
        await api.locks.RenewLocks(
            RenewLocksRequest(tokens=[lock.token], ttl=MINUTE), metadata=inside
        )
        other = await api.locks.AcquireLock(
            AcquireLockRequest(resource="s", owner="o", ttl=MINUTE), metadata=inside
        )
        assert other.epoch > lock.epoch
        assert await next_number(api, inside) == numbers[-1] + 1


async def test_watchers_of_before_are_told_that_their_cursors_have_expired(
    moving: Service,
) -> None:
    async with calls(moving, "watched") as (api, inside):
        cursor = await api.cursor(metadata=inside)
        changes = await api.change_cursor(metadata=inside)
        async with api.watch(metadata=inside) as responses:
            await anext(responses)
            await move(api, "watched", "b")
            with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
                async with asyncio.timeout(20):
                    async for _ in responses:
                        pass
        await api.publish(make.lifecycle_event(), metadata=inside)
        with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
            async with api.watch(after=cursor, metadata=inside) as responses:
                await anext(responses)
        with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
            async with api.watch_workflows(after=changes, metadata=inside) as changed:
                await anext(changed)
        # Moved back, the ids of transactions are those of the first feed again; its cursors are not
        # valid all the same.
        await move(api, "watched", "home")
        with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
            async with api.watch(after=cursor, metadata=inside) as responses:
                await anext(responses)


async def test_an_import_does_not_follow_and_can_be_begun_again(moving: Service) -> None:
    events = [make.event() for _ in range(2)]
    imported = [ImportRecordsRequest(records=[Record(event=each)]) for each in events]
    async with calls(moving, "imported") as (api, inside):
        call: Any = api.transfer.ImportRecords(metadata=inside)
        await call.write(imported[0])
        assert (await call.read()).stored == 1
        await move(api, "imported", "b")
        await call.write(imported[1])
        with fails("UNAVAILABLE", "DATABASE_UNAVAILABLE") as failure:
            await call.read()
        assert "moved" in failure.message
        answers = api.transfer.ImportRecords(iter(imported), metadata=inside)
        assert [answer.stored async for answer in answers] == [0, 1]


async def test_what_can_not_be_moved(moving: Service) -> None:
    async with calls(moving, "still") as (api, _):
        with fails("NOT_FOUND", "DATABASE_NOT_FOUND"):
            await move(api, "still", "nowhere")
        with fails("NOT_FOUND", "NAMESPACE_NOT_FOUND"):
            await move(api, "no_such", "b")
        with psycopg.connect(moving.home.url, autocommit=True) as home:
            home.execute("CREATE TABLE wfc_still._sqlx_migrations (n int)")
        with fails("FAILED_PRECONDITION", "MOVE_NOT_POSSIBLE") as failure:
            await move(api, "still", "b")
        assert "_sqlx_migrations" in failure.message
        assert await database_of(api, "still") == "home"
        answer = await api.store.AbortMoveNamespace(pb.AbortMoveNamespaceRequest(name="still"))
        assert not answer.aborted


async def test_a_move_whose_caller_hangs_up_is_taken_up_or_aborted(moving: Service) -> None:
    async with calls(moving, "left") as (api, inside):
        # The slot waits for this transaction, and so does the move.
        with psycopg.connect(moving.home.url) as open_:
            open_.execute("CREATE TABLE held_up (n int)")
            request = pb.MoveNamespaceRequest(name="left", database="b")
            call: Any = api.store.MoveNamespace(request)
            async for response in call:
                if response.phase == pb.MOVE_PHASE_COPYING:
                    break
            call.cancel()
            with fails("FAILED_PRECONDITION", "MOVE_IN_PROGRESS"):
                await move(api, "left", "home")
            assert await database_of(api, "left") == "home"
            await api.events.CreateEvent(CreateEventRequest(event=make.event()), metadata=inside)
        answer = await api.store.AbortMoveNamespace(
            pb.AbortMoveNamespaceRequest(name="left"), timeout=60
        )
        assert answer.aborted
        assert (await move(api, "left", "b"))[-1].phase == pb.MOVE_PHASE_MOVED
        assert await database_of(api, "left") == "b"


async def test_without_logical_replication_a_copy_is_planned_and_made(data_dir: Path) -> None:
    with service(data_dir, {"wal_level": "replica"}, {}) as found:
        async with calls(found, "copied") as (api, inside):
            await api.events.CreateEvent(CreateEventRequest(event=make.event()), metadata=inside)
            [plan] = await move(api, "copied", "b", dry_run=True)
            assert plan.phase == pb.MOVE_PHASE_PLANNED
            assert plan.way == pb.MOVE_WAY_COPY
            assert any("wal_level" in obstacle for obstacle in plan.obstacles)
            assert await database_of(api, "copied") == "home"
            with fails("FAILED_PRECONDITION", "MOVE_NOT_POSSIBLE") as failure:
                await move(api, "copied", "b", way=pb.MOVE_WAY_LOGICAL_REPLICATION)
            assert "wal_level" in failure.message
            said = await move(api, "copied", "b")
            assert said[-1].way == pb.MOVE_WAY_COPY
            assert await database_of(api, "copied") == "b"


async def test_no_log_has_the_password_that_the_subscriber_connects_with(data_dir: Path) -> None:
    password = "s3cret-of-the-source"
    port = ports.free_port()
    home = {**LOGICAL, "listen_addresses": "127.0.0.1", "port": str(port)}
    program = binaries.postgres(18)
    access = "host all,replication all 127.0.0.1/32 scram-sha-256\n"
    with (
        PostgresServer(program, data_dir / "home", home, access) as source,
        PostgresServer(program, data_dir / "b", {**LOGICAL, "log_statement": "ddl"}) as target,
    ):
        with psycopg.connect(source.url, autocommit=True) as admin:
            admin.execute(f"CREATE ROLE wfe LOGIN REPLICATION PASSWORD '{password}'".encode())
            admin.execute("CREATE DATABASE wfe OWNER wfe")
        with psycopg.connect(target.url, autocommit=True) as admin:
            admin.execute("CREATE ROLE wfe LOGIN")
            admin.execute("GRANT pg_create_subscription TO wfe")
            admin.execute("CREATE DATABASE wfe OWNER wfe")
        url = f"postgresql://wfe:{password}@127.0.0.1:{port}/wfe"
        b_url = target.url.replace("postgres@/postgres", "wfe@/wfe")
        with ServerProcess(
            data_dir / "log", "--db-url", url, "--database", f"b={b_url}",
            "--log-level", "debug",
        ) as server:  # fmt: skip
            found = Service(source, target, server)
            async with calls(found, "secret") as (api, _):
                said = await move(api, "secret", "b", way=pb.MOVE_WAY_LOGICAL_REPLICATION)
                assert said[-1].phase == pb.MOVE_PHASE_MOVED
                # What fails is logged with its statement, but for this one.
                with psycopg.connect(source.url, autocommit=True) as admin:
                    admin.execute("ALTER ROLE wfe NOREPLICATION")
                await move(api, "secret", "home", way=pb.MOVE_WAY_COPY)
            assert password not in server.log()
        for log in (source.directory / "log", target.directory / "log"):
            assert password not in log.read_text()
        assert "logical replication apply worker" in (target.directory / "log").read_text()


def line(of: Service, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "wfe_persistence", "namespace", "move", *arguments),
        *("--target", of.server.address),
    ]


def command(of: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        line(of, *arguments), capture_output=True, text=True, timeout=120, check=False
    )


def on_a_terminal(
    of: Service, *arguments: str, answers: Sequence[tuple[str, str]] = ()
) -> tuple[int, str]:
    program, *rest = line(of, *arguments)
    with tempfile.TemporaryDirectory() as home:
        env = environment(Path(home), NO_COLOR="1")
        return on_terminal(rest, env, program=[program], answers=answers, columns=200)


def interrupt(of: Service, *arguments: str) -> tuple[int, str]:
    """Ctrl-C while it copies: its exit status, and what it says of that."""
    with subprocess.Popen(
        line(of, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for said in process.stderr:
            if said.startswith("copying"):
                break
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        return process.returncode, said


async def test_the_command_says_what_it_will_do_and_does_it(moving: Service) -> None:
    async with calls(moving, "told") as (api, inside):
        ran = await asyncio.to_thread(command, moving, "told", "--to", "b", "--dry-run")
        assert ran.returncode == 0, ran.stderr
        assert "told will be moved to b by logical replication" in ran.stdout
        assert await database_of(api, "told") == "home"
        ran = await asyncio.to_thread(command, moving, "told", "--to", "b", "--way", "copy")
        assert ran.returncode == 2
        assert "--yes" in ran.stderr
        # The move waits for this transaction, until it is interrupted: then nobody drives it.
        with psycopg.connect(moving.home.url) as open_:
            open_.execute("CREATE TABLE interrupted (n int)")
            status, said = await asyncio.to_thread(interrupt, moving, "told", "--to", "b")
        assert status == 130
        assert "told stays in use where it is, and the move waits" in said
        assert await database_of(api, "told") == "home"
        await api.events.CreateEvent(CreateEventRequest(event=make.event()), metadata=inside)
        # The same command goes on with it.
        ran = await asyncio.to_thread(command, moving, "told", "--to", "b")
        assert ran.returncode == 0, ran.stderr
        assert "moved; writes waited for" in ran.stdout
        assert await database_of(api, "told") == "b"
        ran = await asyncio.to_thread(command, moving, "told", "--to", "b")
        assert "told is in b already" in ran.stdout
        ran = await asyncio.to_thread(command, moving, "told", "--abort")
        assert ran.stdout == "it was not being moved\n"
        # On a terminal there is a bar, which Ctrl-C ends, too.
        with psycopg.connect(moving.b.url) as open_:
            open_.execute("CREATE TABLE interrupted (n int)")
            status, said = await asyncio.to_thread(
                on_a_terminal, moving, "told", "--to", "home", answers=[("copying, ", "\x03")]
            )
        assert status == 130
        assert "told stays in use where it is, and the move waits" in said
        status, said = await asyncio.to_thread(on_a_terminal, moving, "told", "--to", "home")
        assert status == 0
        assert re.search(r"copying, \S+ \S?B behind .*\d/\d+(\.\d)? \S?B", said), said
        assert "moved; writes waited for" in said
        assert await database_of(api, "told") == "home"
        ran = await asyncio.to_thread(command, moving, "told")
        assert ran.returncode == 2
