"""Keyset paging: a page ends with the key of its last row, and the next one starts after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")

Cursor = tuple[int, str]
"""The key of the last row of a page: a number (time in ms or µs, or a row's number) and an id."""

START: Final[Cursor] = (-(2**63), "")
"""Before the first row of any ascending list."""
END: Final[Cursor] = (2**63 - 1, "")
"""Before the first row of any descending list."""


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some rows of a list, and the cursor behind them; None: these were the last."""

    items: list[Item]
    next: Cursor | None


def cut(items: list[Item], cursors: list[Cursor], page_size: int) -> Page[Item]:
    """The page out of up to `page_size + 1` rows; the one too many tells that there is more."""
    if len(items) <= page_size:
        return Page(items, None)
    return Page(items[:page_size], cursors[page_size - 1])
