"""`./run bench`: every hot RPC with 1, 32 and 64 concurrent callers, beside a bare echo in the same
server.

The server runs in its own process, on an embedded PostgreSQL, and also serves an echo that only the
benchmark registers. What an RPC costs beyond the echo is our own overhead. `--driver` measures only
the driver, beside psycopg's cursors and asyncpg; `--namespaces` the cost of many namespaces;
`--databases` that of a call in a service with three databases, beside one;
`--patches` a change in short and long workflows; `--checks` the checks of requests, and how long
others wait meanwhile; `--access` what authentication costs, and bad credentials; `--metrics` what
metrics cost, `--traces` what traces cost; `--workers` servers of several processes; `--strangers`
what bad handshakes cost; `--queues` the throughput of queues, `--queue-statements` what they cost
PostgreSQL; `--waiting` calls that wait, ten thousand on one server too; `--purge` a purge under
load; `--start` starts, and idle servers; `--storage` disk usage; `--moves` moves of a namespace;
`--growth` statements on a store
that has grown for long; `--export` an export and its import; `--bulk` creates in bulk beside single
ones; `--limits` the capacity of three PostgreSQLs and two servers beside one of each; `--spread`
very many namespaces over three databases.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks import (
    access,
    bulk,
    checks,
    databases,
    driver,
    growth,
    limits,
    metrics,
    moves,
    namespaces,
    patches,
    purge,
    queue_statements,
    queues,
    rpcs,
    spread,
    start,
    storage,
    strangers,
    traces,
    transfer,
    waiting,
    workers,
)
from wfe_persistence.embedded import EmbeddedPostgres


def _postmaster(directory: str) -> int:
    """The id of PostgreSQL's first process."""
    return int(next(Path(directory).glob("*/postmaster.pid")).read_text().split()[0])


