"""Feeds: rows in the order of their commits, read behind a position, and deleted when they are old.

A reader must not go by the highest number it has seen: numbers are taken before the commit, so a
transaction with a lower one may be committed later. It goes by transaction: the snapshot's xmin,
the oldest transaction that was still running when the snapshot was taken, is the horizon. Whatever
was written below it is committed or rolled back for good, and what is committed later is above it.

But a position is always that of a row, never the horizon itself: when PostgreSQL has crashed, the
ids of transactions that were rolled back just before, whose WAL was not flushed, are given again,
and what those write is below a horizon that was seen before. Rows that were seen are flushed, so
their ids are not given again.

A feed is a table with the columns xid, n and publish_time, and one with a single row: what cursors
are valid for, and its floor, up to which rows have been deleted. `lifecycle.py` and
`workflow_changes.py` have one each; `feeds.py` reads them for all who watch.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.rows import GetValue, PGresult, integer, read_bool, read_int8
from wfe_persistence.store.tables import Store

T = TypeVar("T")

_CURSOR: Final = struct.Struct("!16sqq")


class Position(NamedTuple):
    """A place in the order of a feed: behind this row."""

    xid: int
    """Of the transaction."""
    n: int
    """Of the row; 0: before the first one of the transaction."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in one feed, as clients keep it."""

    feed_id: bytes
    position: Position

    def __str__(self) -> str:
        data = _CURSOR.pack(self.feed_id, *self.position)
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor | None:
        """The cursor with this text; None: there can be none."""
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
            feed_id, xid, n = _CURSOR.unpack(data)
        except (ValueError, binascii.Error, struct.error):
            return None
        cursor = cls(feed_id, Position(xid, n))
        return cursor if xid >= 0 and n >= 0 and str(cursor) == text else None


def cursor_expired(feed_id: bytes, floor: Position) -> PersistenceError:
    """The error of a cursor behind which rows are missing; `floor`: where the others begin."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_CURSOR_EXPIRED,
        "what came after this cursor was deleted, or the store is not the one that it is from",
        metadata={"oldest_cursor": str(Cursor(feed_id, floor))},
    )


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """What watchers get of a feed at one position."""

    position: Position
    item: T
    size: int
    """How much memory it takes, about (bytes)."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a feed, from one snapshot."""

    feed_id: bytes
    floor: Position
    """Everything up to here may have been deleted."""
    horizon: Position
    """Before here nothing will come any more."""
    entries: list[Entry[T]]
    end: Position
    """Everything up to here has been read: up to this row, or up to where it began."""
    is_full: bool
    """Whether there may be more below the horizon."""
    pending_ms: int | None
    """The age of the first row that is committed, but not below the horizon; None: there is
    none."""


class Source(Protocol[T]):
    """A kind of feed, which each namespace has one of."""

    name: str
    """What it consists of, for messages: "lifecycle events"."""

    table: str
    """The table of its rows."""

    async def read(self, store: Store, after: Position | None, limit: int) -> Page[T]:
        """What is behind a position, at most so many rows; None: what is to come, of which there is
        none yet. Raises PersistenceError."""

    async def read_copy(self, store: Store, after: Position, limit: int) -> Page[T] | None:
        """The same from a replica, without asking whether the feed is valid; None: there is none
        yet. Raises PersistenceError."""

    async def keep(self, store: Store) -> None:
        """Know that it is still watched. Called at least every `KEEP_SECONDS`."""

    async def sweep(self, store: Store, retention: float, limit: int) -> int | None:
        """Delete what is older than `retention` (seconds), at most `limit` rows.

        Returns how many they were; None: there was none at all, and nothing else to do.
        """


KEEP_SECONDS: Final = 30.0

ADOPTING: Final = "adopting"
"""Instead of a cluster: what was written in another one is still being adopted, and the floor has
another meaning until then."""

# The cluster, the timeline (another one after a restore to a point in time, or a failover), and the
# database (another one if it is a copy, made with TEMPLATE).
CLUSTER: Final = """(SELECT system_identifier FROM pg_control_system())::text
        || '.' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        || '.' || (SELECT oid FROM pg_database WHERE datname = current_database())"""


def reading(table: str, feed: str, is_valid: str, selection: str) -> str:
    """The statement that reads a feed for `read_page`. $1, $2: a position; $3: how many rows.

    `is_valid`: whether the feed's row f is; `selection`: of a row e of the table. The first row of
    the result also has what there is to know of the feed (with 0 rows also which one is the last),
    and NULL instead of a row if there is none. All of it is of one snapshot.
    """
    return f"""
SELECT f.feed_id, {is_valid}, f.floor_xid, f.floor_n, h.xid,
    (SELECT (extract(epoch FROM now() - publish_time) * 1000)::bigint
        FROM wfc.{table} WHERE xid >= h.xid ORDER BY xid, n LIMIT 1),
    l.xid, l.n, e.xid, e.n, {selection}
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS xid) h
LEFT JOIN wfc.{feed} f ON TRUE
LEFT JOIN LATERAL (
    SELECT xid, n FROM wfc.{table}
    WHERE xid < h.xid AND $3::bigint = 0
    ORDER BY xid DESC, n DESC
    LIMIT 1
) l ON TRUE
LEFT JOIN LATERAL (
    SELECT * FROM wfc.{table}
    WHERE (xid, n) > ($1::xid8, $2::bigint) AND xid < h.xid
    ORDER BY xid, n
    LIMIT $3::bigint
) e ON TRUE
ORDER BY e.xid, e.n
"""


