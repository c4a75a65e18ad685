"""What the rounds of `./run bench --limits` come to, and what is reckoned from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.limits_figures import NAMESPACES, capacities
from docs import limits


def a_round(case: str, done: int, postgres: list[float], servers: list[float]) -> dict[str, Any]:
    return {
        "part": "capacity",
        "load": "steps",
        "case": case,
        "done": done,
        "failed": {},
        "postgres_cpu": postgres,
        "server_cpu": servers,
        "wal": 1000.0 * done,
        "namespaces": {name: done // (1 + (name == NAMESPACES[0])) for name in NAMESPACES},
        "p50_ms": 1.0,
    }


def test_the_busiest_database_is_the_limit() -> None:
    figures = [
        a_round("one and one", 100, [1.0], [1.0]),
        a_round("one and one", 300, [3.0], [1.0]),
        a_round("three and two", 300, [1.0, 1.0, 2.0], [0.5, 1.0]),
        a_round("three and two", 300, [1.0, 1.0, 0.0], [0.5, 1.0]),
    ]
    one, three = capacities(figures)
    assert (one["databases"], one["servers"]) == (1.0, 1.0)
    assert one["postgres_ms"] == pytest.approx(10.0)
    # 600 in 2.0 s of each of the two busiest, where one does 100 in a second; and in 2.0 s of the
    # busier server, where one does 200.
    assert three["databases"] == pytest.approx(3.0)
    assert three["servers"] == pytest.approx(1.5)
    assert three["quartiles"] == pytest.approx([1.5, 3.0])
    assert three["postgres_ms"] == pytest.approx(10.0)
    assert (three["fairness"], three["wal_bytes"]) == (0.5, 1000.0)


def test_what_is_reckoned_follows_from_what_is_assumed() -> None:
    assumed = limits.Assumed()
    least = limits.reckon("turns", assumed).databases
    # A third of the write-ahead log may be written, so three times as many are needed for it.
    slower = limits.reckon("turns", replace(assumed, wal_mb=assumed.wal_mb / 3))
    assert slower.why == "the write-ahead log"
    assert slower.databases > 2 * least
    larger = limits.reckon("turns", replace(assumed, pointers=1e12))
    assert (larger.why, larger.databases > 1000) == ("the data", True)
    single = limits.reckon("turns", replace(assumed, steps=50, pointers=1e6))
    assert single.databases == 1
