"""Draw what a soak has found out, for docs/performance.md.

python docs/drawn_soak.py FILE PICTURE    FILE: what `./run soak` has written
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
from numpy import nanmean

# Lines that a legend has room for.
_MOST: Final = 9


def _lines(
    axes: Any, minutes: list[float], named: dict[str, list[float]], style: str = "-"
) -> None:
    """A line for each, of those that are highest on average."""
    chosen = sorted(named, key=lambda name: -nanmean(named[name]))[:_MOST]
    for number, name in enumerate(chosen):
        axes.plot(minutes, named[name], style, linewidth=1.1, label=name, color=f"C{number}")
    axes.legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw(results: dict[str, Any], picture: Path) -> None:
    """All graphs of a soak."""
    figures, samples = results["figures"], results["samples"]
    minutes = [each["seconds"] / 60 for each in samples]
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure, grid = plt.subplots(4, 2, figsize=(13, 12), layout="constrained")
    rpcs = sorted(figures["rpcs"])

    def series(rpc: str, which: int) -> list[float]:
        return [each["took"].get(rpc, (float("nan"),) * 2)[which] for each in samples]

    for axes, which, title in ((grid[0][0], 0, "median"), (grid[0][1], 1, "99th percentile")):
        _lines(axes, minutes, {rpc: series(rpc, which) for rpc in rpcs})
        axes.set_title(f"{title} of calls, ms (the slowest {_MOST})", loc="left")
        axes.set_yscale("log")
        axes.grid(axis="y", color="#ddd", linewidth=0.5)

    axes = grid[1][0]
    ratios = [figures["rpcs"][rpc]["p99_to_p50"] for rpc in rpcs]
    axes.barh(rpcs, ratios, color=["C3" if ratio > 5 else "C0" for ratio in ratios])
    axes.axvline(5, color="#888", linewidth=0.8, linestyle="--")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set_title("99th percentile / median, over all", loc="left")

    axes = grid[1][1]
    axes.plot(minutes, [each["memory_bytes"] / 1e6 for each in samples], linewidth=1.1)
    axes.set_ylim(bottom=0)
    axes.set_title("memory of the server, MB", loc="left")

    tables = sorted(samples[-1]["tables"])

    def of_tables(*columns: str) -> dict[str, list[float]]:
        return {
            name: [sum(each["tables"][name][column] for column in columns) for each in samples]
            for name in tables
        }

    sizes = {
        name: [(value - values[0]) / 1e6 for value in values]
        for name, values in of_tables("table_bytes", "index_bytes").items()
    }
    _lines(grid[2][0], minutes, sizes)
    grid[2][0].set_title("growth of tables with their indexes, MB", loc="left")
    _lines(grid[2][1], minutes, of_tables("dead"))
    grid[2][1].set_title("dead rows", loc="left")
    vacuums = {
        name: [value - values[0] for value in values]
        for name, values in of_tables("autovacuums").items()
    }
    _lines(grid[3][0], minutes, vacuums)
    grid[3][0].set_title("autovacuums", loc="left")

    axes = grid[3][1]
    seconds = [each["seconds"] for each in samples]
    rates = [
        (b["wal_bytes"] - a["wal_bytes"]) / 1e6 / (b["seconds"] - a["seconds"])
        for a, b in pairwise(samples)
    ]
    axes.plot([each / 60 for each in seconds[1:]], rates, linewidth=1.1, label="WAL, MB/s")
    for a, b in pairwise(samples):
        if b["checkpoints"] > a["checkpoints"]:
            axes.axvline(b["seconds"] / 60, color="#bbb", linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.set_title("WAL, MB/s (dotted: a checkpoint)", loc="left")
    for axes in (*grid[2], *grid[3]):
        axes.set_xlabel("minutes")
    figure.suptitle(
        f"{figures['workflows']:,} workflows, {figures['operations_per_second']:.0f} of at most "
        f"{figures['highest_operations_per_second']:.0f} operations/s, {figures['calls']:,} calls",
        fontsize=10,
    )
    figure.savefig(picture, dpi=90, metadata={"Software": None})


def main() -> None:
    """Draw, as the arguments say."""
    match sys.argv[1:]:
        case [file, picture]:
            draw(json.loads(Path(file).read_text()), Path(picture))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
