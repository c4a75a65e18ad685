"""The way to PostgreSQL and back: pool, one round trip per call, retries, errors.

psycopg's pool looks after the connections. On a connection taken from it, statements go out in
libpq's pipeline mode, prepared once per connection, and the results are read on the event loop:
a call is one message there and one back. This takes about two thirds of the CPU that psycopg's
cursors take (`./run bench --driver` measures both side by side).

Parameters go out as text, results come back binary (`rows` reads them). Statements handed over
together are one transaction, because PostgreSQL commits at the Sync that ends the batch. No
session setting is made or relied on, so PgBouncer may stand in between.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import types
from collections import OrderedDict
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn, Self

import psycopg
import psycopg_pool
from psycopg import conninfo, pq

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.fairness import FairGate
from wfe_persistence.store.rows import Param
from wfe_persistence.store.schema import Statement

log = logging.getLogger(__name__)

Command = tuple[Statement, Sequence[Param]]
"""A statement, bound to a schema, and its parameters."""

_BINARY: Final = 1
MAX_ATTEMPTS: Final = 5
_CALL_OFF_SECONDS: Final = 2.0
_CANCEL_AGAIN_SECONDS: Final = 0.05
_ROWS_AHEAD: Final = 32
_LARGE_BYTES: Final = 65_536
# What a prepared statement takes of PostgreSQL's memory, on each connection: about this much, plus
# this for each byte of its SQL (measured on 18; tests/store/test_prepared.py).
_KEPT_BYTES: Final = 8_192
_KEPT_BYTES_PER_BYTE: Final = 110

# Defaults for the connection string; what it says itself wins. A peer that went away without a
# word is noticed after tcp_user_timeout instead of minutes.
_CONNECTION_DEFAULTS: Final = {
    "application_name": "wfe-persistence",
    "client_encoding": "utf8",
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

# SQLSTATEs after which the same statement may succeed at once: serialization failure, deadlock, or
# a cancel request that was meant for the call before on the same connection.
# A pointer whose workflow is gone (23503), or is still there, was written while the workflow was
# being deleted: the next snapshot shows it.
_TRY_AGAIN: Final = frozenset({"40001", "40P01", "57014", "23503"})
# The same on another connection: what is prepared on this one is not what we believe (a PgBouncer
# in between), or no longer fits the tables (a migration).
_TRY_ELSEWHERE: Final = frozenset({"26000", "42P05", "0A000"})


def conninfo_with_defaults(url: str) -> str:
    """A connection string with our defaults for what it leaves open. Raises ValueError."""
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as exc:
        # The driver's message would repeat the string, and with it a password.
        raise ValueError("db-url: is no PostgreSQL connection string or URL") from exc
    defaults: dict[str, Any] = {k: v for k, v in _CONNECTION_DEFAULTS.items() if k not in given}
    return conninfo.make_conninfo(url, **defaults)


class ConnectionLostError(Exception):
    """The connection broke during a call. `unwritten`: nothing can have been committed."""

    def __init__(self, cause: str, *, unwritten: bool) -> None:
        super().__init__(cause)
        self.unwritten = unwritten


class UnexpectedDatabaseError(Exception):
    """PostgreSQL refused a statement for a reason that only a bug explains."""


class Connection(psycopg.AsyncConnection[Any]):
    """A pooled connection that knows which statements are prepared on it."""

    # Why the last attempt to connect failed; None: it did not. Tells "all connections are busy"
    # from "there is no database" when a caller has waited in vain.
    last_connect_error: str | None = None

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        super().__init__(pgconn)
        # By name, the one used longest ago first: what it takes of PostgreSQL's memory, in bytes.
        self.prepared: OrderedDict[bytes, int] = OrderedDict()

    @classmethod
    async def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """Connect, and note on the class (each pool has its own) whether it worked."""
        try:
            connection = await super().connect(conninfo, **kwargs)
        except Exception as exc:
            cls.last_connect_error = type(exc).__name__
            raise
        cls.last_connect_error = None
        connection.pgconn.nonblocking = 1
        connection.pgconn.enter_pipeline_mode()
        return connection

    def is_alive(self) -> bool:
        """Whether the server has not hung up. Costs no round trip: it would have said so."""
        try:
            # Twice, because its last words hide from the first look that it has hung up.
            self.pgconn.consume_input()
            self.pgconn.consume_input()
        except psycopg.OperationalError:
            return False
        return self.pgconn.status == pq.ConnStatus.OK


class Exchange:
    """One batch of statements on one connection: sent at once, answered in order."""

    def __init__(self, connection: Connection, *, prepare: bool, max_prepared_bytes: int) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._prepare = prepare
        self._max_prepared_bytes = max_prepared_bytes
        self._loop = asyncio.get_running_loop()
        self._fd = self._pgconn.socket
        # What was sent, in order: None for a statement whose result the caller wants, else what
        # its success says about the prepared statements of the connection: (name, what it takes
        # now; 0: it was closed).
        self._sent: list[tuple[bytes, int] | None] = []
        self._answered = 0
        self.flushed = False
        self._rolled_back = False
        self._row_by_row = False
        self._changed = self._loop.create_future()
        self.results: list[pq.abc.PGresult] = []
        self.error: pq.abc.PGresult | None = None
        self.finished = False
        self.lost: ConnectionLostError | None = None

    def send(self, batch: Sequence[Command]) -> None:
        """Put the batch on its way and start listening for the answers."""
        try:
            self._queue_prepares([statement for statement, _ in batch])
            for statement, params in batch:
                self._queue(statement, params)
            self._start()
        except psycopg.OperationalError as exc:
            self._lose(exc)

    def send_row_by_row(self, command: Command) -> None:
        """Put one statement on its way and listen for its rows. Prepare it first, elsewhere:
        libpq lets only the statement that is answered next be read row by row."""
        self._row_by_row = True
        try:
            self._queue_prepares([command[0]])
            self._queue(*command)
            self._pgconn.set_single_row_mode()
            self._start()
        except psycopg.OperationalError as exc:
            self._lose(exc)

    def send_prepare(self, statement: Statement) -> None:
        """Only prepare a statement, unless it is."""
        try:
            self._queue_prepares([statement])
            self._start()
        except psycopg.OperationalError as exc:
            self._lose(exc)

    def _start(self) -> None:
        self._pgconn.pipeline_sync()
        self._flush()
        self._loop.add_reader(self._fd, self._readable)

    def _queue(self, statement: Statement, params: Sequence[Param]) -> None:
        if self._prepare and statement.name:
            self._pgconn.send_query_prepared(statement.name, params, result_format=_BINARY)
        else:
            self._pgconn.send_query_params(statement.sql, params, result_format=_BINARY)
        self._sent.append(None)

    def _queue_prepares(self, statements: Sequence[Statement]) -> None:
        """Prepare those that are not, and close what has not been used for longest to make room."""
        prepared = self._connection.prepared
        new: dict[bytes, Statement] = {}
        for statement in statements:
            if statement.name in prepared:
                prepared.move_to_end(statement.name)
            elif self._prepare and statement.name:
                new[statement.name] = statement
        if not new:
            return
        needed = {name: _kept_bytes(statement) for name, statement in new.items()}
        excess = sum(prepared.values()) + sum(needed.values()) - self._max_prepared_bytes
        in_use = {statement.name for statement in statements}
        for name, kept in prepared.items():
            if excess <= 0 or name in in_use:
                break
            self._pgconn.send_close_prepared(name)
            self._sent.append((name, 0))
            excess -= kept
        for name, statement in new.items():
            self._pgconn.send_prepare(name, statement.sql)
            self._sent.append((name, needed[name]))

    def _flush(self) -> None:
        if self._pgconn.flush() == 0:
            self.flushed = True
        else:
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._fd)
        try:
            self._flush()
        except psycopg.OperationalError as exc:
            self._lose(exc)

    def _readable(self) -> None:
        try:
            self._pgconn.consume_input()
            self._collect()
        except psycopg.OperationalError as exc:
            self._lose(exc)

    def _collect(self) -> None:
        pgconn = self._pgconn
        ended = False
        while not pgconn.is_busy():
            if len(self.results) >= _ROWS_AHEAD and self._row_by_row:
                self._loop.remove_reader(self._fd)  # until resume()
                return
            result = pgconn.get_result()
            if result is None:
                # The end of one statement's results. Twice in a row: nothing is under way any
                # more although the Sync was not answered, so the connection is gone.
                if ended:
                    raise psycopg.OperationalError("the connection ended within a batch")
                ended = True
                self._answered += 1
                continue
            ended = False
            status = result.status
            if status == pq.ExecStatus.PIPELINE_SYNC:
                self._stop_listening()
                self.finished = True
                self._signal()
                return
            if status == pq.ExecStatus.FATAL_ERROR:
                if not _sqlstate(result):
                    raise psycopg.OperationalError("libpq gave the connection up")
                if self.error is None:
                    self.error = result
                    self._rolled_back = self._answered < len(self._sent)
            elif status != pq.ExecStatus.PIPELINE_ABORTED:
                self._succeeded(result)

    def _succeeded(self, result: pq.abc.PGresult) -> None:
        outcome = self._sent[self._answered]
        if outcome is None:
            self.results.append(result)
            if self._row_by_row:
                self._signal()
            return
        name, kept = outcome
        if kept:
            self._connection.prepared[name] = kept
        else:
            self._connection.prepared.pop(name, None)

    def _lose(self, exc: psycopg.OperationalError) -> None:
        # The server's last words may have come together with the end of the connection.
        with suppress(psycopg.OperationalError):
            self._collect()
        if self.finished:  # all answered: the connection broke too late to matter
            return
        self._stop_listening()
        # The commit happens at the Sync. So if that was not sent, or if a statement failed before
        # it, nothing was written. Otherwise nobody can know.
        unwritten = self._rolled_back or not self.flushed
        self.lost = ConnectionLostError(type(exc).__name__, unwritten=unwritten)
        self._signal()

    def _stop_listening(self) -> None:
        self._loop.remove_reader(self._fd)
        if not self.flushed:
            self._loop.remove_writer(self._fd)

    def _signal(self) -> None:
        if not self._changed.done():
            self._changed.set_result(None)

    async def more(self) -> None:
        """Wait for the end of the batch, or with `row_by_row` for more rows."""
        if not (self.finished or self.lost):
            try:
                await self._changed
            finally:  # also of a caller who was cancelled: the exchange is waited for once more
                self._changed = self._loop.create_future()

    async def complete(self) -> None:
        """Wait for the end of the batch. Raises ConnectionLostError."""
        while not (self.finished or self.lost):
            await self.more()
        if self.lost:
            raise self.lost

    def resume(self) -> None:
        """Go on fetching rows after `results` was emptied."""
        if not (self.finished or self.lost):
            self._loop.add_reader(self._fd, self._readable)
            self._readable()

    def drop_rows(self) -> None:
        """Fetch the rest of the rows only to throw it away."""
        self._row_by_row = False
        self.resume()

    def give_up(self) -> None:
        """Stop listening; for a connection that is about to be closed."""
        self._stop_listening()


class Database:
    """A PostgreSQL server and the pool of connections to it.

    `pool_size` connections at most; a call waits up to `pool_timeout` seconds for one, in turns
    with the calls of other namespaces, and with at most `max_waiting` of its own in front of it.
    Prepared statements may take about `max_prepared_bytes` of PostgreSQL's memory on each
    connection; `prepare=False` sends every statement unprepared, for a PgBouncer older than 1.21
    in transaction mode. Use it as a context manager.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 10,
        pool_timeout: float = 5.0,
        prepare: bool = True,
        max_prepared_bytes: int = 100_000_000,
        max_waiting: int = 2000,
    ) -> None:
        self.conninfo = conninfo_with_defaults(url)
        self._prepare = prepare
        self._max_prepared_bytes = max_prepared_bytes
        self._pool_timeout = pool_timeout
        self._gate = FairGate(pool_size, max_waiting)

        class PoolConnection(Connection):
            """The connections of this pool; it notes on the class whether connecting works."""

        self._connection_class = PoolConnection
        self._pool: psycopg_pool.AsyncConnectionPool[Any] = psycopg_pool.AsyncConnectionPool(
            self.conninfo,
            connection_class=PoolConnection,
            kwargs={"autocommit": True},
            min_size=min(2, pool_size),
            max_size=pool_size,
            timeout=pool_timeout,
            # Give up soon: the next call, or the health watch, starts a new attempt. The pool's
            # own backoff would look away for as long as the outage has lasted.
            reconnect_timeout=1.0,
            open=False,
        )
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CALL_OFF_SECONDS)
        await self._pool.close(timeout=_CALL_OFF_SECONDS)

    @property
    def is_away(self) -> bool:
        """Whether the last attempt to connect failed."""
        return self._connection_class.last_connect_error is not None

    async def run(
        self, namespace: str, batch: Sequence[Command], *, write: bool
    ) -> list[pq.abc.PGresult]:
        """Run a batch as one transaction, in one round trip; answer a result per statement.

        What can't have been written is tried again here, and only here. Raises PersistenceError,
        or UnexpectedDatabaseError for what only a bug explains.
        """
        if sum(len(param) for _, params in batch for param in params if param) > _LARGE_BYTES:
            # Checking and writing out so much has kept the loop busy. A deadline that passed
            # meanwhile is noticed here, before anything is sent.
            await asyncio.sleep(0)
        attempt = 0
        while True:
            attempt += 1
            connection = await self._connection(namespace)
            exchange = self._exchange(connection)
            exchange.send(batch)
            try:
                await exchange.complete()
            except asyncio.CancelledError:
                self._spawn(self._call_off(connection, exchange))
                raise
            except ConnectionLostError as exc:
                self._spawn(self._discard(connection))
                if write and not exc.unwritten:
                    raise PersistenceError(
                        ErrorReason.ERROR_REASON_COMMIT_OUTCOME_UNKNOWN,
                        "the database connection broke before the write was confirmed",
                        retry_after=0.1,
                    ) from exc
                if attempt >= MAX_ATTEMPTS:
                    raise _unavailable() from exc
                continue
            error = exchange.error
            if error is None:
                self._give_back(connection)
                return exchange.results
            state = _sqlstate(error)
            elsewhere = state in _TRY_ELSEWHERE
            if elsewhere:
                self._spawn(self._discard(connection))
            else:
                self._give_back(connection)
            again = state in _TRY_AGAIN or (state == "23505" and not _is_name_taken(error))
            if attempt >= MAX_ATTEMPTS or not (again or elsewhere):
                _raise_domain_error(error)
            await asyncio.sleep(random.uniform(0.0, 0.005 * 2**attempt))

    async def stream(
        self, namespace: str, command: Command
    ) -> AsyncGenerator[pq.abc.PGresult, None]:
        """Run one reading statement and answer its rows one by one, each as a result of one row.

        Rows are fetched as fast as they are consumed, so a large answer never stands in memory.
        The generator must be closed (`contextlib.aclosing`).
        """
        connection, exchange = await self._prepared(namespace, command[0])
        try:
            if exchange.error is None:
                exchange = self._exchange(connection)
                exchange.send_row_by_row(command)
            ended = exchange.finished
            while not ended:
                await exchange.more()
                ended = exchange.finished or exchange.lost is not None
                rows, exchange.results = exchange.results, []
                for row in rows:
                    if row.ntuples:
                        yield row
                exchange.resume()
        finally:
            if exchange.finished:
                self._give_back(connection)
            elif exchange.lost:
                self._spawn(self._discard(connection))
            else:
                self._spawn(self._call_off(connection, exchange))
        if exchange.lost:
            raise _unavailable() from exchange.lost
        if exchange.error is not None:
            _raise_domain_error(exchange.error)

    async def _prepared(self, namespace: str, statement: Statement) -> tuple[Connection, Exchange]:
        """A connection on which a statement is prepared, or could not be; see `error`."""
        attempt = 0
        while True:
            attempt += 1
            connection = await self._connection(namespace)
            exchange = self._exchange(connection)
            exchange.send_prepare(statement)
            try:
                await exchange.complete()
            except asyncio.CancelledError:
                self._spawn(self._call_off(connection, exchange))
                raise
            except ConnectionLostError as exc:
                self._spawn(self._discard(connection))
                if attempt >= MAX_ATTEMPTS:
                    raise _unavailable() from exc
            else:
                return connection, exchange

    def _exchange(self, connection: Connection) -> Exchange:
        return Exchange(
            connection, prepare=self._prepare, max_prepared_bytes=self._max_prepared_bytes
        )

    async def _connection(self, namespace: str) -> Connection:
        """A connection that works, and the right to use it, until `_give_back` or `_discard`."""
        try:
            async with asyncio.timeout(self._pool_timeout):
                await self._gate.acquire(namespace)
        except TimeoutError as exc:
            raise _busy() from exc
        try:
            while True:
                connection: Connection = await self._pool.getconn()
                if connection.is_alive():
                    return connection
                self._spawn(self._replace(connection))
        except BaseException as exc:
            self._gate.release()
            if isinstance(exc, psycopg_pool.PoolTimeout):
                raise (_unavailable() if self.is_away else _busy()) from exc
            if isinstance(exc, psycopg_pool.PoolClosed):
                raise PersistenceError(
                    ErrorReason.ERROR_REASON_SHUTTING_DOWN,
                    "the server is shutting down",
                    retry_after=1.0,
                ) from exc
            raise

    async def _discard(self, connection: Connection) -> None:
        self._gate.release()
        await self._replace(connection)

    async def _replace(self, connection: Connection) -> None:
        await connection.close()
        await self._pool.putconn(connection)

    def _give_back(self, connection: Connection) -> None:
        """Return a connection to the pool, which hardly ever has to wait. If it has to, that goes
        on in a task of its own: were it awaited here, a cancelled caller would lose the connection.
        """
        self._gate.release()
        returning = self._pool.putconn(connection)
        try:
            waiting_for = returning.send(None)
        except StopIteration:
            return
        self._spawn(_go_on(returning, waiting_for))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do in a task of its own what must not end when the caller is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call_off(self, connection: Connection, exchange: Exchange) -> None:
        """Cancel what a caller no longer waits for, and give the connection back after that."""
        with suppress(TimeoutError, psycopg.Error, ConnectionLostError):
            async with asyncio.timeout(_CALL_OFF_SECONDS):
                exchange.drop_rows()
                # Not all sent: PostgreSQL commits nothing without the Sync, so just hang up.
                while exchange.flushed and not exchange.finished:
                    # Again and again, because a request that comes before the statement has begun
                    # does nothing. (And none once it is answered: it would hit the next caller.)
                    await connection.cancel_safe(timeout=_CALL_OFF_SECONDS)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_CANCEL_AGAIN_SECONDS):
                            await exchange.complete()
        if exchange.finished:
            self._give_back(connection)
        else:
            exchange.give_up()
            await self._discard(connection)


