"""Keyset paging: a page ends with the key of its last row, and the next page starts after it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe_persistence.store.rows import (
    Param,
    integer,
    micros_param,
    read_int8,
    read_micros,
    read_text,
    text,
)
from wfe_persistence.store.tables import Store

Item = TypeVar("Item")
Row = TypeVar("Row")
Stored = TypeVar("Stored", bound=Message)

Cursor = tuple[int, str]
"""The key of the last row of a page: a number (time in ms or µs, or a row's number) and an id."""

START: Final[Cursor] = (-(2**63), "")
"""Before the first row of any ascending list."""
END: Final[Cursor] = (2**63 - 1, "")
"""Before the first row of any descending list."""


class Direction(NamedTuple):
    """The order of a list in SQL, and the operator that compares a row's key with the cursor."""

    order: str
    after: str


DIRECTIONS: Final[dict[ListOrder.ValueType, Direction]] = {
    ListOrder.LIST_ORDER_NEWEST_FIRST: Direction("DESC", "<"),
    ListOrder.LIST_ORDER_OLDEST_FIRST: Direction("ASC", ">"),
}

# An item's tag and length take at most this many bytes in the response.
_FRAMING_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some rows of a list, and the cursor of the last one; None: there are no more rows."""

    items: list[Item]
    next: Cursor | None


class Key(NamedTuple):
    """The codec of a cursor's number."""

    encode: Callable[[int], bytes]
    decode: Callable[[bytes | None], int]


NUMBER: Final = Key(integer, read_int8)
"""A bigint column."""
TIME: Final = Key(micros_param, read_micros)
"""A timestamptz column, in µs."""


async def page_of_ids(
    store: Store, sql: str, filters: Sequence[Param], key: Key, after: Cursor, page_size: int
) -> Page[str]:
    """A page of ids. `sql` selects (id, key); its parameters are the filters, the cursor's number
    and id, and the maximum number of rows."""
    rows = await store.read(
        sql, *filters, key.encode(after[0]), text(after[1]), integer(page_size + 1)
    )
    get = rows.get_value
    ids = [read_text(get(i, 0)) for i in range(min(rows.ntuples, page_size))]
    if rows.ntuples <= page_size:
        return Page(ids, None)
    return Page(ids, (key.decode(get(page_size - 1, 1)), ids[-1]))


async def fill_page(
    rows: AsyncGenerator[Row, None],
    decode: Callable[[Row], Stored | None],
    cursor: Callable[[Row, Stored], Cursor],
    page_size: int,
    page_bytes: int,
) -> Page[Stored]:
    """A page of what `decode` makes of streamed rows; None: a row without an item.

    It ends at `page_size` items, or before the item that would make it larger than `page_bytes`
    (encoded, as part of a response); but it holds at least one item, however large that is. The
    query must return `page_size + 1` rows at most: the extra one shows that there are more. Closes
    `rows`.
    """
    items: list[Stored] = []
    size = 0
    last: Row | None = None
    async with aclosing(rows):
        async for row in rows:
            item = decode(row)
            if item is None:
                continue
            size += item.ByteSize() + _FRAMING_BYTES
            if last is not None and (len(items) == page_size or size > page_bytes):
                return Page(items, cursor(last, items[-1]))
            items.append(item)
            last = row
    return Page(items, None)
