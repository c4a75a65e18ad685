"""The cost of a call in a service with three databases, beside the cost with one.

All databases are in one PostgreSQL, so that it is the server that is compared. Each case has a
server of its own: with one database, twice, which shows the noise of the machine; with three of
which one is called; and with three that are called evenly. In each round all cases have their turn,
each round beginning with another one, and each is compared with the first of its round.
"""

from __future__ import annotations

import asyncio
import random
import time
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
from wfe_persistence.database import databases_from
from wfe_persistence.settings import NamedDatabase, Settings
from wfe_persistence.store import event
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.schema import Schema

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
    return figures + await measure_store(url)


async def measure_store(url: str, rounds: int = 60) -> Figures:
    """The same without gRPC, in this process, whose CPU is what is told: less noise."""
    figures: Figures = []
    names = {
        "one database": ("s0",),
        "one database, again": ("s1",),
        "one of three": ("s2", "s3", "s4"),
    }
    with psycopg.connect(url, autocommit=True) as connection:
        for name in (each for them in names.values() for each in them):
            connection.execute(f"CREATE DATABASE {name}".encode())
    async with AsyncExitStack() as stack:
        cases: dict[str, tuple[Namespaces, str]] = {}
        for case, (home, *others) in names.items():
            at = {each: url.replace("/postgres?", f"/{each}?") for each in (home, *others)}
            named = tuple(NamedDatabase(name=each, url=at[each]) for each in others)
            settings = Settings(db_url=at[home], pool_size=4, databases=named)
            databases = await stack.enter_async_context(databases_from(settings))
            found = Namespaces(databases, Schema(), migrate_on_use=True, max_namespaces=9)
            await migrate(databases.home, found.default.schema)
            await found.create_namespace("x", others[0] if others else "home")
            stored = make.event()
            await event.create_event(await found.get("x"), stored)
            cases[case] = found, stored.id

        async def call(found: Namespaces, id_: str, kind: str) -> None:
            for _ in range(20):
                store = await found.get("x")
                if kind == "CreateEvent":
                    await event.create_event(store, make.event())
                else:
                    await event.get_event(store, id_)

        for round_ in range(rounds):
            order = list(cases)
            order = order[round_ % len(order) :] + order[: round_ % len(order)]
            for kind in ("CreateEvent", "GetEvent"):
                for case in order:
                    begin = time.process_time()
                    await asyncio.gather(*(call(*cases[case], kind) for _ in range(CALLERS)))
                    spent = (time.process_time() - begin) / (20 * CALLERS)
                    figures.append(
                        {"store": kind, "calls to": case, "round": round_, "cpu_us": spent * 1e6}
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
    """The table of each kind of call, and what it takes without gRPC."""
    wire = [figure for figure in figures if "call" in figure]
    kinds = dict.fromkeys(figure["call"] for figure in wire)
    parts = [
        f"{kind}\n{namespaces.table([f for f in wire if f['call'] == kind])}" for kind in kinds
    ]
    inside = [figure for figure in figures if "store" in figure]
    lines = ["without gRPC, CPU of this process: lower quartile in us, ratio (quartiles)"]
    for kind in kinds:
        first = {
            f["round"]: f["cpu_us"]
            for f in inside
            if f["store"] == kind and f["calls to"] == "one database"
        }
        for case in dict.fromkeys(f["calls to"] for f in inside):
            of = [f for f in inside if f["store"] == kind and f["calls to"] == case]
            ratios = [f["cpu_us"] / first[f["round"]] for f in of]
            low, half, high = (percentile(ratios, each) for each in (25, 50, 75))
            least = percentile([f["cpu_us"] for f in of], 25)
            lines.append(f"{kind:<13}{case:<21}{least:>7.1f}  {half:.2f} ({low:.2f} to {high:.2f})")
    return "\n\n".join([*parts, "\n".join(lines)])
