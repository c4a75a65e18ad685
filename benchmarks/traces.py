"""What traces cost: CreateEvent on a server without, on one whose callers are not sampled, and on
one that exports a span for every call.

They take turns, and of each the median of the rounds counts.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from benchmarks.timing import cost_table, percentile, timed_with_cpu
from tests.support import make
from tests.support.api import Api, connect
from tests.support.collector import collector
from tests.support.server import ServerProcess
from wfe.persistence.v1.event_pb2 import CreateEventRequest

Figures = list[dict[str, Any]]

_CALLERS: Final = 16
_ROUNDS: Final = 9
_TRACE: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
_FLAGS: Final = {"off": "01", "not sampled": "00", "every call": "01"}


async def measure(url: str, seconds: float) -> Figures:
    """Measures CreateEvent with traces and without."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        variables = os.environ | stack.enter_context(collector("http/protobuf")).variables
        variables["OTEL_BSP_SCHEDULE_DELAY"] = "5000"  # its default
        off = ServerProcess(directory / "off", "--db-url", url)
        on = ServerProcess(
            directory / "on", "--db-url", url, "--traces", "otlp", env=dict(variables)
        )
        servers = {"off": off, "not sampled": on, "every call": on}
        for server in (off, on):
            stack.enter_context(server)
        tries: dict[str, list[dict[str, float]]] = {way: [] for way in servers}
        for _ in range(_ROUNDS):
            for way, server in servers.items():
                tries[way].append(await _calls(server, _FLAGS[way], seconds))
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    middle = {way: {k: median(t[k] for t in each) for k in each[0]} for way, each in tries.items()}
    first = middle["off"]
    return [
        {"traces": way}
        | figures
        | {f"{key}_ratio": value / first[key] for key, value in figures.items()}
        for way, figures in middle.items()
    ]


async def _calls(server: ServerProcess, flags: str, seconds: float) -> dict[str, float]:
    process = psutil.Process(server.process.pid)
    metadata = [("traceparent", _TRACE + flags)]
    async with connect(server.address) as channel:
        api = Api(channel)

        async def call(_: int) -> object:
            request = CreateEventRequest(event=make.event())
            return await api.events.CreateEvent(request, metadata=metadata)

        await call(0)
        took, microseconds = await timed_with_cpu(call, _CALLERS, seconds, process)
    return {"p50_ms": percentile(took, 50) * 1e3, "server_us": microseconds}


def table(figures: Figures) -> str:
    """The figures as text."""
    return cost_table("traces", 14, figures)
