"""A database and the pool of connections to it: retries, and cancellation of abandoned calls.

(Longer than 450 lines, as it is one class: a batch, a stream, their turns and how either ends.)
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.postgres.connection import Connection
from wfe_persistence.store.postgres.counts import (
    count_retry,
    count_round_trip,
    count_rows,
    show_pool,
)
from wfe_persistence.store.postgres.fairness import FairGate
from wfe_persistence.store.postgres.groups import Groups
from wfe_persistence.store.postgres.lane import Lane
from wfe_persistence.store.postgres.pipeline import Command, ConnectionLostError, Exchange, PGresult
from wfe_persistence.store.postgres.pool import Pool
from wfe_persistence.store.postgres.position import require, send_write
from wfe_persistence.store.postgres.prepared import Statement
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

if TYPE_CHECKING:
    from wfe_persistence.store.postgres.replicas import Replicas

T = TypeVar("T")

MAX_ATTEMPTS: Final = 5
_CANCEL_TIMEOUT_SECONDS: Final = 2.0
_CANCEL_INTERVAL_SECONDS: Final = 0.05
_ROOM_ATTEMPTS: Final = 20
_ROOM_INTERVAL_SECONDS: Final = 0.05
_LARGE_BYTES: Final = 65_536


class Database:
    """A PostgreSQL server and the pool of connections to it.

    At most `pool_size` connections; a call waits up to `pool_timeout` seconds for one, in turns
    with the calls of other namespaces, and behind at most `max_waiting` calls of its own namespace.
    Prepared statements may take about `max_prepared_bytes` of PostgreSQL's memory on each
    connection; `prepare=False` sends every statement unprepared, for a PgBouncer older than 1.21
    in transaction mode. Row-by-row reads (`stream`) get at most half of the connections, because a
    large one takes long, and writes that take long get a quarter; so other calls never wait for
    those alone. Use it as a context manager.

    `name`, `labels` and `accepts_new`: what it is for those who place namespaces. `replica`: what
    messages call it if it is a replica, and so is not in the gauges of the pools.
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
        name: str = "home",
        labels: Mapping[str, str] | None = None,
        accepts_new: bool = True,
        replica: str = "",
    ) -> None:
        self.source = source
        self.name = name
        self.labels = labels or {"name": name}
        self.accepts_new = accepts_new
        self._is_replica = bool(replica)
        self._forget_pool: Callable[[], None] | None = None
        self.reachability = reachability = Reachability(pool_size, replica or name)
        self.replicas: Replicas | None = None
        """Its replicas, if it has any. They know which position each write has reached."""
        self.groups = Groups(max_waiting)
        """The calls that are run together."""
        self.lane = Lane()
        """The turns of administrative work, most of which connects on its own."""
        self._gate = FairGate(pool_size, max_waiting)
        self._streams = FairGate(max(1, pool_size // 2), max_waiting, within=self._gate)
        most = max(1, pool_size // 4)
        self._long = FairGate(most, max_waiting, within=self._gate)
        self._locked = FairGate(most, max_waiting, within=self._gate)
        self._watch = Watch(
            source,
            reachability.stalled,
            reachability.open_connections,
            gate=self._gate,
            locked=self._locked,
            most_locked=most,
        )
        self._pool = Pool(
            source,
            reachability,
            size=pool_size,
            timeout=pool_timeout,
            max_prepared_bytes=max_prepared_bytes if prepare else None,
        )
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._pool.open()
        self._watching = asyncio.get_running_loop().create_task(self._watch.run())
        if not self._is_replica:
            self._forget_pool = show_pool(
                self.name,
                self._pool.size,
                self._gate,
                (self._streams, self._long, self._locked),
                self.reachability,
            )
        if self.replicas is not None:
            await self.replicas.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.replicas is not None:
            await self.replicas.close()
        self._watching.cancel()
        if self._forget_pool is not None:
            self._forget_pool()
        await self.reachability.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CANCEL_TIMEOUT_SECONDS)
        await self._pool.close(_CANCEL_TIMEOUT_SECONDS)

    async def stop_statements(self, seconds: float) -> None:
        """Cancel the statements that run, and give out no more connections; takes at most so long.

        A call whose statement was cancelled has written nothing, and fails with SHUTTING_DOWN as
        those do that wait for a connection. One that is called off while PostgreSQL still has not
        answered fails with COMMIT_OUTCOME_UNKNOWN if it writes.
        """
        self._stopped = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(
                    self._pool.close(seconds),
                    *map(self._stop, self._watch.under_way),
                    *(each.database.stop_statements(seconds) for each in self.replicas or ()),
                )

    async def _stop(self, exchange: Exchange) -> None:
        """Cancel a statement whose caller waits for it."""
        while not (exchange.finished or exchange.lost):
            if exchange.flushed:
                with suppress(psycopg.Error):
                    await exchange.connection.cancel_safe(timeout=_CANCEL_TIMEOUT_SECONDS)
            await asyncio.sleep(_CANCEL_INTERVAL_SECONDS)

    @property
    def in_use(self) -> int:
        """How many of its connections are in use."""
        return self._gate.taken

    @property
    def is_away(self) -> bool:
        """Whether the last attempt to connect failed, and no connection is open."""
        return self.reachability.is_away

    async def answers(self, seconds: float) -> bool:
        """Whether the database says anything within this time, be it only on a new connection."""
        peer = max(self._pool.peers, key=lambda peer: peer.heard, default=None)
        return await self._watch.answers(peer, seconds)

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
                spare = await self._pool.take(self._gate, "")
            except PersistenceError:
                raise exc from None
        try:
            with self.reachability.keep_room():
                await spare.close()
                return await self._connect_into_room(connect, **options)
        finally:
            self._pool.discard(spare)

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
        expected: Collection[ErrorReason.ValueType] = (),
        takes_long: bool = False,
    ) -> list[PGresult]:
        """Run a batch as one transaction, in one round trip; returns a result per statement.

        What can't have been written is retried here, and only here. A unique violation is retried
        too, as the next snapshot shows the row that was in the way; not so that of a constraint
        in `final_constraints`, which is the caller's to explain. Errors of an `expected` reason are
        not logged.

        Raises PersistenceError; UniqueViolation; or UnexpectedDatabaseError for what only a bug
        explains.
        """
        if _size(batch) > _LARGE_BYTES:
            # Checking and serializing so much has kept the loop busy. A deadline that passed
            # meanwhile is noticed here, before anything is sent.
            await asyncio.sleep(0)
        gate = self._long if takes_long else self._gate
        replicas = self.replicas if write else None
        send = Exchange.send if replicas is None else send_write
        attempt = 0
        while True:
            attempt += 1
            try:
                connection = None
                if not self._watch.waits_for_lock(batch):
                    connection = self._pool.take_at_once(gate)
                if connection is None:
                    connection = await self._turn(gate, namespace, batch)
                exchange = await self._exchange(connection, send, batch)
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
            if replicas is not None and error is None:
                is_known = replicas.take_position(exchange, len(batch))
            count_round_trip(exchange, batch)
            if error is None:
                if connection.gate is self._locked:
                    self._watch.was_run(batch)
                self._pool.release(exchange.connection)
                if replicas is not None and not is_known:
                    await replicas.find_position()
                return exchange.results
            again = retry(error)
            if again is Retry.OTHER_CONNECTION:
                self._pool.discard(exchange.connection)
                batch = [(statement.as_unprepared(), params) for statement, params in batch]
            else:
                self._pool.release(exchange.connection)
            if was_cancelled(error):
                attempt -= free_attempts(exchange)
            if (
                attempt >= MAX_ATTEMPTS
                or again is Retry.NO
                or violated_constraint(error) in final_constraints
            ):
                raise_error(error, final_constraints, expected)
            count_retry(error)
            await asyncio.sleep(random.uniform(0.0, 0.005 * 2**attempt))

    async def stream(
        self, namespace: str, command: Command, requires: Command | None = None
    ) -> AsyncGenerator[PGresult, None]:
        """Run one reading statement and yield its rows one by one, each as a result of one row.

        Rows are received as fast as they are consumed, so a large result is never held in memory.
        A connection is held until the generator is closed (`contextlib.aclosing`): never let it
        wait for a client, or for another connection. Raises what `run` does.

        `requires`: a statement that is run before, on the same connection, and whose result must be
        a true boolean. Raises NotReplayedError.
        """
        attempt = 0
        while True:
            attempt += 1
            exchange = await self._prepared(namespace, command, requires)
            connection = exchange.connection
            yielded = False
            again = Retry.NO
            try:
                if exchange.error is None:
                    if requires is not None:
                        require(exchange.results[0])
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
                    self._pool.discard(connection)
                elif exchange.finished:
                    self._pool.release(connection)
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
                if requires is not None:
                    requires = (requires[0].as_unprepared(), requires[1])

    async def _prepared(
        self, namespace: str, command: Command, requires: Command | None
    ) -> Exchange:
        """A finished exchange, whose connection the statement is prepared on if it has no error,
        and in which what it requires was run."""
        attempt = 0
        while True:
            attempt += 1
            try:
                connection = await self._turn(self._streams, namespace, [command])
                return await self._exchange(connection, _send_prepare, (command[0], requires))
            except ConnectionLostError as exc:
                if attempt >= MAX_ATTEMPTS:
                    raise self.reachability.unavailable() from exc

    async def _turn(self, gate: FairGate, namespace: str, batch: Sequence[Command]) -> Connection:
        """A connection for a batch, in its turn at a gate. Statements that are known to wait for a
        lock take their turn apart, also if that became known while they waited for it."""
        if not self._watch.waits_for_lock(batch):
            connection = await self._pool.take(gate, namespace)
            if not self._watch.waits_for_lock(batch):
                return connection
            self._pool.release(connection)
        return await self._pool.take(self._locked, namespace, in_vain=row_locked)

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
            self._pool.discard(exchange.connection)
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
            self._pool.release(connection)
        else:
            exchange.abandon()
            self._pool.discard(connection)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do in a task of its own what must not end when the caller is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _send_prepare(exchange: Exchange, what: tuple[Statement, Command | None]) -> None:
    exchange.send_prepare(*what)


def _size(batch: Sequence[Command]) -> int:
    """How many bytes the parameters of a batch have."""
    size = 0
    for _, params in batch:
        for param in params:
            if param:
                size += len(param)
    return size
