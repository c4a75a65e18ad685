"""The pictures of the console: those of docs/console.md, and those with which pages are compared.

`python -m tests.console.pictures` takes all of them anew, and `… DIRECTORY` puts them there.

Pages are compared in a font of boxes (boxes.ttf), in which every character is equally wide: so a
page has the same layout wherever it is drawn, and it hardly matters which time or number it shows.
The pictures are a quarter as large as the page. They differ if the average colour of squares of 32
pixels of the page does, so what counts is that something is elsewhere, missing, on top of something
else or in other colours; not how a browser smoothes its lines.

(The font has one glyph, a box of 0.58 em, for all letters, punctuation, arrows and signs, and a
space of 0.32 em. It was made with the FontBuilder of fontTools, and is as free as this file.)
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.console import scene
from tests.console.pages import PAGES, SHOWN, in_namespace
from tests.console.viewing import show
from tests.support.admin import AdminServer
from tests.support.browser import Browser, Tab, started

SEEN: Final = Path(__file__).with_name("seen")
"""What the pages look like, by view and page."""

DOCS: Final = {
    "overview": 760,
    "workflow": 810,
    "timeline": 600,
}
"""The pictures of the docs, `console-….png`, and how high they are."""

VIEWS: Final = {
    "light-1280": (1280, 900, False),
    "dark-1280": (1280, 900, True),
    "light-390": (390, 844, False),
    "dark-390": (390, 844, True),
}
"""How pages are looked at: width, height, and whether in dark colours."""

MOST_DIFFERENT: Final = 0.02
"""How much of a page, as a part of its squares, may look different from its picture."""

_SCALE: Final = 0.25
_FONT: Final = Path(__file__).with_name("boxes.ttf")
# How high the bars of a plot are depends on when the scene was made.
_STYLE: Final = """
    * { font-family: Boxes !important; caret-color: transparent !important; }
    .plot > * { visibility: hidden; }
"""
_SCRIPT: Final = Path(__file__).with_name("pictures.js")
_SQUARE: Final = 8
_APART: Final = 20


@dataclass(frozen=True, slots=True)
class Camera:
    """A tab that takes pictures of pages."""

    tab: Tab
    width: int
    height: int

    def take(self) -> bytes:
        """What is seen now, as a small PNG in boxes. The page is not to be used afterwards."""
        font = base64.b64encode(_FONT.read_bytes()).decode()
        _run(self.tab, "boxes", font, _STYLE)
        clip = {"x": 0, "y": 0, "width": self.width, "height": self.height, "scale": _SCALE}
        taken = self.tab.call("Page.captureScreenshot", format="png", clip=clip)
        return base64.b64decode(taken["data"])


@contextmanager
def camera(browser: Browser, view: str) -> Iterator[Camera]:
    """A tab for one of `VIEWS`, in which nothing may go wrong."""
    width, height, dark = VIEWS[view]
    tab = browser.tab(width=width, height=height, dark=dark)
    yield Camera(tab, width, height)
    assert tab.problems == []
    tab.close()


def differences(browser: Browser, pictures: Mapping[str, tuple[bytes, bytes]]) -> dict[str, float]:
    """How much of each pair of pictures looks different, from 0 to 1."""
    tab = browser.tab()
    found: dict[str, float] = {}
    for name, both in pictures.items():
        encoded = [base64.b64encode(one).decode() for one in both]
        found[name] = _run(tab, "difference", encoded, _SQUARE, _APART)
    tab.close()
    return found


def _run(tab: Tab, name: str, *arguments: object) -> Any:
    """Call one of the functions in pictures.js."""
    return tab.run(f"{_SCRIPT.read_text()}.{name}(...{json.dumps(arguments)})")


def see(tab: Tab, server: AdminServer, name: str) -> None:
    """Open one of `PAGES` with the data of which the pictures are, and wait for all of it."""
    show(tab, server, in_namespace(PAGES[name], scene.SHOP))
    tab.wait("document.querySelector('[aria-label=Namespace]:not([hidden])')")
    for expected in SHOWN[name]:
        tab.wait(f"document.body.innerText.includes({json.dumps(expected)})")


def take_docs(browser: Browser, server: AdminServer, target: Path) -> None:
    """The pictures of the docs, in a directory."""
    for name, height in DOCS.items():
        tab = browser.tab(width=1280, height=height)
        see(tab, server, name)
        tab.wait("document.querySelector('[data-on=yes]')")
        tab.screenshot(target / f"console-{name}.png")
        assert tab.problems == []
        tab.close()


def take_seen(browser: Browser, server: AdminServer, target: Path) -> None:
    """The pictures with which pages are compared, in a directory."""
    for view in VIEWS:
        (target / view).mkdir(parents=True, exist_ok=True)
        with camera(browser, view) as looking:
            for name in PAGES:
                see(looking.tab, server, name)
                (target / view / f"{name}.png").write_bytes(looking.take())


@contextmanager
def served(directory: Path, *, everything: bool = False) -> Iterator[AdminServer]:
    """A server with a shop, and with what is large and hostile if it is asked for."""
    server = AdminServer(
        directory / "log",
        "--data-dir",
        str(directory / "data"),
        "--console",
        "--console-write",
        "--slow-call",
        "0",
    )
    with server:
        asyncio.run(scene.make(server.address, directory, everything=everything))
        yield server


if __name__ == "__main__":
    with (
        tempfile.TemporaryDirectory() as made,
        served(Path(made)) as shop,
        started(Path(made) / "profile") as browser,
    ):
        elsewhere = [Path(argument) for argument in sys.argv[1:]]
        take_docs(browser, shop, elsewhere[0] if elsewhere else scene.ROOT / "docs")
        take_seen(browser, shop, elsewhere[0] / "seen" if elsewhere else SEEN)
