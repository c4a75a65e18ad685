"""What metrics cost: CreateEvent on two servers that differ only in whether they count.

One has an admin port, which is scraped every second; in the other one counting does nothing. They
take turns, and of each the median of the rounds counts.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from benchmarks.timing import cost_table, percentile, timed_with_cpu
from tests.support import make
from tests.support.admin import AdminServer
from tests.support.api import Api, connect
from tests.support.server import ServerProcess
from wfe.persistence.v1.event_pb2 import CreateEventRequest

Figures = list[dict[str, Any]]

_CALLERS: Final = 16
_ROUNDS: Final = 9
_SCRAPE_SECONDS: Final = 1.0


async def measure(url: str, seconds: float) -> Figures:
    """Measures CreateEvent with metrics and without."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with (
            ServerProcess(
                directory / "off", "--db-url", url, module="benchmarks.uncounted_server"
            ) as off,
            AdminServer(directory / "on", "--db-url", url) as on,
        ):
            tries: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
            for _ in range(_ROUNDS):
                tries["off"].append(await _calls(off, None, seconds))
                tries["on"].append(await _calls(on, on.admin, seconds))
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    middle = {way: {k: median(t[k] for t in each) for k in each[0]} for way, each in tries.items()}
    first = middle["off"]
    return [
        {"metrics": way}
        | figures
        | {f"{key}_ratio": value / first[key] for key, value in figures.items()}
        for way, figures in middle.items()
    ]


async def _calls(
    server: ServerProcess, admin: tuple[str, int] | None, seconds: float
) -> dict[str, float]:
    process = psutil.Process(server.process.pid)
    async with connect(server.address) as channel:
        api = Api(channel)

        async def call(_: int) -> object:
            return await api.events.CreateEvent(CreateEventRequest(event=make.event()))

        await call(0)
        scraping = asyncio.create_task(_scrape(admin))
        took, microseconds = await timed_with_cpu(call, _CALLERS, seconds, process)
        scraping.cancel()
    return {"p50_ms": percentile(took, 50) * 1e3, "server_us": microseconds}


async def _scrape(admin: tuple[str, int] | None) -> None:
    """Do what Prometheus does, but 15 times as often."""
    while admin is not None:
        await asyncio.to_thread(_get, f"http://{admin[0]}:{admin[1]}/metrics")
        await asyncio.sleep(_SCRAPE_SECONDS)


def _get(url: str) -> None:
    with urllib.request.urlopen(url) as response:
        response.read()


def table(figures: Figures) -> str:
    """The figures as text."""
    return cost_table("metrics", 10, figures)
