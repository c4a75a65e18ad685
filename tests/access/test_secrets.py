"""No secret is ever said: not in logs (of the level debug), not in errors, not where `ps` looks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from tests.access.conftest import OWN, GuardedServer, bearer, running
from tests.support import make
from tests.support.api import Api, connect
from tests.support.scene import refusal
from wfe.persistence.v1.store_pb2 import GetStoreInfoRequest
from wfe.persistence.v1.workflow_pb2 import CreateNewWorkflowRequest
from wfe_persistence.access.access import Access
from wfe_persistence.access.policy import parse_policy
from wfe_persistence.access.role import Role
from wfe_persistence.access.tokens import create_token
from wfe_persistence.access.watched import WatchedFile
from wfe_persistence.settings import Settings

PASSWORD = "canary-password-5fd924"
PAYLOAD = "canary-payload-3e0b7a"


async def test_canaries_are_nowhere(
    postgres_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE canary LOGIN SUPERUSER PASSWORD '{PASSWORD}'".encode())
        connection.execute("CREATE DATABASE canary")
    url = urlsplit(postgres_url)
    host = url.netloc.rpartition("@")[2]
    secret_url = urlunsplit(url._replace(netloc=f"canary:{PASSWORD}@{host}", path="/canary"))
    guarded = GuardedServer(tmp_path)
    given = "canary-token-" + "9" * 40
    create_token(guarded.token_file, "host", None, given)
    token = guarded.issuer.token("host")
    forged = guarded.issuer.confused("host")
    bad = guarded.issuer.token("host", exp=1)
    said = ""
    with running(guarded, secret_url) as server:
        async with connect(server.address) as channel:
            api = Api(channel)
            for good in (given, token, guarded.tokens["host"]):
                metadata = [("wfe-namespace", OWN), bearer(good)]
                await api.store.GetStoreInfo(GetStoreInfoRequest(), metadata=metadata)
                instance = make.instance(data_json=f'"{PAYLOAD}"')
                request = CreateNewWorkflowRequest(instance=instance)
                await api.workflows.CreateNewWorkflow(request, metadata=metadata)
                request.instance.data_json = f"{PAYLOAD} is no JSON"
                _, text = await refusal(api.workflows.CreateNewWorkflow(request, metadata=metadata))
                said += text
                _, text = await refusal(
                    api.store.GetStoreInfo(GetStoreInfoRequest(), metadata=[bearer(good)])
                )
                said += text
            for wrong in (forged, bad, given + "x", "canary-token-unknown"):
                _, text = await refusal(
                    api.store.GetStoreInfo(GetStoreInfoRequest(), metadata=[bearer(wrong)])
                )
                said += text
            for value in (f"Basic {given}", f"Bearer {given} {given}", given):
                _, text = await refusal(
                    api.store.GetStoreInfo(
                        GetStoreInfoRequest(), metadata=[("authorization", value)]
                    )
                )
                said += text
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("ALTER ROLE canary PASSWORD 'changed'")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'canary'"
            )
        said += shown_by_ps(server.process.pid)
    said += server.log() + "".join(capfd.readouterr())
    secrets = [PAYLOAD, given, token, forged, bad, *guarded.tokens.values()]
    secrets += [part for jwt in (token, forged, bad) for part in jwt.split(".")[1:]]
    for secret in (*secrets, "canary-token-unknown", PASSWORD):
        assert secret not in said
    assert "call: rpc=GetStoreInfo outcome=OK" in said


def shown_by_ps(pid: int) -> str:
    """The name and arguments of a process, which every user of the machine can see."""
    process = Path(f"/proc/{pid}")
    return (process / "comm").read_text() + (process / "cmdline").read_bytes().decode()


def test_no_token_is_taken_from_the_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wfe_persistence", "token", "create", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert "--stdin" in done.stdout
    assert "--token " not in done.stdout
    assert "--secret" not in done.stdout


def test_a_server_with_bad_files_says_which(tmp_path: Path) -> None:
    guarded = GuardedServer(tmp_path)
    guarded.policy_file.write_text('[[grant]]\nprincipals = ["*"]\nrole = "god"\n')
    done = subprocess.run(
        [sys.executable, "-m", "wfe_persistence", "serve", *guarded.arguments,
         "--db-url", "postgresql://nobody@127.0.0.1:1/nothing", "--listen", "127.0.0.1:0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    for part in (
        "policy.toml: grant 1: ",
        "role: 'god'",
        "namespaces is missing",
        "'*' must begin",
    ):
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_cryptography_is_loaded_by_servers_that_need_it_only() -> None:
    """It takes time and memory that a sidecar without TLS and JWTs need not spend."""
    program = "import sys, wfe_persistence.app; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "wfe_persistence.app" in loaded
    assert not loaded & {"jwt", "cryptography", "urllib.request", "wfe_persistence.access.keys"}


def test_the_commands_of_the_documentation_work(tmp_path: Path) -> None:
    """The first ones of docs/security.md, up to the one that starts the server, whose settings are
    checked."""
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    script = text.partition("```sh\n")[2].partition("```")[0]
    *commands, serve = script.strip().splitlines()
    assert serve == ("wfe-persistence serve --token-file tokens.json --policy-file policy.toml")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join(commands)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    token, valid, answer = done.stdout.splitlines()
    assert token.startswith("wfe_")
    assert "policy.toml: valid" in valid
    assert answer.startswith("allowed: token:billing has the role host in prod")
    settings = Settings(token_file=tmp_path / "tokens.json", policy_file=tmp_path / "policy.toml")
    settings.require_protection()
    policy = WatchedFile(tmp_path / "policy.toml", parse_policy)
    policy.load()
    assert Access(settings, policy).rights("token:billing").allow(Role.HOST, "prod_eu")
