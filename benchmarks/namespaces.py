"""What a call costs where there are many namespaces, beside one where there is one.

Two servers on two databases of one PostgreSQL: one with a single namespace, one with many. The same
call goes in turns to the first; to one namespace of the many; to ten, to a hundred, and to all of
them. Each is compared with the first in the same round.
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

from benchmarks.timing import Call, counted, percentile
from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1 import event_pb2 as e
from wfe.persistence.v1 import store_pb2 as st

Figures = list[dict[str, Any]]

AT_ONCE = 4
CALLERS = 16
CALLS = 500
ROUNDS = 30


async def measure(url: str, count: int, options: list[str] | None = None) -> Figures:
    """All cases in every round, each round beginning with another one."""
    figures: Figures = []
    async with AsyncExitStack() as stack:
        servers = {}
        for database in ("single", "many"):
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {database}".encode())
            servers[database] = await stack.enter_async_context(
                _server(url.replace("/postgres?", f"/{database}?"), options or [])
            )
        single, many = servers["single"], servers["many"]
        names = [f"n{i}" for i in range(count)]
        await _create(single[0], names[:1])
        await _create(many[0], names)
        cases = {
            "one of one": (single, names[:1]),
            f"one of {count}": (many, names[:1]),
            f"ten of {count}": (many, names[:10]),
            f"a hundred of {count}": (many, names[:100]),
            f"all of {count}": (many, names),
        }
        for (api, _), choose in cases.values():  # every server has met every namespace it is asked
            await asyncio.gather(*(_into(api, [name])(0) for name in choose))
            await counted(_into(api, choose), CALLERS, CALLS)
        for round_ in range(ROUNDS):
            order = list(cases)
            order = order[round_ % len(order) :] + order[: round_ % len(order)]
            for name in order:
                (api, server), choose = cases[name]
                # The case before may have taken the place of this one's prepared statements.
                await counted(_into(api, choose), CALLERS, CALLS // 2)
                before = _cpu([server]), _cpu(_postgres(url))
                took = await counted(_into(api, choose), CALLERS, CALLS)
                figures.append(
                    {
                        "calls to": name,
                        "round": round_,
                        "p50_ms": percentile(took, 50) * 1e3,
                        "server_cpu_ms": (_cpu([server]) - before[0]) / CALLS * 1e3,
                        "postgres_cpu_ms": (_cpu(_postgres(url)) - before[1]) / CALLS * 1e3,
                        "server_mb": server.memory_info().rss / 1e6,
                    }
                )
    return figures


@asynccontextmanager
async def _server(url: str, options: list[str]) -> AsyncIterator[tuple[Api, psutil.Process]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.bench_server", url, *options,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = (await process.stdout.readline()).decode().strip()
        async with connect(address) as channel:
            api = Api(channel)
            await api.store.EnsureStoreExists(st.EnsureStoreExistsRequest())
            yield api, psutil.Process(process.pid)
    finally:
        process.stdin.close()
        await process.wait()


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


def _cpu(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return total


def _postgres(url: str) -> list[psutil.Process]:
    """All processes of this PostgreSQL."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int"
        ).fetchone()
    assert row
    postmaster = psutil.Process(row[0])
    return [postmaster, *postmaster.children(recursive=True)]


def table(figures: Figures) -> str:
    """The medians, and the median of each round's ratio to its first case (and its quartiles)."""
    names = list(dict.fromkeys(f["calls to"] for f in figures))
    first = {f["round"]: f for f in figures if f["calls to"] == names[0]}
    heads = ("p50 ms", "server CPU ms", "ratio (quartiles)", "PostgreSQL CPU ms", "ratio")
    lines = ["{:<20}{:>8}{:>15}{:>23}{:>19}{:>7}{:>11}".format("calls to", *heads, "server MB")]
    for name in names:
        of = [f for f in figures if f["calls to"] == name]

        def middle(key: str, of: Figures = of) -> float:
            return percentile([f[key] for f in of], 50)

        def ratio(key: str, percent: float, of: Figures = of) -> float:
            return percentile([f[key] / first[f["round"]][key] for f in of], percent)

        low, half, high = (ratio("server_cpu_ms", percent) for percent in (25, 50, 75))
        lines.append(
            f"{name:<20}{middle('p50_ms'):>8.2f}{middle('server_cpu_ms'):>15.3f}"
            f"{f'{half:.2f} ({low:.2f} to {high:.2f})':>23}"
            f"{middle('postgres_cpu_ms'):>19.3f}{ratio('postgres_cpu_ms', 50):>7.2f}"
            f"{of[-1]['server_mb']:>11.1f}"
        )
    return "\n".join(lines)
