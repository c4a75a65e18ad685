"""The admin port: probes, who may see what, and clients that are slow or hostile."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psycopg
import pytest

from tests.support.admin import AdminServer
from tests.support.authority import Authority
from wfe.persistence.v1.workflow_pb2 import GetWorkflowInstanceRequest
from wfe.persistence.v1.workflow_pb2_grpc import WorkflowServiceStub
from wfe_persistence.access import tokens
from wfe_persistence.access.certificate import certificate_principal
from wfe_persistence.http.admin import certificate_properties
from wfe_persistence.http.server import MAX_CONNECTIONS
from wfe_persistence.settings import Settings
from wfe_persistence.versions import versions


@pytest.fixture
def server(tmp_path: Path, database_url: str) -> Iterator[AdminServer]:
    with AdminServer(tmp_path / "log", "--db-url", database_url) as server:
        yield server
    assert "bug" not in server.log()


def raw(server: AdminServer, sent: bytes) -> bytes:
    """What the server answers to these bytes until it hangs up."""
    with socket.create_connection(server.admin, timeout=20) as client:
        client.sendall(sent)
        received = b""
        try:
            while data := client.recv(65_536):
                received += data
        except ConnectionResetError:
            pass
        return received


def test_off_by_default() -> None:
    assert Settings().admin_listen == ""


def test_probes_and_version(server: AdminServer) -> None:
    server.wait_for("/readyz", lambda a: a.status == 200)
    assert server.get("/livez").text == "ok\n"
    assert server.get("/readyz").text == "ok\n"
    assert server.get("/livez?verbose").text == "[+]ping ok\nlivez check passed\n"
    assert server.get("/readyz?verbose").text == (
        "[+]shutdown ok\n[+]database ok\n[+]store ok\nreadyz check passed\n"
    )
    version = server.get("/version")
    assert json.loads(version.text) == versions()
    assert version.headers["content-type"] == "application/json"
    missing = server.get("/nothing")
    assert missing.status == 404
    assert "/livez" in missing.text


def test_head_and_other_methods(server: AdminServer) -> None:
    head, get = server.get("/version", method="HEAD"), server.get("/version")
    assert (head.status, head.text) == (200, "")
    assert head.headers["content-length"] == get.headers["content-length"]
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        refused = server.get("/livez", method=method)
        assert refused.status == 405
        assert refused.headers["allow"] == "GET, HEAD"


def test_connection_is_kept(server: AdminServer) -> None:
    sent = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * 2
    sent += b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert raw(server, sent).count(b"HTTP/1.1 200 OK") == 3


def test_readyz_names_what_is_wrong(tmp_path: Path, database_url: str) -> None:
    server = AdminServer(tmp_path / "log", "--db-url", database_url, "--no-migrate")
    server.start()
    try:
        outdated = server.wait_for("/readyz", lambda a: "[+]database ok" in a.text)
        assert outdated.status == 503
        assert "[-]store failed: " in outdated.text
        assert "migrate up" in outdated.text
        assert server.get("/livez").status == 200
        assert server.get("/readyz?exclude=store").status == 200
    finally:
        server.stop()


def test_readyz_without_the_database(server: AdminServer, postgres_url: str) -> None:
    server.wait_for("/readyz", lambda a: a.status == 200)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        name = _database_of(server)
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        away = server.wait_for("/readyz?verbose", lambda a: a.status == 503)
        assert "[-]database failed: " in away.text
        assert "[-]store failed: " in away.text
        assert server.get("/livez").status == 200
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())
    server.wait_for("/readyz", lambda a: a.status == 200)


def _database_of(server: AdminServer) -> str:
    arguments = server.process.args
    assert isinstance(arguments, list)
    url = arguments[arguments.index("--db-url") + 1]
    return str(psycopg.conninfo.conninfo_to_dict(url)["dbname"])


def test_readyz_says_so_at_once_when_draining(tmp_path: Path, database_url: str) -> None:
    with AdminServer(tmp_path / "log", "--db-url", database_url, "--drain-delay", "3") as server:
        server.wait_for("/readyz", lambda a: a.status == 200)
        server.process.send_signal(signal.SIGTERM)
        draining = server.wait_for("/readyz", lambda a: a.status == 503)
        assert "[-]shutdown failed: the server drains" in draining.text
        assert "[+]database ok" in draining.text
        assert server.get("/livez").status == 200
        # An open connection of the admin port does not hold the stop up.
        with socket.create_connection(server.admin, timeout=20):
            assert server.process.wait(30) == 0


def test_the_port_is_taken(tmp_path: Path, database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        server = AdminServer(tmp_path / "log", "--db-url", database_url, "--admin-listen", address)
        with pytest.raises(AssertionError, match=r"the server ended \(1\)"):
            server.start()
    assert f"can't serve: can't listen on {address}: Address already in use" in server.log()


# ----- hostile clients -----


MALFORMED = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\n\r\n", 400),  # no Host
    (b"GET  /livez HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n", 400),
    (b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
    (b"GET http://[/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    (b"GET /?" + b"a&" * 500 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
    (b"GET /%ff%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
    (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n", 200),
    (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: a\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405),
]


def test_malformed_requests(server: AdminServer) -> None:
    for sent, status in MALFORMED:
        answer = raw(server, sent)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), (sent, answer)
        assert server.get("/livez").status == 200


def test_open_connections_lock_nobody_out(server: AdminServer) -> None:
    silent = [socket.create_connection(server.admin) for _ in range(MAX_CONNECTIONS * 2)]
    try:
        silent[-1].sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n")  # and nothing more
        for _ in range(10):
            assert server.get("/livez").status == 200
    finally:
        for each in silent:
            each.close()


def test_slow_client_is_hung_up_on(server: AdminServer) -> None:
    with socket.create_connection(server.admin, timeout=20) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\n")
        began = time.monotonic()
        assert client.recv(100) == b""
        assert time.monotonic() - began < 19


# ----- TLS and who may see what -----


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("0.0.0.0:9464", "needs TLS (tls-cert, tls-key) and authentication"),
        ("[::]:9464", "needs TLS (tls-cert, tls-key) and authentication"),
    ],
)
def test_beyond_loopback_it_needs_protection(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"admin-listen: other machines can reach") as raised:
        Settings(admin_listen=address).require_protection()
    assert message in str(raised.value)
    Settings(admin_listen=address, insecure=True).require_protection()
    Settings(admin_listen="[::1]:9464").require_protection()


@pytest.mark.parametrize("address", ["9464", "unix:/run/x", "localhost:x", ":9464", "x:70000"])
def test_invalid_address(address: str) -> None:
    with pytest.raises(ValueError, match="admin-listen"):
        Settings(admin_listen=address)


POLICY = """
[[grant]]
principals = ["token:prometheus", "cert:prometheus"]
role = "monitor"
namespaces = ["*"]

