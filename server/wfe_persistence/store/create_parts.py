"""The parts of statements that create rows with a key, and what such a statement has found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.columns import Columns, M
from wfe_persistence.store.rows import Found, read_bool


class Besides(NamedTuple):
    """What a creating statement does besides, as SQL: parts before the insertion of the row, a
    condition that it waits for, parts behind it, which depend on the part `created`, and a column
    at the end of what it returns."""

    first: str = ""
    condition: str = "TRUE"
    then: str = ""
    column: str = ""


NOTHING: Final = Besides()


class Documents(NamedTuple):
    """Where a creating statement has its documents from, as SQL: a table `d` with the column
    `document`."""

    table: str
    number: str = ""
    """Its column with their numbers."""
    order: str = ""
    """The order in which what they say is inserted."""


ONE: Final = Documents("(VALUES ($1::jsonb)) AS d(document)")
MANY: Final = Documents(
    "jsonb_array_elements($1::jsonb) WITH ORDINALITY AS d(document, at)",
    "d.at, ",
    "\n    ORDER BY g.id",
)
"""A list, whose numbers begin at 1."""


def inserting(
    table: str, columns: Columns[M], documents: Documents, besides: Besides = NOTHING
) -> str:
    """What a statement begins with that inserts rows with the key `id`: the parts `given` and
    `created`, which has those that are new. `documents`: ONE or MANY."""
    return f"""
WITH {besides.first}given AS MATERIALIZED (
    SELECT {documents.number}g.*,
        sha256(convert_to(d.document::text, 'UTF8')) AS content_hash
    FROM {documents.table},
        jsonb_to_record(d.document) AS g(
        {columns.record()})
), created AS (
    INSERT INTO wfc.{table} (
        {columns.names()},
        content_hash)
    SELECT {columns.values("g")},
        g.content_hash
    FROM given g
    WHERE {besides.condition}{documents.order}
    ON CONFLICT (id) DO NOTHING
    RETURNING id, content_hash
){besides.then}"""


def create_statement(table: str, columns: Columns[M], besides: Besides = NOTHING) -> str:
    """The statement that inserts a row with the key `id`, for `Store.create`. $1: its document.

    It compares the content given at the creation, by its hash, so that a repeated create is
    recognized even after the row has changed.
    """
    return f"""{inserting(table, columns, ONE, besides)}
SELECT EXISTS (SELECT FROM created),
    (SELECT coalesce(e.content_hash = g.content_hash, FALSE)
        FROM wfc.{table} e JOIN given g ON e.id = g.id)
"""


def create_each_statement(table: str, columns: Columns[M]) -> str:
    """The same for many, as in `Together`: it returns those that are new. $1: a list of documents.
    (Of two with one id, it is the one that was inserted.)"""
    return f"""{inserting(table, columns, MANY)}
SELECT TRUE, NULL::boolean, g.at
FROM created c JOIN given g ON g.id = c.id AND g.content_hash = c.content_hash
"""


def is_stored(
    rows: Found,
    row: int = 0,
    *,
    exists: Callable[[], PersistenceError],
    taken: Callable[[], PersistenceError] | None = None,
    first: int = 0,
) -> bool:
    """What a create statement has found, as `Store.create` describes it, from the column `first`
    on. False: the conflicting row was committed after the statement took its snapshot. The next
    snapshot shows it, unless it has been deleted since.
    """
    if read_bool(rows.get_value(row, first)):
        return True
    same = rows.get_value(row, first + 1)
    if same is not None:
        if read_bool(same):
            return True
        raise exists()
    if taken is not None and read_bool(rows.get_value(row, first + 2)):
        raise taken()
    return False
