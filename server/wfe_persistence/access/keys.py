"""The keys of an issuer of JWTs (a JWKS), from a file or a URL, fetched in the background.

Those that were fetched last stay in force while new ones can't be had.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.access.watched import read_file
from wfe_persistence.errors import PersistenceError

log = logging.getLogger(__name__)

ASYMMETRIC: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
)  # fmt: skip
"""The algorithms that can be allowed. With any other, who can verify a JWT can also make one."""

_ALGORITHMS: Final[dict[tuple[str | None, str | None], frozenset[str]]] = {
    # What a key without `alg` may be used for, by its type and curve.
    ("RSA", None): frozenset(a for a in ASYMMETRIC if a[:2] in ("RS", "PS")),
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA"}),
}
_MIN_RSA_BITS: Final = 2048

_FILE_SECONDS: Final = 1.0
_URL_SECONDS: Final = 300.0
_FAILED_SECONDS: Final = 10.0
_MIN_SECONDS: Final = 5.0
_FETCH_SECONDS: Final = 10.0
_MAX_BYTES: Final = 1024 * 1024

# Calls with the id of a key that is unknown, and may be new, wait for the next fetch.
_MAX_WAITING: Final = 100

Fetch = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, and the algorithms that it may be used with."""

    public_key: Any
    algorithms: frozenset[str]


class KeySet:
    """The keys of one JWKS, by id."""

    def __init__(self, keys: dict[str | None, Key]) -> None:
        self._keys = keys

    def get(self, id_: str | None) -> Key | None:
        """The key with this id. Without an id, the key if there is only one."""
        if id_ is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(id_) if id_ is not None else None