[[grant]]
principals = ["token:tenant"]
role = "admin"
namespaces = ["tenant", "tenant_*"]
"""


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def secured(tmp_path: Path, database_url: str, authority: Authority) -> Iterator[AdminServer]:
    pair = authority.issue("server", "127.0.0.1", "localhost")
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    tokens.create_token(tmp_path / "tokens", "prometheus", None)
    server = AdminServer(
        tmp_path / "log", "--db-url", database_url,
        "--listen", "unix:" + str(tmp_path / "s"),
        "--admin-listen", "0.0.0.0:0",
        "--tls-cert", str(pair.cert), "--tls-key", str(pair.key),
        "--tls-client-ca", str(authority.ca_file),
        "--token-file", str(tmp_path / "tokens"), "--policy-file", str(policy),
    )  # fmt: skip
    server.context = ssl.create_default_context(cafile=str(authority.ca_file))
    server.start()
    yield server
    assert server.stop() == 0
    assert "bug" not in server.log()


def bearer(directory: Path, name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens.create_token(directory / 'tokens', name, None)[1]}"}


def test_who_may_see_what(secured: AdminServer, tmp_path: Path, authority: Authority) -> None:
    prometheus, tenant = (bearer(tmp_path, name) for name in ("prometheus", "tenant"))
    # A kubelet has neither a token nor a certificate.
    assert secured.get("/livez").status == 200
    secured.wait_for("/readyz", lambda a: a.status == 200)

    for path in ("/version", "/metrics", "/config", "/nothing"):
        stranger = secured.get(path)
        assert stranger.status == 401
        assert stranger.headers["www-authenticate"] == "Bearer"
    assert secured.get("/version", {"Authorization": "Bearer wrong"}).status == 401
    assert secured.get("/version", {"Authorization": "Basic eDp5"}).status == 401

    deadline = time.monotonic() + 20
    while secured.get("/version", tenant).status == 401 and time.monotonic() < deadline:
        time.sleep(0.05)  # until the tokens were read again
    refused = secured.get("/version", tenant)
    assert refused.status == 403
    assert "requires the role monitor in all namespaces (*), which token:tenant" in refused.text
    assert secured.get("/version", prometheus).status == 200
    assert secured.get("/metrics", prometheus).status == 200
    assert secured.get("/config", prometheus).status == 403
    assert secured.get("/nothing", prometheus).status == 404

    assert secured.context is not None
    for name, status in (("prometheus", 200), ("other", 403)):
        pair = authority.issue(name, "client.test", common_name=name)
        secured.context.load_cert_chain(pair.cert, pair.key)
        assert secured.get("/version").status == status
        # A token decides alone.
        assert secured.get("/version", tenant).status == 403


def test_monitor_sees_no_data(secured: AdminServer, tmp_path: Path, authority: Authority) -> None:
    token = bearer(tmp_path, "prometheus")["Authorization"]
    pair = authority.issue("client", "client.test", common_name="prometheus")
    with grpc.secure_channel(
        secured.address,
        authority.channel_credentials(pair),
        [("grpc.ssl_target_name_override", "localhost")],
    ) as channel:
        for metadata in ((), (("authorization", token),)):
            with pytest.raises(grpc.RpcError) as raised:
                WorkflowServiceStub(channel).GetWorkflowInstance(
                    GetWorkflowInstanceRequest(id="x"), metadata=metadata, timeout=20
                )
            assert raised.value.code() in (
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.UNAUTHENTICATED,
            )


def test_why_is_withheld_from_strangers(tmp_path: Path, authority: Authority) -> None:
    pair = authority.issue("server", "127.0.0.1")
    (tmp_path / "policy.toml").write_text(POLICY)
    headers = bearer(tmp_path, "prometheus")
    server = AdminServer(
        tmp_path / "log", "--db-url", "postgresql://wfe@127.0.0.1:1/secret",
        "--tls-cert", str(pair.cert), "--tls-key", str(pair.key),
        "--token-file", str(tmp_path / "tokens"),
        "--policy-file", str(tmp_path / "policy.toml"),
    )  # fmt: skip
    server.context = ssl.create_default_context(cafile=str(authority.ca_file))
    server.start()
    try:
        stranger = server.get("/readyz?verbose")
        assert "[-]database failed: reason withheld" in stranger.text
        assert "the database" not in stranger.text
        assert "the database" in server.get("/readyz?verbose", headers).text
    finally:
        server.stop()


def test_a_new_certificate_is_used(
    secured: AdminServer, authority: Authority, tmp_path: Path
) -> None:
    def serial() -> str:
        assert secured.context is not None
        with (
            socket.create_connection(secured.admin) as plain,
            secured.context.wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            certificate = client.getpeercert()
            assert certificate is not None
            return str(certificate["serialNumber"])

    before = serial()
    authority.issue("server", "127.0.0.1", "localhost")
    deadline = time.monotonic() + 20
    while serial() == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_plaintext_to_https(secured: AdminServer) -> None:
    assert b"200" not in raw(secured, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert secured.get("/livez").status == 200


@pytest.mark.parametrize(
    ("names", "common_name", "principal"),
    [
        ((), "prometheus", "cert:prometheus"),
        ((("URI", "spiffe://example.org/a"),), "x", "spiffe://example.org/a"),
        ((("DNS", "spiffe://example.org/a"),), "x", "cert:x"),
        ((("URI", "https://example.org/a"),), "x", "cert:x"),
        ((), None, None),
    ],
)
def test_principal_of_a_certificate(
    names: tuple[tuple[str, str], ...], common_name: str | None, principal: str | None
) -> None:
    subject = ((("commonName", common_name),),) if common_name else ()
    properties = certificate_properties({"subject": subject, "subjectAltName": names})
    assert certificate_principal(properties) == principal


@pytest.mark.parametrize("uri", ["SPIFFE://example.org/a", "spiffe://", "spiffe:x"])
def test_malformed_spiffe_id(uri: str) -> None:
    properties = certificate_properties({"subjectAltName": (("URI", uri),)})
    with pytest.raises(ValueError, match="SPIFFE"):
        certificate_principal(properties)


def test_two_uris_are_nobody() -> None:
    names = (("URI", "spiffe://example.org/a"), ("URI", "spiffe://example.org/b"))
    with pytest.raises(ValueError, match="SPIFFE"):
        certificate_principal(certificate_properties({"subjectAltName": names}))
