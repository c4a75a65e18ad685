"""Why those wait who wait for an answer of PostgreSQL: for ever, for a lock, or for good reason.

A connection that has said nothing for a second is looked into, on a new connection of its own: a
database that is busy answers that, or something else meanwhile; one that is stalled does not. A
proxy, a frozen machine or a failover may keep a connection open that nobody will ever answer.

Whether something has come is asked of the system, too: after an error on a socket, as when its peer
has crashed with a statement unread, libuv looks at it no more, and says so to nobody.

While calls wait for a connection, statements that wait for a lock (mostly an outsider's: our own
are short) may have only a quarter of the pool, those in the gate `locked`. Those beyond are
cancelled and run again in that gate, as are new ones of the same SQL. There, whoever has waited for
LOCK_SECONDS makes room for the next one. So calls that need other tables go on.
"""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.store.postgres.connection import Connection, Peer
from wfe_persistence.store.postgres.fairness import FairGate
from wfe_persistence.store.postgres.pipeline import CalledOff, Command, Exchange
from wfe_persistence.store.postgres.prepared import Statement
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.postgres.sqlstate import row_locked

log = logging.getLogger(__name__)
log_locks = RecurringWarnings(log)

SILENT_SECONDS: Final = 1.0
"""For how long a connection must have said nothing to be looked into."""

LOST_SECONDS: Final = 5.0
"""A call that nobody works on, and a database that does not answer, are given up within about this
time."""

LOCK_SECONDS: Final = 3.0
"""For how long a call may hold a connection while it waits for a lock and others for their turn."""

_PAUSE_SECONDS: Final = 0.5
_CONNECT_SECONDS: Final = 1.5
_QUERY_SECONDS: Final = 1.0
# A second one that is not answered proves it: the first may have met a moment of load.
_PROBES: Final = 2
# For how long SQL is kept apart after the last one was seen to wait for a lock.
_FORGET_SECONDS: Final = 2.0

# The least that `track_activity_query_size` leaves of a text, give or take one character.
_SHORTEST_CUT: Final = 96

# `idle`: for how long the backend has been waiting for a statement.
_BACKENDS: Final = """
SELECT pg_backend_pid(), pid,
    CASE WHEN state = 'idle' THEN extract(epoch FROM clock_timestamp() - state_change) END::float8,
    coalesce(wait_event_type = 'Lock', FALSE), query
FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user
"""


@dataclass(slots=True)
class Findings:
    """What a peer answered.

    `idle`: each backend of ours and for how long it has been waiting for a statement. None: it is
    not known which one works for which connection, as a PgBouncer makes their process ids up.
    `locked`: the backends that wait for a lock, and the beginnings of what they run. None: the peer
    answers, but not what we asked; a PgBouncer, for example, whose connections are all in use.
    """

    idle: dict[int, float | None] | None = None
    locked: dict[int, bytes] | None = None

    def wait_for_lock(self, exchange: Exchange) -> list[Statement]:
        """The statements of an exchange of which one waits for a lock."""
        if self.locked is None:
            return []
        if self.idle is None:
            texts = set(self.locked.values())
        else:
            texts = {self.locked.get(exchange.connection.pgconn.backend_pid, b"")}
        return [s for s in exchange.statements if any(_begins(s.sql, text) for text in texts)]


