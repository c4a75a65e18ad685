"""The cost of a call with many namespaces, beside the cost with one.

There are two databases in one PostgreSQL, one with a single namespace and one with many, and a
server for each case: the single one, twice, which shows the noise of the machine; one, ten, a
hundred and all of the many, chosen at random; and all of them through a server whose limit is too
low to keep all their statements prepared. The server of each case is warm for its namespaces and
never uses others. Every round runs all cases, and each is compared with the first.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psutil
import psycopg

from benchmarks.served import Served
from benchmarks.timing import Call, counted, percentile
from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1 import event_pb2 as e
from wfe.persistence.v1 import store_pb2 as st

Figures = list[dict[str, Any]]

AT_ONCE = 4
CALLERS = 16
CALLS = 500
ROUNDS = 60
FEW_MB = "20"


async def measure(url: str, count: int) -> Figures:
    """Runs all cases in every round, each round starting with a different one."""
    figures: Figures = []
    async with AsyncExitStack() as stack:
        names = [f"n{i}" for i in range(count)]
        cases = {
            "one of one": ("single", names[:1]),
            "one of one, again": ("single", names[:1]),
            f"one of {count}": ("many", names[:1]),
            f"ten of {count}": ("many", names[:10]),
            f"a hundred of {count}": ("many", names[:100]),
            f"all of {count}": ("many", names),
            "all, not all prepared": ("many", names),
        }
        servers = {}
        with psycopg.connect(url, autocommit=True) as connection:
            for database, present in (("single", names[:1]), ("many", names)):
                connection.execute(f"CREATE DATABASE {database}".encode())
                to_database = url.replace("/postgres?", f"/{database}?")
                async with server_on(to_database) as (api, _):
                    await _create(api, present)
        for case, (database, choose) in cases.items():
            to_database = url.replace("/postgres?", f"/{database}?")
            options = ["--max-prepared-mb", FEW_MB] if "not" in case else []
            servers[case] = await stack.enter_async_context(server_on(to_database, *options))
            # Until nearly every connection has used nearly every namespace more than five times:
            # PostgreSQL plans the first five executions of a prepared statement individually.
            calls = CALLS + (10 if options else 100) * len(choose)
            await counted(_into(servers[case][0], choose), CALLERS, calls)
        for round_ in range(ROUNDS):
            order = list(cases)
            order = order[round_ % len(order) :] + order[: round_ % len(order)]
            for name in order:
                api, server = servers[name]
                choose = cases[name][1]
                before = cpu([server]), cpu(postgres_processes(url))
                took = await counted(_into(api, choose), CALLERS, CALLS)
                figures.append(
                    {
                        "calls to": name,
                        "round": round_,
                        "p50_ms": percentile(took, 50) * 1e3,
                        "server_cpu_ms": (cpu([server]) - before[0]) / CALLS * 1e3,
                        "postgres_cpu_ms": (cpu(postgres_processes(url)) - before[1]) / CALLS * 1e3,
                        "server_mb": server.memory_info().rss / 1e6,
                    }
                )
    return figures


@asynccontextmanager
async def server_on(url: str, *options: str) -> AsyncIterator[tuple[Api, psutil.Process]]:
    """A server on a database, and its process."""
    served = await Served.start(url, *options)
    try:
        async with connect(served.address) as channel:
            api = Api(channel)
            await api.store.EnsureStoreExists(st.EnsureStoreExistsRequest())
            yield api, served.process
    finally:
        await served.stop()


async def _create(api: Api, names: list[str]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def create(name: str) -> None:
        async with slots:
            await api.store.CreateNamespace(st.CreateNamespaceRequest(name=name))

    begin = asyncio.get_running_loop().time()
    await asyncio.gather(*map(create, names))
    took = asyncio.get_running_loop().time() - begin
    print(f"{len(names)} namespaces created in {took:.0f} s", file=sys.stderr)


def _into(api: Api, names: list[str]) -> Call:
    return lambda _: api.events.CreateEvent(
        e.CreateEventRequest(event=make.event()),
        metadata=(("wfe-namespace", random.choice(names)),),
    )


def cpu(processes: list[psutil.Process]) -> float:
    """The seconds of CPU, user and system, that these have taken."""
    total = 0.0
    for process in processes:
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return total


def postgres_processes(url: str) -> list[psutil.Process]:
    """The processes of this PostgreSQL."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int"
        ).fetchone()
    assert row
    postmaster = psutil.Process(row[0])
    return [postmaster, *postmaster.children(recursive=True)]


def table(figures: Figures) -> str:
    """Prints the medians, and the median and quartiles of each round's ratio to its first case."""
    names = list(dict.fromkeys(f["calls to"] for f in figures))
    first = {f["round"]: f for f in figures if f["calls to"] == names[0]}
    heads = ("server CPU ms", "ratio (quartiles)", "PostgreSQL CPU ms", "ratio (quartiles)")
    lines = ["{:<23}{:>15}{:>23}{:>19}{:>23}{:>9}{:>7}{:>11}".format(
        "calls to", *heads, "p50 ms", "ratio", "server MB",
    )]  # fmt: skip
    for name in names:
        of = [f for f in figures if f["calls to"] == name]

        def middle(key: str, of: Figures = of) -> float:
            return percentile([f[key] for f in of], 50)

        def quartiles(key: str, of: Figures = of) -> list[float]:
            ratios = [f[key] / first[f["round"]][key] for f in of]
            return [percentile(ratios, percent) for percent in (25, 50, 75)]

        def ratio(key: str, of: Figures = of) -> str:
            low, half, high = quartiles(key, of)
            return f"{half:.2f} ({low:.2f} to {high:.2f})"

        lines.append(
            f"{name:<23}{middle('server_cpu_ms'):>15.3f}{ratio('server_cpu_ms'):>23}"
            f"{middle('postgres_cpu_ms'):>19.3f}{ratio('postgres_cpu_ms'):>23}"
            f"{middle('p50_ms'):>9.2f}{quartiles('p50_ms')[1]:>7.2f}{of[-1]['server_mb']:>11.1f}"
        )
    return "\n".join(lines)
