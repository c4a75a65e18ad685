"""What the driver reports to the metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from wfe_persistence import metrics, time_spent
from wfe_persistence.store.postgres.fairness import FairGate
from wfe_persistence.store.postgres.pipeline import Command, Exchange, PGresult
from wfe_persistence.store.postgres.reachability import Reachability
from wfe_persistence.store.postgres.sqlstate import DEADLOCK, sqlstate

_LOST: Final = ("connection_lost",)

_Numbers = list[tuple[metrics.Labels, float]]

# By the name of its database: how to read the gauges of a pool.
_POOLS: Final[dict[str, Callable[[], dict[metrics.Gauge, _Numbers]]]] = {}


def show_pool(
    name: str, size: int, gate: FairGate, parts: Sequence[FairGate], reachability: Reachability
) -> Callable[[], None]:
    """Have the gauges of the pools tell of that of a database, until what is returned is called.
    `parts`: gates within its gate."""

    def numbers() -> dict[metrics.Gauge, _Numbers]:
        open_ = reachability.count_open()
        in_use = min(gate.taken, open_)
        return {
            metrics.POOL_WAITING: [((name,), sum(g.waiting for g in (gate, *parts)))],
            metrics.POOL_CONNECTIONS: [
                ((name, "in_use"), in_use),
                ((name, "idle"), open_ - in_use),
            ],
            metrics.POOL_MAX: [((name,), size)],
            metrics.PREPARED: [((name,), reachability.count_prepared())],
            metrics.DATABASE_REACHABLE: [((name,), float(not reachability.refuses))],
        }

    _POOLS[name] = numbers
    for gauge in numbers():
        gauge.read = partial(_read, gauge)

    def forget() -> None:
        if _POOLS.get(name) is numbers:
            del _POOLS[name]

    return forget


def _read(gauge: metrics.Gauge) -> _Numbers:
    return [number for pool in list(_POOLS.values()) for number in pool()[gauge]]


def count_round_trip(exchange: Exchange, batch: Sequence[Command]) -> None:
    """Count statements that have come to their end, by the last of them, and their error."""
    seconds, label = exchange.heard - exchange.asked, batch[-1][0].label
    metrics.STATEMENT_SECONDS.observe(seconds, (label,))
    if spent := time_spent.CURRENT.get():
        spent.add_round_trip(seconds, label, sum(result.ntuples for result in exchange.results))
    if exchange.error is not None:
        count_error(exchange.error)


def count_rows(rows: int) -> None:
    """Count rows that came one by one."""
    if spent := time_spent.CURRENT.get():
        spent.rows += rows


def count_wait(seconds: float) -> None:
    """Count how long a call waited for a connection."""
    metrics.POOL_WAIT.observe(seconds)
    if spent := time_spent.CURRENT.get():
        spent.connecting += seconds


def count_error(error: PGresult) -> None:
    """Count the error of a statement."""
    state = sqlstate(error)
    metrics.DATABASE_ERRORS.add((state[:2],))
    if state == DEADLOCK:
        metrics.DEADLOCKS.add()
    if spent := time_spent.CURRENT.get():
        spent.sqlstate = state


def count_retry(error: PGresult | None) -> None:
    """Count that a statement is run again, because of this error; None: its connection is lost."""
    metrics.RETRIES.add(_LOST if error is None else (sqlstate(error),))
    if spent := time_spent.CURRENT.get():
        spent.retries += 1
