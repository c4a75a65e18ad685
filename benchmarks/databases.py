"""The cost of a call in a service with three databases, beside the cost with one.

All databases are in one PostgreSQL, so that it is the server that is compared. Each case has a
server of its own: with one database, twice, which shows the noise of the machine; with three of
which one is called; and with three that are called evenly. In each round all cases have their turn,
each round beginning with another one, and each is compared with the first of its round.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Any

import psycopg

from benchmarks import namespaces
from benchmarks.namespaces import CALLERS, cpu, postgres_processes, server_on
from benchmarks.timing import Call, counted, percentile
from tests.support import make
from tests.support.api import Api
from wfe.persistence.v1 import event_pb2 as e
from wfe.persistence.v1 import store_pb2 as st

Figures = list[dict[str, Any]]

CALLS = 1_000
WARM_CALLS = 2_000
NAMES = ("home", "a", "b")

CASES = {
    "one database": (1, 1),
    "one database, again": (1, 1),
    "one of three": (3, 1),
    "all of three": (3, 3),
}
"""How many databases the server has, and into how many the calls go."""


async def measure(url: str, rounds: int) -> Figures:
    """Runs all cases in every round, reads and writes."""
    figures: Figures = []
    with psycopg.connect(url, autocommit=True) as connection:
        for case in range(len(CASES)):
            for name in NAMES:
                connection.execute(f"CREATE DATABASE {name}_{case}".encode())
    async with AsyncExitStack() as stack:
        servers = {}
        for case, (name, (count, called)) in enumerate(CASES.items()):
            urls = {n: url.replace("/postgres?", f"/{n}_{case}?") for n in NAMES[:count]}
            options = [each for n in NAMES[1:count] for each in ("--database", f"{n}={urls[n]}")]
            api, process = await stack.enter_async_context(server_on(urls["home"], *options))
            # Where there are several, the calls to one go to one that is not the home.
            wanted = NAMES[1:2] if count > called else NAMES[:called]
            for database in wanted:
                await api.store.CreateNamespace(
                    st.CreateNamespaceRequest(name=f"in_{database}", database=database)
                )
            calls = {
                kind: await _call(kind, api, [f"in_{database}" for database in wanted])
                for kind in ("CreateEvent", "GetEvent")
            }
            servers[name] = calls, process
            for call in calls.values():
                await counted(call, CALLERS, WARM_CALLS * called)
        for round_ in range(rounds):
            order = list(CASES)
            order = order[round_ % len(order) :] + order[: round_ % len(order)]
            for kind in ("CreateEvent", "GetEvent"):
                for name in order:
                    calls, process = servers[name]
                    before = cpu([process]), cpu(postgres_processes(url))
                    took = await counted(calls[kind], CALLERS, CALLS)
                    spent = cpu([process]) - before[0], cpu(postgres_processes(url)) - before[1]
                    figures.append(
                        {
                            "call": kind,
                            "calls to": name,
                            "round": round_,
                            "p50_ms": percentile(took, 50) * 1e3,
                            "server_cpu_ms": spent[0] / CALLS * 1e3,
                            "postgres_cpu_ms": spent[1] / CALLS * 1e3,
                            "server_mb": process.memory_info().rss / 1e6,
                        }
                    )
    return figures


async def _call(kind: str, api: Api, into: list[str]) -> Call:
    if kind == "CreateEvent":
        return lambda _: api.events.CreateEvent(
            e.CreateEventRequest(event=make.event()),
            metadata=(("wfe-namespace", random.choice(into)),),
        )
    stored = make.event()
    await asyncio.gather(
        *(
            api.events.CreateEvent(
                e.CreateEventRequest(event=stored), metadata=(("wfe-namespace", name),)
            )
            for name in into
        )
    )
    return lambda _: api.events.GetEvent(
        e.GetEventRequest(id=stored.id), metadata=(("wfe-namespace", random.choice(into)),)
    )


def table(figures: Figures) -> str:
    """The table of each kind of call."""
    kinds = dict.fromkeys(figure["call"] for figure in figures)
    return "\n\n".join(
        f"{kind}\n{namespaces.table([f for f in figures if f['call'] == kind])}" for kind in kinds
    )