@types.coroutine
def _go_on(
    coroutine: Coroutine[Any, Any, None], waiting_for: object
) -> Generator[object, Any, None]:
    """The rest of a coroutine that has been started and waits for something."""
    while True:
        try:
            value = yield waiting_for
        except BaseException as exc:  # all of them are the coroutine's to handle
            step = functools.partial(coroutine.throw, exc)
        else:
            step = functools.partial(coroutine.send, value)
        try:
            waiting_for = step()
        except StopIteration:
            return


def _kept_bytes(statement: Statement) -> int:
    return _KEPT_BYTES + _KEPT_BYTES_PER_BYTE * len(statement.sql)


def _sqlstate(error: pq.abc.PGresult) -> str:
    return (error.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()


def _is_name_taken(error: pq.abc.PGresult) -> bool:
    """Whether a unique violation is that of a workflow's name. (Any other one is that of an id
    created by somebody else at the same moment: the next attempt sees it and decides.)"""
    constraint = error.error_field(pq.DiagnosticField.CONSTRAINT_NAME) or b""
    return constraint.endswith(b"workflows_name_key")


def _unavailable() -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
        "the database can't be reached",
        retry_after=1.0,
    )


def _busy() -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_POOL_EXHAUSTED,
        "all database connections are busy",
        retry_after=0.5,
    )