def main() -> None:
    """Parses the options, runs the benchmark, and prints and saves the figures."""
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="seconds for which each RPC is called (default 2)",
    )
    parser.add_argument(
        "--callers",
        type=int,
        nargs="+",
        default=[1, 32, 64],
        help="numbers of concurrent callers (default 1 32 64)",
    )
    parser.add_argument(
        "--only", metavar="NAME", nargs="+", default=[], help="only RPCs whose name contains one"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds in which all RPCs are called (default 5)"
    )
    parser.add_argument(
        "--driver",
        action="store_true",
        help="measure the driver beside psycopg's cursors and asyncpg",
    )
    parser.add_argument(
        "--namespaces",
        type=int,
        metavar="N",
        help="measure calls to one and to all of this many namespaces",
    )
    parser.add_argument(
        "--databases",
        action="store_true",
        help="measure calls in a service with one and with three databases",
    )
    parser.add_argument(
        "--patches", action="store_true", help="measure one change in short and in long workflows"
    )
    parser.add_argument(
        "--checks",
        action="store_true",
        help="measure the checks of documents, and how long others wait for requests",
    )
    parser.add_argument(
        "--access",
        action="store_true",
        help="measure what authentication costs, and 10,000 bad credentials a minute",
    )
    parser.add_argument(
        "--bulk", action="store_true", help="measure creates in bulk beside single ones"
    )
    parser.add_argument("--metrics", action="store_true", help="measure what metrics cost a call")
    parser.add_argument("--traces", action="store_true", help="measure what traces cost a call")
    parser.add_argument(
        "--workers", action="store_true", help="measure servers of 1, 2 and 4 processes"
    )
    parser.add_argument(
        "--strangers",
        action="store_true",
        help="measure calls while strangers make bad handshakes and send bad tokens",
    )
    parser.add_argument(
        "--queues", action="store_true", help="measure queues beside CreateEvent, and their growth"
    )
    parser.add_argument(
        "--queue-statements",
        action="store_true",
        help="measure what an item of a queue costs PostgreSQL, and the growth of its table",
    )
    parser.add_argument(
        "--items",
        type=int,
        metavar="N",
        default=200_000,
        help="how many items go through a queue for --queues, --queue-statements (default 200000)",
    )
    parser.add_argument(
        "--waiting",
        action="store_true",
        help="measure how soon waiting calls hear of a write, and ten thousand of them",
    )
    parser.add_argument(
        "--purge",
        type=int,
        metavar="N",
        nargs="?",
        const=1_000_000,
        help="purge this many events while others write (default 1000000)",
    )
    parser.add_argument(
        "--start", action="store_true", help="measure starts, and the memory of idle servers"
    )
    parser.add_argument(
        "--moves",
        type=int,
        metavar="N",
        help="measure so many moves of a namespace that is written 500 times a second",
    )
    parser.add_argument(
        "--storage",
        type=int,
        metavar="N",
        nargs="?",
        const=100_000,
        help="measure disk usage of this many pointers, and WAL of their steps (default 100000)",
    )
    parser.add_argument(
        "--growth",
        type=int,
        metavar="N",
        nargs="?",
        const=1_000_000,
        help="measure statements on a skewed store of this many workflows (default 1000000)",
    )
    parser.add_argument(
        "--export",
        type=int,
        metavar="N",
        nargs="?",
        const=560_000,
        help="export this many records, import and export them again (default 560000, which are a "
        "million rows)",
    )
    parser.add_argument(
        "--limits",
        action="store_true",
        help="measure three PostgreSQLs and two servers beside one of each, in --rounds of "
        "--seconds for each case",
    )
    parser.add_argument(
        "--spread",
        type=int,
        metavar="N",
        nargs="?",
        const=10_000,
        help="measure this many namespaces over three databases (default 10000)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="file for the figures (default benchmarks/results/NAME.json)",
    )
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="wfe-") as directory,
        EmbeddedPostgres(Path(directory)) as postgres,
    ):
        if arguments.driver:
            figures = asyncio.run(driver.measure(postgres.url, arguments.callers))
            print(driver.table(figures))
        elif arguments.access:
            figures = asyncio.run(access.measure(postgres.url, arguments.seconds))
            print(access.table(figures))
        elif arguments.metrics:
            figures = asyncio.run(metrics.measure(postgres.url, arguments.seconds))
            print(metrics.table(figures))
        elif arguments.traces:
            figures = asyncio.run(traces.measure(postgres.url, arguments.seconds))
            print(traces.table(figures))
        elif arguments.workers:
            figures = asyncio.run(workers.measure(postgres.url, arguments.seconds))
            print(workers.table(figures))
        elif arguments.strangers:
            figures = asyncio.run(strangers.measure(postgres.url, arguments.seconds))
            print(strangers.table(figures))
        elif arguments.queue_statements:
            figures = queue_statements.measure(postgres.url, arguments.items)
            print(queue_statements.table(figures))
        elif arguments.queues:
            process = psutil.Process(_postmaster(directory))
            figures = asyncio.run(
                queues.measure(postgres.url, process, arguments.seconds, arguments.items)
            )
            print(queues.table(figures))
        elif arguments.waiting:
            figures = asyncio.run(waiting.measure(postgres.url))
            print(waiting.table(figures))
        elif arguments.purge:
            figures = asyncio.run(purge.measure(postgres.url, arguments.purge))
            print(purge.table(figures))
        elif arguments.export:
            process = psutil.Process(_postmaster(directory))
            with tempfile.TemporaryDirectory(prefix="wfe-export-") as files:
                figures = asyncio.run(
                    transfer.measure(postgres.url, process, arguments.export, Path(files))
                )
            print(transfer.table(figures))
        elif arguments.bulk:
            process = psutil.Process(_postmaster(directory))
            figures = asyncio.run(bulk.measure(postgres.url, process, arguments.rounds))
            print(bulk.table(figures))
        elif arguments.patches:
            process = psutil.Process(_postmaster(directory))
            figures = asyncio.run(patches.measure(postgres.url, process))
            print(patches.table(figures))
        elif arguments.checks:
            figures = asyncio.run(checks.measure(postgres.url))
            print(checks.table(figures))
        elif arguments.namespaces:
            figures = asyncio.run(namespaces.measure(postgres.url, arguments.namespaces))
            print(namespaces.table(figures))
        elif arguments.databases:
            figures = asyncio.run(databases.measure(postgres.url, arguments.rounds))
            print(databases.table(figures))
        elif arguments.start:
            figures = start.measure(postgres.url, arguments.rounds)
            print(start.table(figures))
        elif arguments.growth:
            figures = growth.measure(postgres.url, arguments.growth)
            print(growth.table(figures))
        elif arguments.moves:
            figures = moves.measure(arguments.moves)
            print(moves.table(figures))
        elif arguments.limits:
            figures = limits.measure(arguments.seconds, arguments.rounds)
            print(limits.table(figures))
        elif arguments.spread:
            figures = spread.measure(arguments.spread)
            print(spread.table(figures))
        elif arguments.storage:
            figures = asyncio.run(storage.measure(postgres.url, arguments.storage))
            print(storage.table(figures))
        else:
            figures = asyncio.run(
                rpcs.measure(
                    postgres.url,
                    arguments.callers,
                    arguments.seconds,
                    arguments.rounds,
                    arguments.only,
                )
            )
            print(rpcs.table(figures))
    name = (
        "driver.json"
        if arguments.driver
        else "access.json"
        if arguments.access
        else "metrics.json"
        if arguments.metrics
        else "traces.json"
        if arguments.traces
        else "workers.json"
        if arguments.workers
        else "strangers.json"
        if arguments.strangers
        else "queues.json"
        if arguments.queues
        else "waiting.json"
        if arguments.waiting
        else "purge.json"
        if arguments.purge
        else "export.json"
        if arguments.export
        else "bulk.json"
        if arguments.bulk
        else "patches.json"
        if arguments.patches
        else "checks.json"
        if arguments.checks
        else "namespaces.json"
        if arguments.namespaces
        else "databases.json"
        if arguments.databases
        else "start.json"
        if arguments.start
        else "moves.json"
        if arguments.moves
        else "limits.json"
        if arguments.limits
        else "spread.json"
        if arguments.spread
        else "storage.json"
        if arguments.storage
        else "growth.json"
        if arguments.growth
        else "rpcs.json"
    )
    file: Path = arguments.json or Path(__file__).parent / "results" / name
    file.parent.mkdir(exist_ok=True)
    machine = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "grpcio": version("grpcio"),
    }
    file.write_text(json.dumps({**machine, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
