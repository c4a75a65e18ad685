"""A server that wants to know who calls, with everything that it reads about that."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from tests.support.issuer import AUDIENCE, ISSUER, Issuer
from tests.support.server import ServerProcess
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest
from wfe.persistence.v1.store_pb2_grpc import StoreServiceStub
from wfe_persistence.access import tokens
from wfe_persistence.access.role import ROLES

MODULE = "tests.faults.faulty_server" if "FAULT" in os.environ else "wfe_persistence"

OWN, FOREIGN, ABSENT = "own", "foreign", "absent"

POLICY = (
    "".join(
        f'[[grant]]\nprincipals = ["token:{role}", "jwt:{role}"]\nrole = "{role}"\n'
        f'namespaces = ["{OWN}", "{OWN}_*"]\n'
        for role in ROLES
    )
    + '[[grant]]\nprincipals = ["token:root", "jwt:root"]\nrole = "admin"\nnamespaces = ["*"]\n'
)
"""A principal for each role, with that role in its own namespace; one that may do everything; and
whoever is not named, who may do nothing."""


def bearer(token: str) -> tuple[str, str]:
    """The metadata that a token is sent in."""
    return ("authorization", f"Bearer {token}")


class GuardedServer:
    """The files, and the server that reads them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.token_file = directory / "tokens.json"
        self.policy_file = directory / "policy.toml"
        self.issuer = Issuer(directory / "jwks.json")
        self.log = directory / "log"
        self.policy_file.write_text(POLICY)
        self.tokens = {
            name: self.create(name) for name in (*ROLES, "root", "stranger", "expired", "revoked")
        }
        self.server: ServerProcess
        self.server_url: str
        """The connection string of its database."""
        self._expire("expired")
        tokens.revoke_tokens(self.token_file, ["revoked"])

    @property
    def arguments(self) -> tuple[str, ...]:
        return (
            "--token-file", str(self.token_file), "--policy-file", str(self.policy_file),
            "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE,
            "--jwt-jwks", str(self.issuer.file), "--log-level", "debug",
        )  # fmt: skip

    def any_credentials(self) -> grpc.ChannelCredentials | None:
        """What any client needs to connect; None: nothing."""
        return None

    def create(self, name: str) -> str:
        """A new token."""
        return tokens.create_token(self.token_file, name, None)[1]

    def _expire(self, name: str) -> None:
        past = datetime.now(UTC) - timedelta(seconds=1)
        text = self.token_file.read_text()
        [entry] = [t for t in tokens.parse_tokens(text.encode()).all if t.name == name]
        self.token_file.write_text(
            text.replace(
                f'"sha256": "{entry.digest.hex()}",',
                f'"sha256": "{entry.digest.hex()}", "expires": "{past.isoformat()}",',
            )
        )
        assert stat.S_IMODE(self.token_file.stat().st_mode) == 0o600


@contextmanager
def running(guarded: GuardedServer, url: str, *arguments: str) -> Iterator[ServerProcess]:
    """A server on these files; the namespaces `own` and `foreign` exist."""
    server = ServerProcess(
        guarded.log, *guarded.arguments, *arguments,
        module=MODULE, env={**os.environ, "WFE_PERSISTENCE_DB_URL": url},
    )  # fmt: skip
    server.credentials = credentials = guarded.any_credentials()
    with server:
        guarded.server = server
        guarded.server_url = url
        with (
            grpc.secure_channel(server.address, credentials)
            if credentials
            else grpc.insecure_channel(server.address)
        ) as channel:
            for name in (OWN, FOREIGN):
                StoreServiceStub(channel).CreateNamespace(
                    CreateNamespaceRequest(name=name), metadata=(bearer(guarded.tokens["root"]),)
                )
        yield server


@pytest.fixture(scope="module")
def guarded(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory, request: Any
) -> Iterator[GuardedServer]:
    """One for all tests of a module."""
    name = "access_" + request.module.__name__.rpartition(".")[2]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    guarded = GuardedServer(tmp_path_factory.mktemp("guarded"))
    with running(guarded, postgres_url.replace("/postgres?", f"/{name}?")) as server:
        yield guarded
    assert '"message": "bug ' not in server.log(), server.log()
