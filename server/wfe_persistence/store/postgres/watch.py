"""Whether those who wait for an answer of PostgreSQL still can get one.

A connection that has said nothing for a second is looked into, on a new connection of its own: a
database that is busy answers that, or something else meanwhile; one that is stalled does not. A
proxy, a frozen machine or a failover may keep a connection open that nobody will ever answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from wfe_persistence.store.postgres.pipeline import Exchange, Peer
from wfe_persistence.store.postgres.source import ConnectionSource

log = logging.getLogger(__name__)

SILENT_SECONDS: Final = 1.0
"""For how long a connection must have said nothing to be looked into."""

LOST_SECONDS: Final = 5.0
"""A call that nobody works on, and a database that does not answer, are given up within about this
time."""

_PAUSE_SECONDS: Final = 0.5
_CONNECT_SECONDS: Final = 1.5
_QUERY_SECONDS: Final = 1.0
# A second one that is not answered proves it: the first may have met a moment of load.
_PROBES: Final = 2

# `idle`: for how long the backend has been waiting for a statement.
_BACKENDS: Final = """
SELECT pg_backend_pid(), pid,
    CASE WHEN state = 'idle' THEN extract(epoch FROM clock_timestamp() - state_change) END::float8
FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user
"""


@dataclass(slots=True)
class Findings:
    """What a peer answered. `idle`: each backend of ours and for how long it has been waiting for
    a statement; None: what runs on our connections can't be seen, for example behind a PgBouncer,
    which makes the process ids of backends up."""

    idle: dict[int, float | None] | None = field(default=None)


class Watch:
    """Looks into the exchanges `under_way` that wait for long; one for each pool.

    `stalled` is told of a database that has stopped to answer.
    """

    def __init__(self, source: ConnectionSource, stalled: Callable[[str], None]) -> None:
        self.under_way: set[Exchange] = set()
        self._source = source
        self._stalled = stalled
        self._unanswered: dict[Peer, int] = {}

    async def run(self) -> None:
        """Look into them for as long as the pool is open."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                await self._look(loop)
            except Exception:
                log.exception("bug: the watch of the database failed")

    async def answers(self, peer: Peer | None, seconds: float = _CONNECT_SECONDS) -> bool:
        """Whether a peer says anything to a new connection, or said something meanwhile."""
        return await self._ask(peer, seconds) is not None

    async def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        before = loop.time() - SILENT_SECONDS
        silent = [e for e in self.under_way if e.listening and e.heard < before]
        for peer in {e.connection.peer for e in silent}:
            begun = loop.time()
            findings = await self._ask(peer, _CONNECT_SECONDS)
            if findings is None:
                self._unanswered[peer] = self._unanswered.get(peer, 0) + 1
                if self._unanswered[peer] >= _PROBES:
                    self._give_up_all(peer, begun)
                continue
            self._unanswered.pop(peer, None)
            for exchange in silent:
                if exchange.connection.peer is peer and exchange in self.under_way:
                    self._judge(exchange, findings, loop.time() - exchange.heard)
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

    async def _ask(self, peer: Peer | None, seconds: float) -> Findings | None:
        """What a peer says to a new connection; None: nothing at all, on no connection."""
        loop = asyncio.get_running_loop()
        try:
            conninfo = await self._source.conninfo()
        except psycopg.Error:
            return Findings()
        begun = loop.time()
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
                heard.idle = {pid: idle for _, pid, idle in rows}
        except (TimeoutError, psycopg.errors.ConnectionTimeout):
            # If this process was too busy to listen, nothing is known.
            late = loop.time() - begun > seconds + _QUERY_SECONDS + _PAUSE_SECONDS
            if connection is None and not late and not (peer and peer.heard > begun):
                return None
        except psycopg.Error:
            pass  # it was refused: that is an answer too
        finally:
            if connection is not None:
                with suppress(psycopg.Error):
                    await connection.close()
        return heard