class Watch:
    """Looks into the exchanges `under_way` that wait for long; one for each pool.

    `stalled` is told of a database that has stopped answering. `connections` are those that are
    open, of the whole pool. `gate` is that of the pool, and
    `most_locked` how many of its connections statements may have that wait for a lock.
    """

    def __init__(
        self,
        source: ConnectionSource,
        stalled: Callable[[str], None],
        connections: Callable[[], Sequence[Connection]],
        *,
        gate: FairGate,
        locked: FairGate,
        most_locked: int,
    ) -> None:
        self.under_way: set[Exchange] = set()
        # SQL that waits for locks, and when some of it was last seen to do so.
        self._locked: set[bytes] = set()
        self._locked_seen = 0.0
        self._gate = gate
        self._locked_gate = locked
        self._most_locked = most_locked
        self._cancelling: set[asyncio.Task[None]] = set()
        self._source = source
        self._stalled = stalled
        self._connections = connections
        self._unanswered: dict[Peer, int] = {}

    async def run(self) -> None:
        """Look into them for as long as the pool is open."""
        while True:
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                await self._look()
            except Exception:
                log.exception("bug: the watch of the database failed")

    def waits_for_lock(self, batch: Sequence[Command]) -> bool:
        """Whether statements are to be run in the gate `locked`."""
        return bool(self._locked) and any(s.sql in self._locked for s, _ in batch)

    def was_run(self, batch: Sequence[Command]) -> None:
        """Statements were run in the gate `locked`, so they wait for no lock any more."""
        self._locked.difference_update(statement.sql for statement, _ in batch)

    async def answers(self, peer: Peer | None, seconds: float = _CONNECT_SECONDS) -> bool:
        """Whether a peer says anything to a new connection, or said something meanwhile."""
        return await self._ask(peer, seconds) is not None

    async def _look(self) -> None:
        for connection in _heard(self._connections()):
            connection.look()
        before = monotonic() - SILENT_SECONDS
        silent = [e for e in self.under_way if e.listening and e.heard < before]
        for peer in {e.connection.peer for e in silent}:
            begun = monotonic()
            findings = await self._ask(peer, _CONNECT_SECONDS)
            if findings is None:
                self._unanswered[peer] = self._unanswered.get(peer, 0) + 1
                if self._unanswered[peer] >= _PROBES:
                    self._give_up_all(peer, begun)
                continue
            self._unanswered.pop(peer, None)
            for exchange in silent:
                if exchange.connection.peer is peer and exchange in self.under_way:
                    self._judge(exchange, findings, monotonic() - exchange.heard)
            self._keep_locked_apart(
                [e for e in silent if e.connection.peer is peer and e in self.under_way],
                findings,
                monotonic(),
            )
        if monotonic() - self._locked_seen > _FORGET_SECONDS:
            self._locked.clear()
        if not silent:
            self._unanswered.clear()

    def _give_up_all(self, peer: Peer, begun: float) -> None:
        reason = "the database has stopped answering"
        peer.stalled = begun
        self._unanswered.pop(peer, None)
        for exchange in list(self.under_way):
            if exchange.connection.peer is peer and exchange.listening:
                exchange.give_up(reason)
        self._stalled(reason)

    def _judge(self, exchange: Exchange, findings: Findings, waited: float) -> None:
        """Give an exchange up that no backend works on. (A new one may not have arrived yet.)"""
        if findings.idle is None or waited < LOST_SECONDS - SILENT_SECONDS or not exchange.flushed:
            return
        pid = exchange.connection.pgconn.backend_pid
        idle = findings.idle.get(pid)
        if pid not in findings.idle or (idle is not None and idle > SILENT_SECONDS):
            log.warning("gave up a database connection on which an answer was lost")
            exchange.give_up("the answer was lost")

    def _keep_locked_apart(self, silent: list[Exchange], findings: Findings, now: float) -> None:
        """Call off those beyond their part of the pool, and those whose time in it is over."""
        waiting: dict[Exchange, list[Statement]] = {}
        for exchange in silent:
            if findings.locked is not None:
                statements: Sequence[Statement] = findings.wait_for_lock(exchange)
            elif exchange.heard == exchange.asked and now - exchange.heard > LOCK_SECONDS:
                statements = exchange.statements  # it can't be seen, so it is suspected
            else:
                statements = ()
            if statements:
                waiting[exchange] = list(statements)
        # A stream may wait for its turn among streams while the pool has connections left.
        gates = {exchange.connection.gate for exchange in waiting} - {self._locked_gate}
        is_short = self._gate.is_short or any(gate.is_short for gate in gates)
        if len(waiting) > self._most_locked and is_short:
            log_locks.warn("", f"{len(waiting)} calls wait for locks of other sessions")
            for exchange, statements in waiting.items():
                self._locked.update(statement.sql for statement in statements)
                if exchange.connection.gate is not self._locked_gate:
                    self._call_off(exchange, CalledOff.TO_RUN_AGAIN)
        if waiting:
            self._locked_seen = now
        for exchange in waiting:
            if (
                exchange.connection.gate is self._locked_gate
                and findings.locked is not None
                and now - exchange.heard > LOCK_SECONDS
                and (self._locked_gate.is_short or self._gate.is_short)
            ):
                self._call_off(exchange, CalledOff.FOR_GOOD)

    def _call_off(self, exchange: Exchange, how: CalledOff) -> None:
        exchange.called_off = how
        # (One that comes too late hits the next statement on the connection, which is run again.)
        task = asyncio.get_running_loop().create_task(_cancel(exchange))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def _ask(self, peer: Peer | None, seconds: float) -> Findings | None:
        """What a peer says to a new connection; None: nothing at all, on no connection."""
        try:
            conninfo = await self._source.conninfo()
        except psycopg.Error:
            return Findings()
        begun = monotonic()
        heard = Findings()
        connection: psycopg.AsyncConnection[Any] | None = None
        try:
            async with asyncio.timeout(seconds):
                connection = await psycopg.AsyncConnection.connect(
                    make_conninfo(conninfo, **(peer.options if peer else {})),
                    autocommit=True,
                    prepare_threshold=None,
                )
            async with asyncio.timeout(_QUERY_SECONDS):
                rows = await (await connection.execute(_BACKENDS)).fetchall()
            if rows and rows[0][0] == connection.pgconn.backend_pid:
                heard.idle = {pid: idle for _, pid, idle, _, _ in rows}
            heard.locked = {pid: query.encode() for _, pid, _, waits, query in rows if waits}
        except (TimeoutError, psycopg.errors.ConnectionTimeout):
            # If this process was too busy to listen, nothing is known.
            late = monotonic() - begun > seconds + _QUERY_SECONDS + _PAUSE_SECONDS
            if connection is None and not late and not (peer and peer.heard > begun):
                return None
        except psycopg.Error:
            pass  # it was refused: that is an answer too
        finally:
            if connection is not None:
                with suppress(psycopg.Error):
                    await connection.close()
        return heard


def _heard(connections: Sequence[Connection]) -> list[Connection]:
    """Those on which something has come that has not been read, be it an end."""
    by_fd = {connection.fd: connection for connection in connections}
    poll = select.poll()
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    return [by_fd[fd] for fd, _ in poll.poll(0)]


def free_attempts(exchange: Exchange) -> int:
    """How many attempts a statement that was cancelled has for nothing. Raises ROW_LOCKED if it is
    not to be run again."""
    if exchange.called_off is CalledOff.FOR_GOOD:
        raise row_locked()
    return int(exchange.called_off is CalledOff.TO_RUN_AGAIN)


async def _cancel(exchange: Exchange) -> None:
    with suppress(psycopg.Error):
        await exchange.connection.cancel_safe(timeout=_QUERY_SECONDS)


def _begins(sql: bytes, text: bytes) -> bool:
    """Whether a text that PostgreSQL may have cut off is that of a statement."""
    return text == sql or (len(text) >= _SHORTEST_CUT and sql.startswith(text))