def parse_keys(data: bytes) -> KeySet:
    """The keys of a JWKS that can verify a JWT. Raises ValueError if there are none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("is not valid JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError('is no JWKS: an object with a list "keys"')  # noqa: TRY004
    keys: dict[str | None, Key] = {}
    for entry in entries:
        key = _key(entry) if isinstance(entry, dict) else None
        if key:
            id_ = entry.get("kid")
            if id_ in keys:
                raise ValueError("has two keys with the same kid, or without one")
            keys[id_] = key
    if not keys:
        raise ValueError("has no public key to verify signatures with")
    return KeySet(keys)


def _key(entry: dict[str, Any]) -> Key | None:
    """A key; None: it is of no use here. A JWKS may have keys for other purposes."""
    # Loaded on use, here and in `jwt`: they take 60 ms and 10 MB.
    import jwt

    if not all(isinstance(entry.get(name), str | None) for name in ("kid", "kty", "crv", "alg")):
        return None
    algorithms = _ALGORITHMS.get((entry.get("kty"), entry.get("crv")), frozenset())
    if "alg" in entry:
        algorithms &= {entry["alg"]}
    if not algorithms or entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    try:
        public_key = jwt.PyJWK(entry, min(algorithms)).key
    except Exception:  # two libraries have their say, with errors of many kinds
        log.debug("a key of the JWKS can't be read", exc_info=True)
        return None
    if entry["kty"] == "RSA" and public_key.key_size < _MIN_RSA_BITS:
        return None
    return Key(public_key, algorithms)


class Keys:
    """The current keys of an issuer.

    `source`: a file, or a URL with https (or http on a loopback address). For the URL, `ca` has the
    certificate authorities to trust instead of the system's, and `token` the bearer token to send,
    which is read again each time: Kubernetes demands both. Raises ValueError for another URL.
    """

    def __init__(self, source: str, *, ca: Path | None = None, token: Path | None = None) -> None:
        self.source = source
        self._fetch, self._interval = _source(source, ca, token)
        self._data = b""
        self._set: KeySet | None = None
        self._problem = ""
        self._wanted = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def current(self) -> KeySet | None:
        """The keys that were fetched last; None: none could be fetched yet."""
        return self._set

    def load(self) -> None:
        """Fetch them for the first time, if that is only reading a file. Raises ValueError."""
        if self._interval == _FILE_SECONDS:
            self._accept(self._fetch())

    async def find(self, id_: str | None) -> Key | None:
        """The key with an id. One that is unknown may be new, so the next fetch is waited for.

        Raises KEYS_UNAVAILABLE if it may only be unknown because keys can't be fetched.
        """
        key = self._set.get(id_) if self._set else None
        if key is None and len(self._waiting) < _MAX_WAITING:
            fetched = asyncio.get_running_loop().create_future()
            self._waiting.append(fetched)
            self._wanted.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_MIN_SECONDS + _FETCH_SECONDS):
                    await fetched
            key = self._set.get(id_) if self._set else None
        if key is None and (self._set is None or self._problem):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_KEYS_UNAVAILABLE,
                "the keys to verify the token with can't be fetched",
                retry_after=1.0,
            )
        return key

    async def watch(self) -> None:
        """Fetch the keys, again and again, for as long as the server runs."""
        while True:
            # Who comes from here on may know of newer keys than those that will be fetched.
            waiting, self._waiting = self._waiting, []
            self._wanted.clear()
            fetched = await self._refresh()
            for each in waiting:
                if not each.done():
                    each.set_result(None)
            pause = self._interval if fetched else min(self._interval, _FAILED_SECONDS)
            soonest = min(pause, _MIN_SECONDS)
            await asyncio.sleep(soonest)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause - soonest):
                    await self._wanted.wait()

    def _accept(self, data: bytes) -> None:
        """Let what was fetched be the keys. Raises ValueError if it is no JWKS."""
        if data != self._data:
            self._set = parse_keys(data)
            self._data = data

    async def _refresh(self) -> bool:
        """Fetch the keys; returns whether that has worked."""
        try:
            async with asyncio.timeout(_FETCH_SECONDS):
                self._accept(await _in_thread(self._fetch))
        except Exception as exc:  # whatever is wrong with them, they are fetched again
            problem = str(exc) or f"no answer within {_FETCH_SECONDS:g} s"
            if problem != self._problem:
                log.warning(
                    "%s: %s; %s", self.source, problem,
                    "the keys from before stay in force" if self._set else "no JWT is accepted",
                )  # fmt: skip
            self._problem = problem
            return False
        if self._problem:
            log.info("%s: fetched again", self.source)
        self._problem = ""
        return True


def _source(source: str, ca: Path | None, token: Path | None) -> tuple[Fetch, float]:
    """How to fetch, and how often (seconds)."""
    if "://" not in source:
        if ca or token:
            raise ValueError("is a file, to which no certificate authority and no token belong")
        path = Path(source)
        return lambda: read_file(path), _FILE_SECONDS
    url = urlsplit(source)
    if url.username or url.password:
        raise ValueError("must not have a password in it")
    local = _is_loopback(url.hostname or "")
    if not url.hostname or not (url.scheme == "https" or (url.scheme == "http" and local)):
        raise ValueError("must be a file, an https URL, or an http URL of a loopback address")

    def fetch() -> bytes:
        return _get(source, ca, token, local=local)

    return fetch, _URL_SECONDS


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: it could lead to where nobody vouches for the keys."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _get(url: str, ca: Path | None, token: Path | None, *, local: bool) -> bytes:
    """What is at a URL. Raises ValueError."""
    # Only https, and http to this machine: `_source` has checked it.
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {_read_token(token)}")
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if local:
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        if url.startswith("https:"):
            context = ssl.create_default_context(cafile=str(ca) if ca else None)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        with urllib.request.build_opener(*handlers).open(request, timeout=_FETCH_SECONDS) as answer:
            data: bytes = answer.read(_MAX_BYTES + 1)
    except HTTPError as exc:
        exc.close()
        raise ValueError(f"answered with HTTP status {exc.code}") from None
    except URLError as exc:
        raise ValueError(f"can't be fetched: {exc.reason}") from None
    except OSError as exc:
        raise ValueError(f"can't be fetched: {exc}") from None
    if len(data) > _MAX_BYTES:
        raise ValueError(f"has more than {_MAX_BYTES} bytes")
    return data


def _read_token(file: Path) -> str:
    """The token in a file. Raises ValueError, without what is in it, if there is none."""
    try:
        token = read_file(file).decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    except ValueError as exc:
        raise ValueError(f"{file}: {exc}") from None
    if not token.isprintable() or " " in token or not token:
        raise ValueError(f"{file}: has no bearer token in it")
    return token


async def _in_thread(fetch: Fetch) -> bytes:
    """Fetch in a thread of its own, which nobody waits for when the server stops: a name server
    that does not answer can hold it up for long."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def settle(data: bytes, error: Exception | None) -> None:
        if done.done():
            return
        if error:
            done.set_exception(error)
        else:
            done.set_result(data)

    def run() -> None:
        data, error = b"", None
        try:
            data = fetch()
        except ValueError as exc:
            error = exc
        except Exception as exc:
            error = ValueError(f"can't be fetched: {type(exc).__name__}")
        with suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(settle, data, error)

    threading.Thread(target=run, name="jwks", daemon=True).start()
    return await done