# The driver's errors as the domain's: by SQLSTATE, or by its class (the first two characters).
_DOMAIN_ERRORS: Final[dict[str, tuple[ErrorReason.ValueType, str, float | None]]] = {
    "22": (ErrorReason.ERROR_REASON_INVALID_FIELD, "the database can't store a value", None),
    "54": (ErrorReason.ERROR_REASON_INVALID_FIELD, "a value is too large to be stored", None),
    "3F000": (ErrorReason.ERROR_REASON_SCHEMA_OUTDATED, "the store does not exist", None),
    "42P01": (ErrorReason.ERROR_REASON_SCHEMA_OUTDATED, "the store is missing tables", None),
    "42703": (ErrorReason.ERROR_REASON_SCHEMA_OUTDATED, "the store is missing columns", None),
    "42501": (
        ErrorReason.ERROR_REASON_DATABASE_PERMISSION_DENIED,
        "the server's database role may not do this",
        None,
    ),
    "23503": (
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        "the workflow kept colliding with other writes",
        0.1,
    ),
    "40": (
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        "the transaction kept colliding with others",
        0.1,
    ),
    "55P03": (ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT, "a row stayed locked", 0.1),
    "57014": (ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT, "the statement was called off", 0.1),
    "53": (ErrorReason.ERROR_REASON_DATABASE_FULL, "the database is out of resources", 5.0),
    "08": (ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE, "the database can't be reached", 1.0),
    "57": (ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE, "the database is going down", 1.0),
    "58": (ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE, "the database has a system error", 5.0),
    "25006": (
        ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
        "the database takes no writes now",
        1.0,
    ),
}


def _raise_domain_error(error: pq.abc.PGresult) -> NoReturn:
    state = _sqlstate(error)
    cause = UnexpectedDatabaseError(f"SQLSTATE {state}: {error.error_message.decode()}")
    if state == "23505" and _is_name_taken(error):
        raise PersistenceError(
            ErrorReason.ERROR_REASON_NAME_TAKEN,
            "another workflow has this name",
            metadata={"field": "instance.name"},
        ) from cause
    known = _DOMAIN_ERRORS.get(state) or _DOMAIN_ERRORS.get(state[:2])
    if known is None:
        raise cause
    reason, message, retry_after = known
    if reason not in (
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        ErrorReason.ERROR_REASON_INVALID_FIELD,
    ):
        log.warning("the database refused a statement: %s", cause)
    raise PersistenceError(reason, message, retry_after=retry_after) from cause
