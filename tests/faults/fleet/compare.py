"""The real engine side by side on what it can stand on, without faults.

Workflows of 5 steps that do nothing are started, then 1 or 4 hosts run them all, from an empty
store; then more, one after the other, on idle hosts. All run on one PostgreSQL, each in a database
of its own, in turn, several times: what else the machine does concerns all of them. The figures are
medians.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from tests.faults.fleet.cast import Redis
from tests.support import binaries
from tests.support.admin import AdminServer
from tests.support.postgres import PostgresServer

KINDS = {
    "memory": "wfe-postgres; queue and locks in memory",
    "valkey": "wfe-postgres; wfe-valkey on Redis",
    "grpc-memory": "this server; queue and locks in memory",
    "grpc": "this server alone",
}
_HOSTS = (1, 4)
_ROUNDS = 3
_WORKFLOWS = 300
_STEPS = 5
_CALLS = re.compile(r"^grpc_server_handled_total\{[^}]*\} (\d+)", re.MULTILINE)
# A backend that has become idle adds to the counters what it has not yet, after 10 s at the latest.
# So they are read in the first round only; they hardly differ.
_COUNTERS_SECONDS = 11


@dataclass
class Figures:
    """One measurement. Latency is that of a whole workflow on an idle fleet."""

    kind: str
    hosts: int
    started_per_s: float
    workflows_per_s: float
    median_ms: float
    p90_ms: float
    calls_per_step: float
    """To the server, or to Redis."""
    transactions_per_step: float
    hosts_cpu_ms: float
    """The processor's time per step: of the hosts, of the server or Redis, of PostgreSQL."""
    server_cpu_ms: float
    postgres_cpu_ms: float


@dataclass
class _Counts:
    """What has been counted so far."""

    calls: int
    transactions: int
    hosts_cpu: float
    server_cpu: float
    postgres_cpu: float


@dataclass
class _Counters:
    """Where it is counted."""

    postgres: PostgresServer
    database: str
    hosts: int
    """The process of the hosts."""
    server: AdminServer | None
    redis: Redis | None

    def read(self) -> _Counts:
        with psycopg.connect(self.postgres.url) as connection:
            found = connection.execute(
                "SELECT xact_commit FROM pg_stat_database WHERE datname = %s", [self.database]
            ).fetchone()
        assert found is not None
        calls, server = 0, 0.0
        if self.server is not None:
            calls = sum(map(int, _CALLS.findall(self.server.get("/metrics").text)))
            server = _cpu(psutil.Process(self.server.process.pid))
        if self.redis is not None:
            answer = re.search(r"total_commands_processed:(\d+)", self.redis.ask("INFO stats"))
            assert answer is not None
            calls, server = int(answer[1]), _cpu(psutil.Process(self.redis.pid))
        postmaster = psutil.Process(self.postgres.pid)
        backends = sum(map(_cpu, postmaster.children()))
        # What has ended is in the children's time of the postmaster.
        ended = postmaster.cpu_times()
        backends += ended.children_user + ended.children_system
        return _Counts(calls, found[0], _cpu(psutil.Process(self.hosts)), server, backends)


