"""Statements that are run together with others of their kind, each for another call; see
`postgres/groups.py`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.postgres.groups import Group
from wfe_persistence.store.postgres.pipeline import Command
from wfe_persistence.store.rows import (
    Found,
    Param,
    PGresult,
    Row,
    array_of,
    list_of,
    read_int8,
)

if TYPE_CHECKING:
    from wfe_persistence.store.tables import Store

HOLD_NOBODY_UP: Final = "SELECT set_config('lock_timeout', '20ms', TRUE)"
"""How long one of several calls may wait for a row that another transaction has locked: a commit
takes about as long. Then each is run by itself. It is also shorter than any deadlock lasts."""

MAX_BYTES: Final = 4096
"""The most that the parameters of a statement have that is run together with others."""


def is_small(column: str) -> str:
    """An SQL condition: a value is small, and PostgreSQL can tell without reading it."""
    return f"""(pg_column_size({column}) > {MAX_BYTES}
        OR pg_column_compression({column}) IS NOT NULL) IS NOT TRUE"""


@dataclass(frozen=True, slots=True)
class Each:
    """One statement that does for many calls what another does for one.

    It returns a row for each call for which it has done something: the same columns, and last the
    number of the call, from 1 on.
    """

    sql: str
    params: Callable[[Sequence[Sequence[Param]]], Sequence[Param]]
    """Its parameters, from those of the calls."""


def by_column(calls: Sequence[Sequence[Param]]) -> Sequence[Param]:
    """An array for each parameter."""
    return [array_of(column) for column in zip(*calls, strict=True)]


def documents(calls: Sequence[Sequence[Param]]) -> Sequence[Param]:
    """A list of the documents that are the only parameter of each."""
    return [list_of(document for (document,) in calls)]


@dataclass(frozen=True, slots=True)
class Together(Group[Sequence[Param], Found]):
    """Calls of one statement, each with its own parameters, as one transaction in one round trip.

    They are run in the order of their first parameters, which begin with the id of the row, so that
    those of two servers lock rows in the same order.
    """

    at_once: ClassVar[int] = 2
    alone_is_final: ClassVar[bool] = True

    store: Store
    alone: str
    """The statement, as it is run for one call."""
    each: Each | None
    """How it is run for many; None: once for each, and it always returns a row."""
    write: bool
    final_constraints: Collection[str] = ()

    async def run(self, calls: Sequence[Sequence[Param]]) -> Sequence[Found | None]:
        """See `Group.run`."""
        bind = self.store.schema.bind
        if len(calls) == 1:
            return await self._run([(bind(self.alone), calls[0])])
        places = sorted(range(len(calls)), key=lambda at: calls[at][0] or b"")
        ordered = [calls[at] for at in places]
        if self.each is None:
            statement = bind(self.alone)
            batch = [(statement, call) for call in ordered]
        else:
            batch = [(bind(self.each.sql), self.each.params(ordered))]
        if self.write:
            found = (await self._run([(bind(HOLD_NOBODY_UP), ()), *batch]))[1:]
        else:
            found = await self._run(batch)
        results: list[Found | None] = [None] * len(calls)
        if self.each is None:
            for at, result in zip(places, found, strict=True):
                results[at] = result
        else:
            [rows] = found
            number = rows.nfields - 1
            for row in range(rows.ntuples):
                at = places[read_int8(rows.get_value(row, number)) - 1]
                results[at] = Row(rows, row)
        return results

    async def _run(self, batch: Sequence[Command]) -> list[PGresult]:
        store, database = self.store, self.store.database
        try:
            return await (database if self.write else store.reader).run(
                store.namespace,
                batch,
                write=self.write,
                final_constraints=self.final_constraints,
            )
        except PersistenceError as exc:
            return await store.run_elsewhere(
                exc, database, batch, write=self.write, final_constraints=self.final_constraints
            )
