"""What three PostgreSQLs and two servers can do, beside one of each: the same load, by turns.

The load is callers in twelve namespaces, which are all in the one PostgreSQL, or four in each of
the three; half of the callers of each namespace call either of two servers. All share this machine
with each other and with the callers, so what counts is not how many calls there were, but how much
of the processor's time each PostgreSQL and each server took for them: each on a machine of its own,
they could go on until the busiest has used up its own. Cases: one of each, twice, which shows the
noise of the machine; three PostgreSQLs with one server; with two; and with two and twice as many
callers, so that each server has as many as the one. Each case but the last has servers of its own.
Those of one kind are different databases in the same PostgreSQLs, of which only one is called
at a time; what all do while nobody calls is told, too.

Then, with three and two: namespaces of one caller each, alone and while many callers overload one
of the databases through one namespace. That PostgreSQL and those callers let everything else on
this machine go first, as if they had machines of their own. At last, what all take of memory.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil
import psycopg

from benchmarks.accounting import Accounted
from benchmarks.limits_figures import (
    FIRST,
    NAMES,
    NAMESPACES,
    Figures,
    added,
    capacities,
    database_of,
    overloads,
    table,
)
from benchmarks.limits_load import LoadProcess
from benchmarks.timing import cpu_seconds
from tests.support.api import Api, connect
from tests.support.server import ServerProcess
from wfe.persistence.v1 import store_pb2 as st
from wfe_persistence.embedded import EmbeddedPostgres
from wfe_persistence.store.schema import Schema

__all__ = ["measure", "table"]

CALLERS: Final = 96
LOADS: Final = ("steps", "turns", "mixed")
AGAIN: Final = "one and one, again"
DATABASES: Final = "three and one"
BOTH: Final = "three and two"
TWICE: Final = "three and two, twice the callers"

_FLOODED: Final = "a"
_FLOOD: Final = "flood"
_FLOOD_CALLERS: Final = 100
_COUNTED: Final = 200_000
_IDLE_SECONDS: Final = 10.0

# Until nearly all connections have run each statement in each namespace more than five times:
# PostgreSQL plans the first five executions of a prepared statement one by one. So many operations
# of each load for each server and namespace, or so many seconds.
_WARM: Final = 150
_WARM_SECONDS: Final = 20.0
_POOL: Final = 5

# What takes the database long to count.
_FILL: Final = """
INSERT INTO wfc.workflows (id, name, definition_id, version, status, data, create_time)
SELECT 'w' || i, 'w' || i, 'order', 1, 'Runnable', '{}', now() FROM generate_series(1, %s::int) i
"""

# How many PostgreSQLs and servers there are.
_CASES: Final = {FIRST: (1, 1), AGAIN: (1, 1), DATABASES: (3, 1), BOTH: (3, 2)}


@dataclass
class _Case:
    """A service, and its load."""

    postgres: Sequence[EmbeddedPostgres]
    accounted: Sequence[Accounted]
    servers: Sequence[ServerProcess]
    loads: Sequence[LoadProcess]
    urls: Sequence[str]

    @property
    def processes(self) -> list[psutil.Process]:
        """The servers."""
        return [psutil.Process(server.process.pid) for server in self.servers]

    def used(self) -> tuple[list[float], list[float]]:
        """The processor's time of each PostgreSQL and of each server so far."""
        return [each.cpu_seconds() for each in self.accounted], list(
            map(cpu_seconds, self.processes)
        )

    async def all_do(self, **wanted: Any) -> list[dict[str, Any]]:
        """Have all loads do the same."""
        return await asyncio.gather(*(load.do(**wanted) for load in self.loads))


def measure(seconds: float, rounds: int) -> Figures:
    """All cases with each load in each round, each round beginning with another case."""
    with tempfile.TemporaryDirectory(prefix="wfe-limits-") as directory:
        Path(directory).chmod(0o711)
        return asyncio.run(_measure(Path(directory), seconds, rounds))


