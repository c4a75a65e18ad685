"""The tables of limits in docs/scaling.md: of what was measured, and what is reckoned from it.

Figures come from benchmarks/results/, what is only assumed from `Assumed`. The tables are between
`<!-- limits: NAME -->` and `<!-- end of limits -->`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

PAGE: Final = Path(__file__).with_name("scaling.md")
RESULTS: Final = PAGE.parents[1] / "benchmarks" / "results"

DAY: Final = 86_400

CASES: Final = {
    "one and one": "1 and 1",
    "one and one, again": "1 and 1, again",
    "three and one": "3 and 1",
    "three and two": "3 and 2",
    "three and two, twice the callers": "3 and 2, twice as many callers",
}
LOADS: Final = {
    "steps": "a step from the queue, two calls",
    "turns": "a step of a host that goes on, one call",
    "mixed": "steps of both kinds, events",
}


@dataclass(frozen=True)
class Assumed:
    """What was not measured: the target, the machines, and how often they fail."""

    pointers: float = 1e9
    steps: float = 50_000
    """A second."""
    pointers_of_a_workflow: int = 10
    cores: int = 16
    """Of a machine."""
    used: float = 0.5
    """How much of them may be used, on average."""
    wal_mb: float = 50
    """How much WAL a PostgreSQL may write a second, so that its standby and its archive follow."""
    data_gb: float = 500
    """How much data it may have, so that a base backup takes about an hour."""
    copy_mb: float = 150
    """How fast a base backup is written or restored, a second."""
    pool: int = 2
    """Connections of a server process to each database."""
    standbys: int = 1
    """Of each database."""
    months: float = 6
    """Until a machine is lost, on average: broken, hung, or restarted by its provider."""
    failover_seconds: float = 40
    """Until a standby is promoted, and servers write to it."""
    namespaces: int = 64
    """Over which it is spread, all alike."""
    purged_rows: float = 13_384
    """How many rows a purge deletes in a second that it has a core for (performance.md)."""


class Reckoned(NamedTuple):
    """How many of what it takes, for one kind of step."""

    databases: int
    why: str
    """What asks for so many."""
    rows: list[tuple[str, str, str]]
    """What, how much, and how that is made."""


def _figures(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((RESULTS / name).read_text())["figures"]
    return found


def _of(figures: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    [found] = [f for f in figures if all(f.get(key) == value for key, value in wanted.items())]
    return found


# ----- what was measured -----


def capacity() -> str:
    """The table of `./run bench --limits`."""
    heads = "| | PostgreSQLs and servers | PostgreSQL, ms | servers, ms "
    heads += "| capacity of the databases | of the servers | slowest/fastest namespace |"
    lines = [heads, "|---|---|--:|--:|--:|--:|--:|"]
    for row in _figures("limits.json"):
        if row["part"] != "capacities":
            continue
        low, high = row["quartiles"]
        first = row["case"] == "one and one"
        spread = "1" if first else f"{row['databases']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(
            f"| {LOADS[row['load']] if first else ''} | {CASES[row['case']]} "
            f"| {row['postgres_ms']:.2f} | {row['server_ms']:.2f} | {spread} "
            f"| {'1' if first else format(row['servers'], '.2f')} | {row['fairness']:.2f} |"
        )
    return "\n".join(lines)


def overload() -> str:
    """What one namespace that overloads one database does to others."""
    figures = _figures("limits.json")
    lines = [
        "| namespaces in | operations/s, alone | beside the flood | p50, ms | p99, ms |",
        "|---|--:|--:|--:|--:|",
    ]
    for database in ("home", "a", "b"):
        alone, flooded = (
            _of(figures, part="overloads", database=database, flooded=each)
            for each in (False, True)
        )
        where = "the database that is overloaded" if database == "a" else f"`{database}`"
        lines.append(
            f"| {where} | {alone['rate']:.0f} | {flooded['rate']:.0f} "
            f"({flooded['rate'] / alone['rate']:.2f}) "
            f"| {alone['p50_ms']:.0f} → {flooded['p50_ms']:.0f} "
            f"| {alone['p99_ms']:.0f} → {flooded['p99_ms']:.0f} |"
        )
    return "\n".join(lines)


def memory() -> str:
    """What servers and PostgreSQLs take."""
    heads = "| PostgreSQLs and servers | a server, RSS, PSS | connections to each PostgreSQL "
    heads += "| a PostgreSQL, without shared memory | of that for each of its processes |"
    lines = [heads, "|---|--:|--:|--:|--:|"]
    for row in _figures("limits.json"):
        if row["part"] != "memory" or row["case"] == "one and one, again":
            continue
        rss, pss = (max(row[f"server_{kind}_mb"]) for kind in ("rss", "pss"))
        uss, processes = row["postgres_uss"], row["postgres_processes"]
        lines.append(
            f"| {CASES[row['case']]} | {rss:.0f}, {pss:.0f} MB "
            f"| {', '.join(map(str, row['postgres_connections']))} "
            f"| {', '.join(f'{each:.0f}' for each in uss)} MB "
            f"| {sum(uss) / sum(processes):.0f} MB |"
        )
    return "\n".join(lines)


def storage() -> str:
    """What a row takes, by `./run bench --storage`."""
    lines = ["| bytes per row | table | indexes | total |", "|---|--:|--:|--:|"]
    for table in ("execution_pointers", "workflows", "events", "event_subscriptions"):
        row = _of(_figures("storage.json"), size_of=table)
        lines.append(
            f"| {table} | {row['heap'] + row['toast_and_maps']:,.0f} | {row['indexes']:,.0f} "
            f"| {row['total']:,.0f} |"
        )
    return "\n".join(lines)


def billion() -> str:
    """What a billion pointers take."""
    a = Assumed()
    lines = ["| | table | indexes | total |", "|---|--:|--:|--:|"]
    all_indexes = all_ = 0.0
    for table, count in (
        ("execution_pointers", a.pointers),
        ("workflows", a.pointers / a.pointers_of_a_workflow),
    ):
        row = _of(_figures("storage.json"), size_of=table)
        indexes, total = (row[key] * count / 1e9 for key in ("indexes", "total"))
        all_indexes += indexes
        all_ += total
        what = table.removeprefix("execution_")
        of_table = f"| {total - indexes:.0f} GB | {indexes:.0f} GB | {total:.0f} GB |"
        lines.append(f"| {count:,.0f} {what} {of_table}")
    lines.append(f"| | | {all_indexes:.0f} GB | {all_ / 1e3:.2f} TB |")
    return "\n".join(lines)


WRITES: Final = {
    "a workflow created": "a workflow created with ten pointers",
    "an event created": "an event created",
    "a subscription created": "a subscription created",
    "a step": "a step after which the workflow goes on at once",
    "a step, due at another time": "a step after which it is due at another time",
    "the first step after a checkpoint": "the first step of each workflow after a checkpoint",
    "a step while somebody watches": "a step that goes on at once, while somebody watches "
    "(WatchWorkflows), and for `--watch-retention` after that",
}


def writing() -> str:
    """WAL of each kind of write, and of the soak's steps."""
    lines = ["| | WAL |", "|---|--:|"]
    lines += [f"| {said} | {wal_of(what) / 1e3:.1f} kB |" for what, said in WRITES.items()]
    lines.append(
        f"| in the [soak](performance.md#half-an-hour-at-half-of-the-highest-rate), for each step, "
        f"with all else that it does and six checkpoints | {soaked_wal() / 1e3:.1f} kB |"
    )
    return "\n".join(lines)


