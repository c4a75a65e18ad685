"""A connection of its own for work that takes many statements: a transaction that stays open, or
many of them one after the other. It is outside the pool, so that nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, Self

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.postgres.connection import Connection, Peer
from wfe_persistence.store.postgres.counts import count_error
from wfe_persistence.store.postgres.pipeline import (
    Command,
    ConnectionLostError,
    Exchange,
    PGresult,
)
from wfe_persistence.store.postgres.reachability import unavailable, why
from wfe_persistence.store.postgres.source import Connector
from wfe_persistence.store.postgres.sqlstate import raise_error

_CANCEL_SECONDS: Final = 2.0
_CANCEL_INTERVAL_SECONDS: Final = 0.05


class _SessionConnection(Connection):
    """It prepares nothing: each statement is planned for the tables as they are then."""

    peers: ClassVar[dict[str, Peer]] = {}
    max_prepared_bytes = None


class Session:
    """One connection, with one statement at a time. Close it in the end, whatever it does."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._exchange: Exchange | None = None

    @classmethod
    async def open(cls, connector: Connector) -> Self:
        """Connect. Raises DATABASE_UNAVAILABLE."""
        try:
            connection: Any = await connector.connect(_SessionConnection.connect, autocommit=True)
        except psycopg.Error as exc:
            raise unavailable(why(exc)) from exc
        return cls(connection)

    async def run(self, batch: Sequence[Command]) -> list[PGresult]:
        """Run statements in one round trip; outside a transaction, as one. A result for each.

        Raises PersistenceError, or UnexpectedDatabaseError. Nothing is tried again.
        """
        exchange = self._exchange = Exchange(self._connection)
        exchange.send(batch)
        try:
            await exchange.complete()
        except ConnectionLostError as exc:
            raise _lost() from exc
        if exchange.error is not None:
            count_error(exchange.error)
            raise_error(exchange.error)
        return exchange.results

    async def stream(self, command: Command) -> AsyncGenerator[PGresult, None]:
        """Run one statement and yield its rows one by one, as fast as they are consumed.

        If the generator is closed before its end, `interrupt` is needed before anything else.
        """
        exchange = self._exchange = Exchange(self._connection)
        exchange.send_row_by_row(command)
        ended = False
        while not ended:
            await exchange.more()
            ended = exchange.finished or exchange.lost is not None
            rows, exchange.results = exchange.results, []
            for row in rows:
                if row.ntuples:
                    yield row
            exchange.resume()
        if exchange.lost:
            raise _lost() from exchange.lost
        if exchange.error is not None:
            count_error(exchange.error)
            raise_error(exchange.error)

    async def interrupt(self) -> None:
        """Cancel the statement that runs, if one does, and wait for its end.

        Raises TimeoutError.
        """
        exchange = self._exchange
        if exchange is None or exchange.finished or exchange.lost:
            return
        async with asyncio.timeout(_CANCEL_SECONDS):
            exchange.discard_results()
            # Repeatedly: a request that comes before the statement has begun does nothing.
            while not (exchange.finished or exchange.lost):
                await self._connection.cancel_safe(timeout=_CANCEL_SECONDS)
                with suppress(TimeoutError, ConnectionLostError):
                    async with asyncio.timeout(_CANCEL_INTERVAL_SECONDS):
                        await exchange.complete()

    async def close(self) -> None:
        """Cancel the statement that runs, if one does, and hang up: PostgreSQL rolls back."""
        with suppress(TimeoutError, psycopg.Error):
            await self.interrupt()
        exchange = self._exchange
        if exchange is not None and not (exchange.finished or exchange.lost):
            exchange.abandon()
        await self._connection.close()


def _lost() -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
        "the database connection broke",
        retry_after=1.0,
    )
