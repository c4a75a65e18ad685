"""A server whose database role may change rows, but nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import grpc
import psycopg
import pytest
from psycopg import conninfo

from tests.support.api import Api, connect
from tests.support.expect import read_failure
from tests.support.make import new_id
from tests.support.rpcs import RPCS, Rpc, valid_request
from tests.support.scene import Scene, in_namespace
from tests.support.server import ServerProcess
from tests.test_cli import run
from wfe.persistence.v1.store_pb2 import GetStoreInfoRequest
from wfe_persistence.store.grants import grants
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import MIGRATIONS_TABLE, STORE_TABLE, TABLES

NEEDS_DEFINITIONS = {
    "CreateNamespace",
    "DeleteNamespace",
    "CreateNamespaceSet",
    "GetNamespaceSet",  # needs one
    "DeleteNamespaceSet",
    "MoveNamespace",
    "AbortMoveNamespace",
    "TruncateAll",
}
"""RPCs that create or drop tables, or truncate them: not for this role."""


@pytest.fixture
def role(database_url: str) -> Iterator[str]:
    """A role with a name that needs quotes, which may only connect."""
    name = f'{new_id("server")} "o\'brien"'
    quoted = psycopg.sql.Identifier(name)
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(psycopg.sql.SQL("CREATE ROLE {} LOGIN").format(quoted))
    yield name
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute(psycopg.sql.SQL("DROP OWNED BY {}").format(quoted))
        owner.execute(psycopg.sql.SQL("DROP ROLE {}").format(quoted))


@pytest.fixture
def role_url(database_url: str, role: str) -> str:
    """The connection string of that role, whose store a migrator has made."""
    done = run("migrate", "up", "--db-url", database_url, "--grant-to", role)
    assert done.returncode == 0, done.stderr
    return conninfo.make_conninfo(database_url, user=role)


async def test_a_server_without_ddl_does_all_that_changes_rows(
    tmp_path: Path, role_url: str
) -> None:
    with ServerProcess(
        tmp_path / "log", "--db-url", role_url, "--no-migrate",
        "--allow-truncate", "--allow-delete-namespace",
    ) as server:  # fmt: skip
        async with connect(server.address) as channel:
            api = Api(channel)
            for rpc in RPCS.values():
                if rpc.name not in NEEDS_DEFINITIONS:
                    async with Scene(api, rpc) as scene:
                        await scene.succeed()
            for name in sorted(NEEDS_DEFINITIONS):
                await _is_refused(api, RPCS[name])
    assert "bug" not in server.log()


async def _is_refused(api: Api, rpc: Rpc) -> None:
    request = valid_request(rpc)
    if rpc.name not in ("CreateNamespace", "CreateNamespaceSet", "TruncateAll"):
        return  # there is none to delete or to move, and none can be made
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rpc.call(api, request)
    assert read_failure(caught.value).reason == "DATABASE_PERMISSION_DENIED", rpc.name


def test_the_role_can_define_nothing_and_reach_nothing_else(
    database_url: str, role_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("CREATE SCHEMA other CREATE TABLE secrets (id int)")
    with psycopg.connect(role_url, autocommit=True) as server:
        for statement in [
            "CREATE TABLE wfc.more (id int)",
            "CREATE SCHEMA more",
            "ALTER TABLE wfc.events ADD COLUMN more int",
            "CREATE INDEX ON wfc.events (event_key)",
            "DROP TABLE wfc.events",
            "DROP SCHEMA wfc CASCADE",
            *(f"TRUNCATE wfc.{table}" for table in (*TABLES, STORE_TABLE, MIGRATIONS_TABLE)),
            f"DELETE FROM wfc.{MIGRATIONS_TABLE}",
            "SELECT * FROM other.secrets",
            "CREATE FUNCTION wfc.more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "ALTER FUNCTION wfc.workflows_deleted() OWNER TO CURRENT_USER",
            "DROP TRIGGER workflows_deleted ON wfc.workflows",
        ]:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                server.execute(statement.encode())


async def test_printed_grants_are_enough_in_another_namespace_with_a_prefix(
    tmp_path: Path, database_url: str, role: str
) -> None:
    """In a schema that others use too, whose tables stay out of reach."""
    schema = Schema("app", "wfe_")
    options = ("--schema", "app", "--table-prefix", "wfe_")
    with psycopg.connect(database_url, autocommit=True) as owner:
        owner.execute("CREATE SCHEMA app CREATE TABLE theirs (id serial)")
        for namespace in ("default", "orders"):
            for command in (("sql",), ("grants", "--role", role)):
                done = run("migrate", *command, "--namespace", namespace, *options)
                assert done.returncode == 0, done.stderr
                owner.execute(done.stdout.encode())
    role_url = conninfo.make_conninfo(database_url, user=role)
    with psycopg.connect(role_url, autocommit=True) as server:
        for beyond in ("SELECT * FROM app.theirs", "SELECT nextval('app.theirs_id_seq')"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                server.execute(beyond.encode())
    assert schema.for_namespace("orders").name == "app_orders"
    with ServerProcess(tmp_path / "log", "--db-url", role_url, "--no-migrate", *options) as started:
        async with connect(started.address) as channel:
            api = Api(channel)
            for namespace in ("default", "orders"):
                await api.store.GetStoreInfo(GetStoreInfoRequest(), **in_namespace(namespace))
            async with Scene(api, RPCS["CommitWorkflow"]) as scene:
                await scene.succeed()


async def test_a_role_without_privileges_is_named_in_the_answer(
    tmp_path: Path, database_url: str, role: str
) -> None:
    assert run("migrate", "up", "--db-url", database_url).returncode == 0
    role_url = conninfo.make_conninfo(database_url, user=role)
    server = ServerProcess(tmp_path / "log", "--db-url", role_url, "--no-migrate")
    server.start()
    try:
        async with connect(server.address) as channel:
            await _is_refused(Api(channel), RPCS["GetEvent"])
        async with asyncio.timeout(10):
            while "permission denied" not in server.log():
                await asyncio.sleep(0.02)
    finally:
        server.stop()


@pytest.mark.parametrize("role", ["", "x" * 64, "a$b"])
def test_what_can_t_be_a_role_is_refused(role: str) -> None:
    with pytest.raises(ValueError, match="name of a role"):
        grants(Schema(), role)
    done = run("migrate", "grants", "--role", role)
    assert done.returncode == 2
