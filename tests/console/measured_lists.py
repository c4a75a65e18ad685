"""Measure whether lists take longer in a large store: `python -m tests.console.measured_lists`.

The same pages of the console are opened in a store of 10,000 and in one of 1,000,000 workflows,
filled alike (`tests/support/growth.py`): what is asked for is rare, or old, or behind what is not.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from urllib.parse import quote

import psycopg

from tests.console.viewing import READY, base
from tests.support import binaries, growth
from tests.support.admin import AdminServer
from tests.support.browser import Tab, started
from tests.support.postgres import PostgresServer

_SIZES = (10_000, 1_000_000)
_ROUNDS = 5
_DEEP = 200
"""How many pages deep the deep page is: of 10,000 workflows it is the last but few."""

PAGES: Mapping[str, str] = {
    "the first page": "workflows",
    "oldest first": "workflows?order=oldest",
    "suspended": "workflows?status=suspended",
    "a rare definition": "workflows?definition=rare",
    "an old name": "workflows?name=old1",
    "terminated within the hour": "workflows?status=terminated&ended=3600",
    "who waits for an event": "workflows?event=open",
    "with errors within the hour": "workflows?errors=3600",
    "stuck": "workflows?stuck=3600",
    "the overview": "",
    "events": "events",
}


def _opened(tab: Tab, address: str) -> float:
    tab.open("about:blank")
    began = time.monotonic()
    tab.open(address)
    tab.wait(READY)
    return time.monotonic() - began


def _deep(server: AdminServer) -> str:
    """The address of a page that is deep in the list."""
    found = json.loads(server.get("/console/api/workflows").text)
    for _ in range(_DEEP):
        if not found["next"]:
            break
        cursor = found["next"]
        found = json.loads(server.get(f"/console/api/workflows?cursor={quote(cursor)}").text)
    return f"workflows?cursor={quote(cursor)}"


def measure(size: int, directory: Path) -> dict[str, float]:
    """Medians, in seconds, until a page is there."""
    directory.chmod(0o755)
    with (
        PostgresServer(binaries.postgres(18), directory / "postgres") as postgres,
        AdminServer(directory / "log", "--db-url", postgres.url, "--console") as server,
    ):
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            for _ in growth.fill(connection, size):
                pass
        pages = {**PAGES, f"{_DEEP} pages deep": _deep(server)}
        with started(directory / "profile") as browser:
            tab = browser.tab()
            found = {}
            for what, page in pages.items():
                _opened(tab, base(server) + page)  # what is loaded once
                times = [_opened(tab, base(server) + page) for _ in range(_ROUNDS)]
                found[what] = round(median(times), 3)
            tab.close()
    return found


if __name__ == "__main__":
    by_size = {}
    for size in _SIZES:
        with tempfile.TemporaryDirectory() as made:
            by_size[size] = measure(size, Path(made))
    print(f"| | {' | '.join(f'{size:,}' for size in _SIZES)} workflows |")
    print(f"|---|{'--:|' * len(_SIZES)}")
    for what in by_size[_SIZES[0]]:
        print(f"| {what} | {' | '.join(f'{by_size[size][what]:.2f} s' for size in _SIZES)} |")
