"""The network between the servers and PostgreSQL: it can stall, break, and lose answers."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from pathlib import Path
from typing import Self


class Network:
    """A TCP port on this machine that leads to PostgreSQL's Unix socket."""

    def __init__(self, behind: Path, random_: random.Random) -> None:
        self._behind = behind / ".s.PGSQL.5432"
        self._random = random_
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.lose_answers = 0.0
        """The probability that an answer is lost and its connection reset."""
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def stall(self) -> None:
        """Forward nothing any more, in either direction, while all connections stay up."""
        self._flowing.clear()

    def flow(self) -> None:
        """Forward again, also what came in the meantime."""
        self._flowing.set()

    def reset(self) -> None:
        """Break all connections off with RST."""
        for writer in list(self._writers):
            _reset(writer)

    def _accepted(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        # A task of our own: asyncio's complains if it is cancelled.
        task = asyncio.create_task(self._serve(client, answers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        self._writers.add(answers)
        try:
            # While nothing flows the port still accepts, as a half-open one does.
            await self._flowing.wait()
            server, requests = await asyncio.open_unix_connection(self._behind)
            try:
                pumps = [
                    asyncio.create_task(self._pump(client, requests)),
                    asyncio.create_task(self._pump(server, answers, answer_of=answers)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
            finally:
                requests.close()
        except OSError:
            pass
        finally:
            self._writers.discard(answers)
            answers.close()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *,
        answer_of: asyncio.StreamWriter | None = None,
    ) -> None:
        try:
            while data := await source.read(65536):
                await self._flowing.wait()
                if answer_of is not None and self._random.random() < self.lose_answers:
                    _reset(answer_of)
                    return
                sink.write(data)
                await sink.drain()
        except OSError:
            pass


def _reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
