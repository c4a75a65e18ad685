"""The keys of an issuer: which are taken from a JWKS, and how they are fetched from a URL."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.authority import Authority
from tests.support.expect import eventually
from tests.support.issuer import AUDIENCE, ISSUER, Issuer, SigningKey
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.access import keys as access_keys
from wfe_persistence.access.jwt import JwtVerifier
from wfe_persistence.access.keys import ASYMMETRIC, Keys, parse_keys
from wfe_persistence.errors import PersistenceError


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "jwks.json")


def verifier(keys: Keys, algorithms: set[str] | None = None, claim: str = "sub") -> JwtVerifier:
    return JwtVerifier(
        keys,
        issuer=ISSUER,
        audience=AUDIENCE,
        algorithms=frozenset(algorithms or {"ES256", "RS256"}),
        claim=claim,
    )


async def reason(verifier: JwtVerifier, token: str) -> str:
    """Why a token is refused; empty: it is not."""
    try:
        await verifier.principal(token)
    except PersistenceError as exc:
        return ErrorReason.Name(exc.reason).removeprefix("ERROR_REASON_")
    return ""


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not valid JSON"),
        (b"[]", "is no JWKS"),
        (b'{"keys": {}}', "is no JWKS"),
        (b'{"keys": []}', "has no public key"),
        (b'{"keys": [1, null, {}, {"kty": 1}, {"kty": ["RSA"]}, {"kid": 1}]}', "has no public key"),
        (b'{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}', "has no public key"),
        (b'{"keys": [{"kty": "RSA", "n": "!", "e": "AQAB"}]}', "has no public key"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_what_is_no_jwks_is_said(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        parse_keys(data)


def test_two_keys_with_the_same_id_are_refused(issuer: Issuer) -> None:
    jwk = issuer.keys[0].jwk
    with pytest.raises(ValueError, match="the same kid"):
        parse_keys(json.dumps({"keys": [jwk, jwk]}).encode())


def test_keys_that_cannot_verify_are_passed_over(issuer: Issuer) -> None:
    good = issuer.keys[0].jwk
    weak = SigningKey("weak", "RS256", rsa.generate_private_key(65537, 1024)).jwk
    others: list[dict[str, Any]] = [
        {"kty": "oct", "kid": "secret", "k": "c2VjcmV0", "alg": "HS256"},
        good | {"kid": "encryption", "use": "enc"},
        good | {"kid": "private", "d": "AAAA"},
        good | {"kid": "mixed up", "alg": "RS256"},
        good | {"kid": "symmetric", "alg": "HS256"},
        good | {"kid": "other curve", "crv": "P-384"},
        weak,
    ]
    keys = parse_keys(json.dumps({"keys": [*others, good]}).encode())
    for other in others:
        assert keys.get(other["kid"]) is None, other["kid"]
    assert keys.get(good["kid"]) is not None


async def test_an_algorithm_must_be_allowed_and_fit_the_key(tmp_path: Path) -> None:
    rs = Issuer(tmp_path / "rs.json", "RS256")
    keys = Keys(str(rs.file))
    keys.load()
    good = rs.token()
    assert await reason(verifier(keys), good) == ""
    assert await reason(verifier(keys, {"ES256"}), good) == "CREDENTIALS_INVALID"
    # The key is for RS256 alone, so it is not for RS512, although that is allowed here.
    other = jwt.encode(rs.claims(), rs.keys[0].private, "RS512", headers={"kid": rs.keys[0].id})
    assert await reason(verifier(keys, {"RS256", "RS512"}), other) == "CREDENTIALS_INVALID"


@pytest.mark.parametrize("algorithms", [{"HS256"}, {"none"}, {"RS256", "HS512"}, {""}, set()])
def test_only_asymmetric_algorithms_can_be_allowed(issuer: Issuer, algorithms: set[str]) -> None:
    with pytest.raises(ValueError, match="must be some of RS256"):
        JwtVerifier(
            Keys(str(issuer.file)), issuer=ISSUER, audience=AUDIENCE,
            algorithms=frozenset(algorithms), claim="sub",
        )  # fmt: skip
    assert not [name for name in ASYMMETRIC if name.startswith("HS")]


async def test_an_email_must_be_verified(issuer: Issuer) -> None:
    keys = Keys(str(issuer.file))
    keys.load()
    of_email = verifier(keys, claim="email")
    assert await of_email.principal(issuer.token(email="a@b.example")) == "jwt:a@b.example"
    assert await of_email.principal(issuer.token(email="c@b.example", email_verified=True))
    for unverified in (False, "false", "true", None, 1):
        claims = issuer.claims(email="a@b.example") | {"email_verified": unverified}
        token = jwt.encode(claims, issuer.keys[0].private, "ES256", {"kid": issuer.keys[0].id})
        assert await reason(of_email, token) == "CREDENTIALS_INVALID", unverified
    assert await reason(of_email, issuer.token(email=["a@b.example"])) == "CREDENTIALS_INVALID"
    assert await reason(of_email, issuer.token()) == "CREDENTIALS_INVALID"


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example/keys",
        "http://10.0.0.1/keys",
        "http://127.0.0.1.example/keys",
        "http://localhost.example/keys",
        "ftp://127.0.0.1/keys",
        "file:///etc/passwd",
        "https:///keys",
        "https://user:password@issuer.example/keys",
    ],
)
def test_only_https_or_loopback_is_fetched_from(url: str) -> None:
    with pytest.raises(ValueError, match="must"):
        Keys(url)


class Web:
    """A web server with a JWKS, which counts requests."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b""
        self.location = ""
        self.requests: list[str | None] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.requests.append(self.headers["Authorization"])
                self.send_response(web.status)
                if web.location:
                    self.send_header("Location", web.location)
                self.end_headers()
                self.wfile.write(web.body)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                pass  # a client that does not trust it

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"


