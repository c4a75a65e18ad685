"""Tables: rows in columns that are as wide as what is in them, and fit on the screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from wfe_persistence_cli.screen import Cell, Screen
from wfe_persistence_cli.text import cut, width_of

_GAP: Final = "  "
# How columns are narrowed, one after the other: only those that shrink, and down to which width.
_STAGES: Final = ((True, 8), (False, 8), (False, 3))

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class Column(Generic[RowT]):
    """A column of a table."""

    title: str
    of: Callable[[RowT], Cell | str | int]
    """What it shows of a row."""
    wide: bool = False
    """Whether only `-o wide` has it."""
    shrinks: bool = False
    """Whether it is narrowed where the screen is too narrow; else only if that is not enough."""
    right: bool = False
    """Whether it is aligned to the right."""


class Table(Generic[RowT]):
    """A table that is written in parts, as its rows come; its columns only become wider."""

    def __init__(
        self, screen: Screen, columns: Sequence[Column[RowT]], *, wide: bool = False
    ) -> None:
        self._screen = screen
        self._columns = [column for column in columns if wide or not column.wide]
        self._width = None if wide else screen.width
        self._widths = [len(column.title) for column in self._columns]
        self._begun = False

    def add(self, rows: Sequence[RowT]) -> None:
        """Write rows; the headings before the first."""
        cells = [[_cell(column.of(row)) for column in self._columns] for row in rows]
        for i in range(len(self._columns)):
            longest = max((width_of(row[i].shown) for row in cells), default=0)
            self._widths[i] = max(self._widths[i], longest)
        widths = self._fitting()
        if not self._begun:
            self._begun = True
            self._write([Cell(column.title, "title") for column in self._columns], widths)
        for row in cells:
            self._write(row, widths)

    def _write(self, cells: list[Cell], widths: list[int]) -> None:
        parts: list[Cell | str] = []
        for column, cell, width in zip(self._columns, cells, widths, strict=True):
            text = cut(cell.shown, width)
            space = " " * (width - width_of(text))
            if parts:
                parts.append(_GAP)
            shown: list[Cell | str] = [Cell(text, cell.style), space]
            parts += reversed(shown) if column.right else shown
        self._screen.line(*parts)

    def _fitting(self) -> list[int]:
        """The widths, narrowed so that they fit on the screen."""
        widths = list(self._widths)
        if self._width is None:
            return widths
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - self._width
        for only_shrinking, narrowest in _STAGES:
            while excess > 0:
                candidates = [
                    i
                    for i, column in enumerate(self._columns)
                    if (column.shrinks or not only_shrinking) and widths[i] > narrowest
                ]
                if not candidates:
                    break
                widest = max(candidates, key=lambda i: widths[i])
                widths[widest] -= 1
                excess -= 1
        return widths


def _cell(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    return Cell(f"{value:,}" if isinstance(value, int) else value)