async def _measure(directory: Path, seconds: float, rounds: int) -> Figures:
    async with AsyncExitStack() as stack:
        started = {
            name: stack.enter_context(EmbeddedPostgres(directory / name))
            for name in ("single", *NAMES)
        }
        cases = {
            case: await stack.enter_async_context(_case(number, count, servers, started, directory))
            for number, (case, (count, servers)) in enumerate(_CASES.items())
        }
        figures: Figures = [
            {"part": "idle"} | await _idle(list(started), list(map(Accounted.at, _urls(started))))
        ]
        names = [*cases, TWICE]
        for round_ in range(rounds):
            first = round_ % len(names)
            for load in LOADS:
                for name in names[first:] + names[:first]:
                    if name == TWICE:
                        figure = await _one(cases[BOTH], load, seconds, 2 * CALLERS)
                    else:
                        figure = await _one(cases[name], load, seconds)
                    figures.append(
                        {"part": "capacity", "load": load, "case": name, "round": round_} | figure
                    )
            print(".", end="", flush=True, file=sys.stderr)
        print(file=sys.stderr)
        figures += [_memory(name, case) for name, case in cases.items()]
        figures += await _overload(cases[BOTH], seconds, rounds)
    return [*capacities(figures), *overloads(figures), *figures]


def _urls(started: dict[str, EmbeddedPostgres]) -> list[str]:
    return [each.url for each in started.values()]


@asynccontextmanager
async def _case(
    number: int,
    count: int,
    servers: int,
    started: dict[str, EmbeddedPostgres],
    directory: Path,
) -> AsyncIterator[_Case]:
    """A service with so many PostgreSQLs and servers, warm."""
    used = [started["single"]] if count == 1 else [started[name] for name in NAMES]
    urls = []
    for postgres in used:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE case_{number}".encode())
        urls.append(postgres.url.replace("/postgres?", f"/case_{number}?"))
    options = ["--db-url", urls[0], "--max-namespaces", "1000"]
    options += ["--pool-size", str(_POOL)]
    for name, url in zip(NAMES[1:count], urls[1:], strict=True):
        options += ["--database", f"{name}={url}"]
    async with AsyncExitStack() as stack:
        running = [
            stack.enter_context(ServerProcess(directory / f"log-{number}-{each}", *options))
            for each in range(servers)
        ]
        async with connect(running[0].address) as channel:
            store = Api(channel).store
            for name in NAMESPACES:
                await store.CreateNamespace(
                    st.CreateNamespaceRequest(name=name, database=database_of(name, count))
                )
        loads = []
        for server in running:
            loads.append(await LoadProcess.start(server.address))
            stack.push_async_callback(loads[-1].stop)
        case = _Case(used, [Accounted.at(each.url) for each in used], running, loads, urls)
        # Twice as many items as callers could have at once.
        await case.all_do(
            prepare=NAMESPACES, workflows=4 * CALLERS // len(NAMESPACES) // servers + 2
        )
        for load in LOADS:
            done, began = 0, time.monotonic()
            while (
                done < _WARM * servers * len(NAMESPACES)
                and time.monotonic() - began < _WARM_SECONDS
            ):
                done += (await _one(case, load, 1))["done"]
        yield case


async def _idle(names: list[str], accounted: list[Accounted]) -> dict[str, Any]:
    """What the PostgreSQLs take while nobody calls, each of a second."""
    before = [each.cpu_seconds() for each in accounted]
    await asyncio.sleep(_IDLE_SECONDS)
    return {
        name: (each.cpu_seconds() - at) / _IDLE_SECONDS
        for name, each, at in zip(names, accounted, before, strict=True)
    }


async def _one(case: _Case, load: str, seconds: float, callers: int = CALLERS) -> dict[str, Any]:
    """A load for so long."""
    wal = _wal(case)
    before = case.used()
    answers = await case.all_do(
        load=load,
        namespaces=NAMESPACES,
        callers=callers // len(NAMESPACES) // len(case.loads),
        seconds=seconds,
    )
    after = case.used()
    postgres, servers = (
        [now - then for now, then in zip(*pair, strict=True)]
        for pair in zip(after, before, strict=True)
    )
    done, failed = added(answers, "done"), added(answers, "failed")
    return {
        "done": done.total(),
        "failed": failed,
        "seconds": max(answer["seconds"] for answer in answers),
        "postgres_cpu": postgres,
        "server_cpu": servers,
        "wal": _wal(case) - wal,
        "namespaces": done,
        "p50_ms": median(found[0] for answer in answers for found in answer["ms"].values()),
    }


