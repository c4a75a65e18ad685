"""Who gets in: tokens and JWTs, good and bad, as clients send them."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.access.conftest import ABSENT, FOREIGN, OWN, GuardedServer, bearer
from tests.support.api import Api, connect
from tests.support.expect import Failure, eventually, fails, failure_of
from tests.support.issuer import SigningKey
from tests.support.raw_http2 import call_with_headers
from wfe.persistence.v1.store_pb2 import GetStoreInfoRequest
from wfe_persistence.access import tokens

SERVICE: Final = "wfe.persistence.v1.WorkflowService"


async def refusal(guarded: GuardedServer, *metadata: tuple[str, str]) -> Failure | None:
    """How a call to a caller's own namespace is refused; None: it is not."""
    async with connect(guarded.server.address) as channel:
        return await failure_of(
            Api(channel).store.GetStoreInfo(
                GetStoreInfoRequest(), metadata=[("wfe-namespace", OWN), *metadata]
            )
        )


async def reason(guarded: GuardedServer, token: str) -> str:
    """Why a token is refused; empty: it is not."""
    failure = await refusal(guarded, bearer(token))
    if failure is None:
        return ""
    assert failure.code == grpc.StatusCode.UNAUTHENTICATED, failure
    assert token not in failure.message
    return failure.reason


async def test_tokens_that_are_good_or_are_not(guarded: GuardedServer) -> None:
    good = guarded.tokens["host"]
    assert await reason(guarded, good) == ""
    assert await reason(guarded, guarded.tokens["expired"]) == "CREDENTIALS_EXPIRED"
    for bad in (
        guarded.tokens["revoked"], good[:-1], good + "A", good.swapcase(), good[:20], "x",
        tokens.PREFIX, hashlib.sha256(good.encode()).hexdigest(), "a.b.c", "..",
    ):  # fmt: skip
        assert await reason(guarded, bad) == "CREDENTIALS_INVALID", bad


async def test_a_token_whose_hash_begins_or_ends_as_that_of_a_good_one_is_none(
    guarded: GuardedServer,
) -> None:
    """Of a compare that stops early, or looks at a part, this is seen without a clock."""
    digests = [token.digest for token in tokens.parse_tokens(guarded.token_file.read_bytes()).all]
    heads, tails = {d[:2] for d in digests}, {d[-2:] for d in digests}
    found: dict[str, str] = {}
    for number in itertools.count():
        candidate = f"{number:032}"
        digest = hashlib.sha256(candidate.encode()).digest()
        if digest[:2] in heads:
            found["head"] = candidate
        if digest[-2:] in tails:
            found["tail"] = candidate
        if len(found) == 2:
            break
    for candidate in found.values():
        assert await reason(guarded, candidate) == "CREDENTIALS_INVALID"


@pytest.mark.parametrize(
    "value",
    [
        "", "Bearer", "Bearer ", "{}", "Basic {}", "Bearer {} {}", "Bearer {},{}",
        'Bearer "{}"', "Bearer {};", "token {}", "Bearer Bearer {}",
    ],
)  # fmt: skip
async def test_what_is_not_one_bearer_token_is_refused(guarded: GuardedServer, value: str) -> None:
    failure = await refusal(guarded, ("authorization", value.replace("{}", guarded.tokens["host"])))
    assert failure is not None
    assert failure.reason == "CREDENTIALS_INVALID", failure
    assert guarded.tokens["host"] not in failure.message


async def test_the_scheme_has_no_case(guarded: GuardedServer) -> None:
    for scheme in ("bearer", "BEARER", "Bearer "):
        value = f"{scheme} {guarded.tokens['host']}"
        assert await refusal(guarded, ("authorization", value)) is None


async def test_several_values_are_refused_even_if_each_is_good(guarded: GuardedServer) -> None:
    good = bearer(guarded.tokens["host"])
    for metadata in ([good, good], [good, bearer("x")], [bearer("x"), good]):
        failure = await refusal(guarded, *metadata)
        assert failure is not None
        assert failure.reason == "CREDENTIALS_INVALID"


@pytest.mark.parametrize("size", [7000, 8190, 9000, 60_000])
async def test_a_token_that_is_too_large_is_refused(guarded: GuardedServer, size: int) -> None:
    failure = await refusal(guarded, bearer("x" * size))
    assert failure is not None
    # From 8 kB of metadata on gRPC refuses some calls by itself, and from 16 kB on all.
    assert failure.reason == "CREDENTIALS_INVALID" or (
        size > 7000 and failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    ), failure
    assert await reason(guarded, guarded.tokens["host"]) == ""