def _cpu(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


async def _measure(
    program: Path,
    postgres: PostgresServer,
    directory: Path,
    kind: str,
    hosts: int,
    database: str,
    *,
    count: bool,
) -> Figures:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    host = f"host={postgres.directory}"
    server, redis = None, None
    async with AsyncExitStack() as stack:
        options = ["--providers", kind, "--hosts", str(hosts), "--workflows", str(_WORKFLOWS)]
        options += ["--steps", str(_STEPS)]
        if kind.startswith("grpc"):
            url = f"postgresql://postgres@/{database}?{host}"
            server = AdminServer(directory / f"{database}.log", "--db-url", url)
            stack.enter_context(server)
            options += ["--target", server.address]
        else:
            options += ["--db", f"postgres://postgres@localhost/{database}?{host}"]
        if kind == "valkey":
            redis = Redis(directory / database)
            stack.enter_context(redis)
            options += ["--redis", redis.url]
        bench = await asyncio.create_subprocess_exec(
            program, "bench", *options, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        counters = _Counters(postgres, database, bench.pid, server, redis)
        try:
            started = await _part(bench, "started")
            if count:
                await asyncio.sleep(_COUNTERS_SECONDS)
            before = counters.read()
            await _go_on(bench)
            ran = await _part(bench, "ran")
            if count:
                await asyncio.sleep(_COUNTERS_SECONDS)
            after = counters.read()
            await _go_on(bench)
            alone = await _part(bench, "alone")
            await _go_on(bench)
            await bench.wait()
        finally:
            if bench.returncode is None:
                bench.kill()
                await bench.wait()
    steps = ran["steps"]

    def per_step(name: str) -> float:
        counted = getattr(after, name) - getattr(before, name)
        return float(counted / steps)

    return Figures(
        kind=kind,
        hosts=hosts,
        started_per_s=started["workflows"] / started["seconds"],
        workflows_per_s=ran["workflows"] / ran["seconds"],
        median_ms=alone["median_ms"],
        p90_ms=alone["p90_ms"],
        calls_per_step=per_step("calls") if count else math.nan,
        transactions_per_step=per_step("transactions") if count else math.nan,
        hosts_cpu_ms=per_step("hosts_cpu") * 1e3,
        server_cpu_ms=per_step("server_cpu") * 1e3,
        postgres_cpu_ms=per_step("postgres_cpu") * 1e3,
    )


async def _part(bench: asyncio.subprocess.Process, name: str) -> dict[str, Any]:
    assert bench.stdout is not None
    async with asyncio.timeout(300):
        line = await bench.stdout.readline()
    found: dict[str, Any] = json.loads(line)
    assert found["part"] == name, found
    return found


async def _go_on(bench: asyncio.subprocess.Process) -> None:
    assert bench.stdin is not None
    bench.stdin.write(b"\n")
    await bench.stdin.drain()


def _medians(figures: list[Figures]) -> Figures:
    values = {
        name: statistics.median(
            number for each in figures if not math.isnan(number := getattr(each, name))
        )
        for name, value in asdict(figures[0]).items()
        if isinstance(value, float)
    }
    return Figures(figures[0].kind, figures[0].hosts, **values)


def _table(rows: list[Figures]) -> Iterator[str]:
    yield (
        "| hosts on | hosts | workflows/s | of `memory` | of `valkey` | started/s"
        " | one alone, median | p90 | calls per step | transactions per step"
        " | CPU per step: hosts, server or Redis, PostgreSQL |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        rates = {each.kind: each.workflows_per_s for each in rows if each.hosts == row.hosts}
        of = [
            f"{row.workflows_per_s / rates[kind]:.2f}x" if kind in rates else ""
            for kind in ("memory", "valkey")
        ]
        yield (
            f"| {KINDS[row.kind]} | {row.hosts} | {row.workflows_per_s:.0f} | {' | '.join(of)}"
            f" | {row.started_per_s:.0f} | {row.median_ms:.1f} ms | {row.p90_ms:.1f} ms"
            f" | {row.calls_per_step:.2f} | {row.transactions_per_step:.2f}"
            f" | {row.hosts_cpu_ms:.2f}, {row.server_cpu_ms:.2f}, {row.postgres_cpu_ms:.2f} ms |"
        )


async def compare(program: Path, run_dir: Path, only: str) -> list[dict[str, Any]]:
    """Measure, print the table, and return its rows."""
    found: dict[tuple[int, str], list[Figures]] = {}
    with PostgresServer(binaries.postgres(18), run_dir / "compare") as postgres:
        for round_ in range(_ROUNDS):
            for hosts in _HOSTS:
                for kind in (kind for kind in KINDS if only in kind):
                    database = f"{kind}_{hosts}_{round_}".replace("-", "_")
                    (run_dir / database).mkdir()
                    figures = await _measure(
                        program, postgres, run_dir, kind, hosts, database, count=round_ == 0
                    )
                    found.setdefault((hosts, kind), []).append(figures)
                    print(f"{kind}, {hosts} hosts: {figures.workflows_per_s:.0f}/s", flush=True)
    rows = [_medians(figures) for figures in found.values()]
    for line in _table(rows):
        print(line, flush=True)
    return [asdict(row) for row in rows]
