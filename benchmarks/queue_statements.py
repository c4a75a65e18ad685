"""The statements of a queue: what one item costs PostgreSQL, without a server.

One connection enqueues, dequeues and acknowledges batches of items with the store's statements. For
each: the CPU time of its backend, and the WAL. Then several connections put many items through the
queue, to see whether the table grows; vacuum comes as it is set.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import count
from typing import Any, Final

import psutil
import psycopg

from benchmarks.queues import SIZES
from wfe_persistence.store import dequeue, queue, queue_settling
from wfe_persistence.store.lease import new_lease_id
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.rows import floor_param, read_int8
from wfe_persistence.store.schema import Schema

Figures = list[dict[str, Any]]

BATCHES: Final = {1: 500, 100: 200}
"""How many items are in a batch, and how many batches are measured of that size."""

WRITERS: Final = 3
WRITERS_BATCH: Final = 500
_FLOOR_SECONDS: Final = 0.1

_STATEMENTS: Final = {
    "enqueue": queue.ENQUEUE,
    "dequeue": dequeue.DEQUEUE,
    "acknowledge": queue_settling.ACKNOWLEDGE,
    "floor": dequeue.QUEUE_FLOOR,
}
_WAL: Final = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
_numbers = count()


class _Session:
    """A connection with the statements prepared, as a server has them."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg.connect(url, autocommit=True, prepare_threshold=None)
        self._backend = psutil.Process(self.connection.info.backend_pid)
        for name, sql in _STATEMENTS.items():
            self.connection.pgconn.prepare(name.encode(), sql.encode())
        self.floor: bytes = b"-infinity"
        self._floor_at = float("-inf")

    def cpu(self) -> float:
        """The seconds that the backend has had."""
        times = self._backend.cpu_times()
        return float(times.user + times.system)

    def wal(self) -> int:
        """The bytes of WAL written so far, by anybody."""
        row = self.connection.execute(_WAL.encode()).fetchone()
        assert row is not None
        return int(row[0])

    def run(self, name: str, *params: bytes) -> Any:
        """Run a statement."""
        result = self.connection.pgconn.exec_prepared(name.encode(), params, result_format=1)
        if error := result.error_message:
            raise RuntimeError(error.decode())
        return result

    def cycle(self, items: int) -> Iterator[str]:
        """Each statement once for so many items; yields before each its name, and at the end ""."""
        enqueued = [{"queue": "q", "id": f"item-{next(_numbers):032}"} for _ in range(items)]
        yield "enqueue"
        self.run("enqueue", json.dumps(enqueued).encode())
        lease_id = new_lease_id()
        yield "dequeue"
        taken = self.run(
            "dequeue", b"{q}", b"%d" % items, b"30000", lease_id.encode(), b"w", b"4000000",
            b'{"%b"}' % self.floor,
        )  # fmt: skip
        numbers = [taken.get_value(i, 5) for i in range(taken.ntuples)]
        receipts = [{"n": read_int8(n), "lease_id": lease_id} for n in numbers if n is not None]
        yield "acknowledge"
        self.run("acknowledge", json.dumps(receipts).encode())
        yield ""
        if time.monotonic() - self._floor_at > _FLOOR_SECONDS:
            found = self.run("floor", b"q", self.floor).get_value(0, 0)
            self.floor, self._floor_at = floor_param(read_int8(found)), time.monotonic()


def measure(url: str, items: int) -> Figures:
    """What each statement costs, and then ten figures while so many items go through the queue."""
    asyncio.run(migrate(ConnectionSource(url), Schema()))
    session = _Session(url)
    figures: Figures = []
    for size, batches in BATCHES.items():
        cpu = dict.fromkeys(_STATEMENTS, 0.0)
        wal: dict[str, list[int]] = {name: [] for name in _STATEMENTS}
        for _ in range(batches):
            running, cpu_before, wal_before = "", 0.0, 0
            for name in session.cycle(size):
                cpu_now = session.cpu()
                if running:
                    cpu[running] += cpu_now - cpu_before
                    wal[running].append(session.wal() - wal_before)
                running, wal_before, cpu_before = name, session.wal(), session.cpu()
        figures += [
            {
                "statement": name,
                "items": size,
                "cpu_us": cpu[name] / batches / size * 1e6,
                "wal_bytes": statistics.median(wal[name]) / size,
            }
            for name in _STATEMENTS
            if wal[name]
        ]
    return figures + asyncio.run(_growth(url, items))


async def _growth(url: str, items: int) -> Figures:
    left, begun, figures = count(items, -WRITERS_BATCH), time.monotonic(), Figures()
    part = items // 10

    def work() -> None:
        session = _Session(url)
        while (rest := next(left)) > 0:
            for _ in session.cycle(WRITERS_BATCH):
                pass
            done = items - rest + WRITERS_BATCH
            if done % part < WRITERS_BATCH:
                row = session.connection.execute(SIZES.encode()).fetchone()
                assert row is not None
                table, indexes = row
                seconds = time.monotonic() - begun
                figures.append(
                    {"handled": done, "seconds": seconds, "table_mb": table, "indexes_mb": indexes}
                )
                print(".", end="", flush=True, file=sys.stderr)

    await asyncio.gather(*(asyncio.to_thread(work) for _ in range(WRITERS)))
    print(file=sys.stderr)
    return figures


def table(figures: Figures) -> str:
    """The statements, then the growth."""
    lines = [f"{'statement':<14}{'items':>6}{'CPU us per item':>18}{'WAL per item':>15}"]
    lines += [
        f"{f['statement']:<14}{f['items']:>6}{f['cpu_us']:>18.1f}{f['wal_bytes']:>15.0f}"
        for f in figures
        if "statement" in f
    ]
    lines.append(f"\n{'items handled':<16}{'seconds':>9}{'table MB':>10}{'indexes MB':>12}")
    lines += [
        f"{f['handled']:<16}{f['seconds']:>9.0f}{f['table_mb']:>10.1f}{f['indexes_mb']:>12.1f}"
        for f in figures
        if "handled" in f
    ]
    return "\n".join(lines)
