"""Take the pictures of docs/console.md: `python -m tests.console.pictures`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.console import scene
from tests.console.viewing import show
from tests.support.admin import AdminServer
from tests.support.browser import started

PICTURES: Final = {
    "overview": "",
    "workflow": "workflow?id=order-1042",
    "timeline": "workflow?id=order-1042&tab=timeline",
}
_HEIGHT: Final = {"overview": 760, "workflow": 810, "timeline": 600}


@contextmanager
def served(directory: Path, *, everything: bool = False) -> Iterator[AdminServer]:
    """A server with a shop, and with what is large and hostile if it is asked for."""
    server = AdminServer(
        directory / "log", "--data-dir", str(directory / "data"), "--console", "--slow-call", "0"
    )
    with server:
        asyncio.run(scene.make(server.address, directory, everything=everything))
        yield server


def take(server: AdminServer, profile: Path, target: Path) -> None:
    """The pictures, as `console-….png` in a directory."""
    with started(profile) as browser:
        for name, page in PICTURES.items():
            tab = browser.tab(width=1280, height=_HEIGHT[name])
            show(tab, server, page)
            tab.wait("document.querySelector('[data-on=yes]')")
            tab.screenshot(target / f"console-{name}.png")
            assert tab.problems == []
            tab.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory, served(Path(directory)) as shop:
        take(shop, Path(directory) / "profile", scene.ROOT / "docs")
