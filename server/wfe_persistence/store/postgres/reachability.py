"""What is known of whether the database can be reached, and why not.

Every attempt to connect reports here. The database is *away* when attempts have failed for a moment
and no connection is open: one broken connection, or one attempt that fails, is no outage. While it
is away, calls fail at once, those that wait too, and one prober finds out when it is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final
from weakref import WeakSet

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.deadlines import Deadlines
from wfe_persistence.errors import PersistenceError
from wfe_persistence.redaction import redacted
from wfe_persistence.store.postgres.connection import Connection

log = logging.getLogger(__name__)

# For how long attempts must have failed; the first try of the prober comes right after it.
_DOUBT_SECONDS: Final = 0.25
_PROBE_SECONDS: Final = (0.3, 1.0)
"""The pauses of the prober: the first one, and the longest one to which they grow."""

# The same reason is logged again after this time, if another one came in between.
_REPEAT_SECONDS: Final = 60.0
_REPEAT_LIMITED_SECONDS: Final = 3600.0

_FULL: Final = re.compile(
    "too many (connections|clients)|connection slots are reserved|no more connections allowed"
)

Connect = Callable[[], Awaitable[psycopg.AsyncConnection[Any]]]


def unavailable(detail: str, which: str = "") -> PersistenceError:
    """DATABASE_UNAVAILABLE. `detail`: why, without secrets; `which`: the end of its name."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
        f"the database{which} can't be reached",
        detail=detail,
        retry_after=1.0,
    )


class Reachability:
    """Knows whether connections can be made; one for each pool. `most`: the size of the pool;
    `name`: that of the database, which messages have unless it is `home`."""

    def __init__(self, most: int, name: str = "home") -> None:
        self._which = "" if name == "home" else f" {name}"
        self.reason = ""
        """Why the last attempt to connect failed, without secrets; empty: it did not."""
        self.refuses = False
        """The database is away: calls fail at once."""
        self.waiting = Deadlines()
        """Those of the calls that wait for a connection. They end when it is away."""
        self.when_full: Callable[[], None] = lambda: None
        """Called when PostgreSQL gives the pool no more connections."""
        self._most = most
        self._open: WeakSet[psycopg.AsyncConnection[Any]] = WeakSet()
        self._failing_since: float | None = None
        self._said: dict[str, float] = {}
        self._last_said = ""
        self._prober: asyncio.Task[None] | None = None
        self._probe: Connect | None = None
        self._may_grow = asyncio.Event()
        self._may_grow.set()

    @property
    def is_away(self) -> bool:
        """Whether the last attempt to connect failed, and no connection is open."""
        return bool(self.reason) and not self.count_open()

    async def connect(self, attempt: Connect, probe: Connect) -> psycopg.AsyncConnection[Any]:
        """Make a connection of the pool, and learn from it. `probe` makes one to be closed."""
        self._probe = probe
        await self._may_grow.wait()
        begun = time.monotonic()
        try:
            connection = await attempt()
        except Exception as exc:
            self._failed(begun, exc)
            raise
        self._open.add(connection)
        self._succeeded()
        return connection

    def stalled(self, reason: str) -> None:
        """The connections that are open do not count any more: nobody answers on them."""
        self._open.clear()
        self._failed(time.monotonic() - _DOUBT_SECONDS, psycopg.OperationalError(reason))

    def check(self) -> None:
        """Raise DATABASE_UNAVAILABLE if the database is away."""
        if self.refuses:
            raise self.unavailable()

    def unavailable(self) -> PersistenceError:
        """The error of a call that needs the database while it is away."""
        return unavailable(self.reason, self._which)

    @contextmanager
    def keep_room(self) -> Iterator[None]:
        """Make no connection of the pool meanwhile: the room is for another one."""
        self._may_grow.clear()
        try:
            yield
        finally:
            self._may_grow.set()

    async def close(self) -> None:
        """Stop the prober."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.wait([self._prober])

    def open_connections(self) -> list[Connection]:
        """The connections of the pool that are open."""
        return [e for e in self._open if isinstance(e, Connection) and not e.closed]

    def count_open(self) -> int:
        """How many connections of the pool are open."""
        return sum(not connection.closed for connection in self._open)

    def count_prepared(self) -> int:
        """How many statements are prepared on them, all together."""
        return sum(len(each.prepared) for each in self.open_connections())

    def _failed(self, begun: float, exc: Exception) -> None:
        self.reason = why(exc)
        if self._failing_since is None:
            self._failing_since = begun
        if isinstance(exc, psycopg.OperationalError) and is_full(exc):
            self.when_full()
        if connections := self.count_open():
            are_open = f", {connections} of --pool-size {self._most} are open"
            self._say(
                f"can't make more connections to the database{self._which}",
                are_open,
                _REPEAT_LIMITED_SECONDS,
            )
            return
        self._say(f"can't connect to the database{self._which}", "", _REPEAT_SECONDS)
        if time.monotonic() - self._failing_since >= _DOUBT_SECONDS and not self.refuses:
            self.refuses = True
            self.waiting.expire(later_too=False)
        if self._prober is None:
            self._prober = asyncio.get_running_loop().create_task(self._find_out())

    def _succeeded(self) -> None:
        if self.reason and self._failing_since is not None and self.refuses:
            away = time.monotonic() - self._failing_since
            log.info("the database%s can be reached again, after %.1f s", self._which, away)
        self.reason = self._last_said = ""
        self._failing_since = None
        self.refuses = False

    async def _find_out(self) -> None:
        """Try to connect until it works."""
        pause, longest = _PROBE_SECONDS
        try:
            while self.is_away and self._probe is not None:
                await asyncio.sleep(pause)
                pause = random.uniform(0.5, 1.0) * min(longest, 2 * pause)
                begun = time.monotonic()
                try:
                    connection = await self._probe()
                except Exception as exc:
                    if self.reason:  # otherwise the pool has connected meanwhile
                        self._failed(begun, exc)
                else:
                    self._succeeded()
                    with suppress(psycopg.Error):
                        await connection.close()
        finally:
            self._prober = None

    def _say(self, what: str, how_many: str, repeat_seconds: float) -> None:
        """Log what happens and the reason when it comes, or changes; seldom the same again."""
        message = f"{what}: {self.reason}"
        if message == self._last_said:
            return
        self._last_said = message
        now = time.monotonic()
        if now - self._said.get(message, -repeat_seconds) < repeat_seconds:
            return
        self._said = {m: at for m, at in self._said.items() if now - at < _REPEAT_LIMITED_SECONDS}
        self._said[message] = now
        log.warning("%s%s: %s", what, how_many, self.reason)


def is_full(exc: psycopg.OperationalError) -> bool:
    """Whether an attempt failed because PostgreSQL allows no more connections. (SQLSTATE 53300,
    but libpq gives only the text.)"""
    return _FULL.search(str(exc)) is not None


def why(exc: BaseException) -> str:
    """What the driver says of a failed attempt to connect, on one line and without secrets."""
    lines = (line.strip() for line in str(exc).splitlines())
    return redacted(" ".join(line for line in lines if line)) or type(exc).__name__
