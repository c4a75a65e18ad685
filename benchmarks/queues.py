"""Queues: the rate at which items are enqueued, dequeued and acknowledged, beside CreateEvent's.

All cases in turns on one server: CreateEvent; the cycle of a single item as three calls, and as
two, as a worker makes it whose Dequeue acknowledges the item before; both with 100 items in each
call; and as many calls that do nothing, which is what gRPC itself takes. The queue is empty, has a
million other items, or many have gone through it of which nothing can be cleared away. At last many
items go through it, to see whether the table grows.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Final, NamedTuple

import psutil
import psycopg
from google.protobuf.duration_pb2 import Duration

from benchmarks.bench_server import ECHO
from benchmarks.served import Served
from benchmarks.timing import percentile, timed
from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1 import event_pb2 as e
from wfe.persistence.v1 import queue_item_pb2 as qi
from wfe.persistence.v1 import queue_pb2 as q
from wfe.persistence.v1 import store_pb2 as st

Figures = list[dict[str, Any]]
Cycle = Callable[[int], Awaitable[object]]

ROUNDS: Final = 5
BATCH: Final = 100
CALLERS: Final = 32
BATCH_CALLERS: Final = 16
OTHERS: Final = 1_000_000
GONE: Final = 20_000
QUEUE: Final = "q"

_FILL = """
INSERT INTO wfc.queue_items (queue, id, visible_time, dead)
SELECT 'q', 'other' || i, {time}, {dead} FROM generate_series(1, {count}) i
"""
WAITING: Final = (
    _FILL.format(time="now() - interval '1 hour' + i * interval '1 ms'", dead=False, count=OTHERS),
)
DELAYED_AND_DEAD: Final = (
    _FILL.format(time="now() + interval '1 hour'", dead="i % 2 = 0", count=OTHERS),
)
LEFT_BEHIND: Final = (
    _FILL.format(time="now() - interval '1 minute'", dead=False, count=GONE),
    "DELETE FROM wfc.queue_items",
)


class State(NamedTuple):
    """What is in the queue besides, how it got there, and whether a transaction stays open that
    began before."""

    fill: tuple[str, ...] = ()
    is_held_up: bool = False


STATES: Final = {
    "empty": State(),
    f"{OTHERS} waiting": State(WAITING),
    f"{OTHERS} delayed, dead": State(DELAYED_AND_DEAD),
    f"{GONE} dead rows": State(LEFT_BEHIND, is_held_up=True),
}

_numbers = itertools.count()


def _items(count: int) -> list[qi.QueueItem]:
    return [qi.QueueItem(queue=QUEUE, id=f"item-{next(_numbers):032}") for _ in range(count)]


def _dequeue(count: int, handled: Sequence[qi.Acknowledgement] = ()) -> q.DequeueRequest:
    # Those of one round are acknowledged in the next, which on a busy machine comes late.
    lease = Duration(seconds=3600)
    return q.DequeueRequest(
        queues=[QUEUE], max_items=count, acknowledge=handled, lease_duration=lease
    )


def _acknowledged(taken: q.DequeueResponse) -> list[qi.Acknowledgement]:
    return [qi.Acknowledgement(receipt=item.receipt) for item in taken.items]


def _event(api: Api) -> Cycle:
    return lambda _: api.events.CreateEvent(e.CreateEventRequest(event=make.event()))


def _echoes(calls: int) -> Callable[[Api], Cycle]:
    def prepare(api: Api) -> Cycle:
        echo = api.unary(ECHO)
        payload = b"x" * 100

        async def cycle(_: int) -> None:
            for _ in range(calls):
                await echo(payload)

        return cycle

    return prepare


def _three_calls(count: int) -> Callable[[Api], Cycle]:
    def prepare(api: Api) -> Cycle:
        async def cycle(_: int) -> None:
            await api.queues.Enqueue(q.EnqueueRequest(items=_items(count)))
            taken = await api.queues.Dequeue(_dequeue(count))
            await api.queues.Acknowledge(q.AcknowledgeRequest(acknowledge=_acknowledged(taken)))

        return cycle

    return prepare


def _two_calls(count: int) -> Callable[[Api], Cycle]:
    def prepare(api: Api) -> Cycle:
        handled: list[list[qi.Acknowledgement]] = []

        async def cycle(_: int) -> None:
            await api.queues.Enqueue(q.EnqueueRequest(items=_items(count)))
            before = handled.pop() if handled else []
            taken = await api.queues.Dequeue(_dequeue(count, before))
            handled.append(_acknowledged(taken))

        return cycle

    return prepare


class Case(NamedTuple):
    """What is measured: how many items a cycle has, and how many callers there are."""

    prepare: Callable[[Api], Cycle]
    items: int
    callers: int


CASES: Final = {
    "CreateEvent": Case(_event, 1, CALLERS),
    "echo, 3 calls": Case(_echoes(3), 1, CALLERS),
    "echo, 2 calls": Case(_echoes(2), 1, CALLERS),
    "single, 3 calls": Case(_three_calls(1), 1, CALLERS),
    "single, 2 calls": Case(_two_calls(1), 1, CALLERS),
    f"{BATCH}, 3 calls": Case(_three_calls(BATCH), BATCH, BATCH_CALLERS),
    f"{BATCH}, 2 calls": Case(_two_calls(BATCH), BATCH, BATCH_CALLERS),
}
ECHOES: Final = tuple(name for name in CASES if name.startswith("echo"))


async def measure(url: str, postgres: psutil.Process, seconds: float, items: int) -> Figures:
    """All cases with each state of the queue, then so many items, 100 in each call."""
    served = await Served.start(url)
    server = served.process
    figures: Figures = []
    async with (
        connect(served.address) as channel,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as database,
    ):
        api = Api(channel)
        await api.store.EnsureStoreExists(st.EnsureStoreExistsRequest())
        for name, state in STATES.items():
            async with AsyncExitStack() as stack:
                await database.execute("TRUNCATE wfc.queue_items")
                if state.is_held_up:
                    held = await psycopg.AsyncConnection.connect(url)
                    await stack.enter_async_context(held)
                    await held.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                    await held.execute("SELECT count(*) FROM wfc.queue_items")
                for sql in state.fill:
                    await database.execute(sql.encode())
                if state.fill:
                    await database.execute("ANALYZE wfc.queue_items")
                figures += [
                    {"state": name, **figure}
                    for figure in await _rounds(api, server, postgres, seconds)
                ]
        await database.execute("TRUNCATE wfc.queue_items")
        figures += await _growth(api, database, items)
    await served.stop()
    return figures


async def _rounds(
    api: Api, server: psutil.Process, postgres: psutil.Process, seconds: float
) -> Figures:
    figures: Figures = []
    cycles = {name: case.prepare(api) for name, case in CASES.items()}
    for name, cycle in cycles.items():
        await timed(cycle, CASES[name].callers, 0.3)  # connections, plans, caches
    for round_ in range(ROUNDS):
        for name, cycle in cycles.items():
            case = CASES[name]
            before = _cpu(server, postgres)
            took = await timed(cycle, case.callers, seconds)
            cpu = [after - b for after, b in zip(_cpu(server, postgres), before, strict=True)]
            client, of_server, of_postgres = (each / len(took) * 1e3 for each in cpu)
            figures.append(
                {
                    "case": name,
                    "round": round_,
                    "items_per_s": len(took) * case.items / seconds,
                    "p50_ms": percentile(took, 50) * 1e3,
                    "client_cpu_ms": client,
                    "server_cpu_ms": of_server,
                    "postgres_cpu_ms": of_postgres,
                }
            )
            print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return figures


SIZES: Final = """
SELECT pg_relation_size('wfc.queue_items')::float8 / 1e6,
    pg_indexes_size('wfc.queue_items')::float8 / 1e6
