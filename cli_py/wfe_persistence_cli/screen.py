"""Where a command writes: stdout, as wide as it is, in colour if it is a terminal that likes it.

What is written is the same with and without `rich`, which only adds the colours: without it, or
where stdout is no terminal, or `NO_COLOR` is set, it is plain text, unless `--color` says
otherwise. What is no terminal gets everything in full, because it may be `grep` that reads it.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from io import TextIOWrapper
from typing import Any, Final

import click

from wfe_persistence_cli.text import cut, harmless, isolated, width_of, wrapped

STYLES: Final = {
    "title": "bold",
    "faint": "dim",
    "good": "green",
    "running": "cyan",
    "waiting": "blue",
    "held": "yellow",
    "bad": "red",
    "worst": "bold red",
}
"""What a style looks like: colours of the terminal's palette, so that they fit its background."""

STATUS_STYLES: Final = {
    "RUNNABLE": "running",
    "SUSPENDED": "held",
    "COMPLETE": "good",
    "TERMINATED": "bad",
    "PENDING": "faint",
    "RUNNING": "running",
    "SKIPPED": "faint",
    "SLEEPING": "waiting",
    "WAITING_FOR_EVENT": "waiting",
    "FAILED": "worst",
    "COMPENSATED": "held",
    "CANCELLED": "held",
    "PENDING_PREDECESSOR": "faint",
    "WAITING": "waiting",
    "DELAYED": "faint",
    "LEASED": "running",
    "DEAD": "worst",
}
"""The style of a status: of workflows, of pointers and of items of queues."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of text from a store or of our own, and how it looks."""

    text: str
    style: str = ""

    @property
    def shown(self) -> str:
        """The text, made harmless."""
        return harmless(self.text)


def status_cell(name: str) -> Cell:
    """A status in its colour."""
    return Cell(name, STATUS_STYLES.get(name, ""))


class Screen:
    """stdout. `color`: whether in colour; None: if it is a terminal that likes it."""

    def __init__(self, color: bool | None = None) -> None:
        self._color = color
        self.is_terminal = sys.stdout.isatty()
        if isinstance(sys.stdout, TextIOWrapper):
            # Who has an encoding that lacks a character sees its number.
            sys.stdout.reconfigure(errors="backslashreplace")

    @property
    def width(self) -> int | None:
        """How many cells a line has; None: any number."""
        return shutil.get_terminal_size().columns if self.is_terminal else None

    @cached_property
    def _colours(self) -> Any:
        wanted = self._color
        if wanted is None:
            is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
            wanted = self.is_terminal and not is_plain
        if not wanted or not find_spec("rich"):
            return None
        from rich.console import Console

        console = Console(
            highlight=False,
            markup=False,
            emoji=False,
            force_terminal=self._color,
            color_system="standard" if self._color else "auto",
            no_color=False if self._color else None,
        )
        return console if console.color_system else None

    def line(self, *parts: Cell | str, width: int | None = None) -> None:
        """Write a line; what does not fit in `width` cells, if it is given, is cut off."""
        cells = [part if isinstance(part, Cell) else Cell(part) for part in parts]
        texts = [cell.shown for cell in cells]
        if width is not None:
            texts = _cut(texts, width)
        if self._colours is None:
            if self.is_terminal:
                click.echo("".join(map(isolated, texts)).rstrip())
            else:
                self.raw("".join(texts).rstrip())
            return
        from rich.text import Text

        whole = Text()
        for cell, text in zip(cells, texts, strict=True):
            whole.append(isolated(text), STYLES.get(cell.style, ""))
        whole.rstrip()
        self._colours.print(whole, soft_wrap=True)

    def paragraph(self, text: str, style: str = "", *, indent: int = 2) -> None:
        """Write a text on as many lines as it takes."""
        lines = [harmless(text)]
        if self.width is not None:
            lines = wrapped(lines[0], max(self.width - indent - 2, 20))
        for i, line in enumerate(lines):
            self.line(" " * (indent + 2 * bool(i)), Cell(line, style))

    def raw(self, text: str) -> None:
        """Write a line as it is."""
        sys.stdout.write(text + "\n")
        if self.is_terminal:
            sys.stdout.flush()

    def clear(self) -> None:
        """Begin at the top of an empty screen, if it is a terminal."""
        if self.is_terminal:
            click.clear()


def _cut(texts: list[str], width: int) -> list[str]:
    left = width
    fitting = []
    for i, text in enumerate(texts):
        more = any(rest.strip() for rest in texts[i + 1 :])
        if width_of(text) > left or (width_of(text) == left and more):
            # (The ellipsis stands for what comes after it, too.)
            fitting.append(cut(text + ("  " if more else ""), left))
            left = 0
        else:
            fitting.append(text)
            left -= width_of(text)
    return fitting


def tell(*lines: str) -> None:
    """Say something beside the output, on stderr."""
    for line in lines:
        click.echo(harmless(line), err=True)
