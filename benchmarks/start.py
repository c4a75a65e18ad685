"""How long a server takes until it serves, and what its processes take while nobody calls.

Each start is a process of its own, as users start it: from the first line of Python until the log
says that it serves. What counts is the processor's time of the server's own processes, PostgreSQL's
not among them; on a machine that is not busy, the time on the clock is little more. Modules are
compiled before, as in an installation. Memory is looked at two seconds later: RSS, and PSS, in
which what several processes share counts only once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

Figures = list[dict[str, Any]]

_IDLE_SECONDS: Final = 2.0
_ONE: Final = "serving on "
_ALL: Final = "all workers are serving on "
_WORKER: Final = "wfe_persistence.cli.worker"


def measure(url: str, rounds: int) -> Figures:
    """Starts servers in each of the ways in turn; the first round does not count."""
    with tempfile.TemporaryDirectory(prefix="wfe-start-") as name:
        directory = Path(name)
        environment = {
            **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
            "PYTHONPYCACHEPREFIX": str(directory / "compiled"),
        }
        ways: dict[str, tuple[str, ...]] = {
            "an existing store": ("--db-url", url),
            "an existing store, 2 workers": ("--db-url", url, "--workers", "2"),
            "embedded, existing data": ("--data-dir", str(directory / "kept")),
            "embedded, no data yet": ("--data-dir", str(directory / "new{}")),
        }
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for round_ in range(rounds + 1):
            for way, options in ways.items():
                figures = _start([each.format(round_) for each in options], environment)
                if round_:
                    found[way].append(figures)
    return [
        {"way": way} | {key: median(each[key] for each in starts) for key in starts[0]}
        for way, starts in found.items()
    ]


def _start(options: Sequence[str], environment: dict[str, str]) -> dict[str, float]:
    """One start."""
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "wfe_persistence", "serve", "--listen", "127.0.0.1:0", *options],
        stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            wanted = _ALL if "--workers" in options else _ONE
            said = []
            for line in process.stderr:
                said.append(line)
                if wanted in line and (wanted == _ALL or _ALL not in line):
                    break
            else:
                raise RuntimeError(f"the server has not started:\n{''.join(said)}")
            seconds = time.perf_counter() - begun
            main = psutil.Process(process.pid)
            workers = [each for each in main.children() if _WORKER in each.cmdline()]
            cpu = [sum(each.cpu_times()[:2]) for each in (main, *workers)]
            time.sleep(_IDLE_SECONDS)
            memory = [each.memory_full_info() for each in workers or [main]]
            supervisor = main.memory_full_info() if workers else None
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()
    figures = {
        "seconds": seconds,
        "cpu_seconds": sum(cpu),
        "rss_mb": max(each.rss for each in memory) / 1e6,
        "pss_mb": max(each.pss for each in memory) / 1e6,
    }
    if supervisor:
        figures |= {
            "supervisor_rss_mb": supervisor.rss / 1e6,
            "supervisor_pss_mb": supervisor.pss / 1e6,
        }
    return figures


def table(figures: Figures) -> str:
    """The figures as text."""
    lines = [f"{'':32}{'s':>8}{'CPU s':>8}{'RSS MB':>8}{'PSS MB':>8}  supervisor"]
    for row in figures:
        supervisor = ""
        if "supervisor_rss_mb" in row:
            supervisor = f"  {row['supervisor_rss_mb']:.0f}, {row['supervisor_pss_mb']:.0f} MB"
        lines.append(
            f"{row['way']:32}{row['seconds']:8.2f}{row['cpu_seconds']:8.2f}"
            f"{row['rss_mb']:8.1f}{row['pss_mb']:8.1f}{supervisor}"
        )
    return "\n".join(lines)
