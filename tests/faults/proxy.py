"""A proxy on a Unix socket in front of PostgreSQL that can lose or spoil what PostgreSQL answers,
or stop forwarding."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self

Messages = list[bytes]
"""Messages of PostgreSQL, each with its type (the first byte) and length: up to a ReadyForQuery."""


class Proxy:
    """Listens in `directory` as PostgreSQL would; the server behind it is in `behind`."""

    def __init__(self, directory: Path, behind: Path) -> None:
        self._path = directory / ".s.PGSQL.5432"
        self._behind = behind / ".s.PGSQL.5432"
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.drop_answer_to: bytes | None = None
        """Throw the answer to a request with these bytes in it away, and break its connection off.
        (No other: the server also asks for itself, how the store is for example.)"""
        self.rewrite: Callable[[Messages], Messages] | None = None
        """What becomes of each answer, on connections made from now on."""
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.connections = 0
        """How many were accepted."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.break_off()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def break_off(self) -> None:
        """Break all connections off."""
        for writer in self._writers:
            writer.close()

    def stall(self) -> None:
        """Forward nothing any more, on no connection, and keep all of them open."""
        self._flowing.clear()

    def stall_connections(self) -> None:
        """The same for the connections that are open; new ones are served."""
        self.stall()
        self._flowing = asyncio.Event()
        self._flowing.set()

    def flow(self) -> None:
        """End `stall`: what was held back is forwarded."""
        self._flowing.set()

    async def _accept(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(answers)
        if accepting := asyncio.current_task():
            self._tasks.add(accepting)
            accepting.add_done_callback(self._tasks.discard)
        flowing = self._flowing
        await flowing.wait()
        server, requests = await asyncio.open_unix_connection(self._behind)
        self._writers.add(requests)
        doomed = asyncio.Event()
        for pump in (
            self._pump(client, requests, flowing, doomed),
            self._pump(server, answers, flowing, doomed, lossy=True),
        ):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        flowing: asyncio.Event,
        doomed: asyncio.Event,
        *,
        lossy: bool = False,
    ) -> None:
        try:
            async for data in self._answers(source) if lossy and self.rewrite else _chunks(source):
                if lossy and doomed.is_set():
                    break
                if not lossy and self.drop_answer_to and self.drop_answer_to in data:
                    doomed.set()
                await flowing.wait()
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    async def _answers(self, source: asyncio.StreamReader) -> AsyncIterator[bytes]:
        messages: Messages = []
        while True:
            try:
                head = await source.readexactly(5)
                body = await source.readexactly(int.from_bytes(head[1:]) - 4)
            except asyncio.IncompleteReadError:
                return
            messages.append(head + body)
            if head[:1] == b"Z":
                assert self.rewrite
                yield b"".join(self.rewrite(messages))
                messages = []


async def _chunks(source: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await source.read(65536):
        yield data
