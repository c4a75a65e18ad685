"""The real engine side by side on what it can stand on, without faults.

Workflows of 5 steps that do nothing are started, then 1 or 4 hosts run them all, from an empty
store; then more, one after the other, on idle hosts. All run on one PostgreSQL, each in a database
of its own, in turn, several times: what else the machine does concerns all of them. The figures are
medians.
"""

from __future__ import annotations

import asyncio
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


class _Counters:
    """What PostgreSQL, and Redis or the server, have counted."""

    def __init__(
        self, postgres: str, database: str, server: AdminServer | None, redis: Redis | None
    ) -> None:
        self._postgres, self._database = postgres, database
        self._server, self._redis = server, redis

    def read(self) -> tuple[int, int]:
        with psycopg.connect(self._postgres) as connection:
            found = connection.execute(
                "SELECT xact_commit FROM pg_stat_database WHERE datname = %s", [self._database]
            ).fetchone()
        assert found is not None
        if self._server is not None:
            text = self._server.get("/metrics").text
            return found[0], sum(map(int, _CALLS.findall(text)))
        if self._redis is not None:
            answer = re.search(r"total_commands_processed:(\d+)", self._redis.ask("INFO stats"))
            assert answer is not None
            return found[0], int(answer[1])
        return found[0], 0


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
        counters = _Counters(postgres.url, database, server, redis)
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
    transactions, calls = (late - early for late, early in zip(after, before, strict=True))
    return Figures(
        kind, hosts, started["workflows"] / started["seconds"],
        ran["workflows"] / ran["seconds"], alone["median_ms"], alone["p90_ms"],
        calls / ran["steps"] if count else math.nan,
        transactions / ran["steps"] if count else math.nan,
    )  # fmt: skip


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
        " | one alone, median | p90 | calls per step | transactions per step |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for row in rows:
        rates = {each.kind: each.workflows_per_s for each in rows if each.hosts == row.hosts}
        of = [
            f"{row.workflows_per_s / rates[kind]:.2f}x" if kind in rates else ""
            for kind in ("memory", "valkey")
        ]
        yield (
            f"| {KINDS[row.kind]} | {row.hosts} | {row.workflows_per_s:.0f} | {' | '.join(of)}"
            f" | {row.started_per_s:.0f} | {row.median_ms:.1f} ms | {row.p90_ms:.1f} ms"
            f" | {row.calls_per_step:.2f} | {row.transactions_per_step:.2f} |"
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