"""


async def _growth(api: Api, database: psycopg.AsyncConnection[Any], items: int) -> Figures:
    """Ten figures while so many items go through a queue."""
    figures: Figures = []
    cycle = _two_calls(BATCH)(api)
    for part in range(1, 11):
        numbers = iter(range(items // 10 // BATCH))
        begun = time.perf_counter()

        async def caller(numbers: Iterable[int] = numbers) -> None:
            for number in numbers:
                await cycle(number)

        await asyncio.gather(*(caller() for _ in range(BATCH_CALLERS)))
        rate = items / 10 / (time.perf_counter() - begun)
        row = await (await database.execute(SIZES.encode())).fetchone()
        assert row is not None
        figures.append(
            {
                "handled": items // 10 * part,
                "items_per_s": rate,
                "table_mb": row[0],
                "indexes_mb": row[1],
            }
        )
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return figures


def _cpu(server: psutil.Process, postgres: psutil.Process) -> list[float]:
    """The CPU seconds of this process, the server and PostgreSQL."""
    return [
        sum(map(_seconds, processes))
        for processes in ([psutil.Process()], [server], [postgres, *postgres.children()])
    ]


def _seconds(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def table(figures: Figures) -> str:
    """The medians of all rounds, each beside CreateEvent of the same round, and the growth.

    `x CPU`: how many items can be had for the CPU time of one event, that of all processes
    together. On a busy machine it varies far less than the rates.
    """
    head = f"{'queue':<24}{'case':<18}{'items/s':>9}{'x event':>9}{'x CPU':>7}{'p50 ms':>9}"
    lines = [f"{head}{'CPU ms: client':>16}{'server':>9}{'postgres':>10}"]
    for state, name in itertools.product(STATES, CASES):
        if name in ECHOES and state != "empty":
            continue
        of, events = (
            {f["round"]: f for f in figures if (f.get("state"), f.get("case")) == (state, case)}
            for case in (name, "CreateEvent")
        )
        ratio = statistics.median(
            f["items_per_s"] / events[r]["items_per_s"] for r, f in of.items()
        )
        cheaper = CASES[name].items * statistics.median(
            _all_cpu(events[r]) / _all_cpu(f) for r, f in of.items()
        )
        rate, p50, client, server, postgres = (
            statistics.median(f[key] for f in of.values())
            for key in ("items_per_s", "p50_ms", *CPU)
        )
        lines.append(
            f"{state:<24}{name:<18}{rate:>9.0f}{ratio:>9.2f}{cheaper:>7.2f}{p50:>9.2f}"
            f"{client:>16.3f}{server:>9.3f}{postgres:>10.3f}"
        )
    lines.append(f"\n{'items handled':<24}{'items/s':>9}{'table MB':>10}{'indexes MB':>12}")
    lines += [
        f"{f['handled']:<24}{f['items_per_s']:>9.0f}{f['table_mb']:>10.1f}{f['indexes_mb']:>12.1f}"
        for f in figures
        if "handled" in f
    ]
    return "\n".join(lines)


CPU: Final = ("client_cpu_ms", "server_cpu_ms", "postgres_cpu_ms")


def _all_cpu(figure: dict[str, Any]) -> float:
    return sum(float(figure[key]) for key in CPU)
