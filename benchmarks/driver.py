"""One read and one INSERT, by our driver, psycopg's pool and cursors, and asyncpg.

All in turns in one process, on a pool of ten connections each, with statements prepared. asyncpg's
pool runs a query that resets the session when a connection is returned, a round trip more, which
ours does without because it changes no session; so asyncpg is measured with and without.
"""

from __future__ import annotations

import resource
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import psycopg_pool

from benchmarks.timing import percentile, timed
from wfe_persistence.database import database_from
from wfe_persistence.settings import Settings
from wfe_persistence.store.rows import read_text, text
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

Figures = list[dict[str, Any]]
Read = Callable[[str], Awaitable[tuple[str, str]]]
Insert = Callable[[str, str], Awaitable[None]]

ROUNDS = 3
SECONDS = 1.0
POOL_SIZE: Final = 10
ID: Final = "read"
DATA: Final = '{"a": 1}'


async def measure(url: str, callers: list[int]) -> Figures:
    """Several rounds of all drivers in turns; the figures of each round."""
    async with (
        _ours(url) as ours,
        _psycopg(url) as cursors,
        _asyncpg(url, reset=None) as asyncpg_,
        _asyncpg(url, reset=_no_reset) as asyncpg_without_reset,
    ):
        drivers = {
            "ours": ours,
            "psycopg pool and cursor": cursors,
            "asyncpg": asyncpg_,
            "asyncpg without reset": asyncpg_without_reset,
        }
        calls = {
            (operation, name): call
            for name, (read, insert) in drivers.items()
            for operation, call in (("read", _reading(read)), ("insert", _inserting(insert)))
        }
        await drivers["ours"][1](ID, DATA)
        for call in calls.values():
            await timed(call, POOL_SIZE, 0.3)
        figures: Figures = []
        for round_ in range(ROUNDS):
            for count in callers:
                for (operation, name), call in calls.items():
                    before = _cpu()
                    took = await timed(call, count, SECONDS)
                    figures.append(
                        {
                            "operation": operation,
                            "driver": name,
                            "callers": count,
                            "round": round_,
                            "p50_ms": percentile(took, 50) * 1e3,
                            "cpu_ms": (_cpu() - before) / len(took) * 1e3,
                        }
                    )
    return figures


def table(figures: Figures) -> str:
    """The median round of each, and its CPU in proportion to ours."""
    lines = [f"{'':<8}{'driver':<26}{'callers':>8}{'p50 ms':>9}{'CPU ms':>9}{'ratio':>8}"]
    ours = 0.0
    for operation, count, name in dict.fromkeys(
        (f["operation"], f["callers"], f["driver"])
        for f in sorted(figures, key=lambda f: (f["operation"] != "read", f["callers"]))
    ):
        of = [
            f
            for f in figures
            if (f["operation"], f["callers"], f["driver"]) == (operation, count, name)
        ]
        p50, cpu = (percentile([f[key] for f in of], 50) for key in ("p50_ms", "cpu_ms"))
        ours = cpu if name == "ours" else ours
        lines.append(f"{operation:<8}{name:<26}{count:>8}{p50:>9.2f}{cpu:>9.3f}{cpu / ours:>8.2f}")
    return "\n".join(lines)


@asynccontextmanager
async def _ours(url: str) -> AsyncIterator[tuple[Read, Insert]]:
    async with database_from(Settings(db_url=url, pool_size=POOL_SIZE)) as database:
        store = Store(database, Schema(), "default")
        await store.write("CREATE SCHEMA wfc_bench")
        await store.write("CREATE TABLE wfc_bench.t (id text PRIMARY KEY, data jsonb)")

        async def read(id_: str) -> tuple[str, str]:
            sql = "SELECT id, data::text FROM wfc_bench.t WHERE id = $1"
            row = await store.read(sql, text(id_))
            return read_text(row.get_value(0, 0)), read_text(row.get_value(0, 1))

        async def insert(id_: str, data: str) -> None:
            await store.write(
                "INSERT INTO wfc_bench.t VALUES ($1, $2::jsonb)", text(id_), text(data)
            )

        yield read, insert


@asynccontextmanager
async def _psycopg(url: str) -> AsyncIterator[tuple[Read, Insert]]:
    async with psycopg_pool.AsyncConnectionPool(
        url, min_size=POOL_SIZE, max_size=POOL_SIZE, kwargs={"autocommit": True}, open=False
    ) as pool:

        async def read(id_: str) -> tuple[str, str]:
            async with pool.connection() as connection:
                sql = "SELECT id, data::text FROM wfc_bench.t WHERE id = %s"
                cursor = await connection.execute(sql, (id_,), prepare=True)
                row = await cursor.fetchone()
                assert row is not None
                return row[0], row[1]

        async def insert(id_: str, data: str) -> None:
            async with pool.connection() as connection:
                sql = "INSERT INTO wfc_bench.t VALUES (%s, %s::jsonb)"
                await connection.execute(sql, (id_, data), prepare=True)

        yield read, insert


@asynccontextmanager
async def _asyncpg(url: str, *, reset: Any) -> AsyncIterator[tuple[Read, Insert]]:
    async with asyncpg.create_pool(
        url, min_size=POOL_SIZE, max_size=POOL_SIZE, reset=reset
    ) as pool:

        async def read(id_: str) -> tuple[str, str]:
            row = await pool.fetchrow("SELECT id, data::text FROM wfc_bench.t WHERE id = $1", id_)
            return row[0], row[1]

        async def insert(id_: str, data: str) -> None:
            await pool.execute("INSERT INTO wfc_bench.t VALUES ($1, $2::jsonb)", id_, data)

        yield read, insert


async def _no_reset(_: object) -> None:
    """Return the connection as it is."""


def _reading(read: Read) -> Callable[[int], Awaitable[object]]:
    return lambda _: read(ID)


def _inserting(insert: Insert) -> Callable[[int], Awaitable[object]]:
    return lambda _: insert(str(uuid.uuid4()), DATA)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