@pytest.fixture
def web(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(access_keys, "_MIN_SECONDS", 0.05)
    web = Web()
    web.body = issuer.jwks()
    thread = threading.Thread(target=web.server.serve_forever, args=(0.01,))
    thread.start()
    yield web
    web.server.shutdown()
    web.server.server_close()
    thread.join()


@asynccontextmanager
async def watching(keys: Keys) -> AsyncIterator[Keys]:
    task = asyncio.create_task(keys.watch())
    try:
        yield keys
    finally:
        task.cancel()


async def test_keys_are_fetched_and_fetched_again_for_an_unknown_id(
    web: Web, issuer: Issuer
) -> None:
    async with watching(Keys(web.url)) as keys:
        verify = verifier(keys)
        assert await reason(verify, issuer.token()) == ""
        assert len(web.requests) == 1
        web.body = b""
        issuer.rotate()
        web.body = issuer.jwks()
        # All of them wait for the same fetch.
        tokens = [issuer.token(f"engine {i}") for i in range(50)]
        assert set(await asyncio.gather(*(reason(verify, token) for token in tokens))) == {""}
        assert len(web.requests) == 2


async def test_unknown_ids_do_not_make_requests_at_will(web: Web, issuer: Issuer) -> None:
    async with watching(Keys(web.url)) as keys:
        verify = verifier(keys)
        assert await reason(verify, issuer.token()) == ""
        forged = [issuer.token(kid=f"unknown {i}") for i in range(1000)]
        reasons = await asyncio.gather(*(reason(verify, token) for token in forged))
        assert set(reasons) == {"CREDENTIALS_INVALID"}
        assert len(web.requests) <= 3
        assert await reason(verify, issuer.token("somebody else")) == ""


async def test_the_last_good_keys_are_kept_and_the_problem_is_told_of_once(
    web: Web, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(Keys(web.url)) as keys:
        verify = verifier(keys)
        assert await reason(verify, issuer.token()) == ""
        web.status = 500
        # Whether the issuer has this key can't be said now.
        assert await reason(verify, issuer.token(kid="new")) == "KEYS_UNAVAILABLE"
        assert await reason(verify, issuer.token(kid="new")) == "KEYS_UNAVAILABLE"
        assert await reason(verify, issuer.token("other")) == ""
        web.status = 200
        assert await reason(verify, issuer.token(kid="new")) == "CREDENTIALS_INVALID"
    told = [record.getMessage() for record in caplog.records if web.url in record.getMessage()]
    assert (
        told
        == [
            f"{web.url}: answered with HTTP status 500; the keys from before stay in force",
        ]
        or "fetched again" in told[1]
    )
    assert len([line for line in told if "500" in line]) == 1


async def test_until_keys_could_be_fetched_a_call_may_be_repeated(web: Web, issuer: Issuer) -> None:
    web.status = 503
    async with watching(Keys(web.url)) as keys:
        verify = verifier(keys)
        assert await reason(verify, issuer.token()) == "KEYS_UNAVAILABLE"
        # Of what can't be good whatever the keys are, that is said at once.
        assert await reason(verify, issuer.unsigned()) == "CREDENTIALS_INVALID"
        web.status = 200

        async def good() -> bool:
            return await reason(verify, issuer.token()) == ""

        await eventually(good)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(web: Web, issuer: Issuer, status: int) -> None:
    other = Web()
    other.body = issuer.jwks()
    web.status, web.location = status, other.url
    async with watching(Keys(web.url)) as keys:
        assert await reason(verifier(keys), issuer.token()) == "KEYS_UNAVAILABLE"
    assert other.requests == []
    other.server.server_close()


async def test_an_answer_that_is_too_large_is_refused(web: Web, issuer: Issuer) -> None:
    web.body = b" " * 1_100_000 + issuer.jwks()
    async with watching(Keys(web.url)) as keys:
        assert await reason(verifier(keys), issuer.token()) == "KEYS_UNAVAILABLE"


async def test_https_with_an_authority_and_a_token_as_kubernetes_wants_it(
    web: Web, issuer: Issuer, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("web", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    web.server.socket = context.wrap_socket(
        web.server.socket, server_side=True, do_handshake_on_connect=False
    )
    url = web.url.replace("http:", "https:")
    token = tmp_path / "token"
    token.write_text("secret\n")
    async with watching(Keys(url)) as keys:  # whose authority nobody knows
        assert await reason(verifier(keys), issuer.token()) == "KEYS_UNAVAILABLE"
    async with watching(Keys(url, ca=authority.ca_file, token=token)) as keys:
        assert await reason(verifier(keys), issuer.token()) == ""
        token.write_text("rotated")
        assert await reason(verifier(keys), issuer.token(kid="new")) == "CREDENTIALS_INVALID"
    assert web.requests == ["Bearer secret", "Bearer rotated"]


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"se\ncret", b"se cret", b"se\xffcret", b"se\0cret"]
)
async def test_a_file_without_a_token_is_named_without_its_content(
    web: Web, issuer: Issuer, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    token = tmp_path / "token"
    token.write_bytes(content)
    async with watching(Keys(web.url, token=token)) as keys:
        assert await reason(verifier(keys), issuer.token()) == "KEYS_UNAVAILABLE"
    assert f"{token}: has no bearer token in it" in caplog.text
    assert "cret" not in caplog.text.replace(str(token), "")
    assert web.requests == []


def test_a_file_takes_neither_authority_nor_token(issuer: Issuer) -> None:
    with pytest.raises(ValueError, match="is a file"):
        Keys(str(issuer.file), ca=issuer.file)
