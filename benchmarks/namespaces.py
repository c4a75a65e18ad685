"""What many namespaces cost beside one: memory of server and PostgreSQL, and the CPU of a call."""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import psutil

from benchmarks.timing import Call, percentile, timed
from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1 import event_pb2 as e
from wfe.persistence.v1 import store_pb2 as st

Figures = list[dict[str, Any]]

AT_ONCE = 4
ROUNDS = 5
SECONDS = 1.5


async def measure(url: str, count: int) -> Figures:
    """Calls to one namespace and to all of them, in turns, with the memory after each."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.bench_server", url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    address = (await process.stdout.readline()).decode().strip()
    server = psutil.Process(process.pid)
    figures: Figures = []
    async with connect(address) as channel:
        api = Api(channel)
        await api.store.EnsureStoreExists(st.EnsureStoreExistsRequest())
        names = [f"n{i}" for i in range(count)]
        slots = asyncio.Semaphore(AT_ONCE)

        async def create(name: str) -> None:
            async with slots:
                await api.store.CreateNamespace(st.CreateNamespaceRequest(name=name))

        begin = asyncio.get_running_loop().time()
        await asyncio.gather(*map(create, names))
        took = asyncio.get_running_loop().time() - begin
        print(f"{count} namespaces created in {took:.0f} s", file=sys.stderr)

        def into(choose: list[str]) -> Call:
            return lambda _: api.events.CreateEvent(
                e.CreateEventRequest(event=make.event()),
                metadata=(("wfe-namespace", random.choice(choose)),),
            )

        one, hot, every = into(names[:1]), into(names[:100]), into(names)
        await timed(one, 32, SECONDS)
        figures.append({"calls to": "(before)", **_memory(server, url)})
        for round_ in range(ROUNDS):
            for name, call in (("one", one), ("a hundred", hot), ("all", every)):
                before = sum(server.cpu_times()[:2])
                took_each = await timed(call, 32, SECONDS)
                figures.append(
                    {
                        "calls to": name,
                        "round": round_,
                        "p50_ms": percentile(took_each, 50) * 1e3,
                        "server_cpu_ms": (sum(server.cpu_times()[:2]) - before)
                        / len(took_each)
                        * 1e3,
                        **_memory(server, url),
                    }
                )
    process.stdin.close()
    await process.wait()
    return figures


def _memory(server: psutil.Process, url: str) -> dict[str, float]:
    """Of the server, and of all PostgreSQL processes of this data directory together."""
    directory = url.partition("host=")[2]
    postgres = 0
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"] == "postgres" and process.cwd().startswith(directory):
                postgres += process.memory_full_info().uss
        except psutil.Error:
            continue
    return {"server_mb": server.memory_info().rss / 1e6, "postgres_mb": postgres / 1e6}


def table(figures: Figures) -> str:
    """The medians."""
    lines = [f"{'calls to':<12}{'p50 ms':>9}{'CPU ms':>9}{'server MB':>11}{'PostgreSQL MB':>15}"]
    for name in ("(before)", "one", "a hundred", "all"):
        of = [f for f in figures if f["calls to"] == name]

        def median(key: str, of: Figures = of) -> float:
            return percentile([f.get(key, 0.0) for f in of], 50)

        lines.append(
            f"{name:<12}{median('p50_ms'):>9.2f}{median('server_cpu_ms'):>9.3f}"
            f"{of[-1]['server_mb']:>11.1f}{of[-1]['postgres_mb']:>15.1f}"
        )
    return "\n".join(lines)