_ROW_AT: Final = 8
SELECTION_AT: Final = _ROW_AT + 2
"""Where the selection begins in the rows of `reading`."""


async def read_page(
    store: Store,
    sql: str,
    after: Position | None,
    limit: int,
    decode: Callable[[PGresult, int, Position], Entry[T]],
) -> Page[T] | None:
    """A page of a feed, by a statement of `reading`; None: the feed is not valid."""
    xid, n = (0, 0) if after is None else after
    if after is None:
        limit = 0
    rows = await store.read(sql, integer(xid), integer(n), integer(limit))
    get = rows.get_value
    feed_id = get(0, 0)
    if feed_id is None or not read_bool(get(0, 1)):
        return None
    entries = []
    if get(0, _ROW_AT) is not None:
        for row in range(rows.ntuples):
            entries.append(decode(rows, row, _position(get, row, _ROW_AT)))
    floor = _position(get, 0, 2)
    if after is None:
        # What is to come is behind the last row.
        end = floor if get(0, 6) is None else max(floor, _position(get, 0, 6))
    else:
        end = entries[-1].position if entries else after
    pending = get(0, 5)
    return Page(
        feed_id,
        floor,
        Position(read_int8(get(0, 4)), 0),
        entries,
        end,
        bool(entries) and len(entries) == limit,
        None if pending is None else read_int8(pending),
    )


def _position(get: GetValue, row: int, at: int) -> Position:
    return Position(read_int8(get(row, at)), read_int8(get(row, at + 1)))


def sweeping(table: str, feed: str) -> str:
    """The statement that deletes old rows: of those that are older than $1 seconds at most $2.

    Only what is old and has nothing younger before it, so that the floor is exact. One sweeper at a
    time: the others skip it. The floor never falls, even if another sweep was committed after this
    one took its snapshot. It deletes by place, so it never reads the whole table.
    """
    return f"""
WITH feed AS MATERIALIZED (
    SELECT only_row FROM wfc.{feed} FOR UPDATE SKIP LOCKED
), oldest AS (
    SELECT ctid, xid, n, publish_time < now() - $1::float8 * interval '1 second' AS is_old
    FROM wfc.{table}
    WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) AND EXISTS (SELECT FROM feed)
    ORDER BY xid, n
    LIMIT $2
), expired AS MATERIALIZED (
    SELECT ctid, xid, n
    FROM (SELECT ctid, xid, n, bool_and(is_old) OVER (ORDER BY xid, n) AS all_old FROM oldest) o
    WHERE all_old
), deleted AS (
    DELETE FROM wfc.{table} WHERE ctid = ANY (ARRAY (SELECT ctid FROM expired))
), moved AS (
    UPDATE wfc.{feed} f SET floor_xid = last.xid, floor_n = last.n
    FROM (SELECT xid, n FROM expired ORDER BY xid DESC, n DESC LIMIT 1) last
    WHERE (f.floor_xid, f.floor_n) < (last.xid, last.n) AND f.cluster <> '{ADOPTING}'
)
SELECT count(*) FROM expired
"""


def looking_for_old(table: str) -> str:
    """The statement that tells whether the first row is older than $1 seconds; none: there is no
    row."""
    return f"""
SELECT publish_time < now() - $1::float8 * interval '1 second'
FROM wfc.{table}
ORDER BY xid, n
LIMIT 1
"""


async def oldest_is_old(store: Store, sql: str, retention: float) -> bool | None:
    """Whether the first row is older than so many seconds, by a statement of `looking_for_old`;
    None: there is no row."""
    rows = await store.read_once(sql, _seconds(retention))
    return read_bool(rows.get_value(0, 0)) if rows.ntuples else None


async def delete_old(store: Store, sql: str, retention: float, limit: int) -> int:
    """Delete old rows by a statement of `sweeping`, if the feed has its row; how many they were."""
    rows = await store.write_once(sql, _seconds(retention), integer(limit))
    return read_int8(rows.get_value(0, 0))


def _seconds(value: float) -> bytes:
    return repr(float(value)).encode()


def changed_repeatedly() -> PersistenceError:
    """The error of a feed that becomes invalid as often as it is made valid."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
        "the database was changed repeatedly",
        retry_after=0.5,
    )


PASSING: Final[Collection[ErrorReason.ValueType]] = frozenset(
    {
        ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
        ErrorReason.ERROR_REASON_POOL_EXHAUSTED,
        ErrorReason.ERROR_REASON_NAMESPACE_BUSY,
        ErrorReason.ERROR_REASON_DATABASE_FULL,
        ErrorReason.ERROR_REASON_ROW_LOCKED,
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
    }
)
"""Why a look may fail without meaning anything for the next one."""