def spread() -> str:
    """The table of `./run bench --spread`."""
    figures = _figures("spread.json")
    lines = ["| | on the clock | CPU: server | PostgreSQL |", "|---|--:|--:|--:|"]

    def line(what: str, seconds: float, server: float, postgres: float, unit: str) -> None:
        lines.append(f"| {what} | {seconds:,.2f} {unit} | {server:,.2f} | {postgres:,.2f} {unit} |")

    for row in figures:
        if row.get("what") == "created":
            number = row["number"] / 1e3  # in milliseconds
            at = row["before"] + 1
            line(f"a namespace is created, with {at:,} there, {_AT_ONCE} at once",
                 row["seconds"] / number, row["server_cpu"] / number, row["postgres_cpu"] / number,
                 "ms")  # fmt: skip
    for what, said in SPREAD.items():
        found = [row for row in figures if row.get("what") == what]
        if not found:
            continue  # of a run that ended before
        row = found[-1]
        per_call = "call" in what or "one by one" in what
        of = row["number"] / 1e3 if per_call else 1.0
        server = row.get("own_cpu", row["server_cpu"])
        line(said, row["seconds"] / of, server / of, row["postgres_cpu"] / of,
             "ms" if per_call else "s")  # fmt: skip
    return "\n".join(lines)


