"""docs/security.md: its commands, run as they stand there, set up what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import grpc
import psycopg
import pytest

from tests.hosts.pages import ADDRESS, ROOT, attempt, commands, run
from tests.support.server import ServerProcess
from wfe.persistence.v1.workflow_pb2 import NextDefinitionSequenceRequest
from wfe.persistence.v1.workflow_pb2_grpc import WorkflowServiceStub

PAGE = ROOT / "docs" / "security.md"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def fences(word: str) -> list[str]:
    """The commands of the fences that have a word in them."""
    return [command.line for command in commands(PAGE, "sh") if word in command.line]


def served(line: str) -> list[str]:
    """The arguments of a `serve` that a page shows, but on a free port of this machine."""
    arguments = shlex.split(line.replace("\\\n", " "))
    assert arguments[:2] == ["wfe-persistence", "serve"]
    arguments = arguments[2:]
    if "--listen" in arguments:
        assert arguments[arguments.index("--listen") + 1] == "0.0.0.0:50052"
        arguments[arguments.index("--listen") + 1] = "127.0.0.1:0"
    return arguments


def call(server: ServerProcess) -> None:
    """What a host calls."""
    with (
        grpc.secure_channel(server.address.replace("127.0.0.1", "localhost"), server.credentials)
        if server.credentials
        else grpc.insecure_channel(server.address)
    ) as channel:
        request = NextDefinitionSequenceRequest(definition_id="page")
        WorkflowServiceStub(channel).NextDefinitionSequence(request, timeout=20)


def test_mutual_tls(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    monkeypatch.chdir(tmp_path)
    [certificates], [serve], [health] = (
        fences("openssl"),
        fences("--tls-cert server.pem"),
        fences("health --target"),
    )
    run(certificates, tmp_path)
    server = ServerProcess(tmp_path / "log", "--db-url", database_url, *served(serve))
    files = (Path(name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
    server.credentials = grpc.ssl_channel_credentials(*files)
    server.start()
    server.address = server.address.replace("127.0.0.1", "localhost")
    try:
        server.wait_until_serving()
        health = health.replace(ADDRESS.replace("127.0.0.1", "localhost"), server.address)
        assert "SERVING" in run(health, tmp_path, path=PATH)
        stranger = health.replace("client.", "server.")
        assert "SERVING" in run(stranger, tmp_path, path=PATH)  # health is for everybody…
        call(server)
        pair = (Path(name).read_bytes() for name in ("ca.pem", "server.key", "server.pem"))
        server.credentials = grpc.ssl_channel_credentials(*pair)
        with pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
            call(server)  # … and the rest for those whom the policy names
        code, _, _ = attempt(re.sub(r"--tls-client-\S+ \S+", "", health), tmp_path, "", PATH)
        assert code == 1
        assert "(TLS, client certificate)" in server.log()
    finally:
        server.stop()


def test_roles_of_the_database(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("psql"):
        pytest.skip("psql is not installed")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("CREATE DATABASE wfe")
    for name, user in (("ADMIN", "postgres"), ("OWNER", "wfe_owner"), ("SERVER", "wfe_server")):
        url = postgres_url.replace("//postgres@/postgres?", f"//{user}@/wfe?")
        assert url != postgres_url
        monkeypatch.setenv(f"{name}_URL", url)
    [roles] = fences("CREATE ROLE")
    prepare, _, serve = roles.rpartition("\n")
    run(f"set -e\n{prepare}", tmp_path, path=PATH)
    serve = serve.replace('"$SERVER_URL"', os.environ["SERVER_URL"])
    with ServerProcess(tmp_path / "log", *served(serve)) as server:
        call(server)
        [namespace] = fences("migrate sql --namespace orders")
        run(f"set -e\n{namespace}", tmp_path, path=PATH)
        with grpc.insecure_channel(server.address) as channel:
            WorkflowServiceStub(channel).NextDefinitionSequence(
                NextDefinitionSequenceRequest(definition_id="page"),
                metadata=(("wfe-namespace", "orders"),),
                timeout=20,
            )
