"""Measure how fast the console opens what is large: `python -m tests.console.measured`."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.console.pictures import served
from tests.console.viewing import base
from tests.support.admin import AdminServer
from tests.support.browser import Tab, started

_ROUNDS = 5

_FRAMES = """new Promise(resolve => {
    const graph = document.querySelector(%s);
    let frames = 0;
    const begin = performance.now();
    const step = now => {
        frames += 1;
        graph.scrollTop = (graph.scrollHeight * (now - begin)) / 1000;
        if (now - begin < 1000) requestAnimationFrame(step);
        else resolve(frames);
    };
    requestAnimationFrame(step);
})"""


def _opened(tab: Tab, server: AdminServer, page: str, condition: str) -> float:
    tab.open("about:blank")
    began = time.monotonic()
    tab.open(base(server) + page)
    tab.wait(condition)
    return time.monotonic() - began


def measure(server: AdminServer, profile: Path) -> dict[str, float]:
    """Medians, in seconds; and frames drawn in a second of scrolling."""
    graph, complete = (
        "document.querySelector('.node')",
        "document.body.innerText.includes('10,000')",
    )
    with started(profile) as browser:
        tab = browser.tab()
        _opened(tab, server, "", graph.replace(".node", ".card"))  # what is loaded once
        found = {
            "first steps": [
                _opened(tab, server, "workflow?id=batch-10000", graph) for _ in range(_ROUNDS)
            ],
            "all steps": [
                _opened(tab, server, "workflow?id=batch-10000", complete) for _ in range(_ROUNDS)
            ],
            "frames, graph": [tab.run(_FRAMES % json.dumps(".graph")) for _ in range(_ROUNDS)],
        }
        tab.click("#tab-timeline")
        found["frames, timeline"] = [
            tab.run(_FRAMES % json.dumps(".timeline")) for _ in range(_ROUNDS)
        ]
        found["a document of 1 MB"] = [
            _opened(tab, server, "workflow?id=heavy&tab=data", "document.querySelector('.json li')")
            for _ in range(_ROUNDS)
        ]
        tab.close()
    return {name: round(median(values), 2) for name, values in found.items()}


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as directory,
        served(Path(directory), everything=True) as shop,
    ):
        print(json.dumps(measure(shop, Path(directory) / "profile"), indent=1))
