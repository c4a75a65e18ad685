"""A store of a million rows is exported, imported elsewhere, and exported again: how long it
takes, what it costs the server, and what others notice meanwhile.

Another caller reads an event all the time, first alone. Single creates are measured beside it. All
processes share the machine, so the CPU of each is told, too.
"""

from __future__ import annotations

import asyncio
import filecmp
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg

from benchmarks.served import Served
from benchmarks.timing import percentile
from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest, EnsureStoreExistsRequest

Figures = list[dict[str, Any]]

ALONE_SECONDS = 10.0
SINGLE = 2000
LOOK_EVERY_SECONDS = 0.005

# Of each 10 records 4 are workflows, each with two pointers.
FILL = (
    """
    INSERT INTO wfc.workflows (id, name, definition_id, version, status, data, create_time,
        content_hash)
    SELECT gen_random_uuid(), 'order ' || i, 'order', 1, 'Complete',
        jsonb_build_object('customer', i, 'total', 12.50, 'lines', ARRAY[i, i + 1, i + 2]),
        '2026-01-01Z', sha256(i::text::bytea)
    FROM generate_series(1, %(count)s * 4 / 10) i
    """,
    """
    INSERT INTO wfc.execution_pointers (workflow_id, ordinal, id, step_id, active, status, outcome)
    SELECT w.id, p, p::text, p, FALSE, 'Complete', '{"next": true}'
    FROM wfc.workflows w, generate_series(0, 1) p
    """,
    """
    INSERT INTO wfc.event_subscriptions (id, workflow_id, step_id, execution_pointer_id, event_name,
        event_key, subscribe_as_of)
    SELECT gen_random_uuid(), id, 1, '1', 'order.paid', name, '2026-01-01Z'
    FROM wfc.workflows LIMIT %(count)s * 2 / 10
    """,
    """
    INSERT INTO wfc.events (id, event_name, event_key, event_data, event_time, is_processed)
    SELECT gen_random_uuid(), 'order.paid', 'order ' || i, '{"amount": 12.5}',
        timestamptz '2020-01-01Z' + i * interval '1 second', TRUE
    FROM generate_series(1, %(count)s * 3 / 10) i
    """,
    """
    INSERT INTO wfc.execution_errors (error_time, workflow_id, execution_pointer_id, message)
    SELECT timestamptz '2020-01-01Z' + i * interval '1 second', i::text, '0', 'failed: ' || i
    FROM generate_series(1, %(count)s / 10) i
    """,
)


async def measure(url: str, postgres: psutil.Process, count: int, directory: Path) -> Figures:
    """Fills a store with this many records, and moves them."""
    served = await Served.start(url)
    figures: Figures = []
    async with connect(served.address) as channel:
        api = Api(channel)
        await api.store.EnsureStoreExists(EnsureStoreExistsRequest())
        await asyncio.to_thread(_fill, url, count)
        event = make.event(is_processed=True)
        await api.create_event(event)
        for name in ("copy", "single"):
            await api.store.CreateNamespace(CreateNamespaceRequest(name=name))
        stop = asyncio.Event()
        reading = asyncio.create_task(_read(api, event.id, stop))
        await asyncio.sleep(ALONE_SECONDS)
        stop.set()
        figures.append({"what": "nothing else", **await reading})
        figures.append(await _single(served, postgres))
        first, second, part = (directory / f"{name}.jsonl" for name in ("first", "second", "part"))
        target = ("--target", served.address)
        for what, arguments in (
            ("export", ("export", str(first))),
            ("import", ("import", str(first), "--namespace", "copy")),
            ("export of the copy", ("export", str(second), "--namespace", "copy")),
            ("import of a tenth again", ("import", str(part), "--namespace", "copy")),
        ):
            if what.endswith("again"):
                await asyncio.to_thread(_tenth, first, part)
            stop = asyncio.Event()
            reading = asyncio.create_task(_read(api, event.id, stop))
            figure = await _run(served.process, postgres, *arguments, *target)
            stop.set()
            figures.append({"what": what, **figure, **await reading})
        assert filecmp.cmp(first, second, shallow=False), "they differ"
        for figure, path in zip(figures[2:], (first, first, second, part), strict=True):
            with path.open("rb") as file:
                figure["records"] = records = sum(1 for _ in file)
            figure["records_per_second"] = records / figure["seconds"]
        figures[2]["mb"] = first.stat().st_size / 1e6
    await served.stop()
    return figures


