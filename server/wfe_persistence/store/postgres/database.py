"""A database and the pool of connections to it: retries, and cancellation of abandoned calls."""

from __future__ import annotations

import asyncio
import random
import types
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Coroutine,
    Generator,
    Sequence,
)
from contextlib import suppress
from time import monotonic
from typing import Any, ClassVar, Final, Self, TypeVar

import psycopg
import psycopg_pool

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError, shutting_down
from wfe_persistence.store.postgres.counts import (
    count_retry,
    count_round_trip,
    count_rows,
    count_wait,
    show_pool,
)
from wfe_persistence.store.postgres.fairness import FairGate
from wfe_persistence.store.postgres.groups import Groups
from wfe_persistence.store.postgres.lane import Lane
from wfe_persistence.store.postgres.pipeline import (
    Command,
    Connection,
    ConnectionLostError,
    Exchange,
    Peer,
    PGresult,
)
from wfe_persistence.store.postgres.reachability import Reachability, is_full
from wfe_persistence.store.postgres.source import Connect, ConnectionSource
from wfe_persistence.store.postgres.sqlstate import (
    Retry,
    hit_limit,
    raise_error,
    retry,
    row_locked,
    violated_constraint,
    was_cancelled,
    was_idle,
)
from wfe_persistence.store.postgres.watch import Watch, free_attempts

T = TypeVar("T")

MAX_ATTEMPTS: Final = 5
_CANCEL_TIMEOUT_SECONDS: Final = 2.0
_CANCEL_INTERVAL_SECONDS: Final = 0.05
_ROOM_ATTEMPTS: Final = 20
_ROOM_INTERVAL_SECONDS: Final = 0.05
_LARGE_BYTES: Final = 65_536

# For how long a connection that is in use is not given back to the pool, which takes 10 µs CPU each
# time, but must see its connections to replace old ones, and to close those that are not needed.
_KEPT_SECONDS: Final = 1.0


