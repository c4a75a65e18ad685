"""How far a long command has come, on stderr: on a terminal a bar if `rich` is installed, else
lines."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Final, Self

import click

_LINE_SECONDS: Final = 5.0
_BAR_SECONDS: Final = 0.1


progress_option: Final = click.option(
    "--progress/--no-progress",
    default=None,
    help="Show how far it has come, on stderr.  [default: on a terminal]",
)
"""Gives a long command the argument `progress`, for `Progress(shown=…)`."""


class Progress:
    """Shows how many things of how many have been done (0: nobody knows of how many).

    As a context manager. `shown`: None: on a terminal only. `in_bytes`: what is counted is bytes.
    """

    def __init__(
        self,
        doing: str,
        total: int = 0,
        *,
        shown: bool | None = None,
        what: str = "records",
        in_bytes: bool = False,
    ) -> None:
        self._what = what
        self._in_bytes = in_bytes
        self._doing = doing
        self._total = total
        self._is_shown = sys.stderr.isatty() if shown is None else shown
        self._begun = self._said = time.monotonic()
        self._done = 0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._is_shown and sys.stderr.isatty() and find_spec("rich"):
            self._begin_bar()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            # (What was interrupted, or failed, is not done.)
            total = self._done if kind is None else self._total or None
            self._bar.update(self._task, completed=self._done, total=total)
            self._bar.stop()

    @property
    def is_bar(self) -> bool:
        """Whether it is shown as a bar."""
        return self._bar is not None

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self._begun

    def at(self, done: int, of: int | None = None, doing: str = "") -> None:
        """So many have been done. `doing`: what is said of it from now on."""
        self._done = done
        if of is not None:
            self._total = of
        if not self._is_shown:
            return
        now = time.monotonic()
        if self._bar is not None:
            if now >= self._said + _BAR_SECONDS:
                self._said = now
                # (Of nobody knows how many, the bar only moves: a full one says that it is done.)
                total = max(self._total, done) if self._total else None
                self._bar.update(
                    self._task, completed=done, total=total, description=doing or self._doing
                )
        elif now >= self._said + _LINE_SECONDS:
            self._said = now
            about = f" of about {self._total}" if self._total >= done else ""
            rate = done / max(self.seconds, 0.001)
            click.echo(f"{self._doing}: {done}{about} {self._what}, {rate:.0f} a second", err=True)

    def _begin_bar(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn() if self._in_bytes else MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(self._doing, total=self._total or None)
        self._bar.start()
