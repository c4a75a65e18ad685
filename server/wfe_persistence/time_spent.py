"""What the time of a call goes to, for the log: as with the metrics, everybody may add to it, and
nobody needs to know whose call it is.

The call is that of the task. Work that other tasks do for it counts for none, except what is done
for several calls together: that has a `TimeSpent` of its own, which each of them shares.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, Protocol


class Named(Protocol):
    """What has names in the log."""

    def names(self) -> dict[str, str]:
        """The names of a call that callers and traces gave it; those that it has."""


@dataclass(slots=True)
class TimeSpent:
    """Of one call, in seconds."""

    began: float = field(default_factory=perf_counter)
    receiving: float = 0.0
    """For room for the request, and for the client to send it."""
    waiting: float = 0.0
    """For what other calls do, because the caller asked to (`wait`)."""
    connecting: float = 0.0
    """For a database connection."""
    database: float = 0.0
    """Round trips."""
    sending: float = 0.0
    """For the client to read on."""
    round_trips: int = 0
    retries: int = 0
    rows: int = 0
    """What statements returned; one row of a write says what was written."""
    sqlstate: str = ""
    """Of the last statement that failed."""
    slowest: float = 0.0
    slowest_statement: str = ""
    call: Named | None = None
    """The call, while it is in progress: what is logged meanwhile names it."""

    def add_round_trip(self, seconds: float, statement: str, rows: int = 0) -> None:
        """Count a statement that has come to its end."""
        self.database += seconds
        self.round_trips += 1
        self.rows += rows
        if seconds >= self.slowest:
            self.slowest, self.slowest_statement = seconds, statement

    def share(self, other: TimeSpent) -> None:
        """Count what was done for this call and others together."""
        self.connecting += other.connecting
        self.database += other.database
        self.round_trips += other.round_trips
        self.retries += other.retries
        self.rows += other.rows
        self.sqlstate = other.sqlstate or self.sqlstate
        if other.slowest >= self.slowest:
            self.slowest, self.slowest_statement = other.slowest, other.slowest_statement

    @property
    def total(self) -> float:
        """All of it, so far."""
        return perf_counter() - self.began

    def parts(self) -> dict[str, float | int | str]:
        """What the log says, by name; without what took no time."""
        total = self.total
        known = self.receiving + self.waiting + self.connecting + self.database + self.sending
        seconds = {
            "seconds": total,
            "database_seconds": self.database,
            "connection_seconds": self.connecting,
            "receive_seconds": self.receiving,
            "wait_seconds": self.waiting,
            "send_seconds": self.sending,
            # Checks, encoding, and the event loop's other work.
            "server_seconds": max(0.0, total - known),
        }
        parts: dict[str, float | int | str] = {
            name: rounded for name, value in seconds.items() if (rounded := round(value, 4))
        }
        if self.round_trips:
            parts |= {
                "round_trips": self.round_trips,
                "slowest_statement": self.slowest_statement,
                "slowest_statement_seconds": round(self.slowest, 4),
                "rows": self.rows,
            }
        if self.retries:
            parts["retries"] = self.retries
        return parts


CURRENT: Final[ContextVar[TimeSpent | None]] = ContextVar("time_spent", default=None)
"""That of the call of this task; None: there is none, or nobody wants to know."""


def call_names() -> dict[str, str]:
    """The names of the call that is in progress here, if one is."""
    spent = CURRENT.get()
    if spent is None or (call := spent.call) is None:
        return {}
    spent.call = None  # gRPC logs metadata that it can't read, and so would ask for them again
    try:
        return call.names()
    finally:
        spent.call = call


class measured:  # noqa: N801 - used as a function
    """Count the time inside as this part of the call's, as a context manager. (Not a generator:
    ten thousand calls may be inside.)"""

    __slots__ = ("_began", "_part", "_spent")

    def __init__(self, part: str) -> None:
        self._part = part

    def __enter__(self) -> None:
        self._spent = CURRENT.get()
        self._began = perf_counter()

    def __exit__(self, *_: object) -> None:
        if (spent := self._spent) is not None:
            seconds = perf_counter() - self._began
            setattr(spent, self._part, getattr(spent, self._part) + seconds)
