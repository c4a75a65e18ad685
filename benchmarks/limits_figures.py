"""What the rounds of `limits` come to, and its table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any, Final

from benchmarks.timing import percentile

Figures = list[dict[str, Any]]

FIRST: Final = "one and one"
NAMES: Final = ("home", "a", "b")
NAMESPACES: Final = [f"n{number}" for number in range(12)]


def database_of(name: str, count: int) -> str:
    """The database of a namespace, of so many."""
    return NAMES[NAMESPACES.index(name) % count]


def added(answers: Sequence[dict[str, Any]], key: str) -> Counter[str]:
    """The numbers of several answers together."""
    total: Counter[str] = Counter()
    for answer in answers:
        total.update(answer[key])
    return total


def capacities(figures: Figures) -> Figures:
    """For each load and case, by what all rounds have taken together.

    `postgres_ms`, `server_ms`: the processor's time for an operation, of all PostgreSQLs and of all
    servers. `databases`: how many operations the PostgreSQLs can do until the one that was used
    most has used up a second of its own, in proportion to the first case, with the quartiles of the
    rounds one by one; `servers`: the same of the servers. `fairness`: what the slowest namespace
    got done, in proportion to the fastest.
    """
    of = [figure for figure in figures if figure["part"] == "capacity"]
    found: Figures = []
    for load in dict.fromkeys(figure["load"] for figure in of):
        first = [f for f in of if f["load"] == load and f["case"] == FIRST]
        for case in dict.fromkeys(figure["case"] for figure in of):
            rounds = [f for f in of if f["load"] == load and f["case"] == case]
            done = sum(f["done"] for f in rounds)
            singly = [
                _rate([f], "postgres_cpu") / _rate([one], "postgres_cpu")
                for f, one in zip(rounds, first, strict=True)
            ]
            namespaces = added(rounds, "namespaces").values()
            found.append(
                {
                    "part": "capacities",
                    "load": load,
                    "case": case,
                    "done": done,
                    "failed": added(rounds, "failed").total(),
                    "postgres_ms": sum(sum(f["postgres_cpu"]) for f in rounds) / done * 1e3,
                    "server_ms": sum(sum(f["server_cpu"]) for f in rounds) / done * 1e3,
                    "databases": _rate(rounds, "postgres_cpu") / _rate(first, "postgres_cpu"),
                    "quartiles": [percentile(singly, percent) for percent in (25, 75)],
                    "servers": _rate(rounds, "server_cpu") / _rate(first, "server_cpu"),
                    "fairness": min(namespaces) / max(namespaces),
                    "wal_bytes": sum(f["wal"] for f in rounds) / done,
                    "p50_ms": median(f["p50_ms"] for f in rounds),
                }
            )
    return found


def _rate(rounds: Figures, kind: str) -> float:
    """Operations for each second of the one that was used most."""
    used = [sum(each) for each in zip(*(f[kind] for f in rounds), strict=True)]
    rate: float = sum(f["done"] for f in rounds) / max(used)
    return rate


def overloads(figures: Figures) -> Figures:
    """What the namespaces of each database got done in a second, alone and beside the flood."""
    found: Figures = []
    for database in NAMES:
        for flooded in (False, True):
            rounds = [f for f in figures if f["part"] == "overload" and f["flooded"] == flooded]
            answered = [f[database] for f in rounds if f[database]["p50_ms"] is not None]
            seconds = sum(f["seconds"] for f in rounds)
            namespaces = added(rounds, "namespaces")
            done = [
                namespaces[name] for name in NAMESPACES if database_of(name, len(NAMES)) == database
            ]
            found.append(
                {
                    "part": "overloads",
                    "database": database,
                    "flooded": flooded,
                    "rate": sum(done) / seconds,
                    "fairness": min(done) / max(done) if max(done) else 0.0,
                    "failed": added(rounds, "failed").total(),
                    "flood_rate": sum(f["flood_done"] for f in rounds) / seconds,
                }
                | {
                    key: median(each[key] for each in answered) if answered else None
                    for key in ("p50_ms", "p99_ms")
                }
            )
    return found


def table(figures: Figures) -> str:
    """The figures as text."""
    heads = f"{'load':8}{'PostgreSQLs and servers':25}{'PostgreSQL ms':>14}{'server ms':>11}"
    heads += f"{'databases x':>13}{'(quartiles)':>16}{'servers x':>11}{'slowest/fastest':>17}"
    lines = [f"{heads}{'WAL B':>8}{'p50 ms':>8}{'failed':>8}"]
    for row in figures:
        if row["part"] == "capacities":
            low, high = row["quartiles"]
            lines.append(
                f"{row['load']:8}{row['case']:25}{row['postgres_ms']:>14.3f}"
                f"{row['server_ms']:>11.3f}{row['databases']:>13.2f}"
                f"{f'({low:.2f} to {high:.2f})':>16}{row['servers']:>11.2f}"
                f"{row['fairness']:>17.2f}{row['wal_bytes']:>8.0f}{row['p50_ms']:>8.1f}"
                f"{row['failed']:>8}"
            )
    for figure in figures:
        if figure["part"] in ("idle", "memory"):
            lines.append(", ".join(
                f"{key} {_short(value)}" for key, value in figure.items()
            ))  # fmt: skip
    lines.append(f"{'':26}{'operations/s':>14}{'p50 ms':>9}{'p99 ms':>9}{'flood/s':>9}")
    for row in figures:
        if row["part"] == "overloads":
            lines.append(
                f"{row['database']:8}{'beside the flood' if row['flooded'] else 'alone':18}"
                f"{row['rate']:>14.1f}{row['p50_ms'] or 0:>9.1f}{row['p99_ms'] or 0:>9.1f}"
                f"{row['flood_rate']:>9.1f}"
            )
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return str([round(each, 1) for each in value])
    return f"{value:.4f}" if isinstance(value, float) else str(value)
