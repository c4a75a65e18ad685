"""One connection that listens to a channel (LISTEN) and sends to it (NOTIFY).

PostgreSQL lets transactions with a NOTIFY commit only one after the other. So nothing is ever sent
in a transaction that writes, but from here, many payloads in one statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGresult

from wfe_persistence.store.postgres.source import ConnectionSource

MAX_PAYLOAD_BYTES: Final = 7_900
"""How long a payload may be; PostgreSQL takes less than 8,000 bytes."""

NOTIFY = "SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload"

_CONNECT_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 5.0


class NoticesLostError(Exception):
    """The connection can't be had, or is lost; the message has no secrets."""


class Notices:
    """The connection, to one channel. `heard` is called with each payload."""

    def __init__(self, connection: psycopg.AsyncConnection[Any], channel: str) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._fd = self._pgconn.socket
        self._heard: Callable[[str], None] = lambda _: None
        self._answer: asyncio.Future[PGresult] | None = None
        self.lost: asyncio.Future[NoticesLostError] = self._loop.create_future()
        """Done when the connection is lost."""

    @classmethod
    async def open(
        cls, source: ConnectionSource, channel: str, heard: Callable[[str], None]
    ) -> Notices:
        """Connect and listen. Raises psycopg.OperationalError or NoticesLostError."""
        async with asyncio.timeout(_CONNECT_SECONDS):
            connection = await source.connect(psycopg.AsyncConnection.connect, autocommit=True)
        notices = cls(connection, channel)
        try:
            notices._pgconn.nonblocking = 1
            notices._heard = heard
            notices._loop.add_reader(notices._fd, notices._readable)
            await notices._run(f'LISTEN "{channel}"', ())
        except BaseException:
            notices.close()
            raise
        return notices

    async def send(self, payloads: Sequence[str]) -> None:
        """Send payloads, without quotes, backslashes or commas, in one transaction. Raises
        NoticesLostError."""
        quoted = ",".join(f'"{payload}"' for payload in payloads)
        await self._run(NOTIFY, (self._channel.encode(), f"{{{quoted}}}".encode()))

    async def unlisten(self) -> None:
        """Stop listening: what is heard here, would be heard by others. Raises
        NoticesLostError."""
        await self._run("UNLISTEN *", ())

    def give_up(self, reason: str) -> None:
        """Take the connection for lost."""
        error = NoticesLostError(reason)
        if not self.lost.done():
            self.lost.set_result(error)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self._loop.remove_reader(self._fd)

    def close(self) -> None:
        """Close the connection, if need be in the middle of a statement."""
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._pgconn.finish()

    async def _run(self, sql: str, params: Sequence[bytes]) -> None:
        if self.lost.done():
            raise self.lost.result()
        self._answer = self._loop.create_future()
        try:
            self._pgconn.send_query_params(sql.encode(), params)
            self._flush()
            async with asyncio.timeout(_ANSWER_SECONDS):
                result = await self._answer
        except psycopg.OperationalError as exc:
            raise NoticesLostError("the connection broke") from exc
        except TimeoutError as exc:
            raise NoticesLostError("PostgreSQL does not answer") from exc
        finally:
            self._answer = None
        if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            raise NoticesLostError(result.get_error_message(encoding="utf-8"))

    def _flush(self) -> None:
        self._loop.remove_writer(self._fd)
        try:
            if self._pgconn.flush() != 0:
                self._loop.add_writer(self._fd, self._flush)
        except psycopg.OperationalError:
            self.give_up("the connection broke")

    def _readable(self) -> None:
        try:
            self._pgconn.consume_input()
            if self._answer is not None and not self._pgconn.is_busy():
                last: PGresult | None = None
                while (result := self._pgconn.get_result()) is not None:
                    last = result
                if last is not None and not self._answer.done():
                    self._answer.set_result(last)
            while (notice := self._pgconn.notifies()) is not None:
                self._heard(notice.extra.decode(errors="replace"))
        except psycopg.OperationalError:
            self.give_up("the connection broke")
