"""One batch of statements on the wire: libpq's pipeline mode, driven by the event loop.

A batch is one message to PostgreSQL and one back. With 32 callers this takes about 0.6 times the
CPU of psycopg's cursors, and as much as asyncpg without the query that resets its sessions (`./run
bench --driver` measures them side by side). Parameters are sent as text, results come back binary.

The statements of a batch are one transaction, because PostgreSQL commits at the Sync that ends it.
No session setting is made or relied on, so PgBouncer may stand in between.

Prepared statements are closed after that, up to a Sync of their own in the same message. PgBouncer
1.25.2 was seen to answer `Close Close Parse Bind Describe Execute Sync` with `1 3 2 T D C Z`, and
libpq, which counts, took the row for the answer to a Close. So each result must be of the kind, and
the results up to each Sync of the number, that was asked for; otherwise the connection is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import partial
from time import monotonic
from typing import Final

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGresult as PGresult

from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.store.postgres.connection import Connection
from wfe_persistence.store.postgres.prepared import Statement
from wfe_persistence.store.postgres.sqlstate import ends_session, sqlstate

disorders = RecurringWarnings(logging.getLogger(__name__))

Param = bytes | None
"""A parameter as text; None: NULL."""

Command = tuple[Statement, Sequence[Param]]
"""A statement and its parameters."""

_BINARY: Final = 1
_MAX_BUFFERED_ROWS: Final = 32

# As numbers, as libpq has them: they are compared several times a call.
_COMMAND_OK: Final = int(pq.ExecStatus.COMMAND_OK)
_FATAL_ERROR: Final = int(pq.ExecStatus.FATAL_ERROR)
_PIPELINE_SYNC: Final = int(pq.ExecStatus.PIPELINE_SYNC)
_PIPELINE_ABORTED: Final = int(pq.ExecStatus.PIPELINE_ABORTED)


class ConnectionLostError(Exception):
    """The connection broke during a batch. `unwritten`: nothing can have been committed."""

    was_idle = False
    """PostgreSQL had ended it before, because it was idle for too long."""

    def __init__(self, cause: str, *, unwritten: bool) -> None:
        super().__init__(cause)
        self.unwritten = unwritten


class _DisorderError(psycopg.OperationalError):
    """The results are not those of what was sent."""


class CalledOff(Enum):
    """Whether a statement was cancelled although its caller waits, because it waits for a lock."""

    NO = auto()
    TO_RUN_AGAIN = auto()
    FOR_GOOD = auto()


class Exchange:
    """One batch on one connection: sent at once, its results received in order.

    `results` are those of the statements that succeeded, `error` that of the first that did not.
    Without an error there is one for each statement, and behind them that of what was run `then`,
    unless the connection broke, or that failed.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._pgconn = connection.pgconn
        self._loop = connection.loop
        self.asked = self.heard = monotonic()
        """When it was begun; and when the last bytes came, or were asked for again."""
        self.listening = False
        """Whether more is awaited, and taken when it comes."""
        self.statements: Sequence[Statement] = ()
        self.called_off = CalledOff.NO
        # What to do when each message sent has succeeded, in order; None: keep its result.
        self._sent: list[Callable[[], None] | None] = []
        self._received = 0
        self._answered = False
        # How many messages were sent before each Sync that is yet to be acknowledged.
        self._syncs: list[int] = []
        self._settled = False
        self.flushed = False
        self._rolled_back = False
        self._row_by_row = False
        self._discards = False
        self._changed: asyncio.Future[None] | None = None
        self.results: list[PGresult] = []
        self.error: PGresult | None = None
        self.finished = False
        self.lost: ConnectionLostError | None = None

    def send(self, batch: Sequence[Command], then: Statement | None = None) -> None:
        """Send a batch, preparing first what is not prepared, and start to receive results.

        `then`: a statement that is run after the commit, whose failure is nothing to the batch.
        """
        self.statements = [statement for statement, _ in batch]
        try:
            if then is None:
                closed = self._queue_prepares(self.statements)
            else:
                closed = self._queue_prepares([*self.statements, then])
            for statement, params in batch:
                self._queue(statement, params)
            if then is not None:
                self._sync()
                self._queue(then, ())
            self._start(closed)
        except psycopg.OperationalError as exc:
            self._lose(exc)

    def send_row_by_row(self, command: Command) -> None:
        """Send one statement and start to receive its rows. Prepare it first, with `send_prepare`:
        libpq reads row by row only the statement whose results come next."""
        self._row_by_row = True
        self.statements = [command[0]]
        try:
            closed = self._queue_prepares(self.statements)
            self._queue(*command)
            self._pgconn.set_single_row_mode()
            self._start(closed)
        except psycopg.OperationalError as exc:
            self._lose(exc)

    def send_prepare(self, statement: Statement, meanwhile: Command | None = None) -> None:
        """Only prepare a statement, unless it is, and run another one."""
        self.statements = [statement]
        try:
            if meanwhile is None:
                closed = self._queue_prepares(self.statements)
            else:
                closed = self._queue_prepares([statement, meanwhile[0]])
                self._queue(*meanwhile)
            self._start(closed)
        except psycopg.OperationalError as exc:
            self._lose(exc)

    def _start(self, closed: Sequence[bytes]) -> None:
        self._sync()
        if closed:
            for name in closed:
                self._pgconn.send_close_prepared(name)
                self._sent.append(partial(self.connection.prepared.remove, name))
            self._sync()
        self._flush()
        self._listen()
        if self.connection.has_said:
            # That has been read from the socket already, so nothing would announce it.
            self.connection.has_said = False
            self._receive()

    def _listen(self) -> None:
        self.connection.exchange = self
        self.connection.watch()
        self.listening = True

    def _sync(self) -> None:
        self._pgconn.pipeline_sync()
        self._syncs.append(len(self._sent))

    def _queue(self, statement: Statement, params: Sequence[Param]) -> None:
        if self.connection.prepared.wants(statement):
            self._pgconn.send_query_prepared(statement.name, params, result_format=_BINARY)
        else:
            self._pgconn.send_query_params(statement.sql, params, result_format=_BINARY)
        self._sent.append(None)

    def _queue_prepares(self, statements: Sequence[Statement]) -> Sequence[bytes]:
        """Queue what is not prepared; returns the names of what is to be closed afterwards."""
        prepared = self.connection.prepared
        closed, new = prepared.make_room(statements)
        for statement in new:
            self._pgconn.send_prepare(statement.name, statement.sql)
            self._sent.append(partial(prepared.add, statement))
        return closed

    def _flush(self) -> None:
        if self._pgconn.flush() == 0:
            self.flushed = True
        else:
            self._loop.add_writer(self.connection.fd, self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self.connection.fd)
        try:
            self._flush()
        except psycopg.OperationalError as exc:
            self._lose(exc)

    def readable(self) -> None:
        """Take what has come on the connection."""
        self.heard = self.connection.peer.heard = monotonic()
        try:
            self._pgconn.consume_input()
            self._receive()
            if self._row_by_row and self.results and not self.finished:
                self.connection.unwatch()  # until resume()
                self.listening = False
        except psycopg.OperationalError as exc:
            self._lose(exc)

    def _receive(self) -> None:
        pgconn = self._pgconn
        ended = False
        while not pgconn.is_busy():
            if self._row_by_row and len(self.results) >= _MAX_BUFFERED_ROWS:
                return  # until resume()
            result = pgconn.get_result()
            if result is None:
                # The end of one statement's results. Twice in a row: no message is outstanding
                # although the Sync was not acknowledged, so the connection is gone.
                if ended:
                    raise psycopg.OperationalError("the connection ended within a batch")
                ended = True
                self._received += 1
                self._answered = False
                continue
            ended = False
            status = result.status
            if status == _PIPELINE_SYNC:
                if self._synchronized():
                    return
            elif status == _FATAL_ERROR:
                if not sqlstate(result):
                    raise psycopg.OperationalError("libpq closed the connection")
                if self.error is None and not self._settled:
                    self.error = result
                    self._rolled_back = self._received < self._before_sync
                if ends_session(result):
                    # A backend that is slow to exit keeps the connection open for a while.
                    raise psycopg.OperationalError("PostgreSQL ended the session")
            elif status != _PIPELINE_ABORTED:
                self._succeeded(result)
            elif self.error is None:
                raise _DisorderError("a statement was not run")

    @property
    def _before_sync(self) -> int:
        """How many messages were sent before the next Sync: all, if the connection ended before
        one was sent. (libpq sends large messages at once, and may receive their errors then.)"""
        return self._syncs[0] if self._syncs else len(self._sent)

    def _synchronized(self) -> bool:
        """A Sync was acknowledged; whether it was the last one."""
        if self._received != self._syncs[0]:
            raise _DisorderError(f"{self._received} results of {self._syncs[0]}")
        del self._syncs[0]
        self._settled = True
        if self._syncs:
            return False
        self._stop_listening()
        self.connection.watch()
        self.finished = True
        self._signal()
        return True

    def _succeeded(self, result: PGresult) -> None:
        if self._received >= self._before_sync or (self._answered and not self._row_by_row):
            raise _DisorderError("a result of nothing that was sent")
        note = self._sent[self._received]
        # A statement returns rows, or says what it has done; nothing else does.
        if (note is None) != (result.status != _COMMAND_OK or bool(result.command_status)):
            raise _DisorderError("a result of another statement")
        self._answered = True
        if note is not None:
            note()
            return
        if self._discards:
            return
        self.results.append(result)
        if self._row_by_row:
            self._signal()

    def _lose(self, exc: psycopg.OperationalError) -> None:
        # The server's last message may have come together with the end of the connection.
        if not isinstance(exc, _DisorderError):
            try:
                self._receive()
            except psycopg.OperationalError as last:
                exc = last
        # libpq closes a socket that is broken, and its number may be that of another one at once:
        # whoever is to be called for that would find this one's place taken.
        self.connection.unwatch()
        if self.finished:  # all results are here: the connection broke too late to matter
            return
        self._stop_listening()
        if isinstance(exc, _DisorderError):
            disorders.warn(
                "disorder", f"a database connection is given up: {exc} (a pooler's bug?)"
            )
        if self._settled:  # the statements' results are here, only what comes after them is open
            self._pgconn.finish()
            self.finished = True
            self._signal()
            return
        unwritten = self.is_unwritten and not isinstance(exc, _DisorderError)
        self.lost = ConnectionLostError(type(exc).__name__, unwritten=unwritten)
        self._signal()

    @property
    def is_unwritten(self) -> bool:
        """Whether nothing can have been committed.

        The commit happens at the first Sync. So if that was not sent, or if a statement failed
        before it, nothing was written. Otherwise nobody can know.
        """
        return self._rolled_back or (not self.flushed and len(self._syncs) <= 1)

    def _stop_listening(self) -> None:
        self.listening = False
        self.connection.exchange = None
        if not self.flushed:
            self._loop.remove_writer(self.connection.fd)

    def _signal(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def more(self) -> None:
        """Wait for the end of the batch, or after `send_row_by_row` for more rows."""
        if not (self.finished or self.lost or self.results):
            self._changed = self._loop.create_future()
            await self._changed

    async def complete(self) -> None:
        """Wait for the end of the batch. Raises ConnectionLostError."""
        while not (self.finished or self.lost):
            self._changed = self._loop.create_future()
            await self._changed
        if self.lost:
            raise self.lost

    def resume(self) -> None:
        """Go on receiving rows after `results` was emptied.

        The socket is only read when libpq has no complete row left. Otherwise its buffer, which
        never shrinks, would grow by the difference between what is read and what is taken.
        """
        if self.finished or self.lost:
            return
        try:
            self._receive()
        except psycopg.OperationalError as exc:
            self._lose(exc)
            return
        if not (self.results or self.finished):
            self.heard = monotonic()
            self._listen()

    def discard_results(self) -> None:
        """Throw away what was received, and what is still to come as it comes."""
        self._discards = True
        self.results.clear()
        self.resume()

    def give_up(self, reason: str) -> None:
        """Take the connection for lost, because no answer will come."""
        if not (self.finished or self.lost):
            self._lose(psycopg.OperationalError(reason))

    def abandon(self) -> None:
        """Stop listening; for a connection that is about to be closed."""
        self._stop_listening()
