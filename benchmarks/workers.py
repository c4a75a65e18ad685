"""What several processes bring: CreateEvent and GetEvent on servers with 1, 2 and 4 workers, by the
CPU that the server uses.

All processes share this machine with the callers and PostgreSQL, so what counts is not how many
calls there were, but how much CPU each of them took, and how evenly the workers share them: a
worker can use one core, so the one with the largest share bounds the capacity of all.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final

import grpc
import psutil

from benchmarks.timing import percentile, timed
from tests.support import make
from tests.support.api import Api
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for
from wfe.persistence.v1.event_pb2 import CreateEventRequest, GetEventRequest

Figures = list[dict[str, Any]]

_COUNTS: Final = (1, 2, 4)
_CONNECTIONS: Final = 16
_CALLERS: Final = 64
_ROUNDS: Final = 5


class _Server(ServerProcess):
    """A server with so many workers."""

    def __init__(self, log: Path, url: str, count: int) -> None:
        super().__init__(log, "--db-url", url, "--workers", str(count), "--pool-size", "5")
        self.count = count

    @property
    def serving(self) -> list[psutil.Process]:
        """The processes that serve."""
        supervisor = psutil.Process(self.process.pid)
        return [supervisor] if self.count == 1 else supervisor.children()

    @property
    def supervisor(self) -> psutil.Process | None:
        """The one that does not."""
        return None if self.count == 1 else psutil.Process(self.process.pid)


async def measure(url: str, seconds: float) -> Figures:
    """Measures both calls with each number of workers, in turn."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [_Server(directory / f"log{count}", url, count) for count in _COUNTS]
        for server in servers:
            stack.enter_context(server)
            if server.count > 1:
                wait_for(lambda: "all workers are serving" in server.log())  # noqa: B023
        tries: dict[tuple[str, int], list[dict[str, float]]] = {}
        for _ in range(_ROUNDS):
            for server in servers:
                for call in ("CreateEvent", "GetEvent"):
                    figures = await _calls(server, call, seconds)
                    tries.setdefault((call, server.count), []).append(figures)
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    middle = {
        key: {name: median(each[name] for each in found) for name in found[0]}
        for key, found in tries.items()
    }
    return [
        {"call": call, "workers": count}
        | figures
        | {"capacity_ratio": figures["capacity"] / middle[call, 1]["capacity"]}
        for (call, count), figures in sorted(middle.items())
    ]


async def _calls(server: _Server, name: str, seconds: float) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        apis = []
        for _ in range(_CONNECTIONS):
            channel = grpc.aio.insecure_channel(
                server.address, options=[("grpc.use_local_subchannel_pool", 1)]
            )
            apis.append(Api(await stack.enter_async_context(channel)))
            await channel.channel_ready()
        event = make.event()
        await apis[0].events.CreateEvent(CreateEventRequest(event=event))

        async def call(caller: int) -> object:
            events = apis[caller % _CONNECTIONS].events
            if name == "GetEvent":
                return await events.GetEvent(GetEventRequest(id=event.id))
            return await events.CreateEvent(CreateEventRequest(event=make.event()))

        await asyncio.gather(*(call(caller) for caller in range(_CONNECTIONS)))
        before = [_seconds(process) for process in server.serving]
        idle = _seconds(server.supervisor) if server.supervisor else 0.0
        took = await timed(call, _CALLERS, seconds)
        used = [_seconds(process) - at for process, at in zip(server.serving, before, strict=True)]
        supervised = _seconds(server.supervisor) - idle if server.supervisor else 0.0
    memory = [process.memory_info().rss / 1e6 for process in server.serving]
    return {
        "server_us": sum(used) / len(took) * 1e6,
        "supervisor_us": supervised / len(took) * 1e6,
        "largest_share": max(used) / sum(used),
        # Of a machine where each worker has a core, until the busiest one has used all of its.
        "capacity": len(took) / max(used),
        "p50_ms": percentile(took, 50) * 1e3,
        "worker_mb": max(memory),
        "supervisor_mb": server.supervisor.memory_info().rss / 1e6 if server.supervisor else 0.0,
    }


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def table(figures: Figures) -> str:
    """The figures as text."""
    heads = f"{'call':13}{'workers':>8}{'server µs/call':>16}{'supervisor µs':>15}"
    lines = [f"{heads}{'largest share':>15}{'calls/s, a core each':>26}{'MB a worker':>13}"]
    for row in figures:
        capacity = f"{row['capacity']:.0f} (x{row['capacity_ratio']:.2f})"
        lines.append(
            f"{row['call']:13}{row['workers']:>8}{row['server_us']:>16.0f}"
            f"{row['supervisor_us']:>15.1f}{row['largest_share']:>15.0%}{capacity:>26}"
            f"{row['worker_mb']:>13.0f}"
        )
    return "\n".join(lines)
