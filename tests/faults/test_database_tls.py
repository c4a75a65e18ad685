"""TLS to PostgreSQL: only the right server is spoken to, and a certificate can be the password."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from grpc import StatusCode

from tests.support import binaries, make
from tests.support.api import Api, connect
from tests.support.authority import Authority, Pair
from tests.support.expect import eventually, failure_of
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess

# Whoever comes by TCP comes by TLS, with a certificate that has the role's name.
_ACCESS = """\
hostssl by_cert all 127.0.0.1/32 cert
hostssl all all 127.0.0.1/32 trust
"""


@dataclass(frozen=True)
class TlsPostgres:
    """A PostgreSQL that has a certificate for `localhost`."""

    port: int
    authority: Authority
    clients: Authority
    """Signs the certificates that it accepts."""

    def url(self, database: str, host: str, **parameters: object) -> str:
        """A connection string for the role `app` that demands the right server."""
        verify = {"sslmode": "verify-full", "sslrootcert": self.authority.ca_file} | parameters
        query = "&".join(f"{name}={value}" for name, value in verify.items())
        return f"postgresql://app@{host}:{self.port}/{database}?{query}"


@pytest.fixture(scope="module")
def postgres(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsPostgres]:
    try:
        # Neither the embedded PostgreSQL nor that of Maven is built with TLS.
        program = binaries.postgres(15)
    except binaries.BinariesError as exc:
        pytest.skip(f"no PostgreSQL with TLS: {exc}")
    directory = tmp_path_factory.mktemp("certificates")
    authority, clients = Authority(directory / "servers"), Authority(directory / "clients")
    pair = authority.issue("postgres", "localhost")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = PostgresServer(
        program,
        run_dir / "postgres-tls",
        {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "ssl": "on",
            "ssl_cert_file": "../server.pem",
            "ssl_key_file": "../server.key",
            "ssl_ca_file": "../clients.pem",
        },
        access=_ACCESS,
    )
    server.give("server.pem", pair.cert.read_bytes())
    server.give("server.key", pair.key.read_bytes())
    server.give("clients.pem", clients.ca_file.read_bytes())
    with server:
        with psycopg.connect(server.url, autocommit=True) as admin:
            admin.execute("CREATE ROLE app LOGIN")
            for name in ("by_name", "by_cert"):
                admin.execute(f"CREATE DATABASE {name} OWNER app".encode())
        yield TlsPostgres(port, authority, clients)


@asynccontextmanager
async def started(log: Path, url: str) -> AsyncIterator[ServerProcess]:
    """A server that listens, whether it reaches its database or not."""
    server = ServerProcess(log, "--db-url", url)
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)
        assert "bug" not in server.log(), server.log()


async def serves(server: ServerProcess) -> None:
    """The database takes what it is sent, through TLS."""
    await asyncio.to_thread(server.wait_until_serving)
    async with connect(server.address) as channel:
        await Api(channel).create_event(make.event())


async def refuses(server: ServerProcess, *reasons: str) -> None:
    """The server says why it does not speak to the database, and does not serve."""

    async def is_said() -> bool:
        entries = [json.loads(line) for line in server.log().splitlines()]
        return any(all(r in entry["message"] for r in reasons) for entry in entries)

    await eventually(is_said)
    async with connect(server.address) as channel:
        failure = await failure_of(Api(channel).get_store_info())
        assert failure
        assert failure.code is StatusCode.UNAVAILABLE


async def test_the_right_server_is_spoken_to(tmp_path: Path, postgres: TlsPostgres) -> None:
    async with started(tmp_path / "log", postgres.url("by_name", "localhost")) as server:
        await serves(server)


async def test_a_server_with_another_name_is_not(tmp_path: Path, postgres: TlsPostgres) -> None:
    async with started(tmp_path / "log", postgres.url("by_name", "127.0.0.1")) as server:
        await refuses(server, 'certificate for "localhost"', 'does not match host name "127.0.0.1"')


async def test_a_server_of_another_authority_is_not(tmp_path: Path, postgres: TlsPostgres) -> None:
    other = Authority(tmp_path / "other").ca_file
    url = postgres.url("by_name", "localhost", sslrootcert=other)
    async with started(tmp_path / "log", url) as server:
        await refuses(server, "certificate verify failed")


async def test_a_file_of_authorities_that_is_not_there_is_named(
    tmp_path: Path, postgres: TlsPostgres
) -> None:
    url = postgres.url("by_name", "localhost", sslrootcert=tmp_path / "absent.pem")
    async with started(tmp_path / "log", url) as server:
        await refuses(server, "absent.pem")


def with_certificate(postgres: TlsPostgres, pair: Pair) -> str:
    pair.key.chmod(0o600)
    return postgres.url("by_cert", "localhost", sslcert=pair.cert, sslkey=pair.key)


async def test_a_certificate_is_the_password(tmp_path: Path, postgres: TlsPostgres) -> None:
    pair = postgres.clients.issue("app", "app.example", common_name="app")
    async with started(tmp_path / "log", with_certificate(postgres, pair)) as server:
        await serves(server)


async def test_without_its_certificate_a_role_is_refused(
    tmp_path: Path, postgres: TlsPostgres
) -> None:
    async with started(tmp_path / "log", postgres.url("by_cert", "localhost")) as server:
        await refuses(server, "connection requires a valid client certificate")


async def test_a_certificate_of_another_role_is_refused(
    tmp_path: Path, postgres: TlsPostgres
) -> None:
    pair = postgres.clients.issue("else", "else.example", common_name="somebody_else")
    async with started(tmp_path / "log", with_certificate(postgres, pair)) as server:
        await refuses(server, 'certificate authentication failed for user "app"')


async def test_a_certificate_of_another_authority_is_refused(
    tmp_path: Path, postgres: TlsPostgres
) -> None:
    pair = Authority(tmp_path / "other").issue("app", "app.example", common_name="app")
    async with started(tmp_path / "log", with_certificate(postgres, pair)) as server:
        await refuses(server, "unknown ca")
