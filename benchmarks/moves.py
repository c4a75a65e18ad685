"""Moves of a namespace while it is written at a steady rate: for how long writes are held.

Two PostgreSQLs and a server. 500 CreateEvents a second are begun at their times, whether or not
those before have been answered, and the namespace is moved to and fro. Of each move: for how long
the server held writes, and the longest time that a call took, beside the median of all.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from tests.support import binaries, make
from tests.support.api import Api, connect
from tests.support.postgres import PostgresServer
from tests.support.server import ServerProcess
from wfe.persistence.v1 import store_pb2 as pb
from wfe.persistence.v1.event_pb2 import CreateEventRequest

Figures = list[dict[str, Any]]

_RATE: Final = 500
_NAME: Final = "moved"
_INSIDE: Final = (("wfe-namespace", _NAME),)


class _Writes:
    """The writes, and how long each took."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.seconds: list[float] = []
        self.failed = 0

    async def run(self) -> None:
        """Begin them at their times, until it is cancelled."""
        began, n = time.monotonic(), 0
        async with asyncio.TaskGroup() as writes:
            while True:
                due = began + n / _RATE
                if (early := due - time.monotonic()) > 0:
                    await asyncio.sleep(early)
                writes.create_task(self._write())
                n += 1

    async def _write(self) -> None:
        request = CreateEventRequest(event=make.event())
        began = time.monotonic()
        try:
            await self._api.events.CreateEvent(request, metadata=_INSIDE, timeout=30)
        except Exception:
            self.failed += 1
        else:
            self.seconds.append(time.monotonic() - began)


def measure(moves: int) -> Figures:
    """Make so many moves, by turns to the other database and back."""
    with tempfile.TemporaryDirectory(prefix="wfe-moves-") as path:
        Path(path).chmod(0o711)
        return asyncio.run(_measure(Path(path), moves))


async def _measure(directory: Path, moves: int) -> Figures:
    figures: Figures = []
    program = binaries.postgres(18)
    settings = {"wal_level": "logical"}
    with (
        PostgresServer(program, directory / "home", settings) as home,
        PostgresServer(program, directory / "b", settings) as b,
        ServerProcess(
            directory / "log", "--db-url", home.url, "--database", f"b={b.url}"
        ) as server,
    ):
        async with connect(server.address) as channel:
            api = Api(channel)
            await api.store.CreateNamespace(pb.CreateNamespaceRequest(name=_NAME, database="home"))
            for number in range(moves):
                figures.append(await _one(api, "home" if number % 2 else "b"))
    return figures


async def _one(api: Api, to: str) -> dict[str, Any]:
    writes = _Writes(api)
    writing = asyncio.create_task(writes.run())
    await asyncio.sleep(2)
    request = pb.MoveNamespaceRequest(name=_NAME, database=to)
    said = [each async for each in api.store.MoveNamespace(request)]
    await asyncio.sleep(1)
    writing.cancel()
    await asyncio.wait({writing})
    return {
        "to": to,
        "writes": len(writes.seconds),
        "failed": writes.failed,
        "held_ms": said[-1].pause.ToMilliseconds(),
        "longest_ms": round(1000 * max(writes.seconds)),
        "median_ms": round(1000 * statistics.median(writes.seconds), 1),
    }


def table(figures: Figures) -> str:
    """A line for each move, and the medians."""
    lines = [
        f"{'to':6} {'writes':>7} {'failed':>7} {'held ms':>8} {'longest ms':>11} {'median ms':>10}"
    ]
    lines += [
        f"{each['to']:6} {each['writes']:>7} {each['failed']:>7} {each['held_ms']:>8} "
        f"{each['longest_ms']:>11} {each['median_ms']:>10}"
        for each in figures
    ]
    for key in ("held_ms", "longest_ms"):
        found = [each[key] for each in figures]
        lines.append(f"{key}: median {statistics.median(found):.0f}, highest {max(found)}")
    return "\n".join(lines)
