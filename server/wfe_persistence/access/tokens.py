"""The file of tokens: of each its name and its hash, never the token itself.

    {"tokens": [{"id": "9f2c41aa", "name": "billing", "sha256": "…",
                 "created": "2026-01-01T12:00:00Z", "expires": "2027-01-01T12:00:00Z"}]}

Tokens are random (or checked to be long), so a plain hash is enough: there is nothing to guess.
Several tokens may have one name: so a token is replaced without an interruption.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from wfe_persistence.access.principal import TOKEN, principal
from wfe_persistence.access.watched import read_file

PREFIX: Final = "wfe_"
"""What created tokens begin with, so that scanners for leaked secrets can know them."""

_RANDOM_BYTES: Final = 32
_MIN_LENGTH: Final = 32
_MAX_LENGTH: Final = 1024
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]+")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@-]{0,99}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_EMPTY_DIGEST: Final = hashlib.sha256(b"").digest()
_KEYS: Final = {"id", "name", "sha256", "created", "expires"}


@dataclass(frozen=True, slots=True)
class Token:
    """One token, as the file has it."""

    id: str
    """Names it to `wfe-persistence token revoke`."""
    name: str
    digest: bytes
    created: datetime
    expires: datetime | None

    def has_expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= now

    @property
    def principal(self) -> str:
        """Who calls with it."""
        return principal(TOKEN, self.name)


class Tokens:
    """The tokens of a file, for looking them up."""

    def __init__(self, tokens: Iterable[Token] = ()) -> None:
        self.all = tuple(tokens)
        self._by_digest = {token.digest: token for token in self.all}

    def find(self, secret: str) -> Token | None:
        """The entry of a token that a caller sent, expired or not; None: there is none.

        What is looked up is its hash, of which a caller can't choose a part, and hashes are
        compared as a whole: how long it takes says nothing about tokens.
        """
        if not secret:
            return None
        digest = hashlib.sha256(secret.encode()).digest()
        token = self._by_digest.get(digest)
        return token if token and hmac.compare_digest(token.digest, digest) else None


def parse_tokens(data: bytes) -> Tokens:
    """The tokens of a file. Raises ValueError, naming the entry."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"is not valid JSON: {exc}") from None
    if not isinstance(document, dict) or set(document) != {"tokens"}:
        raise ValueError('must be an object with the one key "tokens"')
    if not isinstance(document["tokens"], list):
        raise ValueError("tokens: must be a list")  # noqa: TRY004 — all errors are ValueErrors
    tokens = [_token(entry, f"tokens[{i}]") for i, entry in enumerate(document["tokens"])]
    for what in ("id", "digest"):
        if len({getattr(token, what) for token in tokens}) < len(tokens):
            raise ValueError(f"tokens: two of them have the same {what}")
    return Tokens(tokens)


def _token(entry: Any, where: str) -> Token:
    if not isinstance(entry, dict) or not _KEYS - {"expires"} <= set(entry) <= _KEYS:
        raise ValueError(
            f"{where}: must have id, name, sha256, created and, if it has one, expires"
        )
    for key, value in entry.items():
        if not isinstance(value, str) and not (key == "expires" and value is None):
            raise ValueError(f"{where}.{key}: must be a string")
    if not _DIGEST.fullmatch(entry["sha256"]):
        raise ValueError(f"{where}.sha256: must be 64 hexadecimal digits")
    digest = bytes.fromhex(entry["sha256"])
    if digest == _EMPTY_DIGEST:
        raise ValueError(f"{where}.sha256: is the hash of the empty token")
    expires = entry.get("expires")
    return Token(
        entry["id"],
        _checked_name(entry["name"], f"{where}.name: "),
        digest,
        _time(entry["created"], f"{where}.created"),
        None if expires is None else _time(expires, f"{where}.expires"),
    )


def _checked_name(name: str, where: str = "") -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{where}{name!r} is no name: at most 100 letters, digits and . _ / @ -, a letter or "
            "digit first"
        )
    return name


def _time(text: str, where: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{where}: {text!r} is no time in ISO 8601") from None
    if time.tzinfo is None:
        raise ValueError(f"{where}: {text!r} has no time zone")
    return time


def create_token(
    path: Path, name: str, expires: datetime | None, secret: str | None = None
) -> tuple[Token, str]:
    """Add a token to a file, which is made if it does not exist; the entry, and the token.

    `secret`: a token that was made elsewhere. Raises ValueError for one that can't be sent or could
    be guessed, and for a file that is no file of tokens.
    """
    _checked_name(name)
    if secret is None:
        secret = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    if not _MIN_LENGTH <= len(secret) <= _MAX_LENGTH or not _TOKEN.fullmatch(secret):
        raise ValueError(
            f"a token has {_MIN_LENGTH} to {_MAX_LENGTH} letters, digits and . _ ~ + / = -"
        )
    now = datetime.now(UTC).replace(microsecond=0)
    if expires is not None:
        expires = expires.replace(microsecond=0)
        if expires <= now:
            raise ValueError("the time of expiry is in the past")
    digest = hashlib.sha256(secret.encode()).digest()
    token = Token(secrets.token_hex(4), name, digest, now, expires)

    def add(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
        if any(each.digest == digest for each in tokens):
            raise ValueError("the file has this token already")
        return (*tokens, token)

    _rewrite(path, add)
    return token, secret


def revoke_tokens(path: Path, ids: Iterable[str]) -> tuple[Token, ...]:
    """Remove the tokens with these ids or names; those that were removed.

    Raises ValueError, and removes none, if there is none with one of them.
    """
    wanted = set(ids)
    revoked: list[Token] = []

    def remove(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
        revoked.extend(token for token in tokens if {token.id, token.name} & wanted)
        unknown = wanted - {name for token in revoked for name in (token.id, token.name)}
        if unknown:
            raise ValueError(f"no token has the id or name {', '.join(sorted(unknown))}")
        return tuple(token for token in tokens if token not in revoked)

    _rewrite(path, remove, must_exist=True)
    return tuple(revoked)


def _rewrite(
    path: Path,
    change: Callable[[tuple[Token, ...]], tuple[Token, ...]],
    *,
    must_exist: bool = False,
) -> None:
    """Replace a file as a whole; one change at a time, so that none is lost."""
    path = path.resolve()  # the file that a symbolic link leads to, not the link
    try:
        with _locked(path.parent):
            exists = path.exists()
            old = parse_tokens(read_file(path)).all if must_exist or exists else ()
            document = {"tokens": [_entry(token) for token in change(old)]}
            _replace(path, (json.dumps(document, indent=2) + "\n").encode(), exists=exists)
    except OSError as exc:
        raise ValueError(f"can't be written: {exc.strerror}") from exc


def _entry(token: Token) -> dict[str, str]:
    entry = {
        "id": token.id,
        "name": token.name,
        "sha256": token.digest.hex(),
        "created": token.created.isoformat(),
    }
    if token.expires is not None:
        entry["expires"] = token.expires.isoformat()
    return entry


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other processes from changing the files of a directory that are changed here."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, data: bytes, *, exists: bool) -> None:
    """Write a file so that nobody ever reads a part of it, with the owner and mode that it had; a
    new one only its owner may read."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if exists:
                had = path.stat()
                os.fchown(file.fileno(), had.st_uid, had.st_gid)
                os.fchmod(file.fileno(), had.st_mode & 0o777)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
