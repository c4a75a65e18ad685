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


class Progress:
    """Shows how many things of how many have been done (0: nobody knows of how many).

    As a context manager. `shown`: None: on a terminal only.
    """

    def __init__(
        self, doing: str, total: int = 0, *, shown: bool | None = None, what: str = "records"
    ) -> None:
        self._what = what
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
            self._bar.update(self._task, completed=self._done)
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self._begun

    def at(self, done: int, total: int | None = None) -> None:
        """So many have been done."""
        self._done = done
        if total is not None:
            self._total = total
        if not self._is_shown:
            return
        now = time.monotonic()
        if self._bar is not None:
            if now >= self._said + _BAR_SECONDS:
                self._said = now
                self._bar.update(self._task, completed=done, total=max(self._total, done) or None)
        elif now >= self._said + _LINE_SECONDS:
            self._said = now
            of = f" of about {self._total}" if self._total >= done else ""
            rate = done / max(self.seconds, 0.001)
            click.echo(f"{self._doing}: {done}{of} {self._what}, {rate:.0f} a second", err=True)

    def _begin_bar(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(self._doing, total=self._total or None)
        self._bar.start()
