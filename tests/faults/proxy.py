"""A proxy on a Unix socket in front of PostgreSQL that can lose what PostgreSQL answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Self


class Proxy:
    """Listens in `directory` as PostgreSQL would; the server behind it is in `behind`."""

    def __init__(self, directory: Path, behind: Path) -> None:
        self._path = directory / ".s.PGSQL.5432"
        self._behind = behind / ".s.PGSQL.5432"
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.drop_answers = False
        """From the next answer on: throw it away and break the connection off."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._accept, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.break_off()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def break_off(self) -> None:
        """Break all connections off."""
        for writer in self._writers:
            writer.close()

    async def _accept(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        server, requests = await asyncio.open_unix_connection(self._behind)
        self._writers |= {answers, requests}
        for pump in (self._pump(client, requests), self._pump(server, answers, lossy=True)):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, lossy: bool = False
    ) -> None:
        try:
            while data := await source.read(65536):
                if lossy and self.drop_answers:
                    break
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()