class Database:
    """A PostgreSQL server and the pool of connections to it.

    At most `pool_size` connections; a call waits up to `pool_timeout` seconds for one, in turns
    with the calls of other namespaces, and behind at most `max_waiting` calls of its own namespace.
    Prepared statements may take about `max_prepared_bytes` of PostgreSQL's memory on each
    connection; `prepare=False` sends every statement unprepared, for a PgBouncer older than 1.21
    in transaction mode. Row-by-row reads (`stream`) get at most half of the connections, because a
    large one takes long; so other calls never wait for those alone. Use it as a context manager.
    """

    def __init__(
        self,
        source: ConnectionSource,
        *,
        pool_size: int,
        pool_timeout: float,
        prepare: bool,
        max_prepared_bytes: int,
        max_waiting: int,
    ) -> None:
        self.source = source
        self.reachability = reachability = Reachability(pool_size)
        self.groups = Groups(max_waiting)
        """The calls that are run together."""
        self.lane = Lane()
        """The turns of administrative work, most of which connects on its own."""
        self._pool_timeout = pool_timeout
        self._gate = FairGate(pool_size, max_waiting)
        self._streams = FairGate(max(1, pool_size // 2), max_waiting, within=self._gate)
        most = max(1, pool_size // 4)
        self._locked = FairGate(most, max_waiting, within=self._gate)
        self._watch = Watch(
            source, reachability.stalled, gate=self._gate, locked=self._locked, most_locked=most
        )

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

        PoolConnection.max_prepared_bytes = max_prepared_bytes if prepare else None
        self._pool: psycopg_pool.AsyncConnectionPool[Any] = psycopg_pool.AsyncConnectionPool(
            connection_class=PoolConnection,
            kwargs={"autocommit": True},
            min_size=min(2, pool_size),
            max_size=pool_size,
            timeout=pool_timeout,
            # Give up soon: the next call, or the health watch, starts a new attempt. The pool's
            # own backoff would pause for as long as the outage has lasted.
            reconnect_timeout=1.0,
            open=False,
        )
        self._connection_class = PoolConnection
        self._pool_size = pool_size
        # Connections that are not in use, but not given back to the pool yet, the last one used
        # last; and how many calls wait for the pool to give them one.
        self._at_hand: list[Connection] = []
        self._asking = 0
        self._giving_back: asyncio.TimerHandle | None = None
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._pool.open()
        self._watching = asyncio.get_running_loop().create_task(self._watch.run())
        show_pool(self._pool_size, self._gate, (self._streams, self._locked), self.reachability)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watching.cancel()
        self._stopped = True
        self._give_back(float("inf"))
        await self.reachability.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CANCEL_TIMEOUT_SECONDS)
        await self._pool.close(timeout=_CANCEL_TIMEOUT_SECONDS)

    async def stop_statements(self, seconds: float) -> None:
        """Cancel the statements that run, and give out no more connections; takes at most so long.

        A call whose statement was cancelled has written nothing, and fails with SHUTTING_DOWN as
        those do that wait for a connection. One that is called off while PostgreSQL still has not
        answered fails with COMMIT_OUTCOME_UNKNOWN if it writes.
        """
        self._stopped = True
        self._give_back(float("inf"))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(
                    self._pool.close(timeout=seconds), *map(self._stop, self._watch.under_way)
                )

    async def _stop(self, exchange: Exchange) -> None:
        """Cancel a statement whose caller waits for it."""
        while not (exchange.finished or exchange.lost):
            if exchange.flushed:
                with suppress(psycopg.Error):
                    await exchange.connection.cancel_safe(timeout=_CANCEL_TIMEOUT_SECONDS)
            await asyncio.sleep(_CANCEL_INTERVAL_SECONDS)

    @property
    def is_away(self) -> bool:
        """Whether the last attempt to connect failed, and no connection is open."""
        return self.reachability.is_away

    async def answers(self, seconds: float) -> bool:
        """Whether the database says anything within this time, be it only on a new connection."""
        peers = self._connection_class.peers.values()
        return await self._watch.answers(max(peers, key=lambda p: p.heard, default=None), seconds)

    async def connect(self, connect: Connect, **options: Any) -> psycopg.AsyncConnection[Any]:
        """Connect for administration, apart from the pool. Raises psycopg.Error.

        Where the role may have no more connections, the pool gives one of its own up.
        """
        try:
            return await self.source.connect(connect, **options)
        except psycopg.OperationalError as exc:
            if not (is_full(exc) and self.reachability.count_open()):
                raise
            try:
                spare = await self._acquire(self._gate, "")
            except PersistenceError:
                raise exc from None
        try:
            with self.reachability.keep_room():
                await spare.close()
                return await self._connect_into_room(connect, **options)
        finally:
            self._spawn(self._discard(spare))

    async def _connect_into_room(
        self, connect: Connect, **options: Any
    ) -> psycopg.AsyncConnection[Any]:
        """Connect as soon as PostgreSQL has noticed that a connection was closed."""
        for _ in range(_ROOM_ATTEMPTS):
            try:
                return await self.source.connect(connect, **options)
            except psycopg.OperationalError as exc:
                if not is_full(exc):
                    raise
            await asyncio.sleep(_ROOM_INTERVAL_SECONDS)
        return await self.source.connect(connect, **options)

    async def run(
        self,
        namespace: str,
        batch: Sequence[Command],
        *,
        write: bool,
        final_constraints: Collection[str] = (),
    ) -> list[PGresult]:
        """Run a batch as one transaction, in one round trip; returns a result per statement.

        What can't have been written is retried here, and only here. A unique violation is retried
        too, as the next snapshot shows the row that was in the way; not so that of a constraint
        in `final_constraints`, which is the caller's to explain.

        Raises PersistenceError; UniqueViolation; or UnexpectedDatabaseError for what only a bug
        explains.
        """
        if _size(batch) > _LARGE_BYTES:
            # Checking and serializing so much has kept the loop busy. A deadline that passed
            # meanwhile is noticed here, before anything is sent.
            await asyncio.sleep(0)
        attempt = 0
        while True:
            attempt += 1
            try:
                connection = self._take_at_once(batch)
                if connection is None:
                    connection = await self._turn(self._gate, namespace, batch)
                exchange = await self._exchange(connection, Exchange.send, batch)
            except ConnectionLostError as exc:
                if write and not exc.unwritten:
                    raise PersistenceError(
                        ErrorReason.ERROR_REASON_COMMIT_OUTCOME_UNKNOWN,
                        "the database connection broke before the write was confirmed",
                        retry_after=0.1,
                    ) from exc
                # As many as the pool has may have been idle for too long: they do not count.
                attempt -= exc.was_idle
                if attempt >= MAX_ATTEMPTS:
                    raise self.reachability.unavailable() from exc
                count_retry(None)
                continue
            error = exchange.error
            count_round_trip(exchange, batch)
            if error is None:
                if connection.gate is self._locked:
                    self._watch.was_run(batch)
                self._release(exchange.connection)
                return exchange.results
            again = retry(error)
            if again is Retry.OTHER_CONNECTION:
                self._spawn(self._discard(exchange.connection))
                batch = [(statement.as_unprepared(), params) for statement, params in batch]
            else:
                self._release(exchange.connection)
            if was_cancelled(error):
                attempt -= free_attempts(exchange)
            if (
                attempt >= MAX_ATTEMPTS
                or again is Retry.NO
                or violated_constraint(error) in final_constraints
            ):
                raise_error(error, final_constraints)
            count_retry(error)
            await asyncio.sleep(random.uniform(0.0, 0.005 * 2**attempt))

    async def stream(self, namespace: str, command: Command) -> AsyncGenerator[PGresult, None]:
        """Run one reading statement and yield its rows one by one, each as a result of one row.

        Rows are received as fast as they are consumed, so a large result is never held in memory.
        A connection is held until the generator is closed (`contextlib.aclosing`): never let it
        wait for a client, or for another connection. Raises what `run` does.
        """
        attempt = 0
        while True:
            attempt += 1
            exchange = await self._prepared(namespace, command)
            connection = exchange.connection
            yielded = False
            again = Retry.NO
            try:
                if exchange.error is None:
                    exchange = Exchange(connection)
                    exchange.send_row_by_row(command)
                    self._watch.under_way.add(exchange)
                ended = exchange.finished
                while not ended:
                    await exchange.more()
                    ended = exchange.finished or exchange.lost is not None
                    rows, exchange.results = exchange.results, []
                    count_rows(sum(row.ntuples for row in rows))
                    for row in rows:
                        if row.ntuples:
                            yielded = True
                            yield row
                    exchange.resume()
                if exchange.error is not None:
                    again = retry(exchange.error)
            finally:
                self._watch.under_way.discard(exchange)
                if exchange.lost or again is Retry.OTHER_CONNECTION:
                    self._spawn(self._discard(connection))
                elif exchange.finished:
                    self._release(connection)
                else:
                    self._spawn(self._cancel(exchange))
            # A row that was received can't be taken back, so then it is not run again.
            if exchange.lost:
                if exchange.error is not None and hit_limit(exchange.error):
                    raise_error(exchange.error)
                if yielded or attempt >= MAX_ATTEMPTS:
                    raise self.reachability.unavailable() from exchange.lost
                count_retry(None)
                continue
            count_round_trip(exchange, [command])
            if exchange.error is None:
                if connection.gate is self._locked:
                    self._watch.was_run([command])
                return
            if was_cancelled(exchange.error) and not yielded:
                attempt -= free_attempts(exchange)
            if yielded or again is Retry.NO or attempt >= MAX_ATTEMPTS:
                raise_error(exchange.error)
            count_retry(exchange.error)
            if again is Retry.OTHER_CONNECTION:
                command = (command[0].as_unprepared(), command[1])

    async def _prepared(self, namespace: str, command: Command) -> Exchange:
        """A finished exchange, whose connection the statement is prepared on if it has no error."""
        attempt = 0
        while True:
            attempt += 1
            try:
                connection = await self._turn(self._streams, namespace, [command])
                return await self._exchange(connection, Exchange.send_prepare, command[0])
            except ConnectionLostError as exc:
                if attempt >= MAX_ATTEMPTS:
                    raise self.reachability.unavailable() from exc

    def _take_at_once(self, batch: Sequence[Command]) -> Connection | None:
        """A connection for a batch, if it need not be waited for."""
        if self.reachability.refuses or not self._at_hand or self._watch.waits_for_lock(batch):
            return None
        if not self._gate.try_acquire():
            return None
        while self._at_hand:
            connection = self._at_hand.pop()
            if connection.is_alive():
                connection.gate = self._gate
                count_wait(0.0)
                return connection
            self._spawn(self._replace(connection))
        self._gate.release()
        return None

    async def _turn(self, gate: FairGate, namespace: str, batch: Sequence[Command]) -> Connection:
        """A connection for a batch, in its turn at a gate. Statements that are known to wait for a
        lock take their turn apart, also if that became known while they waited for it."""
        if not self._watch.waits_for_lock(batch):
            connection = await self._acquire(gate, namespace)
            if not self._watch.waits_for_lock(batch):
                return connection
            self._release(connection)
        return await self._acquire(self._locked, namespace)

    async def _exchange(
        self, connection: Connection, send: Callable[[Exchange, T], None], what: T
    ) -> Exchange:
        """One exchange to its end, whose connection the caller releases. Raises ConnectionLostError
        or is cancelled: then the connection is taken care of."""
        exchange = Exchange(connection)
        send(exchange, what)
        self._watch.under_way.add(exchange)
        try:
            await exchange.complete()
        except asyncio.CancelledError:
            self._spawn(self._cancel(exchange))
            if self._stopped:
                raise ConnectionLostError("stopped", unwritten=exchange.is_unwritten) from None
            raise
        except ConnectionLostError as exc:
            self._spawn(self._discard(exchange.connection))
            if exc.unwritten and exchange.error is not None:
                if hit_limit(exchange.error):
                    raise_error(exchange.error)
                exc.was_idle = was_idle(exchange.error)
            raise
        finally:
            self._watch.under_way.discard(exchange)
        return exchange

    async def _cancel(self, exchange: Exchange) -> None:
        """Cancel a statement whose caller no longer waits for it, then release the connection."""
        connection = exchange.connection
        with suppress(TimeoutError, psycopg.Error, ConnectionLostError):
            async with asyncio.timeout(_CANCEL_TIMEOUT_SECONDS):
                exchange.discard_results()
                # Not all sent: PostgreSQL commits nothing without the Sync, so just hang up.
                while exchange.flushed and not exchange.finished:
                    # Repeatedly, because a cancel request that comes before the statement has begun
                    # does nothing. (And none after its end: it would hit the next caller's.)
                    await connection.cancel_safe(timeout=_CANCEL_TIMEOUT_SECONDS)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_CANCEL_INTERVAL_SECONDS):
                            await exchange.complete()
        if exchange.finished:
            self._release(connection)
        else:
            exchange.abandon()
            await self._discard(connection)

    async def _acquire(self, gate: FairGate, namespace: str) -> Connection:
        """A connection that works, until `_release` or `_discard`."""
        self.reachability.check()
        begun = monotonic()
        try:
            with self.reachability.waiting.until(begun + self._pool_timeout):
                await gate.acquire(namespace)
                try:
                    return await self._living(gate)
                except BaseException:
                    gate.release()
                    raise
        except (TimeoutError, psycopg_pool.PoolTimeout) as exc:
            if gate is self._locked and not self.is_away:
                raise row_locked() from exc
            raise (self.reachability.unavailable() if self.is_away else _busy()) from exc
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

    def _release(self, connection: Connection) -> None:
        """Have a connection at hand for the next call, or give it back to the pool."""
        if self._stopped or self._asking or connection.kept_until <= monotonic():
            self._put(connection)
        else:
            self._at_hand.append(connection)
            if self._giving_back is None:
                self._giving_back = connection.loop.call_later(_KEPT_SECONDS, self._give_back)
        connection.gate.release()

    def _put(self, connection: Connection) -> None:
        """Return a connection to the pool.

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

    def _give_back(self, until: float | None = None) -> None:
        """Return to the pool what is at hand and was to be returned before a time: by now."""
        if self._giving_back is not None:
            self._giving_back.cancel()
            self._giving_back = None
        loop = asyncio.get_running_loop()
        until = monotonic() if until is None else until
        kept, self._at_hand = self._at_hand, []
        for connection in kept:
            if connection.kept_until <= until:
                self._put(connection)
            else:
                self._at_hand.append(connection)
        if self._at_hand:
            self._giving_back = loop.call_later(_KEPT_SECONDS, self._give_back)

    async def _discard(self, connection: Connection) -> None:
        """Close a connection that is not to be used again; the pool replaces it."""
        connection.gate.release()
        await self._replace(connection)

    async def _replace(self, connection: Connection) -> None:
        await connection.close()
        await self._pool.putconn(connection)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do in a task of its own what must not end when the caller is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _size(batch: Sequence[Command]) -> int:
    """How many bytes the parameters of a batch have."""
    size = 0
    for _, params in batch:
        for param in params:
            if param:
                size += len(param)
    return size


@types.coroutine
def _remaining(
    waiting_for: object, steps: Generator[Any, Any, None]
) -> Generator[object, Any, None]:
    """The steps of a coroutine whose first one has been made, and waits for something."""
    yield waiting_for
    yield from steps


def _busy() -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_POOL_EXHAUSTED,
        "all database connections are busy",
        retry_after=0.5,
    )