@pytest.mark.parametrize(
    "value", [b"Bearer \xe9", b"Bearer \xff\xfe", "Bearer é".encode(), b"\x80"]
)
async def test_a_token_that_is_not_ascii_is_refused(guarded: GuardedServer, value: bytes) -> None:
    """No client library sends one, so this is HTTP/2 by hand."""
    answer = await call_with_headers(
        guarded.server.address,
        "/wfe.persistence.v1.StoreService/GetStoreInfo",
        (b"authorization", value),
    )
    assert b"grpc-status\x0216" in answer, answer  # UNAUTHENTICATED
    assert b"is not `Bearer TOKEN`" in answer, answer
    good = b"Bearer " + guarded.tokens["root"].encode()
    answer = await call_with_headers(
        guarded.server.address,
        "/wfe.persistence.v1.StoreService/GetStoreInfo",
        (b"authorization", good),
    )
    assert b"grpc-status\x010" in answer, answer  # OK


async def test_a_jwt_of_the_issuer_is_a_principal_with_a_role(guarded: GuardedServer) -> None:
    issuer = guarded.issuer
    assert await reason(guarded, issuer.token("host")) == ""
    assert await reason(guarded, issuer.token("host")) == ""
    token = issuer.token("host")
    for _ in range(3):  # the second time it is remembered
        assert await reason(guarded, token) == ""
    failure = await refusal(guarded, bearer(issuer.token("somebody else")))
    assert failure is not None
    assert (failure.reason, failure.metadata["principal"]) == (
        "ACCESS_DENIED",
        "jwt:somebody else",
    )


BAD_CLAIMS: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "expired": ({"exp": int(time.time()) - 60}, "CREDENTIALS_EXPIRED"),
    "without expiry": ({"exp": None}, "CREDENTIALS_INVALID"),
    "expiry that is no number": ({"exp": "soon"}, "CREDENTIALS_INVALID"),
    "expiry that never ends": ({"exp": float("inf")}, "CREDENTIALS_INVALID"),
    "not yet valid": ({"nbf": int(time.time()) + 600}, "CREDENTIALS_INVALID"),
    "wrong audience": ({"aud": "other"}, "CREDENTIALS_INVALID"),
    "another of several audiences": ({"aud": ["other", "wfe"]}, "CREDENTIALS_INVALID"),
    "without audience": ({"aud": None}, "CREDENTIALS_INVALID"),
    "wrong issuer": ({"iss": "https://issuer.example/"}, "CREDENTIALS_INVALID"),
    "without issuer": ({"iss": None}, "CREDENTIALS_INVALID"),
    "without subject": ({"sub": None}, "CREDENTIALS_INVALID"),
    "empty subject": ({"sub": ""}, "CREDENTIALS_INVALID"),
    "subject with a line break": ({"sub": "host\nroot"}, "CREDENTIALS_INVALID"),
    "long subject": ({"sub": "x" * 300}, "CREDENTIALS_INVALID"),
}


@pytest.mark.parametrize("case", BAD_CLAIMS)
async def test_a_jwt_with_other_claims_is_refused(guarded: GuardedServer, case: str) -> None:
    changed, expected = BAD_CLAIMS[case]
    claims = {"sub": "root"} | changed
    token = guarded.issuer.token(claims.pop("sub"), **claims)
    assert await reason(guarded, token) == expected
    assert await reason(guarded, token) == expected


FORGED: Final[dict[str, Callable[[GuardedServer], str]]] = {
    "alg none": lambda g: g.issuer.unsigned("root"),
    "key confusion": lambda g: g.issuer.confused("root"),
    "changed afterwards": lambda g: g.issuer.tampered("root"),
    "without signature": lambda g: g.issuer.token("root").rpartition(".")[0] + ".",
    "signed by another key": lambda g: g.issuer.token(
        "root", key=SigningKey("key-0", "ES256", ec.generate_private_key(ec.SECP256R1()))
    ),
    "with a part too many": lambda g: g.issuer.token("root") + ".x",
}


