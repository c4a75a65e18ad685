"""Who has logged in: a cookie stands for a token, which stays here, in memory.

A session is made only for a token that the server has accepted, so strangers can't fill the table.
It ends when its user logs out, when it was not used for a while, after a day's work in any case,
and when the console does.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

COOKIE: Final = "wfe_console"

MAX_SESSIONS: Final = 256
MAX_SESSIONS_OF_A_TOKEN: Final = 8
IDLE_SECONDS: Final = 3600.0
LONGEST_SECONDS: Final = 12 * 3600.0


@dataclass(slots=True, eq=False)
class Session:
    """One login."""

    token: str
    began: float
    used: float
    ended: bool = False
    acting: bool = False
    """Whether it is just changing something."""


class Sessions:
    """All of them, the longest unused one first. `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By the hash of what the cookie holds: whoever reads this memory has no cookie yet.
        self._sessions: dict[bytes, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, token: str) -> str:
        """A new session with a token that was accepted; returns the cookie's value."""
        self._forget_old()
        same = [key for key, one in self._sessions.items() if one.token == token]
        for key in same[: max(0, len(same) + 1 - MAX_SESSIONS_OF_A_TOKEN)]:
            self._end(key)
        while len(self._sessions) >= MAX_SESSIONS:
            self._end(next(iter(self._sessions)))
        value = secrets.token_urlsafe(32)
        now = self._clock()
        self._sessions[_key(value)] = Session(token, now, now)
        return value

    def find(self, value: str) -> Session | None:
        """The session of a cookie, which is used by this; None: there is none any more."""
        self._forget_old()
        key = _key(value)
        session = self._sessions.pop(key, None)
        if session is None:
            return None
        session.used = self._clock()
        self._sessions[key] = session
        return session

    def end(self, session: Session) -> None:
        """Forget it."""
        for key, one in list(self._sessions.items()):
            if one is session:
                self._end(key)

    def is_over(self, session: Session) -> bool:
        """Whether it has ended, or its time is up."""
        now = self._clock()
        return (
            session.ended
            or now - session.used > IDLE_SECONDS
            or now - session.began > LONGEST_SECONDS
        )

    def _end(self, key: bytes) -> None:
        self._sessions.pop(key).ended = True

    def _forget_old(self) -> None:
        for key, session in list(self._sessions.items()):
            if self.is_over(session):
                self._end(key)


def _key(value: str) -> bytes:
    return sha256(value.encode("utf-8", "replace")).digest()


def set_cookie(value: str, *, encrypted: bool) -> str:
    """The header that gives a browser its cookie, for as long as it runs; empty: that takes it."""
    parts = [f"{COOKIE}={value}", "HttpOnly", "SameSite=Strict"]
    if encrypted:
        parts.append("Secure")
    if not value:
        parts.append("Max-Age=0")
    return "; ".join(parts)


def cookie_in(header: str) -> str:
    """The cookie's value in a header of a request; empty: it is not there."""
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""
