"""The commands of docs/upgrading.md, on stores that are in use."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.faults.test_upgrade import health, is_refused, is_served
from tests.hosts.pages import attempt, commands, run
from tests.store.originals import Original
from tests.store.test_online_migrations import LATEST, all_indexes, at_version
from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import eventually, fails
from tests.support.server import ServerProcess
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest
from wfe_persistence.store import migration_files, original_indexes
from wfe_persistence.store.postgres.source import ConnectionSource

PAGE = Path(__file__).parents[1] / "docs" / "upgrading.md"
COMMANDS = [command.line for command in commands(PAGE, "sh")]
NEWEST = migration_files.migrations()[-1]
# The step from schema version 2 to 3 is the first that takes long on a large store.
OLD = 2


def command(*words: str) -> str:
    """The one command of the page that has these words, and none of the others that it may have."""
    [found] = [
        line
        for line in COMMANDS
        if all(word in line for word in words)
        and ("--format" in line) == ("--format" in words)
        and ("--concurrently" in line) == ("--concurrently" in words)
    ]
    return found


@pytest.fixture
def database(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def owner_url(database: psycopg.Connection[Any], database_url: str) -> str:
    """The connection string of the owner of the tables; the servers' is wfe_server."""
    for role in ("wfe_owner", "wfe_server"):
        if not database.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).fetchall():
            database.execute(f"CREATE ROLE {role} LOGIN".encode())
    database.execute(f'GRANT CREATE ON DATABASE "{database.info.dbname}" TO wfe_owner'.encode())
    return database_url.replace("postgres@", "wfe_owner@")


