"""The commands of docs/backup.md, on stores with something in them."""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest

from tests.hosts.pages import commands, run
from tests.support import make
from tests.support.api import Api, connect
from tests.support.binaries import Program, postgres
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest
from wfe.persistence.v1.workflow_pb2 import CreateNewWorkflowRequest, ListWorkflowsRequest

PAGE = Path(__file__).parents[1] / "docs" / "backup.md"


def _name(line: str) -> str:
    """What a command is called: its first word, or that of `wfe-persistence` with the second."""
    words = line.split()
    return " ".join(words[: 2 if words[0] == "wfe-persistence" else 1])


COMMANDS = {_name(command.line): command.line for command in commands(PAGE, "sh")}


@pytest.fixture(scope="module")
def program() -> Program:
    return postgres(18)


@pytest.fixture
def shell(program: Program) -> dict[str, str]:
    """The environment of the commands: PostgreSQL's programs, and ours."""
    path = [str(program.path.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {**program.env, "PATH": os.pathsep.join(path)}


@pytest.fixture
def archive(data_dir: Path) -> Path:
    """Where PostgreSQL, which may be another user, keeps its log of changes."""
    path = data_dir / "wal"
    path.mkdir()
    path.chmod(0o777)
    return path


@pytest.fixture
def cluster(program: Program, data_dir: Path, archive: Path) -> Iterator[PostgresServer]:
    [lines] = re.findall(r"^```ini\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    given = dict(line.split(" = ", 1) for line in lines.splitlines())
    settings = {
        name: value.strip("'").replace("/backup/wal", str(archive)) for name, value in given.items()
    }
    with PostgresServer(
        program, data_dir / "postgres", settings, "local replication all trust\n"
    ) as server:
        yield server


class Restored(PostgresServer):
    """A PostgreSQL on a data directory that is there already."""

    def __enter__(self) -> Self:
        self.url = f"postgresql://postgres@/postgres?host={self.directory}&port=5432"
        (self.directory / "data").chmod(0o700)
        if os.geteuid() == 0:
            owner = self.directory.stat()
            subprocess.run(
                ["chown", "-R", f"{owner.st_uid}:{owner.st_gid}", self.directory / "data"],
                check=True,
            )
        self._start(
            ["-D", self.directory / "data", "--archive_mode=off",
             f"--unix_socket_directories={self.directory}"]
        )  # fmt: skip
        return self


async def names(url: str, log: Path) -> set[tuple[str, str]]:
    """What a server on that database has, in its two namespaces."""
    found = set()
    with ServerProcess(log, "--db-url", url, "--no-migrate") as server:
        async with connect(server.address) as channel:
            api = Api(channel)
            for namespace in ("default", "other"):
                listed = await api.workflows.ListWorkflows(
                    ListWorkflowsRequest(), metadata=[("wfe-namespace", namespace)]
                )
                found |= {(namespace, workflow.id) for workflow in listed.instances}
    return found


async def write(server: ServerProcess, *ids: tuple[str, str]) -> None:
    async with connect(server.address) as channel:
        api = Api(channel)
        for namespace, id_ in ids:
            await api.workflows.CreateNewWorkflow(
                CreateNewWorkflowRequest(instance=make.instance(id=id_)),
                metadata=[("wfe-namespace", namespace)],
            )


async def test_dump_and_restore(
    cluster: PostgresServer, shell: Mapping[str, str], tmp_path: Path
) -> None:
    for statement in (
        "CREATE DATABASE new",
        "CREATE ROLE other_owner",
        "CREATE ROLE wfe_server LOGIN",
    ):
        await execute(cluster.url, statement)
    new = cluster.url.replace("/postgres?", "/new?")
    with ServerProcess(tmp_path / "log", "--db-url", cluster.url) as server:
        async with connect(server.address) as channel:
            await Api(channel).store.CreateNamespace(CreateNamespaceRequest(name="other"))
        await write(server, ("default", "a"), ("other", "b"))
        # The role that owns the tables is not there where they are restored.
        await execute(cluster.url, "ALTER TABLE wfc.workflows OWNER TO other_owner")
        env = {**shell, "DB": cluster.url, "NEW_DB": new}
        run(COMMANDS["pg_dump"], tmp_path, env=env, path=env["PATH"])
        await write(server, ("default", "later"))
    run(COMMANDS["pg_restore"], tmp_path, env=env, path=env["PATH"])
    assert "pending" not in run(
        COMMANDS["wfe-persistence migrate"], tmp_path, env=env, path=env["PATH"]
    )
    run(COMMANDS["for"], tmp_path, env=env, path=env["PATH"])
    as_server = new.replace("postgres@", "wfe_server@")
    assert await names(as_server, tmp_path / "new.log") == {("default", "a"), ("other", "b")}


async def test_export_and_import(
    database_url: str, shell: Mapping[str, str], tmp_path: Path
) -> None:
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        await write(server, ("default", "a"), ("default", "b"))
        env = {**shell, "OLD": server.address, "NEW": server.address}

        def runs(name: str) -> None:
            run(COMMANDS[name], tmp_path, env=env, path=env["PATH"])

        runs("wfe-persistence export")
        runs("wfe-persistence import")
        runs("WFE_PERSISTENCE_NAMESPACE=default")
        runs("exec")
        for namespace in ("restored", "moved"):
            async with connect(server.address, namespace=namespace) as channel:
                listed = await Api(channel).workflows.ListWorkflows(ListWorkflowsRequest())
            assert {workflow.id for workflow in listed.instances} == {"a", "b"}
    assert gzip.decompress((tmp_path / "backup.jsonl.gz").read_bytes()).count(b"\n") == 4
    assert (tmp_path / "old.jsonl").read_bytes().count(b"\n") == 2  # the fences


async def test_point_in_time(
    cluster: PostgresServer,
    program: Program,
    shell: Mapping[str, str],
    tmp_path: Path,
    data_dir: Path,
    archive: Path,
) -> None:
    restored = Restored(program, data_dir / "restored")
    backup = restored.directory / "data"
    env = {**shell, "DB": cluster.url, "BACKUP": str(backup), "WAL": str(archive)}
    with ServerProcess(tmp_path / "log", "--db-url", cluster.url) as server:
        async with connect(server.address) as channel:
            await Api(channel).store.CreateNamespace(CreateNamespaceRequest(name="other"))
        await write(server, ("default", "before the copy"))
        run(COMMANDS["pg_basebackup"], tmp_path, env=env, path=env["PATH"])
        await write(server, ("other", "after the copy"))
        [[moment]] = await execute(cluster.url, "SELECT clock_timestamp()::text")
        await write(server, ("default", "too late"))
    # What a server that is lost has archived; here, all of it.
    [[last]] = await execute(cluster.url, "SELECT pg_walfile_name(pg_switch_wal())")
    await asyncio.to_thread(wait_for, (archive / str(last)).exists, 60)
    run(COMMANDS["cat"], tmp_path, env={**env, "MOMENT": str(moment)}, path=env["PATH"])
    with restored:
        await promoted(restored.url)
        found = await names(restored.url, tmp_path / "restored.log")
    assert found == {("default", "before the copy"), ("other", "after the copy")}


async def execute(url: str, statement: str) -> list[Any]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []


async def promoted(url: str) -> None:
    async with asyncio.timeout(60):
        while (await execute(url, "SELECT pg_is_in_recovery()")) != [(False,)]:
            await asyncio.sleep(0.05)
