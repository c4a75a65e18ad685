"""The forms in which commands show things: a table, or JSON and YAML for programs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import wraps
from importlib.util import find_spec
from typing import Any, Final, TypeVar

import click

from wfe_persistence_cli.screen import Screen, tell
from wfe_persistence_cli.table import Column, Table

FORMS: Final = ("table", "wide", "json", "yaml")
COLORS: Final = {"auto": None, "always": True, "never": False}

# So many rows decide how wide columns are; those of a longer list may become wider later.
_ROWS: Final = 1000

RowT = TypeVar("RowT")


class Output:
    """stdout, and the form in which things are shown there."""

    def __init__(self, form: str, color: bool | None = None) -> None:
        self._form = form
        self.screen = Screen(color)

    @property
    def is_data(self) -> bool:
        """Whether it is for a program."""
        return self._form in ("json", "yaml")

    @property
    def is_wide(self) -> bool:
        """Whether everything is shown, however long the lines become."""
        return self._form == "wide"

    def one(self, value: Any) -> None:
        """Write one thing for a program."""
        from wfe_persistence_cli.data import json_lines, plain, yaml_lines

        for line in (json_lines if self._form == "json" else yaml_lines)(plain(value)):
            self.screen.raw(line)

    def each(self, value: Any) -> None:
        """Write one of things that come one by one, without end: a line of JSON, or a document of
        YAML."""
        from wfe_persistence_cli.data import one_line, plain, yaml_lines

        if self._form == "json":
            self.screen.raw(one_line(plain(value)))
        else:
            self.screen.raw("---")
            for line in yaml_lines(plain(value)):
                self.screen.raw(line)

    async def list(
        self,
        rows: AsyncIterator[RowT],
        columns: Sequence[Column[RowT]],
        *,
        limit: int,
        what: str,
    ) -> None:
        """Write a list as its items come; at most `limit` of them (0: all), and a word on stderr if
        there are more. A list for programs is one document, an item of JSON a line."""
        taken = _Taken(rows, limit)
        if self.is_data:
            await self._data(taken)
        else:
            table = Table(self.screen, columns, wide=self.is_wide)
            batch: list[RowT] = []
            async for row in taken:
                batch.append(row)
                if len(batch) == _ROWS:
                    table.add(batch)
                    batch = []
            if batch:
                table.add(batch)
        if taken.count == 0:
            if not self.is_data:
                tell(f"no {what}")
        elif taken.has_more:
            more = f"--limit {limit * 10} or --all"
            tell(f"The first {taken.count} are shown; there are more: {more}")

    async def _data(self, rows: AsyncIterator[Any]) -> None:
        from wfe_persistence_cli.data import one_line, plain, yaml_item

        if self._form == "yaml":
            count = 0
            async for row in rows:
                count += 1
                for line in yaml_item(plain(row)):
                    self.screen.raw(line)
            if not count:
                self.screen.raw("[]")
            return
        last = ""
        async for row in rows:
            self.screen.raw(f"{last}," if last else "[")
            last = one_line(plain(row))
        if last:
            self.screen.raw(last)
        self.screen.raw("]" if last else "[]")


class _Taken(AsyncIterator[RowT]):
    """As many rows as are wanted, and whether there are more."""

    def __init__(self, rows: AsyncIterator[RowT], limit: int) -> None:
        self._rows = rows
        self._limit = limit
        self.count = 0
        self.has_more = False

    def __aiter__(self) -> AsyncIterator[RowT]:
        return self

    async def __anext__(self) -> RowT:
        if self._limit and self.count >= self._limit:
            async for _ in self._rows:
                self.has_more = True
                break
            raise StopAsyncIteration
        row = await anext(self._rows)
        self.count += 1
        return row


def page_size(limit: int) -> int:
    """The number of items per page for a list of which at most so many are shown: one more, to know
    whether there are more."""
    return min(limit + 1, 1000) if limit else 1000


def output_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options `-o` and `--color`; it takes them as the argument `output`."""

    @wraps(command)
    def with_output(output: str, color: str, **arguments: Any) -> None:
        if color == "always" and find_spec("rich") is None:
            raise click.UsageError("--color always needs the package rich")
        command(output=Output(output, COLORS[color]), **arguments)

    with_output = click.option(
        "--color",
        type=click.Choice(list(COLORS)),
        default="auto",
        show_default=True,
        help="Whether in colour: `auto` is for terminals, if NO_COLOR is not set.",
    )(with_output)
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMS),
        default="table",
        show_default=True,
        help="How to show it: `wide` has more columns and cuts nothing off.",
    )(with_output)


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options `--limit` and `--all`; it takes them as the argument `limit`."""

    @wraps(command)
    def with_limit(limit: int, all_: bool, **arguments: Any) -> None:
        command(limit=0 if all_ else limit, **arguments)

    with_limit = click.option("--all", "all_", is_flag=True, help="Show all, however many.")(
        with_limit
    )
    return click.option(
        "--limit",
        type=click.IntRange(min=1),
        default=100,
        show_default=True,
        help="Show at most so many.",
    )(with_limit)


async def aiter_of(items: Iterable[RowT]) -> AsyncIterator[RowT]:
    """Items that are there already, for `Output.list`."""
    for item in items:
        yield item
