"""Keyset paging: a page ends with the key of its last row, and the next page starts after it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe_persistence import offload
from wfe_persistence.store.oversize import reduce
from wfe_persistence.store.rows import (
    Param,
    integer,
    pg_micros_param,
    read_int8,
    read_text,
    text,
)
from wfe_persistence.store.tables import Store

Item = TypeVar("Item")
Row = TypeVar("Row")
Stored = TypeVar("Stored", bound=Message)

Cursor = tuple[int, str]
"""The key of the last row of a page: a number and an id.

The number is the exact value of the column: of a time, what PostgreSQL stores (±infinity and the
years that a Timestamp can't express included), not the time that is returned.
"""

START: Final[Cursor | None] = None
"""Before the first row of a list, in either order."""


class Direction(NamedTuple):
    """The order of a list in SQL, and the operator that compares a row's key with the cursor."""

    order: str
    after: str

    def bounds(self, column: str, since: str, until: str, after_id: str) -> tuple[str, str]:
        """The conditions that a column is not less than `since`, and less than `until`, each if it
        is not NULL; `after_id`: the cursor's id, NULL on the first page.

        The one at which the first page begins is for that page only: a later one begins behind its
        cursor, which is within it. With both an index may be read from the wrong one of them, more
        of it with each page. For statements that are planned with their parameters.
        """
        is_first = f" OR {after_id}::text IS NOT NULL"
        return (
            f"({since} IS NULL OR {column} >= {since}{is_first if self.order == 'ASC' else ''})",
            f"({until} IS NULL OR {column} < {until}{is_first if self.order == 'DESC' else ''})",
        )


DIRECTIONS: Final[dict[ListOrder.ValueType, Direction]] = {
    ListOrder.LIST_ORDER_NEWEST_FIRST: Direction("DESC", "<"),
    ListOrder.LIST_ORDER_OLDEST_FIRST: Direction("ASC", ">"),
}


LEAST_NUMBER: Final = f"{-(2**63)}"
LEAST_TIME: Final = "'-infinity'"
"""The least values of bigint and timestamptz columns, in SQL."""


def behind(key: str, number: str, id_: str, *, least: str) -> str:
    """The condition that a row's key, a pair of columns, comes after the cursor in an ascending
    list; the parameters are NULL for the first page. `least`: the least value of the first column.

    For prepared statements: an index finds the first row of the page also in a generic plan.
    """
    return f"""{key} >= (coalesce({number}, {least}), coalesce({id_}, ''))
    AND ({id_} IS NULL OR {key} <> ({number}, {id_}))"""


def like_prefix(prefix: str) -> str:
    """The pattern of LIKE for texts that start with this."""
    escaped = prefix.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
    return f"{escaped}%"


# An item's tag and length take at most this many bytes in the response.
_FRAMING_BYTES: Final = 8
# The most that a number takes.
_KEY_BYTES: Final = 10
# Page tokens have room for an id of this size. Other software may have stored a longer one.
_ID_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some rows of a list, and the cursor of the last one; None: there are no more rows."""

    items: list[Item]
    next: Cursor | None
    keys: Sequence[int] = ()
    """Of a page of ids: the number by which each of them stands where it does."""


class Key(NamedTuple):
    """The codec of a cursor's number."""

    encode: Callable[[int], bytes]
    decode: Callable[[bytes | None], int]

    def params(self, cursor: Cursor | None) -> tuple[Param, Param]:
        """A cursor as two parameters."""
        return (None, None) if cursor is None else (self.encode(cursor[0]), text(cursor[1]))


NUMBER: Final = Key(integer, read_int8)
"""A bigint column."""
TIME: Final = Key(pg_micros_param, read_int8)
"""A timestamptz column."""


@dataclass(slots=True)
class Wanted:
    """Rows of given ids that are still to be read, page by page."""

    ids: deque[str]
    """Their ids, each once."""
    at_once: int = 100
    """For how many of them the database is asked at once: about as many as fill a page."""

    def read(self, count: int, *, page_is_full: bool, page_is_small: bool) -> None:
        """So many of the ids have been dealt with."""
        for _ in range(count):
            self.ids.popleft()
        if page_is_full:
            self.at_once = count
        elif page_is_small:
            self.at_once *= 2


async def page_of_ids(
    store: Store,
    sql: str,
    filters: Sequence[Param],
    key: Key,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
    *,
    once: bool = False,
    with_keys: bool = False,
) -> Page[str]:
    """A page of ids. `sql` selects (id, key); its parameters are the filters, the cursor's number
    and id, and the maximum number of rows. `once`: plan it with its parameters each time.
    `with_keys`: the keys are returned, too."""
    read = store.read_once if once else store.read
    rows = await read(sql, *filters, *key.params(after), integer(page_size + 1))
    get = rows.get_value
    ids: list[str] = []
    keys: list[int] = []
    size = 0
    for row in range(rows.ntuples):
        id_ = read_text(get(row, 0))
        size += len(id_.encode()) + _FRAMING_BYTES + (_KEY_BYTES if with_keys else 0)
        if ids and (row == page_size or size + _token_growth(id_) > page_bytes):
            return Page(ids, (key.decode(get(row - 1, 1)), ids[-1]), keys)
        ids.append(id_)
        if with_keys:
            keys.append(key.decode(get(row, 1)))
    return Page(ids, None, keys)


async def fill_page(
    rows: AsyncGenerator[Row, None],
    decode: Callable[[Row], Stored | None],
    cursor: Callable[[Row, Stored], Cursor],
    page_size: int,
    page_bytes: int,
) -> Page[Stored]:
    """A page of what `decode` makes of streamed rows; None: a row without an item.

    It ends at `page_size` items, or before the item that would make it larger than `page_bytes`
    (encoded, as part of a response). From an item that alone is larger, so much is left out that it
    fits (`oversize`), because otherwise no page would ever get past it. The query must return
    `page_size + 1` rows at most: the extra one shows that there are more. Closes `rows`.
    """
    items: list[Stored] = []
    size = 0
    last: Cursor | None = None
    slices = offload.Slices()
    async with aclosing(rows):
        async for row in rows:
            await slices.pause()
            item = decode(row)
            if item is None:
                continue
            at = cursor(row, item)
            room = page_bytes - _token_growth(at[1])
            reduce(item, room - _FRAMING_BYTES)
            size += item.ByteSize() + _FRAMING_BYTES
            if last is not None and (len(items) == page_size or size > room):
                return Page(items, last)
            items.append(item)
            last = at
    await offload.pause_if_large()
    return Page(items, None)


def _token_growth(id_: str) -> int:
    """How many bytes more than usual a page token takes if the page ends with this id."""
    if len(id_) <= _ID_BYTES // 4:
        return 0
    return max(0, len(id_.encode()) - _ID_BYTES) * 4 // 3 + 4