_AT_ONCE: Final = 12  # as in benchmarks/spread.py

SPREAD: Final = {
    "ListNamespaces, all": "ListNamespaces, all, in pages of 1,000",
    "ListNamespaces, 100": "the first 100",
    "start": "a server starts",
    "health of 100 namespaces": "health of 100 namespaces",
    "first call": "the first CreateEvent in one of 1,000, each",
    "third call": "the third",
    "second call to all": "the second in one of all, each",
    "/metrics": "`/metrics`",
    "idle": "30 s in which nobody calls",
    "the directory, all": "the directory is read (each minute)",
    "the directory, one by one": "the place of one is looked up, each",
    "policies, first look": "the first look for retention policies of a server",
    "policies": "each look after that (every 150 s)",
    "list of all": "as it was before: a list of all namespaces",
    "policies, each namespace": "and a look into each",
    "old lifecycle events": "old lifecycle events are deleted (once an hour)",
    "old changes": "old changes are deleted (once an hour)",
}


# ----- what is reckoned -----


def bytes_of(table: str) -> float:
    """Of a row, with its indexes."""
    found: float = _of(_figures("storage.json"), size_of=table)["total"]
    return found


def wal_of(what: str) -> float:
    """Of one."""
    found: float = _of(_figures("storage.json"), **{"WAL of": what})["bytes"]
    return found


def soaked_wal() -> float:
    """Of WAL for each step of the soak, with all that belonged to it, and checkpoints."""
    samples = json.loads((RESULTS / "soak.json").read_text())["samples"]
    first, last = samples[0], samples[-1]
    before, after = (each["tables"]["requests"]["inserted"] for each in (first, last))
    written: float = (last["wal_bytes"] - first["wal_bytes"]) / (after - before)
    return written