@pytest.fixture
def shell(owner_url: str) -> dict[str, str]:
    """The environment of the commands."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "OWNER_URL": owner_url, "PATH": path}


def do(line: str, cwd: Path, shell: dict[str, str]) -> str:
    return run(line, cwd, env=shell, path=shell["PATH"])


async def test_plan_up_and_status(
    owner_url: str, shell: dict[str, str], tmp_path: Path, database: psycopg.Connection[Any]
) -> None:
    database.execute("CREATE SCHEMA wfc AUTHORIZATION wfe_owner")
    at_version(ConnectionSource(owner_url), OLD)
    Original(database, 2).fill()
    plan = do(command("plan"), tmp_path, shell)
    assert f"default: version {OLD} to {LATEST}, about " in plan
    assert "a server applies it by itself" in plan
    assert "workflows (0 MB, " in plan
    assert "ACCESS EXCLUSIVE, holds up reads and writes" in plan
    planned = json.loads(do(command("plan", "--format"), tmp_path, shell))
    [default] = planned["namespaces"]
    assert (default["namespace"], default["version"]) == ("default", OLD)
    assert default["applied_by_servers"] is True
    names = [migration.name for migration in migration_files.migrations()[OLD:]]
    assert [migration["name"] for migration in default["migrations"]] == names
    lock = {lock["table"]: lock for lock in default["migrations"][0]["locks"]}["events"]
    assert (lock["mode"], lock["holds_up"]) == ("SHARE", "writes")
    assert lock["bytes"] > 0
    status, pending, _ = attempt(command("status"), tmp_path, "", shell["PATH"], env=shell)
    assert (status, f"{NEWEST.name}  pending" in pending) == (1, True)

    up = do(command("up"), tmp_path, shell)
    assert up == f"default: applied {', '.join(names)}\n"
    assert "pending" not in do(command("status"), tmp_path, shell)
    assert do(command("plan"), tmp_path, shell) == f"default: version {LATEST}, nothing to do\n"
    as_server = owner_url.replace("wfe_owner@", "wfe_server@")
    with ServerProcess(tmp_path / "log", "--db-url", as_server, "--no-migrate") as server:
        assert await is_served(server)


async def test_what_takes_long_waits_for_up(
    owner_url: str, shell: dict[str, str], tmp_path: Path, database: psycopg.Connection[Any]
) -> None:
    database.execute("CREATE SCHEMA wfc AUTHORIZATION wfe_owner")
    at_version(ConnectionSource(owner_url), OLD)
    Original(database, 2).fill()
    server = ServerProcess(tmp_path / "log", "--db-url", owner_url, "--migrate-seconds", "0.01")
    server.start()
    try:
        await eventually(lambda: said(server, "not serving: the store's migrations are reckoned"))
        assert "run wfe-persistence migrate up" in server.log()
        async with connect(server.address) as channel:
            with fails("FAILED_PRECONDITION", "SCHEMA_OUTDATED"):
                await Api(channel).ensure_store_exists()
        do(command("up"), tmp_path, shell)
        await eventually(partial(is_served, server))
    finally:
        server.stop()
    assert "bug" not in server.log()


async def said(server: ServerProcess, text: str) -> bool:
    return text in server.log()


async def test_down_and_up_again_under_running_servers(
    owner_url: str, shell: dict[str, str], tmp_path: Path, database: psycopg.Connection[Any]
) -> None:
    shell["VERSION"] = str(LATEST - 1)
    with ServerProcess(tmp_path / "log", "--db-url", owner_url) as server:
        async with connect(server.address) as channel:
            await Api(channel).store.CreateNamespace(CreateNamespaceRequest(name="shop"))
        assert await is_served(server, "shop")
        down = do(command("down"), tmp_path, shell)
        assert down == "".join(f"{name}: took back {NEWEST.name}\n" for name in ("default", "shop"))
        assert do(command("down"), tmp_path, shell).startswith(f"default: is at {LATEST - 1}\n")

        async def is_not_serving() -> bool:
            return await health(server) == "NOT_SERVING"

        await eventually(is_not_serving)
        await eventually(lambda: is_refused(server, "SCHEMA_OUTDATED", "shop"))
        assert (
            f"not serving: the store has schema version {LATEST - 1}, {LATEST} is" in server.log()
        )
        assert await health(server, "liveness") == "SERVING"

        restarted = ServerProcess(tmp_path / "restarted", "--db-url", owner_url)
        restarted.start()
        try:
            await eventually(
                lambda: said(restarted, "not serving: the store was taken back to schema version")
            )
            assert "was taken back, so only `migrate up`" in do(command("plan"), tmp_path, shell)
            for schema in ("wfc", "wfc_shop"):
                newest = database.execute(f"SELECT max(version) FROM {schema}.wfe_migrations")
                assert newest.fetchone() == (LATEST - 1,)
            do(command("up"), tmp_path, shell)
            for running in (server, restarted):
                for namespace in ("default", "shop"):
                    await eventually(partial(is_served, running, namespace))
        finally:
            restarted.stop()
    for log in (server.log(), restarted.log()):
        assert "bug" not in log, log


async def test_down_is_refused_where_something_would_be_lost_in_any_namespace(
    owner_url: str, shell: dict[str, str], tmp_path: Path, database: psycopg.Connection[Any]
) -> None:
    with ServerProcess(tmp_path / "log", "--db-url", owner_url) as server:
        async with connect(server.address) as channel:
            await Api(channel).store.CreateNamespace(CreateNamespaceRequest(name="shop"))
    shell["VERSION"] = "10"
    database.execute("DELETE FROM wfc.wfe_migrations WHERE version > 11")
    database.execute("DELETE FROM wfc_shop.wfe_migrations WHERE version > 11")
    database.execute("INSERT INTO wfc_shop.retention_rules (kind) VALUES ('Event')")
    status, out, errors = attempt(command("down"), tmp_path, "", shell["PATH"], env=shell)
    assert (status, out) == (1, "")
    assert "shop: not taken back: 0011_retention would lose 1 rules of retention" in errors
    for schema in ("wfc", "wfc_shop"):
        newest = database.execute(f"SELECT max(version) FROM {schema}.wfe_migrations")
        assert newest.fetchone() == (11,)
    # As the page shows it.
    shown = re.search(r"not taken back: (.*) would lose \d+ (.*)", PAGE.read_text())
    assert shown
    assert shown.groups() == ("0011_retention", "rules of retention")


@pytest.mark.parametrize("how", ["", "--concurrently"])
async def test_sql(
    owner_url: str,
    shell: dict[str, str],
    tmp_path: Path,
    database: psycopg.Connection[Any],
    how: str,
) -> None:
    database.execute("CREATE SCHEMA wfc AUTHORIZATION wfe_owner")
    at_version(ConnectionSource(owner_url), OLD)
    do(command("sql", how), tmp_path, shell)
    script = (tmp_path / "migrations.sql").read_text()
    with psycopg.connect(owner_url, autocommit=bool(how)) as owner:
        # As psql does: CONCURRENTLY is refused in a transaction, also that of several statements.
        for statement in statements(script) if how else [script]:
            owner.execute(statement.encode())
    assert do(command("plan"), tmp_path, shell) == f"default: version {LATEST}, nothing to do\n"


def statements(script: str) -> list[str]:
    """What comes up to each semicolon that is not in a body."""
    parts = re.split(r"(\$\$.*?\$\$|--[^\n]*|;)", script, flags=re.DOTALL)
    joined = "".join("\0" if part == ";" else part for part in parts)
    return [statement for statement in joined.split("\0") if statement.strip()]


async def test_what_a_host_of_the_original_creates_anew_is_dropped(
    database: psycopg.Connection[Any], database_url: str, tmp_path: Path
) -> None:
    """At the start of a server, and at EnsureStoreExists."""
    original = Original(database, 2)
    theirs = set(original_indexes.ORIGINAL_INDEXES)
    with ServerProcess(tmp_path / "log", "--db-url", database_url):
        pass
    original.create_indexes()
    assert theirs <= all_indexes(database)
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        assert not theirs & all_indexes(database)
        original.create_indexes()
        async with connect(server.address) as channel:
            await Api(channel).ensure_store_exists()
            assert not theirs & all_indexes(database)
            await Api(channel).create_event(make.event())
