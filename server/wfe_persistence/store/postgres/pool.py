"""The connections to a PostgreSQL server: a few at hand, the others in psycopg's pool.

psycopg's pool makes connections, replaces those that are old or broken, and closes those that are
not needed. To take one from it and give it back costs a call 10 µs CPU. So one that is in use stays
at hand for the next call, and goes back once a second, which is all that the pool needs.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Collection, Coroutine, Generator
from time import monotonic
from typing import Any, ClassVar, Final

import psycopg
import psycopg_pool

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError, shutting_down
from wfe_persistence.store.postgres.connection import Connection, Peer
from wfe_persistence.store.postgres.counts import count_wait
from wfe_persistence.store.postgres.fairness import FairGate
from wfe_persistence.store.postgres.reachability import Reachability
from wfe_persistence.store.postgres.source import ConnectionSource

_KEPT_SECONDS: Final = 1.0


def busy() -> PersistenceError:
    """The error of a call that has waited in vain for a connection."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_POOL_EXHAUSTED,
        "all database connections are busy",
        retry_after=0.5,
    )


class Pool:
    """At most `size` connections; a call waits up to `timeout` seconds for one.

    `max_prepared_bytes`: see `PreparedStatements`.
    """

    def __init__(
        self,
        source: ConnectionSource,
        reachability: Reachability,
        *,
        size: int,
        timeout: float,
        max_prepared_bytes: int | None,
    ) -> None:
        self.size = size
        self._timeout = timeout
        self._reachability = reachability

        class PoolConnection(Connection):
            """The connections of this pool."""

            peers: ClassVar[dict[str, Peer]] = {}

            @classmethod
            async def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:  # noqa: ARG003
                connect = super().connect
                return await reachability.connect(
                    lambda: source.connect(connect, **kwargs),
                    lambda: source.connect(psycopg.AsyncConnection.connect),
                )

        PoolConnection.max_prepared_bytes = max_prepared_bytes
        self._connection_class = PoolConnection
        self._pool: psycopg_pool.AsyncConnectionPool[Any] = psycopg_pool.AsyncConnectionPool(
            connection_class=PoolConnection,
            kwargs={"autocommit": True},
            min_size=min(2, size),
            max_size=size,
            timeout=timeout,
            # Give up soon: the next call, or the health watch, starts a new attempt. The pool's
            # own backoff would pause for as long as the outage has lasted.
            reconnect_timeout=1.0,
            open=False,
        )
        # Those at hand, the one that was used last at the end; and how many calls wait for
        # psycopg's pool to give them one.
        self._at_hand: list[Connection] = []
        self._asking = 0
        self._giving_back: asyncio.TimerHandle | None = None
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def peers(self) -> Collection[Peer]:
        """Whom it has been connected to."""
        return self._connection_class.peers.values()

    async def open(self) -> None:
        """Begin to connect."""
        await self._pool.open()

    async def close(self, seconds: float) -> None:
        """Give out no more connections, and close them as they come back; takes at most so long."""
        self._closed = True
        self._give_back(float("inf"))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        await self._pool.close(timeout=seconds)

    def take_at_once(self, gate: FairGate) -> Connection | None:
        """A connection until `release` or `discard`, unless it, or a slot of the gate, must be
        waited for."""
        if self._reachability.refuses or not self._at_hand or not gate.try_acquire():
            return None
        while self._at_hand:
            connection = self._at_hand.pop()
            if connection.is_alive():
                connection.gate = gate
                count_wait(0.0)
                return connection
            self._spawn(self._replace(connection))
        gate.release()
        return None

    async def take(
        self,
        gate: FairGate,
        namespace: str,
        in_vain: Callable[[], PersistenceError] = busy,
    ) -> Connection:
        """A connection until `release` or `discard`, in its turn at a gate.

        Raises PersistenceError: `in_vain` if it was waited for although the database can be
        reached.
        """
        self._reachability.check()
        begun = monotonic()
        try:
            with self._reachability.waiting.until(begun + self._timeout):
                await gate.acquire(namespace)
                try:
                    return await self._living(gate)
                except BaseException:
                    gate.release()
                    raise
        except (TimeoutError, psycopg_pool.PoolTimeout) as exc:
            away = self._reachability.is_away
            raise (self._reachability.unavailable() if away else in_vain()) from exc
        except psycopg_pool.PoolClosed as exc:
            raise shutting_down() from exc
        finally:
            count_wait(monotonic() - begun)

    async def _living(self, gate: FairGate) -> Connection:
        while True:
            if self._at_hand:
                connection = self._at_hand.pop()
            else:
                self._asking += 1
                try:
                    connection = await self._pool.getconn()
                finally:
                    self._asking -= 1
                connection.kept_until = monotonic() + _KEPT_SECONDS
            if connection.is_alive():
                connection.gate = gate
                return connection
            self._spawn(self._replace(connection))

    def release(self, connection: Connection) -> None:
        """Have a connection at hand for the next call, or give it back."""
        if self._closed or self._asking or connection.kept_until <= monotonic():
            self._put(connection)
        else:
            self._at_hand.append(connection)
            if self._giving_back is None:
                self._giving_back = connection.loop.call_later(_KEPT_SECONDS, self._give_back)
        connection.gate.release()

    def discard(self, connection: Connection) -> None:
        """Close a connection that is not to be used again, and replace it."""
        connection.gate.release()
        self._spawn(self._replace(connection))

    def _give_back(self, until: float | None = None) -> None:
        """Give back what was to be at hand until a time: by now."""
        if self._giving_back is not None:
            self._giving_back.cancel()
            self._giving_back = None
        until = monotonic() if until is None else until
        kept, self._at_hand = self._at_hand, []
        for connection in kept:
            if connection.kept_until <= until:
                self._put(connection)
            else:
                self._at_hand.append(connection)
        if self._at_hand:
            loop = asyncio.get_running_loop()
            self._giving_back = loop.call_later(_KEPT_SECONDS, self._give_back)

    def _put(self, connection: Connection) -> None:
        """Give a connection back.

        It must not be awaited: a caller who is cancelled meanwhile would lose the connection. But
        it hardly ever has to wait, so the first step is made here, and only if there are more a
        task makes them.
        """
        steps = self._pool.putconn(connection).__await__()
        try:
            waiting_for = next(steps)
        except StopIteration:
            return
        self._spawn(_remaining(waiting_for, steps))

    async def _replace(self, connection: Connection) -> None:
        await connection.close()
        await self._pool.putconn(connection)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do in a task of its own what must not end when the caller is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@types.coroutine
def _remaining(
    waiting_for: object, steps: Generator[Any, Any, None]
) -> Generator[object, Any, None]:
    """The steps of a coroutine whose first one has been made, and waits for something."""
    yield waiting_for
    yield from steps
