"""Calls that wait: how soon they hear of a write, through the same server and through another one;
and ten thousand of them on one server: its memory, and what the database has to do meanwhile.

The waiters are a third each in one queue, in queues of their own, and for a lock; the memory of a
bare server of grpc.aio that holds as many calls stands beside it.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Final

import grpc
import psutil
from google.protobuf.duration_pb2 import Duration

from benchmarks.held_server import HOLD
from benchmarks.timing import percentile
from tests.support import make
from tests.support.admin import AdminServer
from tests.support.api import Api
from tests.support.server import ServerProcess
from wfe.persistence.v1.lock_pb2 import AcquireLockRequest
from wfe.persistence.v1.queue_pb2 import DequeueRequest
from wfe.persistence.v1.workflow_pb2 import WorkflowStatus

Figures = list[dict[str, Any]]

_LONG: Final = Duration(seconds=60)
_WRITES: Final = 100
_WAITERS: Final = 10_000
_CHANNELS: Final = 20
_QUIET_SECONDS: Final = 10.0
_CALM: Final = 50
"""A server that has run no more statements in a second is done with those who came."""
_SETTLE_SECONDS: Final = 0.03

_COUNTS: Final = re.compile(
    r"^wfe_persistence_database_round_trip_seconds_count\S* (\d+)", re.MULTILINE
)


async def measure(url: str) -> Figures:
    """Measures the times, and then the memory."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with AsyncExitStack() as stack:
            servers = [
                stack.enter_context(ServerProcess(directory / f"log{n}", "--db-url", url))
                for n in range(2)
            ]
            here, there = [Api(await _channel(stack, server.address)) for server in servers]
            await asyncio.sleep(1)  # until they listen
            figures = [
                {"what": what, "through": through} | await _times(wait, here, writer)
                for what, wait in _WAITS.items()
                for through, writer in (("the same server", here), ("another server", there))
            ]
        figures.append(await _bare())
        figures.append(await _ten_thousand(directory / "log", url))
    return figures


async def _channel(stack: AsyncExitStack, address: str) -> grpc.aio.Channel:
    options = [("grpc.use_local_subchannel_pool", 1)]
    return await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))


Wait = Callable[[Api, Api], Awaitable[tuple[Awaitable[Any], Callable[[], Awaitable[Any]]]]]
"""Begins to wait through one server; returns that call, and the write through another one that ends
it."""


async def _dequeue(here: Api, there: Api) -> tuple[Awaitable[Any], Callable[[], Awaitable[Any]]]:
    queue = make.queue()
    return here.dequeue(queues=[queue], wait=_LONG), lambda: there.enqueue(make.item(queue))


async def _lock(here: Api, there: Api) -> tuple[Awaitable[Any], Callable[[], Awaitable[Any]]]:
    resource = make.new_id("lock")
    held = await there.acquire_lock(resource)
    return here.acquire_lock(resource, wait=_LONG), lambda: there.release_lock(held.token)


async def _workflow(here: Api, there: Api) -> tuple[Awaitable[Any], Callable[[], Awaitable[Any]]]:
    instance = make.instance()
    await there.create(instance)
    instance.status = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
    return (
        here.wait_for_workflow(instance.id, wait=_LONG),
        lambda: there.persist_workflow(instance),
    )


_WAITS: Final[dict[str, Wait]] = {
    "Dequeue": _dequeue,
    "AcquireLock": _lock,
    "WaitForWorkflow": _workflow,
}


async def _times(wait: Wait, here: Api, there: Api) -> dict[str, float]:
    """How long after the answer to a write the call that waits for it has its own."""
    took = []
    for _ in range(_WRITES):
        call, write = await wait(here, there)
        task = asyncio.ensure_future(_timed(call))
        await asyncio.sleep(_SETTLE_SECONDS)
        await write()
        written = time.perf_counter()
        took.append(max(0.0, await task - written))
    return {f"p{p}_ms": percentile(took, p) * 1000 for p in (50, 99)}


async def _timed(call: Awaitable[Any]) -> float:
    await call
    return time.perf_counter()


