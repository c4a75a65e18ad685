"""TLS: who can connect, and certificates that change while the server runs."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.authority import Authority, Pair
from tests.support.expect import eventually
from tests.support.server import ServerProcess
from tests.test_cli import run
from wfe_persistence.settings import Settings
from wfe_persistence.tls import Certificates

CHECK = "/grpc.health.v1.Health/Check"


class TlsServer(ServerProcess):
    """A server with TLS, which tests connect to with an authority's credentials."""

    def __init__(self, log_file: Path, authority: Authority, pair: Pair, *arguments: str) -> None:
        super().__init__(
            log_file, "--tls-cert", str(pair.cert), "--tls-key", str(pair.key), *arguments
        )
        self.authority = authority
        self.credentials = authority.channel_credentials()

    def channel(self, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(
            self.address, credentials, [("grpc.use_local_subchannel_pool", 1)]
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue("server", "127.0.0.1", "localhost")


@pytest.fixture
def server(
    tmp_path: Path, authority: Authority, pair: Pair, database_url: str
) -> Iterator[TlsServer]:
    server = TlsServer(tmp_path / "log", authority, pair, "--db-url", database_url)
    server.start()
    yield server
    assert server.stop() == 0


@pytest.fixture
def mutual(
    tmp_path: Path, authority: Authority, pair: Pair, database_url: str
) -> Iterator[TlsServer]:
    policy = tmp_path / "policy.toml"
    policy.write_text('[[grant]]\nprincipals = ["cert:*"]\nrole = "admin"\nnamespaces = ["*"]\n')
    server = TlsServer(
        tmp_path / "log", authority, pair, "--db-url", database_url,
        "--tls-client-ca", str(authority.ca_file), "--policy-file", str(policy),
    )  # fmt: skip
    server.start()
    yield server
    assert server.stop() == 0


async def live(channel: grpc.aio.Channel) -> bool:
    """Whether a call gets an answer."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="liveness")
    try:
        answer = await stub.Check(request, timeout=10)
    except grpc.aio.AioRpcError as exc:
        if exc.code() == grpc.StatusCode.UNAVAILABLE:
            return False
        raise
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def connects(server: TlsServer, credentials: grpc.ChannelCredentials) -> bool:
    """Whether a new connection gets an answer."""
    async with server.channel(credentials) as channel:
        return await live(channel)


async def test_a_client_that_trusts_the_authority_connects(
    server: TlsServer, tmp_path: Path
) -> None:
    assert await connects(server, server.authority.channel_credentials())
    assert not await connects(server, Authority(tmp_path / "other").channel_credentials())
    async with grpc.aio.insecure_channel(server.address) as plaintext:
        assert not await live(plaintext)
    assert "(TLS, no authentication)" in server.log()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_a_version_before_1_2_is_refused(server: TlsServer, version: ssl.TLSVersion) -> None:
    def handshake(only: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=str(server.authority.ca_file))
        context.set_alpn_protocols(["h2"])
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        deprecated = only < ssl.TLSVersion.TLSv1_2
        with pytest.warns(DeprecationWarning, match="TLS") if deprecated else nullcontext():
            context.minimum_version = context.maximum_version = only
        host, _, port = server.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host) as wrapped,
        ):
            return wrapped.version()

    assert await asyncio.to_thread(handshake, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(handshake, version)


async def test_mutual_tls_requires_a_certificate_of_the_authority(
    mutual: TlsServer, tmp_path: Path
) -> None:
    authority = mutual.authority
    assert await connects(mutual, authority.channel_credentials(authority.issue("c", "host-1")))
    # With TLS 1.3 the handshake itself seems to succeed, so a call must show it.
    assert not await connects(mutual, authority.channel_credentials())
    stranger = Authority(tmp_path / "other").issue("c", "host-1")
    assert not await connects(mutual, authority.channel_credentials(stranger))
    assert "(TLS, client certificate)" in mutual.log()


async def test_a_new_certificate_is_used_without_a_restart_and_without_a_failed_call(
    mutual: TlsServer, pair: Pair, tmp_path: Path
) -> None:
    old, new = mutual.authority, Authority(tmp_path / "new")
    client, new_client = old.issue("c", "host-1"), new.issue("c", "host-1")
    failed: list[object] = []
    answered = 0
    done = asyncio.Event()

    async def load() -> None:
        nonlocal answered
        async with mutual.channel(old.channel_credentials(client)) as channel:
            while not done.is_set():
                if await live(channel):
                    answered += 1
                else:
                    failed.append(1)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(load())
        old.ca_file.write_bytes(old.ca_file.read_bytes() + new.ca_file.read_bytes())
        for _ in range(3):
            pair.fill(new, "127.0.0.1", "localhost")

            async def changed() -> bool:
                return await connects(mutual, new.channel_credentials(new_client))

            await eventually(changed, seconds=20)
            # A client of the old authority may still come, but must trust the new one's server.
            assert not await connects(mutual, old_only(old, client))
            pair.fill(old, "127.0.0.1", "localhost")

            async def back() -> bool:
                return await connects(mutual, old_only(old, client))

            await eventually(back, seconds=20)
        done.set()
    assert not failed
    assert answered > 100


def old_only(authority: Authority, client: Pair) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        authority.ca.cert_pem.bytes(), client.key.read_bytes(), client.cert.read_bytes()
    )


async def test_a_symbolic_link_can_be_swapped_as_kubernetes_does(
    tmp_path: Path, authority: Authority, database_url: str
) -> None:
    """A mounted Secret: tls.crt -> ..data/tls.crt, ..data -> ..2026_1."""
    mount = tmp_path / "mount"
    new = Authority(tmp_path / "new")
    for number, signer in enumerate((authority, new)):
        version = mount / f"..2026_{number}"
        version.mkdir(parents=True)
        issued = signer.issue(f"server-{number}", "127.0.0.1")
        shutil.copy(issued.cert, version / "tls.crt")
        shutil.copy(issued.key, version / "tls.key")
    (mount / "..data").symlink_to("..2026_0")
    pair = Pair(mount / "tls.crt", mount / "tls.key")
    pair.cert.symlink_to("..data/tls.crt")
    pair.key.symlink_to("..data/tls.key")
    with TlsServer(tmp_path / "log", authority, pair, "--db-url", database_url) as server:
        assert await connects(server, authority.channel_credentials())
        (mount / "..data_tmp").symlink_to("..2026_1")
        os.replace(mount / "..data_tmp", mount / "..data")

        async def changed() -> bool:
            return await connects(server, new.channel_credentials())

        await eventually(changed, seconds=20)
        assert "previous certificate" not in server.log()


def test_new_files_that_can_t_be_used_change_nothing_and_are_reported_once(
    authority: Authority, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(pair.cert, pair.key, authority.ca_file)
    caplog.set_level("INFO")
    before = certificates._loaded

    def look_often() -> list[str]:
        caplog.clear()
        for _ in range(5):
            certificates.refresh()
        return [record.getMessage() for record in caplog.records]

    assert look_often() == []
    key = pair.key.read_bytes()
    for broken, says in [
        (authority.issue("other", "localhost").key.read_bytes(), "is not the key of"),
        (b"-----BEGIN nonsense", "no unencrypted private key"),
        (None, "No such file"),
    ]:
        pair.key.unlink(missing_ok=True)
        if broken is not None:
            pair.key.write_bytes(broken)
        [said] = look_often()
        assert says in said
        assert key.decode() not in said
        assert certificates._loaded is before
    pair.fill(authority, "127.0.0.1")
    [said] = look_often()
    assert "valid until" in said
    assert certificates._loaded is not before


def test_files_that_can_t_be_used_end_the_start(
    tmp_path: Path, authority: Authority, pair: Pair
) -> None:
    other = authority.issue("other", "127.0.0.1")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    for arguments, says in [
        ((pair.cert, other.key), f"{other.key}: is not the key of the certificate in {pair.cert}"),
        ((pair.cert, empty), f"{empty}: has no unencrypted private key"),
        ((empty, pair.key), f"{empty}: has no certificate"),
        ((pair.cert, tmp_path / "absent"), "No such file"),
    ]:
        with pytest.raises(ValueError, match=re.escape(says)):
            Certificates(*arguments, None)
    done = serve("--db-url", "postgresql://", "--tls-cert", str(pair.cert), "--tls-key", str(empty))
    assert done.returncode == 1
    assert f"{empty}: has no unencrypted private key" in done.stderr


BEYOND = "0.0.0.0:0"


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"listen": BEYOND}, "TLS .* and authentication"),
        ({"listen": BEYOND, "tls_cert": Path("c"), "tls_key": Path("k")}, "needs authentication"),
        ({"listen": "unix:/run/wfe.sock", "socket_mode": "0666"}, "user .* needs authentication"),
        ({"listen": "[::]:0"}, "TLS .* and authentication"),
        ({"listen": "host.example:1"}, "TLS .* and authentication"),
        ({"tls_cert": Path("c")}, "both or neither"),
        ({"tls_key": Path("k")}, "both or neither"),
        ({"tls_client_ca": Path("a")}, "needs tls-cert"),
        ({"token_file": Path("t")}, "policy-file: is not set"),
        ({"jwt_jwks": "j"}, "set all or none"),
        ({"jwt_issuer": "i", "jwt_audience": "a", "policy_file": Path("p")}, "set all or none"),
    ],
)
def test_settings_without_protection_are_refused(settings: dict[str, Any], missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        Settings(**settings).require_protection()


@pytest.mark.parametrize(
    "settings",
    [
        {"listen": "127.0.0.1:0"},
        {"listen": "unix:/run/wfe.sock"},
        {"listen": "unix:/run/wfe.sock", "socket_mode": "0660"},
        {"listen": BEYOND, "insecure": True},
        {
            "listen": BEYOND, "tls_cert": Path("c"), "tls_key": Path("k"),
            "tls_client_ca": Path("a"), "policy_file": Path("p"),
        },
        {
            "listen": BEYOND, "tls_cert": Path("c"), "tls_key": Path("k"),
            "token_file": Path("t"), "policy_file": Path("p"),
        },
        {"listen": "unix:/run/wfe.sock", "socket_mode": "0666", "policy_file": Path("p"),
         "jwt_issuer": "i", "jwt_audience": "a", "jwt_jwks": "j"},
    ],
)  # fmt: skip
def test_settings_with_protection_are_accepted(settings: dict[str, Any]) -> None:
    Settings(**settings).require_protection()


def test_a_server_beyond_loopback_does_not_start_unprotected() -> None:
    done = serve("--db-url", "postgresql://", "--listen", BEYOND)
    assert done.returncode == 2
    assert f"other machines can reach {BEYOND}" in done.stderr


async def test_health_connects_with_tls(mutual: TlsServer, pair: Pair) -> None:
    client = mutual.authority.issue("c", "host-1")
    mutual_tls = ("--tls-client-cert", str(client.cert), "--tls-client-key", str(client.key))
    ca = ("--tls-ca", str(mutual.authority.ca_file))
    for arguments, code in [
        ((*ca, *mutual_tls), 0),
        ((*ca, *mutual_tls, "--tls-server-name", "localhost"), 0),
        ((*ca, *mutual_tls, "--tls-server-name", "other.example"), 1),
        (ca, 1),
        ((), 1),
        (mutual_tls, 2),
        ((*ca, *mutual_tls[:2]), 2),
    ]:
        done = await asyncio.to_thread(
            run, "health", "--target", mutual.address, "--service", "liveness", *arguments
        )
        assert done.returncode == code, (arguments, done)
    # That of its own machine, by its own settings.
    own = ("--listen", mutual.address, "--tls-cert", str(pair.cert))
    done = await asyncio.to_thread(run, "health", "--service", "liveness", *own, *mutual_tls)
    assert done.returncode == 0, done


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("serve", "--listen", "127.0.0.1:0", *arguments)
