"""`./run soak`: mixed load at half of the highest rate, for a long time, on a large store.

It starts an embedded PostgreSQL and a server of its own, fills the store by SQL, finds out how many
operations a second are done at most (callers that wait for each answer), and then begins half as
many, evenly, however long the others take. A call counts from when its operation was due, so what
comes late because the server has stood still counts as well; so does what the load itself is late
by, which the results name. Autovacuum, checkpoints and retention are at work as they are by
default, but the large tables are vacuumed at 1 % dead rows, as docs/scaling.md advises; retention
deletes workflows a minute after their end, and lifecycle events are kept for as long.

Results are written every minute, and when it is interrupted (Ctrl-C, SIGTERM), it fails or the disk
limit is reached. The data is deleted at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final, NoReturn

import psutil
import psycopg

from benchmarks.soak.load import Load, Took
from benchmarks.soak.store import fill, look
from tests.support.api import Api, connect
from tests.support.server import ServerProcess
from wfe_persistence.embedded import EmbeddedPostgres

_ROOT: Final = Path(__file__).parents[2]
_DRAW: Final = (str(_ROOT / ".tools/docs/bin/python"), str(_ROOT / "docs/drawn_soak.py"))
_CHANNELS: Final = 4
_CALLERS: Final = 32
_SAMPLES: Final = 180
_SAVE_SECONDS: Final = 60.0

# With fewer rows a table is mostly what has been in it.
_MANY: Final = 1000


def main() -> None:
    """Parses the options, runs the soak, saves the results and draws them."""
    parser = argparse.ArgumentParser(
        prog="./run soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of load (default 30)")
    parser.add_argument(
        "--workflows", type=int, default=1_000_000, help="in the store (default 1000000)"
    )
    parser.add_argument(
        "--rate", type=float, help="operations a second (default: half of the highest)"
    )
    parser.add_argument(
        "--find-seconds", type=float, default=30.0, help="to find the highest rate in (default 30)"
    )
    parser.add_argument(
        "--max-gb", type=float, default=18.0, help="of disk, before it ends (default 18)"
    )
    parser.add_argument("--directory", type=Path, help="for the data (default: a temporary one)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", default=_ROOT / "benchmarks/results/soak.json",
        help="file for the results (default benchmarks/results/soak.json)",
    )  # fmt: skip
    parser.add_argument(
        "--picture", type=Path, metavar="FILE", default=_ROOT / "docs/soak.png",
        help="file for their picture (default docs/soak.png)",
    )  # fmt: skip
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    soak = Soak(arguments)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="wfe-soak-", dir=arguments.directory) as name,
            EmbeddedPostgres(Path(name) / "data") as postgres,
        ):
            asyncio.run(soak.run(Path(name), postgres))
    except KeyboardInterrupt:
        soak.ended = soak.ended or "interrupted"
    finally:
        if soak.samples:
            soak.save()
            print(soak.table())
            if Path(_DRAW[0]).exists():  # as `./run soak` sees to
                subprocess.run([*_DRAW, str(arguments.json), str(arguments.picture)], check=False)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


class Soak:
    """One soak, with what it has found out so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._began = datetime.now(UTC)
        self._took: dict[str, Took] = {}
        self._late = Took()
        self._load: Load
        self.samples: list[dict[str, Any]] = []
        self.about: dict[str, Any] = {}
        self.ended = ""
        """Why it has ended before its time."""

    async def run(self, directory: Path, postgres: EmbeddedPostgres) -> None:
        """Fill the store, and load the server."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            server = stack.enter_context(
                ServerProcess(directory / "log", "--db-url", postgres.url,
                              "--lifecycle-retention",
                    "60",
                    "--retention-seconds", "10")
            )  # fmt: skip
            seconds = await asyncio.to_thread(fill, postgres, self._arguments.workflows)
            self._say(f"filled in {seconds:.0f} s")
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._end, stop, "interrupted")
            apis = [
                Api(await stack.enter_async_context(
                    connect(server.address, [("grpc.use_local_subchannel_pool", 1)])
                ))
                for _ in range(_CHANNELS)
            ]  # fmt: skip
            self._load = load = Load(apis, self._arguments.workflows)
            await load.prepare(apis[0])
            await load.highest_rate(self._arguments.find_seconds / 3, _CALLERS)
            highest = await load.highest_rate(self._arguments.find_seconds, _CALLERS)
            rate = self._arguments.rate or highest / 2
            self._say(f"at most {highest:.0f} operations a second; going on at {rate:.0f}")
            self.about = {
                "workflows": self._arguments.workflows,
                "fill_seconds": round(seconds, 1),
                "highest_operations_per_second": round(highest, 1),
                "operations_per_second": round(rate, 1),
                "calls_before": load.calls,
            }
            load.renew()
            load.late = self._late
            loading = asyncio.create_task(load.run(rate, stop))
            try:
                await self._sample(stop, server, directory, postgres)
            finally:
                stop.set()
                await loading

    def _end(self, stop: asyncio.Event, why: str) -> None:
        self.ended = why
        stop.set()

    async def _sample(
        self,
        stop: asyncio.Event,
        server: ServerProcess,
        directory: Path,
        postgres: EmbeddedPostgres,
    ) -> None:
        """Look at everything from time to time, until the time is over."""
        minutes = self._arguments.minutes
        pause = max(2.0, minutes * 60 / _SAMPLES)
        process = psutil.Process(server.process.pid)
        begun = saved = time.monotonic()
        with psycopg.connect(postgres.url, autocommit=True) as database:
            while not stop.is_set() and time.monotonic() < begun + minutes * 60:
                try:
                    async with asyncio.timeout(pause):
                        await stop.wait()
                except TimeoutError:
                    pass
                sample = await asyncio.to_thread(
                    lambda: {
                        "memory_bytes": process.memory_info().rss,
                        "cpu_seconds": round(sum(process.cpu_times()[:2]), 2),
                        "disk_bytes": _size(directory),
                        **look(database),
                    }
                )
                took = self._load.renew()
                for rpc, each in took.items():
                    whole = self._took.setdefault(rpc, Took())
                    whole.counts.update(each.counts)
                    whole.most = max(whole.most, each.most)
                self.samples.append(
                    {
                        "seconds": round(time.monotonic() - begun, 1),
                        "calls": self._load.calls - self.about["calls_before"],
                        "took": {
                            rpc: [each.figures()["p50_ms"], each.figures()["p99_ms"]]
                            for rpc, each in sorted(took.items())
                        },
                    }
                    | sample
                )
                if sample["disk_bytes"] > self._arguments.max_gb * 1e9:
                    self._end(stop, "the disk limit was reached")
                if server.process.poll() is not None:
                    self._end(stop, f"the server has ended:\n{server.log()[-2000:]}")
                if time.monotonic() - saved > _SAVE_SECONDS:
                    saved = time.monotonic()
                    self.save()
                    self._say(f"{self.samples[-1]['calls']:,} calls")

    def _figures(self) -> dict[str, Any]:
        samples = self.samples
        tenth = max(1, len(samples) // 10)

        def memory(part: list[dict[str, Any]]) -> float:
            return float(round(median(each["memory_bytes"] for each in part) / 1e6, 2))

        first, last = samples[0], samples[-1]
        return {
            **self.about,
            "ended_early": self.ended,
            "minutes": round(last["seconds"] / 60, 2),
            "calls": last["calls"],
            "memory_mb": {
                "second_tenth": memory(samples[tenth : 2 * tenth] or samples),
                "last_tenth": memory(samples[-tenth:]),
                "most": round(max(each["memory_bytes"] for each in samples) / 1e6, 2),
            },
            "server_cpu": round(
                (last["cpu_seconds"] - first["cpu_seconds"])
                / max(1.0, last["seconds"] - first["seconds"]),
                3,
            ),
            "wal_bytes_per_call": round(
                (last["wal_bytes"] - first["wal_bytes"]) / max(1, last["calls"] - first["calls"])
            ),
            "checkpoints": last["checkpoints"] - first["checkpoints"],
            "autovacuums": {
                name: table["autovacuums"] - first["tables"][name]["autovacuums"]
                for name, table in last["tables"].items()
                if name in first["tables"]
            },
            "bytes_per_row": {
                name: [_bytes_per_row(each["tables"][name]) for each in (first, last)]
                for name in first["tables"]
                if name in last["tables"] and last["tables"][name]["live"] > _MANY
            },
            "failed": dict(self._load.failed),
            "no_item": self._load.idle,
            "load_late": self._late.figures(),
            "rpcs": {rpc: took.figures() for rpc, took in sorted(self._took.items())},
        }

    def save(self) -> None:
        """Write what is known so far."""
        results = {
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "grpcio": version("grpcio"),
            "began": self._began.isoformat(timespec="seconds"),
            "figures": self._figures(),
            "samples": self.samples,
        }
        file: Path = self._arguments.json
        file.parent.mkdir(exist_ok=True, parents=True)
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(results) + "\n")
        fresh.replace(file)

    def table(self) -> str:
        """The figures as text."""
        figures = self._figures()
        rpcs = figures.pop("rpcs")
        lines = [f"{name}: {value}" for name, value in figures.items()]
        lines.append(f"{'':28}{'calls':>10}{'p50 ms':>9}{'p99 ms':>9}{'x':>7}{'most ms':>10}")
        lines += [
            f"{rpc:28}{each['calls']:>10,}{each['p50_ms']:>9.2f}{each['p99_ms']:>9.2f}"
            f"{each['p99_to_p50']:>7.1f}{each['most_ms']:>10.0f}"
            for rpc, each in rpcs.items()
        ]
        return "\n".join(lines)

    def _say(self, text: str) -> None:
        print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


def _bytes_per_row(table: dict[str, int]) -> int:
    """Of a row that is there, with its entries in indexes and what has been left behind."""
    return round((table["table_bytes"] + table["index_bytes"]) / max(1, table["live"]))


def _size(directory: Path) -> int:
    """The bytes of all files below it, some of which may go meanwhile."""
    total = 0
    for parent, _, files in os.walk(directory):
        for name in files:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:
                continue
    return total


if __name__ == "__main__":
    main()
