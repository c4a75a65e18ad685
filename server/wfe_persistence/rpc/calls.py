"""How many calls are in progress, and over which connections: those that work, and those that only
wait for what others do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import grpc

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError

Context = grpc.aio.ServicerContext[Any, Any]

# How many calls may wait for what others do, for each that may be in progress.
_RESTING_FACTOR: Final = 4

_RETRY_AFTER: Final = 0.5


class Calls:
    """The calls in progress, and the most that there may be."""

    def __init__(self, limit: int, limit_per_connection: int) -> None:
        self._limit = limit
        self._limit_per_connection = limit_per_connection
        self.total = 0
        """Those that count for the limits."""
        self.by_peer: Counter[str] = Counter()
        self.resting_by_peer: Counter[str] = Counter()

    def require_room(self, peer: str) -> None:
        """Raise PersistenceError if there can't be one more."""
        if self.total >= self._limit:
            raise too_many(f"the server has {self.total} calls in progress already")
        of_peer = self.by_peer.get(peer, 0)
        if of_peer >= self._limit_per_connection and names_one_connection(peer):
            raise too_many(f"this connection has {of_peer} calls in progress already")

    def enter(self, context: Context, peer: str) -> None:
        """Count a call until its end."""
        self.total += 1
        self.by_peer[peer] += 1
        # Not when the handler returns: an answer that the client does not take still occupies us.
        context.add_done_callback(partial(self._done, peer))  # type: ignore[arg-type]

    def _done(self, peer: str, _: object) -> None:
        self._leave(peer)

    def _leave(self, peer: str) -> None:
        self.total -= 1
        decrement(self.by_peer, peer)

    def rest(self, peer: str) -> bool:
        """A call begins to rest: until `wake_up` it does not count for the limits. False, if very
        many rest already: then it goes on to count."""
        if self.resting_by_peer.total() >= _RESTING_FACTOR * self._limit:
            return False
        self._leave(peer)
        self.resting_by_peer[peer] += 1
        return True

    def wake_up(self, peer: str) -> None:
        """A call that `rest` has let rest goes on."""
        # Not more than the limit can be about to: what is woken does little. (If the client has
        # hung up, the call has left already, and this evens it out.)
        decrement(self.resting_by_peer, peer)
        self.total += 1
        decrement(self.by_peer, peer, -1)


class BulkStreams:
    """At most `most` streams at a time, and of one namespace three quarters of that: each may be
    receiving a request, and wants all the time that there is."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_one = most - most // 4
        self._total = 0
        self._of: Counter[str] = Counter()

    @contextmanager
    def one(self, namespace: str) -> Iterator[None]:
        """Count a stream. Raises TOO_MANY_CALLS."""
        if self._total >= self._most or self._of[namespace] >= self._most_of_one:
            raise too_many(f"{self._total} streams of bulk requests are open already")
        self._total += 1
        self._of[namespace] += 1
        try:
            yield
        finally:
            self._total -= 1
            decrement(self._of, namespace)


def names_one_connection(peer: str) -> bool:
    """Whether a peer's name is that of one connection; all peers of a Unix socket have the same."""
    return peer.startswith("ip")


def decrement(counter: Counter[str], key: str, amount: int = 1) -> None:
    """Take an amount from a counter, which has no key for nothing."""
    counter[key] -= amount
    if not counter[key]:
        del counter[key]


def too_many(message: str) -> PersistenceError:
    """The error of a call for which there is no room."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_TOO_MANY_CALLS, message, retry_after=_RETRY_AFTER
    )
