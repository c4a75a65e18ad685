"""What a handler knows of its call, beside the request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from wfe.persistence.v1.lifecycle_pb2 import LifecycleEvent
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe_persistence.offload import Workers
from wfe_persistence.rpc import paging
from wfe_persistence.rpc.calls import BulkStreams
from wfe_persistence.rpc.check import Check
from wfe_persistence.rpc.guard import Caller
from wfe_persistence.rpc.intake import Place
from wfe_persistence.rpc.named_field import NamingAField
from wfe_persistence.store.feeds import Feeds
from wfe_persistence.store.moving.mover import Mover
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.paging import Cursor
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.queue import wake_for
from wfe_persistence.store.readiness import Readiness
from wfe_persistence.store.retention_runner import Retention
from wfe_persistence.store.tables import Store
from wfe_persistence.store.transfers import Transfers
from wfe_persistence.store.waiting import Waiters
from wfe_persistence.store.workflow_changes import Change
from wfe_persistence.time_spent import measured

# What is left of its deadline for a call that has waited in vain: for the last look and the answer.
_ANSWER_SECONDS: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What all calls of a server share."""

    namespaces: Namespaces
    readiness: Readiness
    workers: Workers
    """Where the work of large requests is done."""
    waiters: Waiters
    """The calls that wait for what others do."""
    feeds: Feeds[LifecycleEvent]
    """What watchers of lifecycle events follow."""
    changes: Feeds[Change]
    """What watchers of workflows follow."""
    retention: Retention
    """What deletes what the retention policies let go."""
    mover: Mover
    """What moves namespaces to other databases."""
    transfers: Transfers
    """The exports and imports."""
    bulk_streams: BulkStreams
    """The streams of bulk requests."""
    server_version: str
    max_message_bytes: int
    """The maximum size of a request or response."""
    default_deadline: float
    """The timeout in seconds of calls without a deadline."""
    max_deadline: float
    """The longest timeout in seconds of any call."""
    stall_seconds: float
    """How long a client may take until a stream can send the next message."""
    allow_truncate: bool
    allow_create_namespace: bool
    allow_delete_namespace: bool


class Waiting:
    """See `Call.waiting`. (Not a generator: ten thousand calls may be inside.)"""

    __slots__ = ("_measured", "_place", "_rests", "_seconds")

    def __init__(self, place: Place, naming: NamingAField, seconds: float) -> None:
        if seconds:
            naming.let_go()
        self._place = place
        self._seconds = seconds
        self._rests = False
        self._measured: measured | None = None

    def __enter__(self) -> float:
        now = asyncio.get_running_loop().time()
        if self._seconds:
            self._rests = self._place.rest()
            self._measured = measured("waiting")
            self._measured.__enter__()
        return min(now + self._seconds, max(now, self._place.deadline - _ANSWER_SECONDS))

    def __exit__(self, *_: object) -> None:
        if self._measured is not None:
            self._measured.__exit__()
        if self._rests:
            self._place.wake_up()


@dataclass(slots=True)
class Call:
    """One call, as the boundary passes it to a handler with the decoded request."""

    store: Store
    """The store of the namespace that the call is for."""
    check: Check
    """Collects the violations of the request; the handler adds to it and calls `done()`."""
    env: Environment
    caller: Caller
    place: Place
    naming: NamingAField
    """Has the errors of the request name a field."""
    database: Database
    """Where the namespace was when the call began; it may be moved meanwhile."""
    replica_at: str | None = None
    """Of a stream that lasts: the position that a replica must have to be read from (empty: any);
    None: it is the primary that is read from. (Of other calls the store knows.)"""

    def waiting(self, seconds: float) -> Waiting:
        """Wait for what other calls do, for so long if need be, without keeping them out: a context
        manager.

        Gives the time at which to stop, on the event loop's clock: early enough for an answer
        before the deadline.
        """
        return Waiting(self.place, self.naming, seconds)

    def written(
        self,
        enqueued: Iterable[QueueItem],
        returned_to: Iterable[str] = (),
        *,
        published: bool = False,
    ) -> None:
        """Tell those who wait for items or watch the feed that something was written for them.
        `returned_to`: the queues of items that came back, one for each."""
        wake_for(self.store, self.env.waiters, enqueued, returned_to)
        if published:
            self.env.feeds.published(self.store)

    def page(self, request: paging.Paged, size: int) -> tuple[Cursor | None, int, int]:
        """Where the requested page starts, its maximum number of items and their maximum size in
        bytes: the last arguments of the lists in the store."""
        return (
            paging.decode(request, self.store),
            size,
            self.env.max_message_bytes - paging.MAX_TOKEN_BYTES - paging.FRAMING_BYTES,
        )
