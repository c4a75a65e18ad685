"""Draw the dashboard with what was recorded, for docs/monitoring.md. It is not Grafana that draws.

python docs/drawn_dashboard.py FILE PICTURE    FILE: what tests/deploy/recorded.py has written

Panels, their places, titles, units and stacking are those of deploy/monitoring/dashboard.json.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter

DASHBOARD: Final = Path(__file__).parents[1] / "deploy" / "monitoring" / "dashboard.json"

# Inches of one cell of Grafana's grid.
_CELL: Final = (0.68, 0.34)

# Lines that the legend has room for.
_MOST: Final = 8

_SUFFIX: Final = {
    "reqps": " req/s", "ops": " ops/s", "rowsps": " rows/s", "Bps": "B/s", "bytes": "B",
    "short": "", "s": "s",
}  # fmt: skip


def shown(value: float, unit: str) -> str:
    """A value as Grafana writes it."""
    if unit == "s":
        for factor, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if value >= factor:
                return f"{value / factor:.3g} {name}"
        return "0 s"
    for factor, prefix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{prefix}{_SUFFIX[unit]}"
    return f"{value:.3g}{' ' if unit in ('bytes', 'Bps') else ''}{_SUFFIX[unit]}"


def draw_panel(axes: Any, panel: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """One graph."""
    defaults = panel["fieldConfig"]["defaults"]
    lines = sorted(lines, key=lambda line: -max((v for _, v in line["points"]), default=0))
    times = sorted({at for line in lines for at, _ in line["points"]})
    dates = [datetime.fromtimestamp(at, UTC) for at in times]
    values = [
        np.array([dict(line["points"]).get(at, np.nan) for at in times], float) for line in lines
    ]
    colours = mpl.colormaps["tab20"].colors
    if defaults["custom"]["stacking"]["mode"] == "normal":
        axes.stackplot(dates, *map(np.nan_to_num, values), colors=colours, alpha=0.75, linewidth=0)
        handles = [mpl.patches.Patch(color=colours[i % 20]) for i in range(len(lines))]
    else:
        handles = [
            axes.plot(dates, each, color=colours[2 * i % 20], linewidth=1.2)[0]
            for i, each in enumerate(values)
        ]
    axes.set_title(panel["title"], loc="left", fontsize=9, fontweight="bold")
    axes.set_ylim(bottom=0)
    if dates and not any(np.nansum(each) for each in values):
        axes.set_ylim(top=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: shown(v, defaults["unit"])))
    axes.xaxis.set_major_locator(mdates.AutoDateLocator(minticks=3, maxticks=8))
    axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M"))
    axes.tick_params(labelsize=7, length=2, colors="#555")
    axes.grid(color="#ddd", linewidth=0.5)
    for side in axes.spines.values():
        side.set_visible(False)
    names = [line["legend"] for line in lines]
    more = [f"and {len(names) - _MOST} more"] if len(names) > _MOST else []
    axes.legend(
        handles[:_MOST] + [mpl.patches.Patch(alpha=0)] * len(more), names[:_MOST] + more,
        loc="upper left", bbox_to_anchor=(0, -0.12), ncol=2, fontsize=6, frameon=False,
        handlelength=1, columnspacing=1, labelspacing=0.3, borderaxespad=0,
    )  # fmt: skip


def draw(recorded: dict[str, Any], picture: Path) -> None:
    """The whole dashboard."""
    dashboard = json.loads(DASHBOARD.read_text())
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"]) + 1
    width, height = 24 * _CELL[0], rows * _CELL[1]
    figure = plt.figure(figsize=(width, height), facecolor="#f4f5f5")
    begin, end = (datetime.fromtimestamp(recorded[each], UTC) for each in ("start", "end"))
    figure.text(
        0.01, 1 - 0.5 / rows, f"{dashboard['title']}  ·  {begin:%Y-%m-%d %H:%M} to {end:%H:%M} UTC",
        fontsize=11, fontweight="bold", va="center",
    )  # fmt: skip
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        left, top = at["x"] / 24, 1 - (at["y"] + 1) / rows
        if panel["type"] == "row":
            figure.text(0.01, top - 0.6 / rows, f"⌄ {panel['title']}", fontsize=10, va="center")
            continue
        box = (
            left + 0.004,
            top - (at["h"] - 0.15) / rows,
            at["w"] / 24 - 0.008,
            (at["h"] - 0.3) / rows,
        )
        figure.add_artist(
            mpl.patches.Rectangle(box[:2], *box[2:], facecolor="white", edgecolor="#ddd", zorder=-1)
        )
        axes = figure.add_axes(
            (
                left + 0.046,
                top - (at["h"] - 2.9) / rows,
                at["w"] / 24 - 0.058,
                (at["h"] - 4.1) / rows,
            )
        )
        axes.set_facecolor("white")
        draw_panel(axes, panel, recorded["panels"][str(panel["id"])])
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