async def _bare() -> dict[str, Any]:
    """What ten thousand calls take of a bare server."""
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "benchmarks.held_server"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            async with AsyncExitStack() as stack:
                channels = [await _channel(stack, address) for _ in range(_CHANNELS)]
                holds: list[Any] = [channel.unary_unary(HOLD) for channel in channels]
                before = _rss(process.pid)
                tasks = await _many(lambda n: holds[n % _CHANNELS](b"x" * 40))
                figures = {"rss_before_mb": before, "rss_mb": _rss(process.pid)}
                await _end(tasks)
        finally:
            process.kill()
    return {"what": f"{_WAITERS:,} calls", "through": "bare grpc.aio"} | figures


async def _ten_thousand(log: Path, url: str) -> dict[str, Any]:
    """The memory of a server on which ten thousand wait, what the database has to do meanwhile, and
    how soon one of them hears of a write."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(AdminServer(log, "--db-url", url))
        apis = [Api(await _channel(stack, server.address)) for _ in range(_CHANNELS)]
        held = await apis[0].acquire_lock("held", ttl=Duration(seconds=3600))
        pid = server.process.pid
        before = _rss(pid)

        def call(n: int) -> Awaitable[Any]:
            api = apis[n % _CHANNELS]
            match n % 3:
                case 0:
                    request = DequeueRequest(queues=["shared"], wait=_LONG)
                    return api.queues.Dequeue(request, timeout=300)
                case 1:
                    request = DequeueRequest(queues=[f"q{n}"], wait=_LONG)
                    return api.queues.Dequeue(request, timeout=300)
            wanted = AcquireLockRequest(resource="held", wait=_LONG)
            return api.locks.AcquireLock(wanted, timeout=300)

        tasks = await _many(call)
        waiting = sum(not task.done() for task in tasks)
        memory = _rss(pid)
        begun = 0
        while (count := await asyncio.to_thread(_statements, server)) - begun > _CALM:
            begun = count  # not all have looked yet
            await asyncio.sleep(1)
        cpu = sum(psutil.Process(pid).cpu_times()[:2])
        begun = await asyncio.to_thread(_statements, server)
        await asyncio.sleep(_QUIET_SECONDS)
        made = await asyncio.to_thread(_statements, server) - begun
        busy = sum(psutil.Process(pid).cpu_times()[:2]) - cpu
        took = []
        for n in range(1, 300, 3):
            await apis[0].enqueue(make.item(f"q{n}"))
            written = time.perf_counter()
            await tasks[n]
            took.append(time.perf_counter() - written)
        await apis[0].release_lock(held.token)
        await _end(tasks)
    return {
        "what": f"{_WAITERS:,} waiters", "through": "one server", "waiting": waiting,
        "rss_before_mb": before, "rss_mb": memory,
        "statements_per_s": made / _QUIET_SECONDS,
        "cpu_percent": 100 * busy / _QUIET_SECONDS,
        "p50_ms": percentile(took, 50) * 1000, "p99_ms": percentile(took, 99) * 1000,
    }  # fmt: skip


async def _many(call: Callable[[int], Awaitable[Any]]) -> list[asyncio.Future[Any]]:
    """Ten thousand calls, which have all arrived."""

    async def answer(n: int) -> Any:
        return await call(n)

    tasks: list[asyncio.Future[Any]] = []
    for n in range(_WAITERS):
        tasks.append(asyncio.ensure_future(answer(n)))
        if n % 500 == 499:
            await asyncio.sleep(0.3)
    await asyncio.sleep(8)
    return tasks


async def _end(tasks: list[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


def _statements(server: AdminServer) -> int:
    """How many statements a server has run."""
    return sum(map(int, _COUNTS.findall(server.get("/metrics").text)))


def _rss(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 1e6


def table(figures: Figures) -> str:
    """The figures as text."""
    lines = []
    for row in figures:
        numbers = "  ".join(
            f"{key} {value:,.1f}" for key, value in row.items() if isinstance(value, float | int)
        )
        lines.append(f"{row['what']:18} {row['through']:16} {numbers}")
    return "\n".join(lines)
