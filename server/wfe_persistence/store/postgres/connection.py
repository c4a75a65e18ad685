"""A connection to PostgreSQL in libpq's pipeline mode, and whom it is to."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, ClassVar, Protocol, Self

import psycopg
from psycopg import pq

from wfe_persistence.store.postgres.fairness import FairGate
from wfe_persistence.store.postgres.prepared import PreparedStatements


class Peer:
    """One PostgreSQL server, or pooler, and what is known of it; shared by the connections to it.

    `options` are those of another connection to it. Times are those of `time.monotonic`.
    """

    def __init__(self, options: dict[str, str]) -> None:
        self.options = options
        self.heard = 0.0
        """When it last said something, on any connection."""
        self.stalled = 0.0
        """When it last stopped answering: older connections are not to be used again."""


class Listener(Protocol):
    """What waits for what PostgreSQL says."""

    def readable(self) -> None:
        """Take what has come on the connection."""


class Connection(psycopg.AsyncConnection[Any]):
    """A pooled connection in pipeline mode, which knows what is prepared on it.

    The event loop watches its socket from the beginning to the end: to watch it for each batch
    anew costs two system calls a batch, and to look whether PostgreSQL has hung up meanwhile, two
    more.

    A pool has a subclass of its own for its connections.
    """

    max_prepared_bytes: ClassVar[int | None] = None
    """See PreparedStatements."""
    peers: ClassVar[dict[str, Peer]] = {}
    """Whom the pool has been connected to: those that the connection string names."""
    peer: Peer
    born: float
    """When it was made, by `time.monotonic`."""
    gate: FairGate
    """Where the call that has the connection took its turn, and returns it."""
    kept_until = 0.0
    """Until when it need not go back to the pool, by `time.monotonic`."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        super().__init__(pgconn)
        self.prepared = PreparedStatements(self.max_prepared_bytes)
        self.exchange: Listener | None = None
        """The batch that is under way."""
        self.has_said = False
        """Whether PostgreSQL has said something that nobody asked for, and that nobody has
        looked at yet: mostly why it is about to hang up."""
        self.loop = asyncio.get_running_loop()
        self.fd = pgconn.socket
        self._watched = False

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """Connect, and enter the pipeline mode."""
        born = monotonic()
        connection = await super().connect(conninfo, **kwargs)
        connection.born = born
        connection.peer = cls._peer_of(connection.pgconn)
        connection.pgconn.nonblocking = 1
        connection.pgconn.enter_pipeline_mode()
        connection.watch()
        return connection

    @classmethod
    def _peer_of(cls, pgconn: pq.abc.PGconn) -> Peer:
        at = {"host": pgconn.host, "hostaddr": pgconn.hostaddr, "port": pgconn.port}
        options = {key: value.decode() for key, value in at.items() if value}
        key = " ".join(options.values())
        if key not in cls.peers:
            cls.peers[key] = Peer(options)
        return cls.peers[key]

    async def close(self) -> None:
        """Close it. Its socket's number may be that of another one right after that."""
        self.unwatch()
        await super().close()

    def watch(self) -> None:
        """Take what PostgreSQL says as it comes."""
        if not self._watched:
            self._watched = True
            self.loop.add_reader(self.fd, self._readable)

    def unwatch(self) -> None:
        """Leave what comes where it is, until `watch`."""
        if self._watched:
            self._watched = False
            self.loop.remove_reader(self.fd)

    def _readable(self) -> None:
        if self.exchange is not None:
            self.exchange.readable()
            return
        try:
            self.pgconn.consume_input()
            self.has_said = True
        except psycopg.OperationalError:
            self.unwatch()  # for good: `is_alive` says so

    def look(self) -> None:
        """Take what has come, whether the event loop knows of it or not."""
        if self._watched:
            self._readable()

    def is_alive(self) -> bool:
        """Whether the server has not hung up, as far as that has been heard. Costs nothing."""
        return self._watched and self.peer.stalled <= self.born