def _wal(case: _Case) -> float:
    """How many bytes of WAL all its PostgreSQLs have written so far."""
    total = 0.0
    for postgres in case.postgres:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            row = connection.execute(
                "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8"
            ).fetchone()
        assert row
        total += row[0]
    return total


def _memory(name: str, case: _Case) -> dict[str, Any]:
    found = [process.memory_full_info() for process in case.processes]
    figure: dict[str, Any] = {"part": "memory", "case": name}
    for kind in ("rss", "pss", "uss"):
        figure[f"server_{kind}_mb"] = [getattr(each, kind) / 1e6 for each in found]
    figure["postgres_connections"] = _connections(case)
    for key in ("processes", "pss", "uss"):
        figure[f"postgres_{key}"] = [getattr(each.memory(), key) for each in case.accounted]
    return figure


def _connections(case: _Case) -> list[int]:
    """How many the servers of the case have, to each database."""
    found = []
    for url in case.urls:
        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchone()
        assert row
        found.append(row[0])
    return found


# ----- one namespace overloads one database -----


async def _overload(case: _Case, seconds: float, rounds: int) -> Figures:
    """What one caller in each namespace gets done, alone and beside the flood, by turns."""
    address = case.servers[0].address
    async with connect(address) as channel:
        await Api(channel).store.CreateNamespace(
            st.CreateNamespaceRequest(name=_FLOOD, database=_FLOODED)
        )
    at = NAMES.index(_FLOODED)
    with psycopg.connect(case.urls[at], autocommit=True) as connection:
        fill = Schema().for_namespace(_FLOOD).qualify(_FILL)
        connection.execute(fill.encode(), [_COUNTED])
        connection.execute(b"VACUUM ANALYZE")
    case.accounted[at].give_way()
    figures: Figures = []
    async with AsyncExitStack() as stack:
        floods = []
        for server in case.servers:
            floods.append(await LoadProcess.start(server.address))
            stack.push_async_callback(floods[-1].stop)
            psutil.Process(floods[-1].pid).nice(19)
        for round_ in range(rounds):
            for flooded in (False, True):
                figures.append(
                    {"part": "overload", "flooded": flooded, "round": round_}
                    | await _flooded(case, floods if flooded else [], seconds)
                )
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return figures


async def _flooded(case: _Case, floods: list[LoadProcess], seconds: float) -> dict[str, Any]:
    flood = [
        asyncio.create_task(
            each.do(load="counts", namespaces=[_FLOOD], callers=_FLOOD_CALLERS, seconds=seconds + 1)
        )
        for each in floods
    ]
    if floods:
        await asyncio.sleep(1)  # until all of them wait
    before = case.used()
    begun = time.perf_counter()
    answers = await case.all_do(load="mixed", namespaces=NAMESPACES, callers=1, seconds=seconds)
    elapsed = time.perf_counter() - begun
    after = case.used()
    flooding = await asyncio.gather(*flood)
    figure: dict[str, Any] = {
        "seconds": elapsed,
        "server_cpu": [now - then for now, then in zip(after[1], before[1], strict=True)],
        "flood_done": added(flooding, "done").total(),
        "flood_failed": added(flooding, "failed"),
        "failed": added(answers, "failed"),
        "namespaces": added(answers, "done"),
    }
    for database in NAMES:
        found = [
            ms
            for answer in answers
            for name, ms in answer["ms"].items()
            if database_of(name, len(NAMES)) == database
        ]
        figure[database] = {
            "done": sum(
                done
                for name, done in figure["namespaces"].items()
                if database_of(name, len(NAMES)) == database
            ),
            "p50_ms": median(each[0] for each in found) if found else None,
            "p99_ms": median(each[1] for each in found) if found else None,
        }
    return figure
