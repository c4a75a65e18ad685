"""Exports and imports while servers are killed and stopped, and connections to the database end."""
# ruff: noqa: ASYNC221 — the programs that are run are what is tested

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.faults.conftest import Start
from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import fails
from tests.support.ports import free_port
from tests.support.server import ServerProcess
from tests.support.transfer import as_bytes, export, fill_with_workflows, import_
from tests.support.waiting import wait_for
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest
from wfe.persistence.v1.transfer_pb2 import ExportRecordsRequest, Record

pytestmark = pytest.mark.timeout(600)

PROGRAM = [sys.executable, "-m", "wfe_persistence"]
COUNT = 20_000

# A client that is slow to read has not got all of it already.
LITTLE_AHEAD = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]


async def begun(api: Api, hold: float) -> tuple[list[Record], str]:
    """The beginning of an export, which is cut off, and its cursor."""
    stream = api.transfer.ExportRecords(
        ExportRecordsRequest(hold=Duration(nanos=int(hold * 1e9) % 10**9, seconds=int(hold)))
    )
    found: list[Record] = []
    cursor = ""
    async for response in stream:
        found += response.records
        cursor = response.cursor
        if found:
            break
    stream.cancel()
    return found, cursor


async def test_export_goes_on_through_another_server(start: Start, database_url: str) -> None:
    one, other = start(), start()
    fill_with_workflows(database_url, COUNT)
    async with connect(one.address) as channel, connect(other.address) as second:
        whole = as_bytes(await export(Api(channel)))
        found, cursor = await begun(Api(channel), 60)
        assert len(found) < len(whole)
        await Api(second).create(make.instance(id="later"))
        rest = await export(Api(second), after=cursor)
    assert as_bytes([*found, *rest]) == whole


async def test_export_does_not_go_on_if_its_server_was_killed(
    start: Start, database_url: str
) -> None:
    one, other = start(), start()
    fill_with_workflows(database_url, COUNT)
    async with connect(one.address) as channel, connect(other.address) as second:
        _, cursor = await begun(Api(channel), 60)
        one.kill()
        await asyncio.to_thread(wait_for, lambda: open_snapshots(database_url) == 0)
        with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
            await export(Api(second), after=cursor)


async def test_export_ends_with_its_server_in_order(start: Start, database_url: str) -> None:
    server = start("--drain-seconds", "0.5")
    fill_with_workflows(database_url, COUNT)
    async with connect(server.address, LITTLE_AHEAD) as channel:
        stream = Api(channel).transfer.ExportRecords(ExportRecordsRequest(hold=Duration(seconds=9)))
        with fails("UNAVAILABLE", "SHUTTING_DOWN") as failure:
            stopping = None
            async for response in stream:
                if response.records and stopping is None:
                    stopping = asyncio.ensure_future(asyncio.to_thread(server.stop))
                await asyncio.sleep(0.2)
        assert failure.metadata["cursor"]
        assert stopping is not None
        assert await stopping == 0
    assert open_snapshots(database_url) == 0
    assert "bug" not in server.log()


def open_snapshots(url: str) -> int:
    """How many transactions are open in which nothing happens."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
            " AND application_name = 'wfe-persistence'"
        ).fetchone()
    assert found is not None
    return int(found[0])


def end_connections(url: str) -> None:
    """As a restart of PostgreSQL does."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def command(*arguments: str, when: Callable[[], object], do: Callable[[], object]) -> str:
    """Run a command, and do something in the midst of it; what it said."""
    with subprocess.Popen([*PROGRAM, *arguments], stderr=subprocess.PIPE, text=True) as process:
        wait_for(when)
        assert process.poll() is None, "it was too fast"
        do()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(120) == 0, said
    return said


async def test_commands_survive_servers_and_connections(database_url: str, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    options = ("--db-url", database_url, "--listen", address)
    server = ServerProcess(tmp_path / "log", *options)
    file, again = tmp_path / "all.jsonl", tmp_path / "again.jsonl"
    part = Path(f"{file}.part")
    target = ("--target", address)

    def restart() -> None:
        server.kill()
        server.start()
        server.wait_until_serving()

    def stored() -> int:
        with psycopg.connect(database_url, autocommit=True) as connection:
            found = connection.execute("SELECT count(*) FROM wfc_copy.workflows").fetchone()
        return 0 if found is None else int(found[0])

    with server:
        async with connect(address) as channel:
            await Api(channel).store.CreateNamespace(CreateNamespaceRequest(name="copy"))
        fill_with_workflows(database_url, COUNT)

        def begun() -> bool:
            return part.exists() and part.stat().st_size > 0

        for disaster in (restart, lambda: end_connections(database_url)):
            said = command("export", str(file), *target, when=begun, do=disaster)
            assert "beginning anew" in said
            assert f"exported {COUNT + 2} records" in said
            into = ("--namespace", "copy")
            said = command(
                "import", str(file), *target, *into, when=lambda: stored() > 0, do=disaster
            )
            assert "trying again" in said
            assert stored() == COUNT
            subprocess.run([*PROGRAM, "export", str(again), *target, *into], check=True)
            assert again.read_bytes() == file.read_bytes()
            with psycopg.connect(database_url, autocommit=True) as connection:
                connection.execute("DELETE FROM wfc_copy.execution_pointers")
                connection.execute("ALTER TABLE wfc_copy.workflows DISABLE TRIGGER USER")
                connection.execute("DELETE FROM wfc_copy.workflows")
                connection.execute("ALTER TABLE wfc_copy.workflows ENABLE TRIGGER USER")
    assert "bug" not in server.log()


async def test_others_are_served_while_all_is_exported_and_imported(
    start: Start, database_url: str
) -> None:
    """Calls of others are answered all the time, however few connections there are."""
    server = start("--pool-size", "1")
    fill_with_workflows(database_url, COUNT)
    async with (
        connect(server.address) as channel,
        connect(server.address, namespace="copy") as second,
    ):
        api, copy = Api(channel), Api(second)
        await api.store.CreateNamespace(CreateNamespaceRequest(name="copy"))
        event = make.event()
        await api.create_event(event)
        answered = 0

        async def move() -> None:
            await import_(copy, await export(api), batch=500)

        moving = asyncio.ensure_future(move())
        while not moving.done():
            await api.get_event(event.id)
            answered += 1
            await asyncio.sleep(0.01)
        await moving
        assert answered > 10
        assert len(await export(copy)) == COUNT + 3
