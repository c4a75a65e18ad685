"""TLS, client certificates and tokens: against a real server, and what leaves the client."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from tests.client.conftest import FAST
from tests.client.fake_store import FakeStore, answers, fails
from tests.support.secured import PRINCIPAL, Secured
from wfe.persistence.v1 import command_pb2, store_pb2
from wfe_persistence.access.tokens import create_token, revoke_tokens
from wfe_persistence_client import (
    PermissionDenied,
    RetryPolicy,
    Tls,
    Unauthenticated,
    Unavailable,
    WorkflowInstance,
    connect,
    connect_blocking,
)

INFO = answers(store_pb2.GetStoreInfoResponse(server_version="fake"))
EXPIRED = fails(grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_EXPIRED")
ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(scope="module")
def secured(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE client_credentials")
    url = postgres_url.replace("/postgres?", "/client_credentials?")
    secured = Secured(tmp_path_factory.mktemp("secured"), url)
    with secured.server:
        yield secured
    assert "bug" not in secured.server.log(), secured.server.log()
    assert secured.token not in secured.server.log()


def tls(secured: Secured) -> Tls:
    return Tls(ca=secured.authority.ca_file, cert=secured.client.cert, key=secured.client.key)


# Against a real server


async def test_a_certificate_and_a_token_are_let_in(secured: Secured) -> None:
    target = secured.server.address
    current: list[str] = [secured.token]
    for given in (
        {"token": secured.token},
        {"token": lambda: current[0]},
        {"token_file": secured.token_file},
        {"token_file": str(secured.token_file)},
    ):
        arguments: Any = given
        async with connect(target, tls=tls(secured), **arguments) as provider:
            new = WorkflowInstance(workflow_definition_id="order", version=1, data=None)
            workflow_id = await provider.create_new_workflow(new)
            assert (await provider.get_workflow_instance(workflow_id)).id == workflow_id


def test_the_blocking_provider_is_let_in(secured: Secured) -> None:
    with connect_blocking(
        secured.server.address, tls=tls(secured), token_file=secured.token_file
    ) as provider:
        assert provider.get_store_info().namespace == "default"


async def test_a_token_is_replaced_while_the_provider_works(
    secured: Secured, tmp_path: Path
) -> None:
    target, file = secured.server.address, tmp_path / "token"
    entry, old = create_token(secured.hashes, PRINCIPAL, None)
    new = secured.new_token()
    file.write_text(old)
    async with connect(target, tls=tls(secured), token_file=file) as provider:

        async def comes_to_be(let_in: bool) -> None:
            """Waits for the server, which looks at its file every second."""
            while True:
                try:
                    await provider.get_store_info()
                except Unauthenticated:
                    if not let_in:
                        return
                else:
                    if let_in:
                        return

        await comes_to_be(True)
        revoke_tokens(secured.hashes, [entry.id])
        await comes_to_be(False)
        file.write_text(new)
        await provider.get_store_info()


async def test_others_are_not_let_in(secured: Secured, tmp_path: Path) -> None:
    target = secured.server.address
    async with connect(target, tls=tls(secured), retry=ONCE) as provider:
        with pytest.raises(PermissionDenied) as denied:
            await provider.get_store_info()
    assert denied.value.principal == "cert:client"  # which the policy does not name
    async with connect(target, tls=tls(secured), token="wrong-token", retry=ONCE) as provider:
        with pytest.raises(Unauthenticated) as wrong:
            await provider.get_store_info()
    assert wrong.value.reason == "CREDENTIALS_INVALID"
    assert "wrong-token" not in repr(wrong.value)
    for other in (Tls(ca=secured.authority.ca_file), Tls()):
        async with connect(target, tls=other, token=secured.token, retry=ONCE) as provider:
            with pytest.raises(Unavailable) as error:
                await provider.get_store_info()
        assert secured.token not in repr(error.value)


async def test_the_servers_name_can_be_another_one(secured: Secured) -> None:
    files: Any = {
        "ca": secured.authority.ca_file,
        "cert": secured.client.cert,
        "key": secured.client.key,
    }
    target = secured.server.address
    named = Tls(**files, server_name="localhost")
    async with connect(target, tls=named, token=secured.token) as provider:
        await provider.get_store_info()
    wrong = Tls(**files, server_name="other.example")
    async with connect(target, tls=wrong, token=secured.token, retry=ONCE) as provider:
        with pytest.raises(Unavailable):
            await provider.get_store_info()


# What is sent


async def test_a_rejected_call_is_repeated_once_if_there_is_another_token(
    store: FakeStore, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    sent = []

    def then(text: str, step: Any) -> Callable[[Any, Any], Any]:
        """Answers as the step, after the file has got another token."""

        async def call(request: Any, context: Any) -> Any:
            sent.append(store.metadata["authorization"])
            file.write_text(text)
            return await step(request, context)

        return call

    claimed = answers(command_pb2.ClaimCommandsResponse())
    for succeeds, steps, tokens in (
        (True, [then("b", EXPIRED), then("b", claimed)], ["a", "b"]),
        (False, [then("a", EXPIRED)], ["a"]),
        (False, [then("b", EXPIRED), then("c", EXPIRED)], ["a", "b"]),
    ):
        sent.clear()
        file.write_text("a")
        store.on("ClaimCommands", *steps)
        async with connect(store.target, retry=FAST, token_file=file) as provider:
            if succeeds:
                await provider.claim_commands()
            else:
                with pytest.raises(Unauthenticated) as error:
                    await provider.claim_commands()
                assert error.value.reason == "CREDENTIALS_EXPIRED"
        assert sent == [f"Bearer {token}" for token in tokens]


async def test_a_function_is_asked_again_when_a_call_is_rejected(store: FakeStore) -> None:
    tokens = iter(["a", "b", "c"])
    store.on("GetStoreInfo", EXPIRED, INFO)
    async with connect(store.target, retry=FAST, token=lambda: next(tokens)) as provider:
        assert (await provider.get_store_info()).server_version == "fake"
    assert store.count("GetStoreInfo") == 2


async def test_a_token_in_plain_text_does_not_go_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in ("grpc_proxy", "https_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed.getsockname()[1]}")
        fake = FakeStore()
        fake.on("GetStoreInfo", INFO)
        await fake.start("127.0.0.1:0")
        async with connect(fake.target, token="s3cret", retry=ONCE) as provider:
            await provider.get_store_info()
        async with connect(fake.target, retry=ONCE) as provider:
            with pytest.raises(Unavailable, match="http_proxy"):
                await provider.get_store_info()
        await fake.stop()


async def test_the_last_token_stays_while_the_file_cannot_be_read(
    store: FakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.on("GetStoreInfo", INFO)
    file = tmp_path / "token"
    file.write_text("s3cret-1\n")
    async with connect(store.target, token_file=file) as provider:
        for text in ("", "s3cret\x00", "s3cretß", None):
            if text is None:
                file.unlink()
            else:
                file.write_text(text)
            await provider.get_store_info()
            assert store.metadata["authorization"] == "Bearer s3cret-1"
        [warning] = caplog.records
        assert str(file) in warning.getMessage()
        file.write_text("s3cret-2")
        await provider.get_store_info()
        assert store.metadata["authorization"] == "Bearer s3cret-2"
    assert "s3cret" not in caplog.text
    assert "s3cret" not in repr(provider)


@pytest.mark.parametrize(
    "target",
    ["localhost:1", "a.localhost:1", "127.0.0.1:1", "127.3.2.1", "[::1]:1", "::1", "unix:/s",
     "unix:///s", "unix-abstract:s", "dns:///localhost:1", "dns:127.0.0.1:1",
     "dns://10.0.0.1/localhost:1", "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1"],
)  # fmt: skip
async def test_a_token_is_sent_in_plain_text_to_this_machine(target: str) -> None:
    async with connect(target, token="t"):
        pass


@pytest.mark.parametrize(
    "target",
    ["store:1", "10.0.0.1:1", "localhost.example:1", "127.0.0.1.example:1", "[2001:db8::1]:1",
     "0.0.0.0:1", "dns:///store:1", "dns://127.0.0.1/store:1", "ipv4:127.0.0.1:1,10.0.0.1:1",
     "xds:///localhost", "vsock:2:1", "127.0.0.1@store:1"],
)  # fmt: skip
async def test_a_token_is_not_sent_in_plain_text_over_a_network(target: str) -> None:
    for given in ({"token": "s3cret"}, {"token": lambda: "s3cret"}):
        arguments: Any = given
        with pytest.raises(ValueError, match="allow_insecure_token=True") as error:
            connect(target, **arguments)
        assert "s3cret" not in str(error.value)
    if not target.startswith(("xds", "vsock")):
        async with connect(target, token="s3cret", allow_insecure_token=True):
            pass
        async with connect(target, token="s3cret", tls=Tls()):
            pass
        async with connect(target):
            pass


# Arguments


async def test_wrong_arguments_are_refused(store: FakeStore, tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.write_text("\n")
    credentials = grpc.ssl_channel_credentials()
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (FileNotFoundError, "missing", {"token_file": missing}),
        (ValueError, "no token in the file", {"token_file": empty}),
        (ValueError, "token or token_file", {"token_file": empty, "token": "t"}),
        (ValueError, "tls or credentials", {"tls": Tls(), "credentials": credentials}),
        (FileNotFoundError, "missing", {"tls": Tls(ca=missing)}),
        (ValueError, "nothing in PEM", {"tls": Tls(ca=empty)}),
        (TypeError, "tls", {"tls": "ca.pem"}),
        (TypeError, "token_file", {"token_file": 5}),
    ]
    for kind, text, arguments in refused:
        with pytest.raises(kind, match=text):
            connect("localhost:1", **arguments)
    with pytest.raises(ValueError, match="cert and key"):
        Tls(cert=empty)
    with pytest.raises(TypeError, match="ca"):
        Tls(ca=b"-----BEGIN")  # type: ignore[arg-type]
    async with connect(store.target, token=lambda: "") as provider:
        with pytest.raises(ValueError, match="must not be empty"):
            await provider.get_store_info()
