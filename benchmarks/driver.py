"""One INSERT, by our pipeline and by psycopg's pool and cursors, in turns in one process."""

from __future__ import annotations

import resource
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg_pool

from benchmarks.timing import percentile, timed
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.rows import text
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

Figures = list[dict[str, Any]]

ROUNDS = 3
SECONDS = 1.5
OURS, THEIRS = "pipeline", "pool and cursor"


async def measure(url: str, callers: list[int]) -> Figures:
    """Several rounds of both in turns; the figures of each round."""
    figures: Figures = []
    async with (
        Database(url) as database,
        psycopg_pool.AsyncConnectionPool(
            url, min_size=10, max_size=10, kwargs={"autocommit": True}, open=False
        ) as pool,
    ):
        store = Store(database, Schema(), "default")
        await store.write("CREATE SCHEMA wfc_bench")
        await store.write("CREATE TABLE wfc_bench.t (id text PRIMARY KEY, data jsonb)")

        async def ours(_: int) -> None:
            await store.write(
                "INSERT INTO wfc_bench.t VALUES ($1, $2::jsonb) RETURNING id",
                text(str(uuid.uuid4())),
                b'{"a": 1}',
            )

        async def theirs(_: int) -> None:
            async with pool.connection() as connection:
                cursor = await connection.execute(
                    "INSERT INTO wfc_bench.t VALUES (%s, %s::jsonb) RETURNING id",
                    (str(uuid.uuid4()), '{"a": 1}'),
                    prepare=True,
                )
                await cursor.fetchone()

        calls: dict[str, Callable[[int], Awaitable[None]]] = {OURS: ours, THEIRS: theirs}
        for call in calls.values():
            await timed(call, 10, 0.3)
        for round_ in range(ROUNDS):
            for count in callers:
                for name, call in calls.items():
                    before = _cpu()
                    took = await timed(call, count, SECONDS)
                    figures.append(
                        {
                            "driver": name,
                            "callers": count,
                            "round": round_,
                            "p50_ms": percentile(took, 50) * 1e3,
                            "cpu_ms": (_cpu() - before) / len(took) * 1e3,
                        }
                    )
    return figures


def table(figures: Figures) -> str:
    """The median round of each, and the ratio."""
    lines = [f"{'driver':<18}{'callers':>8}{'p50 ms':>9}{'CPU ms':>9}"]
    for count in sorted({f["callers"] for f in figures}):
        cpu = {}
        for name in (OURS, THEIRS):
            of = [f for f in figures if f["driver"] == name and f["callers"] == count]
            cpu[name] = percentile([f["cpu_ms"] for f in of], 50)
            p50 = percentile([f["p50_ms"] for f in of], 50)
            lines.append(f"{name:<18}{count:>8}{p50:>9.2f}{cpu[name]:>9.3f}")
        lines.append(f"{'CPU ratio':<18}{count:>8}{'':>9}{cpu[OURS] / cpu[THEIRS]:>9.2f}")
    return "\n".join(lines)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
