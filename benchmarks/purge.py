"""Purging a large store under load: its throughput, and how long writers are blocked.

Writers persist workflows and create events throughout, first alone, then during the purge. A write
can be slow for many reasons, so lock waits are read from PostgreSQL.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import psycopg
from google.protobuf.timestamp_pb2 import Timestamp

from benchmarks.served import Served
from benchmarks.timing import percentile
from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1 import event_pb2 as e
from wfe.persistence.v1 import store_pb2 as st
from wfe.persistence.v1 import workflow_pb2 as w

Figures = list[dict[str, Any]]

WRITERS = 4
ALONE_SECONDS = 10.0
LONG = 100_000
"""Number of pointers of the one long workflow among those to be purged."""

LOOK_EVERY_SECONDS = 0.02
LOCK_WAITS = """
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - waitstart)), 0)::float8
FROM pg_locks WHERE NOT granted
"""

FILL_EVENTS = """
INSERT INTO wfc.events (id, event_name, event_key, event_data, event_time, is_processed)
SELECT 'e' || i, 'order.paid', 'k' || i, '{"amount": 12.5}',
    timestamptz '2020-01-01Z' + i * interval '1 second', TRUE
FROM generate_series(%(begin)s::int, %(end)s::int) i
"""
FILL_WORKFLOWS = """
INSERT INTO wfc.workflows (id, name, definition_id, version, status, data, create_time,
    complete_time)
SELECT 'w' || i, 'w' || i, 'order', 1, 'Complete', '{}', '2020-01-01Z', '2020-01-02Z'
FROM generate_series(%(begin)s::int, %(end)s::int) i
"""
FILL_POINTERS = """
INSERT INTO wfc.execution_pointers (workflow_id, ordinal, id, step_id, active, status)
SELECT 'w' || i, p, p::text, p, FALSE, 'Complete'
FROM generate_series(%(begin)s::int, %(end)s::int) i, generate_series(0, %(last)s::int) p
"""


async def measure(url: str, count: int) -> Figures:
    """Fills a store with this many events and a tenth as many workflows, and purges all of them."""
    served = await Served.start(url)
    figures: Figures = []
    async with connect(served.address) as channel:
        api = Api(channel)
        await api.store.EnsureStoreExists(st.EnsureStoreExistsRequest())
        await asyncio.to_thread(_fill, url, count)
        stop = asyncio.Event()
        writing = asyncio.create_task(_write(url, api, stop))
        await asyncio.sleep(ALONE_SECONDS)
        stop.set()
        figures.append({"what": "writers alone", **await writing})
        for what, purge in (("events", _purge_events), ("workflows", _purge_workflows)):
            stop = asyncio.Event()
            writing = asyncio.create_task(_write(url, api, stop))
            begin = time.perf_counter()
            rows, calls, slowest = await purge(api)
            seconds = time.perf_counter() - begin
            stop.set()
            figures.append(
                {
                    "what": f"writers while {what} are purged",
                    "rows": rows,
                    "rows_per_second": rows / seconds,
                    "calls": calls,
                    "slowest_call_ms": slowest * 1e3,
                    **await writing,
                }
            )
    await served.stop()
    return figures


def _fill(url: str, count: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for begin in range(1, count + 1, 1_000_000):
            end = min(begin + 999_999, count)
            connection.execute(FILL_EVENTS, {"begin": begin, "end": end})
            print(f"{end:,} events", file=sys.stderr)
        workflows = {"begin": 1, "end": max(count // 10, 1), "last": 2}
        connection.execute(FILL_WORKFLOWS, workflows)
        connection.execute(FILL_POINTERS, workflows)
        connection.execute(FILL_WORKFLOWS, {"begin": 0, "end": 0})
        connection.execute(FILL_POINTERS, {"begin": 0, "end": 0, "last": LONG - 1})
        connection.execute("VACUUM ANALYZE")


async def _write(url: str, api: Api, stop: asyncio.Event) -> dict[str, float]:
    """Writes until told to stop; returns the latencies, and the longest lock wait seen."""
    took: list[float] = []
    lock_wait = 0.0

    async def look() -> None:
        nonlocal lock_wait
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            while not stop.is_set():
                row = await (await connection.execute(LOCK_WAITS)).fetchone()
                assert row
                lock_wait = max(lock_wait, row[0])
                await asyncio.sleep(LOOK_EVERY_SECONDS)

    async def writer() -> None:
        instance = make.instance(execution_pointers=[make.pointer(str(i)) for i in range(5)])
        await api.create_new_workflow(instance)
        number = 0
        while not stop.is_set():
            number += 1
            instance.execution_pointers[0].outcome_json = str(number)
            for write in (api.persist_workflow(instance), api.create_event(make.event())):
                begin = time.perf_counter()
                await write
                took.append(time.perf_counter() - begin)

    await asyncio.gather(look(), *(writer() for _ in range(WRITERS)))
    return {
        "writes": len(took),
        "p50_ms": percentile(took, 50) * 1e3,
        "p99_ms": percentile(took, 99) * 1e3,
        "longest_ms": max(took) * 1e3,
        "lock_wait_ms": lock_wait * 1e3,
    }


BEFORE = Timestamp(seconds=int(make.time(-1).seconds))
"""All generated rows are older, and all rows of the writers are newer."""


async def _purge_events(api: Api) -> tuple[int, int, float]:
    rows, calls, slowest, token = 0, 0, 0.0, ""
    while True:
        begin = time.perf_counter()
        request = e.PurgeEventsRequest(event_time_before=BEFORE, page_token=token)
        response = await api.events.PurgeEvents(request)
        slowest = max(slowest, time.perf_counter() - begin)
        rows, calls, token = rows + response.events, calls + 1, response.next_page_token
        if not token:
            return rows, calls, slowest


async def _purge_workflows(api: Api) -> tuple[int, int, float]:
    rows, calls, slowest, token = 0, 0, 0.0, ""
    while True:
        begin = time.perf_counter()
        request = w.PurgeWorkflowsRequest(ended_before=BEFORE, page_token=token)
        response = await api.workflows.PurgeWorkflows(request)
        slowest = max(slowest, time.perf_counter() - begin)
        rows += response.workflows + response.execution_pointers
        calls, token = calls + 1, response.next_page_token
        if not token:
            return rows, calls, slowest


def table(figures: Figures) -> str:
    """Prints the figures as a table."""
    heads = ("writes", "p50 ms", "p99 ms", "longest", "for locks", "rows", "rows/s")
    lines = ["{:<36}{:>8}{:>9}{:>9}{:>9}{:>11}{:>12}{:>9}".format("", *heads)]
    lines += [
        f"{f['what']:<36}{f['writes']:>8}{f['p50_ms']:>9.1f}{f['p99_ms']:>9.1f}"
        f"{f['longest_ms']:>9.1f}{f['lock_wait_ms']:>11.1f}"
        f"{f.get('rows', 0):>12,}{f.get('rows_per_second', 0):>9,.0f}"
        for f in figures
    ]
    return "\n".join(lines)