def reckon(load: str, assumed: Assumed | None = None) -> Reckoned:
    """For steps of one kind: `steps` or `turns`."""
    a = assumed or Assumed()
    figures = _figures("limits.json")
    cost = _of(figures, part="capacities", load=load, case="three and two")
    memory_ = _of(figures, part="memory", case="three and two")
    wal = soaked_wal()
    workflows = a.pointers / a.pointers_of_a_workflow
    data = (
        a.pointers * bytes_of("execution_pointers")
        + workflows * bytes_of("workflows")
        + workflows / 2 * (bytes_of("events") + bytes_of("event_subscriptions"))
    ) / 1e9
    rows = a.steps * (1 + 1 / a.pointers_of_a_workflow)
    cores = a.steps * cost["postgres_ms"] / 1e3 + rows / a.purged_rows
    wal_mb = a.steps * wal / 1e6
    asked = {
        "the processors": cores / (a.cores * a.used),
        "the write-ahead log": wal_mb / a.wal_mb,
        "the data": data / a.data_gb,
    }
    why = max(asked, key=lambda each: asked[each])
    databases = math.ceil(asked[why])
    processes = math.ceil(a.steps * cost["server_ms"] / 1e3 / a.used)
    machines = math.ceil(processes / a.cores)
    commits = a.steps / databases * (2 if load == "steps" else 1)
    connections = processes * a.pool
    private = sum(memory_["postgres_uss"]) / sum(memory_["postgres_processes"])
    lost = (databases * (1 + a.standbys) + machines) / a.months
    made = [
        ("databases, by " + ", by ".join(f"{each}" for each in asked),
         ", ".join(f"{each:.1f}" for each in asked.values()),
         f"{cores:.0f} cores; {wal_mb:.0f} MB/s; {data:.0f} GB"),
        ("**databases**", f"**{databases}**", f"the most of these: {why}"),
        ("machines for them", f"{databases * (1 + a.standbys)}",
         f"{a.cores} cores each, with {a.standbys} standby for each database"),
        ("server processes", f"{processes}",
         f"{cost['server_ms']:.2f} ms for each step, each process half used"),
        ("machines for them", f"{machines}", f"{a.cores} processes on each"),
        ("connections to a database", f"{connections}",
         f"`--pool-size {a.pool}` of each process; to the home {processes} more, to listen"),
        ("memory of these connections", f"{connections * private / 1e3:.1f} GB",
         f"{private:.0f} MB for each, as measured"),
        ("steps a second, commits a second of a database",
         f"{a.steps / databases:,.0f}, {commits:,.0f}",
         "fewer commits where calls are run together"),
        ("data of a database", f"{data / databases:.0f} GB",
         "pointers, workflows, and half as many events and subscriptions"),
        ("a base backup of it, or its restore",
         f"{data * 1e3 / databases / a.copy_mb / 3600:.1f} h",
         f"at {a.copy_mb:.0f} MB/s"),
        ("WAL of a database", f"{wal_mb / databases:.0f} MB/s",
         f"{wal / 1e3:.1f} kB for each step, with all else that the soak did, and checkpoints"),
        ("WAL archived in a day", f"{wal_mb * DAY / databases / 1e6:.1f} TB",
         f"of a database; of all {wal_mb * DAY / 1e6:.1f} TB"),
        ("until the billion is reached", f"{a.pointers / a.steps / 3600:.1f} h",
         "each step leaves a pointer: from then on as much has to be deleted"),
        ("rows deleted a second", f"{rows:,.0f}",
         f"{rows / a.namespaces:,.0f} in each of {a.namespaces} namespaces, by retention"),
        ("200 million transactions of a database", f"{200e6 / commits / 3600:.0f} h",
         "then its rows must have been frozen"),
        ("machines lost in a month", f"{lost:.0f}",
         f"each once in {a.months:.0f} months; of them {databases / a.months:.1f} primaries"),
        ("a lost primary takes", f"{100 / databases:.1f} % of the namespaces",
         f"for {a.failover_seconds:.0f} s, if a standby is promoted"),
        ("a namespace is away in a month", f"{a.failover_seconds / a.months:.0f} s",
         "on average, for failures of machines"),
    ]  # fmt: skip
    return Reckoned(databases, why, made)


def reckoned() -> str:
    """The table of how many of what, for both kinds of steps."""
    turns, steps = reckon("turns"), reckon("steps")
    lines = [
        "| | one call a step | two calls a step | how |",
        "|---|--:|--:|---|",
    ]
    for one, two in zip(turns.rows, steps.rows, strict=True):
        how = one[2] if one[2] == two[2] else f"{one[2]} / {two[2]}"
        lines.append(f"| {one[0]} | {one[1]} | {two[1]} | {how} |")
    return "\n".join(lines)


TABLES: Final = {
    "storage": storage,
    "billion": billion,
    "writing": writing,
    "spread": spread,
    "capacity": capacity,
    "overload": overload,
    "memory": memory,
    "reckoned": reckoned,
}


def page() -> str:
    """The page with its tables."""
    text = PAGE.read_text("utf-8")
    for name, table in TABLES.items():
        begin, end = re.escape(f"<!-- limits: {name} -->\n"), re.escape("\n<!-- end of limits -->")
        made = table()
        places = re.findall(f"{begin}.*?{end}", text, re.DOTALL)
        if len(places) != 1:
            raise SystemExit(f"docs/limits.py: {PAGE.name} has no place for {name}")
        text = text.replace(places[0], f"<!-- limits: {name} -->\n{made}\n<!-- end of limits -->")
    return text


FILES: Final = {PAGE: page}