def _tenth(whole: Path, part: Path) -> None:
    with whole.open("rb") as read, part.open("wb") as write:
        write.writelines(line for n, line in enumerate(read) if n % 10 == 0)


def _fill(url: str, count: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in FILL:
            connection.execute(statement.encode(), {"count": count})
        connection.execute("VACUUM ANALYZE")


async def _read(api: Api, id_: str, stop: asyncio.Event) -> dict[str, float]:
    """Reads an event now and then until told to stop; the latencies."""
    took: list[float] = []
    while not stop.is_set():
        begin = time.perf_counter()
        await api.get_event(id_)
        took.append(time.perf_counter() - begin)
        await asyncio.sleep(LOOK_EVERY_SECONDS)
    return {
        "read_p50_ms": percentile(took, 0.5) * 1e3,
        "read_p99_ms": percentile(took, 0.99) * 1e3,
        "read_max_ms": max(took) * 1e3,
    }


async def _single(served: Served, postgres: psutil.Process) -> dict[str, Any]:
    """Workflows that are created by calls, one after the other."""
    async with connect(served.address, namespace="single") as channel:
        api = Api(channel)
        before, before_postgres = cpu_seconds(served.process), cpu_seconds(postgres)
        begin = time.perf_counter()
        for _ in range(SINGLE):
            await api.create_new_workflow(
                make.instance(execution_pointers=[make.pointer("0"), make.pointer("1")])
            )
        seconds = time.perf_counter() - begin
    return {
        "what": "single creates",
        "records": SINGLE,
        "seconds": seconds,
        "records_per_second": SINGLE / seconds,
        "server_cpu_s": cpu_seconds(served.process) - before,
        "postgres_cpu_s": cpu_seconds(postgres) - before_postgres,
    }


async def _run(
    server: psutil.Process, postgres: psutil.Process, *arguments: str
) -> dict[str, float]:
    """A command to its end."""
    before, before_postgres = cpu_seconds(server), cpu_seconds(postgres)
    begin = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "wfe_persistence", *arguments
    )
    command = psutil.Process(process.pid)
    most, client = 0.0, 0.0
    while process.returncode is None:
        most = max(most, server.memory_info().rss / 1e6)
        try:
            client = cpu_seconds(command)
        except psutil.Error:
            break
        await asyncio.sleep(0.1)
    assert await process.wait() == 0
    return {
        "seconds": time.perf_counter() - begin,
        "server_cpu_s": cpu_seconds(server) - before,
        "command_cpu_s": client,
        "postgres_cpu_s": cpu_seconds(postgres) - before_postgres,
        "server_rss_mb": most,
    }


def cpu_seconds(process: psutil.Process) -> float:
    """Seconds of a process and its children, those that have ended included."""
    total = 0.0
    for each in (process, *process.children()):
        try:
            times = each.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
        if each is process:
            total += times.children_user + times.children_system
    return total


def table(figures: Figures) -> str:
    """The figures as a table."""
    columns = (
        "records_per_second", "seconds", "server_cpu_s", "command_cpu_s", "postgres_cpu_s",
        "server_rss_mb", "read_p50_ms", "read_p99_ms", "read_max_ms",
    )  # fmt: skip
    lines = [f"{'':20}" + "".join(f"{name:>20}" for name in columns)]
    for figure in figures:
        cells = (f"{figure[name]:20,.1f}" if name in figure else f"{'':20}" for name in columns)
        lines.append(f"{figure['what']:20}" + "".join(cells))
    return "\n".join(lines)
