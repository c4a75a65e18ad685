"""Storage: bytes per row with its indexes, and WAL and dead rows per step.

Fills a store through a server with workflows of ten pointers, the last one running, and half as
many events and subscriptions as workflows. Then every third workflow takes four steps: the first
right after a checkpoint (when PostgreSQL writes full pages), the others without a checkpoint in
between. In a step the running pointer completes, and a new one starts. In the first two the
workflow becomes due at another time, as before and after a sleep; in the others it goes on at once,
for which the engine leaves next_execution as it was (0). In the last one changes are recorded for
watchers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import psycopg

from benchmarks.served import Served
from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1 import store_pb2 as st
from wfe.persistence.v1.workflow_pb2 import ExecutionPointer, PointerStatus, WorkflowInstance

Figures = list[dict[str, Any]]

POINTERS = 10
CALLERS = 16


async def measure(url: str, pointers: int) -> Figures:
    """Fills a store with this many pointers, then inspects it in PostgreSQL."""
    served = await Served.start(url)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as database:
        for sql in UNDISTURBED:
            await database.execute(sql.encode())
        async with connect(served.address) as channel:
            api = Api(channel)
            await api.store.EnsureStoreExists(st.EnsureStoreExistsRequest())
            figures = await _fill(api, database, pointers // POINTERS)
        await served.stop()  # its connections have flushed their statistics by now
        figures += await _rows(database, UPDATES)
        await database.execute("VACUUM ANALYZE")
        figures += await _rows(database, SIZES)
        figures += await _rows(database, INDEXES)
    return figures


async def _fill(api: Api, database: psycopg.AsyncConnection[Any], workflows: int) -> Figures:
    figures: Figures = []

    async def with_wal(
        what: str, number: int, work: Coroutine[Any, Any, None], *, checkpoint: bool = True
    ) -> None:
        if checkpoint:
            await database.execute("CHECKPOINT")
        before = await _wal(database)
        await work
        written = await _wal(database) - before
        figures.append({"WAL of": what, "number": number, "bytes": written / number})

    instances = [_workflow(i) for i in range(workflows)]
    half, third = instances[::2], instances[::3]
    await with_wal("a workflow created", workflows, _each(api.create_new_workflow, instances))
    events = [_event(each) for each in half]
    await with_wal("an event created", len(half), _each(api.create_event, events))
    subscriptions = [make.subscription(workflow_id=each.id) for each in half]
    await with_wal(
        "a subscription created", len(half), _each(api.create_event_subscription, subscriptions)
    )
    for what, is_first, later_ms, is_watched in (
        ("the first step after a checkpoint", True, 1000, False),
        ("a step, due at another time", False, 1000, False),
        ("a step", False, 0, False),
        ("a step while somebody watches", False, 0, True),
    ):
        if is_watched:
            await api.change_cursor()
        steps = _each(api.persist_workflow, (_step(each, later_ms) for each in third))
        await with_wal(what, len(third), steps, checkpoint=is_first)
    return figures


async def _each(call: Callable[[Any], Any], messages: Iterable[Any]) -> None:
    left = iter(messages)

    async def caller() -> None:
        for message in left:
            await call(message)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


def _workflow(number: int) -> WorkflowInstance:
    """An order with about 400 bytes of data, at the last of its steps so far."""
    order = {
        "order": f"order-{number}",
        "customer": {"id": number, "name": f"Customer {number}", "city": "Springfield"},
        "lines": [{"sku": f"sku-{number}-{i}", "count": i, "price": 9.99} for i in range(6)],
    }
    return make.instance(
        name=f"order-{number}",
        data_json=json.dumps(order),
        execution_pointers=[
            *(_done(_running(i)) for i in range(POINTERS - 1)),
            _running(POINTERS - 1),
        ],
    )


def _running(number: int) -> ExecutionPointer:
    return make.pointer(
        make.new_id()[3:],
        step_id=number,
        step_name=f"Step number {number}",
        start_time=make.time(number),
        predecessor_id=make.new_id()[3:] if number else "",
    )


def _done(pointer: ExecutionPointer) -> ExecutionPointer:
    pointer.active = False
    pointer.status = PointerStatus.POINTER_STATUS_COMPLETE
    pointer.end_time.CopyFrom(make.time(pointer.step_id + 1))
    pointer.outcome_json = json.dumps({"done": True, "by": f"worker-{pointer.step_id}", "took": 17})
    return pointer


def _step(instance: WorkflowInstance, later_ms: int) -> WorkflowInstance:
    """The last pointer completes, the next one starts, and the workflow is due so much later."""
    _done(instance.execution_pointers[-1])
    instance.execution_pointers.append(_running(len(instance.execution_pointers)))
    instance.next_execution += later_ms
    return instance


def _event(instance: WorkflowInstance) -> Any:
    return make.event(event_key=instance.id, event_data_json='{"amount": 12.5, "currency": "EUR"}')


async def _wal(database: psycopg.AsyncConnection[Any]) -> float:
    """The number of WAL bytes written so far."""
    [row] = await _rows(database, WAL)
    written: float = row["bytes"]
    return written


async def _rows(database: psycopg.AsyncConnection[Any], sql: str) -> Figures:
    cursor = await database.execute(sql.encode())
    assert cursor.description
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]


# No checkpoint and no vacuum comes in between: both write full pages, whenever they come.
UNDISTURBED = (
    "ALTER SYSTEM SET autovacuum = off",
    "ALTER SYSTEM SET checkpoint_timeout = '1d'",
    "ALTER SYSTEM SET max_wal_size = '100GB'",
    "SELECT pg_reload_conf()",
)

WAL = """
SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8 AS bytes
"""

UPDATES = """
SELECT relname AS updates_of, n_tup_ins::int AS inserted, n_tup_upd::int AS updated,
    n_tup_hot_upd::int AS hot, n_dead_tup::int AS dead
FROM pg_stat_user_tables WHERE schemaname = 'wfc' AND n_tup_ins > 0 AND relname <> 'wfe_migrations'
ORDER BY relname
"""

# The table with its free space map; the rest of the total is TOAST.
SIZES = """
SELECT relname AS size_of, reltuples::int AS rows,
    pg_relation_size(oid)::float8 / reltuples AS heap, pg_indexes_size(oid) / reltuples AS indexes,
    (pg_table_size(oid) - pg_relation_size(oid)) / reltuples AS toast_and_maps,
    pg_total_relation_size(oid) / reltuples AS total
FROM pg_class
WHERE relnamespace = 'wfc'::regnamespace AND relkind = 'r' AND reltuples > 10 ORDER BY relname
"""

INDEXES = """
SELECT relname AS index, pg_relation_size(c.oid) / (
    SELECT t.reltuples FROM pg_class t WHERE t.oid = i.indrelid) AS bytes_of_each_row
FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid
WHERE c.relnamespace = 'wfc'::regnamespace AND (
    SELECT t.reltuples FROM pg_class t WHERE t.oid = i.indrelid) > 10 ORDER BY relname
"""


def table(figures: Figures) -> str:
    """Prints one block per kind of figure."""
    lines = []
    for kind in ("WAL of", "updates_of", "size_of", "index"):
        of = [f for f in figures if kind in f]
        if of:
            lines.append("".join(f"{key:>{40 if key == kind else 18}}" for key in of[0]))
        for figure in of:
            lines.append(
                "".join(
                    f"{value:>40}" if key == kind else f"{value:>18,.1f}"
                    for key, value in figure.items()
                )
            )
        lines.append("")
    return "\n".join(lines)