@pytest.mark.parametrize("case", FORGED)
async def test_a_forged_jwt_is_refused(guarded: GuardedServer, case: str) -> None:
    assert await reason(guarded, FORGED[case](guarded)) == "CREDENTIALS_INVALID"


async def test_a_key_that_the_issuer_does_not_have_is_looked_for_once(
    guarded: GuardedServer,
) -> None:
    assert await reason(guarded, guarded.issuer.token("root", kid="nobody's")) == (
        "CREDENTIALS_INVALID"
    )


async def test_a_jwt_without_a_key_id_is_good_if_there_is_one_key(guarded: GuardedServer) -> None:
    assert len(guarded.issuer.keys) == 1
    assert await reason(guarded, guarded.issuer.token("host", kid="")) == ""


async def test_refusals_are_logged_with_the_principal_and_without_the_secret(
    guarded: GuardedServer,
) -> None:
    before = len(guarded.server.log())
    await reason(guarded, "unknown-token-canary")
    failure = await refusal(guarded, bearer(guarded.tokens["stranger"]))
    assert failure is not None
    assert failure.reason == "ACCESS_DENIED"
    entries = [json.loads(line) for line in guarded.server.log().splitlines()]
    warnings = [e["message"] for e in entries if e["level"] == "warning"]
    assert [w for w in warnings if "ACCESS_DENIED: token:stranger" in w]
    assert [w for w in warnings if "CREDENTIALS_INVALID" in w]
    assert "unknown-token-canary" not in guarded.server.log()[before:]


def _health(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", "liveness", SERVICE])
async def test_health_of_the_server_is_open(guarded: GuardedServer, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    async with connect(guarded.server.address) as channel:
        for metadata in ((), (bearer("bad"),)):
            answer = await _health(channel).Check(request, metadata=metadata)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_of_a_namespace_is_for_those_who_may_read_in_it(
    guarded: GuardedServer,
) -> None:
    async with connect(guarded.server.address) as channel:

        async def check(namespace: str, *metadata: tuple[str, str]) -> int:
            request = health_pb2.HealthCheckRequest(service=f"{namespace}/{SERVICE}")
            watch = _health(channel).Watch(request, metadata=metadata)
            answer = await watch.read()
            if answer is not grpc.aio.EOF:
                watch.cancel()
            return int((await _health(channel).Check(request, metadata=metadata)).status)

        reader = bearer(guarded.tokens["reader"])
        assert await check(OWN, reader) == health_pb2.HealthCheckResponse.SERVING
        failures = []
        for namespace in (FOREIGN, ABSENT):
            with fails("PERMISSION_DENIED", "ACCESS_DENIED") as failure:
                await check(namespace, reader)
            failures.append(failure)
            with fails("UNAUTHENTICATED", "CREDENTIALS_REQUIRED"):
                await check(namespace)
            with fails("UNAUTHENTICATED", "CREDENTIALS_INVALID"):
                await check(namespace, bearer("bad"))
        assert failures[0] == failures[1]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(ABSENT, bearer(guarded.tokens["root"]))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_watch_of_a_namespace_ends_with_the_right_to_it(guarded: GuardedServer) -> None:
    token = guarded.create("reader")
    await eventually(lambda: _good(guarded, token))
    async with connect(guarded.server.address) as channel:
        request = health_pb2.HealthCheckRequest(service=f"{OWN}/{SERVICE}")
        watch = _health(channel).Watch(request, metadata=[bearer(token)])
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        entry = tokens.parse_tokens(guarded.token_file.read_bytes()).find(token)
        assert entry is not None
        tokens.revoke_tokens(guarded.token_file, [entry.id])
        with fails("UNAUTHENTICATED", "CREDENTIALS_INVALID"):
            while await watch.read() is not grpc.aio.EOF:
                pass


async def _good(guarded: GuardedServer, token: str) -> bool:
    return await reason(guarded, token) == ""


class _WithToken(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Sends a token with the calls of a library that takes no metadata."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=[bearer(self._token)]), request)

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return continuation(details._replace(metadata=[bearer(self._token)]), requests)


def test_reflection_is_for_everybody_who_is_known(guarded: GuardedServer) -> None:
    with grpc.insecure_channel(guarded.server.address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            ProtoReflectionDescriptorDatabase(channel).get_services()
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        known = grpc.intercept_channel(channel, _WithToken(guarded.tokens["stranger"]))
        assert SERVICE in ProtoReflectionDescriptorDatabase(known).get_services()
