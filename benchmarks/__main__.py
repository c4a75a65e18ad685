"""`./run bench`: every hot RPC at 1 and 32 callers, beside a bare echo in the same server.

The server runs in a process of its own, on an embedded PostgreSQL, and serves one more service that
only the bench registers: an echo, with nothing behind it. What an RPC costs above the echo is ours.
`--driver` measures the driver alone, beside psycopg's cursors and asyncpg; `--namespaces` what many
namespaces cost; `--storage` what is on disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import tempfile
from pathlib import Path

import psutil

from benchmarks import driver, namespaces, patches, purge, rpcs, storage
from wfe_persistence.embedded import EmbeddedPostgres


def main() -> None:
    """Parse, run, print, keep."""
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="how long each RPC is called (default 2)"
    )
    parser.add_argument(
        "--callers", type=int, nargs="+", default=[1, 32], help="concurrent callers (default 1 32)"
    )
    parser.add_argument("--only", metavar="NAME", help="only the RPCs with this in their names")
    parser.add_argument(
        "--driver", action="store_true", help="the driver, beside psycopg's cursors and asyncpg"
    )
    parser.add_argument(
        "--namespaces", type=int, metavar="N", help="calls to one and to all of so many namespaces"
    )
    parser.add_argument(
        "--patches", action="store_true", help="one change in a short and in a long workflow"
    )
    parser.add_argument(
        "--purge",
        type=int,
        metavar="N",
        nargs="?",
        const=1_000_000,
        help="purge so many events while others write (default 1000000)",
    )
    parser.add_argument(
        "--storage",
        type=int,
        metavar="N",
        nargs="?",
        const=100_000,
        help="what so many pointers take on disk, and their steps in WAL (default 100000)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where to keep the figures (default benchmarks/results/latest.json)",
    )
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="wfe-") as directory,
        EmbeddedPostgres(Path(directory)) as postgres,
    ):
        if arguments.driver:
            figures = asyncio.run(driver.measure(postgres.url, arguments.callers))
            print(driver.table(figures))
        elif arguments.purge:
            figures = asyncio.run(purge.measure(postgres.url, arguments.purge))
            print(purge.table(figures))
        elif arguments.patches:
            pid = int(next(Path(directory).glob("*/postmaster.pid")).read_text().split()[0])
            figures = asyncio.run(patches.measure(postgres.url, psutil.Process(pid)))
            print(patches.table(figures))
        elif arguments.namespaces:
            figures = asyncio.run(namespaces.measure(postgres.url, arguments.namespaces))
            print(namespaces.table(figures))
        elif arguments.storage:
            figures = asyncio.run(storage.measure(postgres.url, arguments.storage))
            print(storage.table(figures))
        else:
            figures = asyncio.run(
                rpcs.measure(
                    postgres.url, arguments.callers, arguments.seconds, arguments.only or ""
                )
            )
            print(rpcs.table(figures))
    name = (
        "driver.json"
        if arguments.driver
        else "purge.json"
        if arguments.purge
        else "patches.json"
        if arguments.patches
        else "namespaces.json"
        if arguments.namespaces
        else "storage.json"
        if arguments.storage
        else "latest.json"
    )
    file: Path = arguments.json or Path(__file__).parent / "results" / name
    file.parent.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "machine": platform.machine()}
    file.write_text(json.dumps({**machine, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
