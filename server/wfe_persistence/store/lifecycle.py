"""Lifecycle events: publishing, reading in the order of the commits, and deleting old ones.

A reader must not go by the highest number it has seen: numbers are taken before the commit, so a
transaction with a lower one may be committed later. It goes by transaction: the snapshot's xmin,
the oldest transaction that was still running when the snapshot was taken, is the horizon. Whatever
was written below it is committed or rolled back for good, and what is committed later is above it.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.lifecycle_pb2 import LifecycleEvent
from wfe_persistence import offload
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.documents import array, lifecycle_document
from wfe_persistence.store.records import LIFECYCLE_EVENT
from wfe_persistence.store.rows import integer, read_bool, read_int8
from wfe_persistence.store.tables import Store

_CURSOR: Final = struct.Struct("!16sqq")

_MAX_ATTEMPTS: Final = 3


class Position(NamedTuple):
    """A place in the order of events: behind this one."""

    xid: int
    """Of the transaction."""
    n: int
    """Of the event; 0: before the first one of the transaction."""


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
    """The error of a cursor behind which events are missing; `floor`: where the others begin."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_CURSOR_EXPIRED,
        "events after this cursor were deleted, or the store is not the one that it is from",
        metadata={"oldest_cursor": str(Cursor(feed_id, floor))},
    )


PUBLISH = f"""
INSERT INTO wfc.lifecycle_events ({LIFECYCLE_EVENT.names()})
SELECT {LIFECYCLE_EVENT.values("e")}
FROM ROWS FROM (
    jsonb_to_recordset($1::jsonb) AS (
        {LIFECYCLE_EVENT.record()})
) WITH ORDINALITY AS e({LIFECYCLE_EVENT.names()}, i)
ORDER BY e.i
"""


async def publish(store: Store, events: Sequence[LifecycleEvent]) -> None:
    """Append events in this order, all or none."""
    if events:
        document = await offload.run(lambda: array(map(lifecycle_document, events)))
        await store.write(PUBLISH, document)


class Entry(NamedTuple):
    """An event and its position."""

    position: Position
    event: LifecycleEvent


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a feed, from one snapshot."""

    feed_id: bytes
    floor: Position
    """Events up to here have been deleted."""
    horizon: Position
    """Before here nothing will come any more."""
    entries: list[Entry]
    end: Position
    """Everything up to here has been read."""
    pending_ms: int | None
    """The age of the first event that is committed, but not below the horizon; None: there is
    none."""


_EVENT_AT: Final = 6
_read_event = LIFECYCLE_EVENT.reader(_EVENT_AT + 2)

# The cluster, the timeline (another one after a restore to a point in time, or a failover), and the
# database (another one if it is a copy, made with TEMPLATE).
_CLUSTER: Final = """(SELECT system_identifier FROM pg_control_system())::text
        || '.' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)
        || '.' || (SELECT oid FROM pg_database WHERE datname = current_database())"""

# Events that were restored into another cluster may have ids of transactions that are still to come
# there: they become ones of this transaction, in their order.
ADOPT = f"""
WITH adopted AS (
    INSERT INTO wfc.lifecycle_feed AS f (cluster)
    VALUES ({_CLUSTER})
    ON CONFLICT (only_row) DO UPDATE SET
        feed_id = EXCLUDED.feed_id, cluster = EXCLUDED.cluster, floor_xid = '0', floor_n = 0
    WHERE f.cluster <> EXCLUDED.cluster
    RETURNING only_row
)
UPDATE wfc.lifecycle_events SET xid = pg_current_xact_id()
WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()) AND EXISTS (SELECT FROM adopted)
"""

# The first row also has what there is to know of the feed, and NULL instead of an event if there is
# none. All of it is of one snapshot.
WATCH = f"""
SELECT f.feed_id, f.cluster = {_CLUSTER}, f.floor_xid, f.floor_n, h.xid,
    (SELECT (extract(epoch FROM now() - publish_time) * 1000)::bigint
        FROM wfc.lifecycle_events WHERE xid >= h.xid ORDER BY xid, n LIMIT 1),
    e.xid, e.n, {LIFECYCLE_EVENT.selection("e")}
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS xid) h
LEFT JOIN wfc.lifecycle_feed f ON TRUE
LEFT JOIN LATERAL (
    SELECT * FROM wfc.lifecycle_events
    WHERE (xid, n) > ($1::xid8, $2::bigint) AND xid < h.xid
    ORDER BY xid, n
    LIMIT $3
) e ON TRUE
ORDER BY e.xid, e.n
"""


async def watch(store: Store, after: Position | None, limit: int) -> Page:
    """The events behind a position, at most so many; None: those to come, of which there is none
    yet."""
    xid, n = (0, 0) if after is None else after
    if after is None:
        limit = 0
    for _ in range(_MAX_ATTEMPTS):
        rows = await store.read(WATCH, integer(xid), integer(n), integer(limit))
        get = rows.get_value
        feed_id = get(0, 0)
        if feed_id is not None and read_bool(get(0, 1)):
            break
        await store.write(ADOPT)
    else:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
            "the database was changed repeatedly",
            retry_after=0.5,
        )
    horizon = Position(read_int8(get(0, 4)), 0)
    pending = get(0, 5)
    entries = []
    if get(0, _EVENT_AT) is not None:
        for row in range(rows.ntuples):
            at = Position(read_int8(get(row, _EVENT_AT)), read_int8(get(row, _EVENT_AT + 1)))
            event = LifecycleEvent()
            _read_event(get, row, event)
            entries.append(Entry(at, event))
    return Page(
        feed_id,
        Position(read_int8(get(0, 2)), read_int8(get(0, 3))),
        horizon,
        entries,
        entries[-1].position if entries and len(entries) == limit else horizon,
        None if pending is None else read_int8(pending),
    )


OLDEST_IS_OLD = """
SELECT publish_time < now() - $1::float8 * interval '1 second'
FROM wfc.lifecycle_events
ORDER BY xid, n
LIMIT 1
"""

# Only what is old and has nothing younger before it, so that the floor is exact. One sweeper at a
# time: the others skip it. The floor never falls, even if another sweep was committed after this
# one took its snapshot.
SWEEP = """
WITH feed AS MATERIALIZED (
    SELECT only_row FROM wfc.lifecycle_feed FOR UPDATE SKIP LOCKED
), oldest AS (
    SELECT ctid, xid, n, publish_time < now() - $1::float8 * interval '1 second' AS is_old
    FROM wfc.lifecycle_events
    WHERE xid < pg_snapshot_xmin(pg_current_snapshot()) AND EXISTS (SELECT FROM feed)
    ORDER BY xid, n
    LIMIT $2
), expired AS MATERIALIZED (
    SELECT ctid, xid, n
    FROM (SELECT ctid, xid, n, bool_and(is_old) OVER (ORDER BY xid, n) AS all_old FROM oldest) o
    WHERE all_old
), deleted AS (
    DELETE FROM wfc.lifecycle_events WHERE ctid = ANY (ARRAY (SELECT ctid FROM expired))
), moved AS (
    UPDATE wfc.lifecycle_feed f SET floor_xid = last.xid, floor_n = last.n
    FROM (SELECT xid, n FROM expired ORDER BY xid DESC, n DESC LIMIT 1) last
    WHERE (f.floor_xid, f.floor_n) < (last.xid, last.n)
)
SELECT count(*) FROM expired
"""


async def sweep(store: Store, retention: float, limit: int) -> int | None:
    """Delete events that were published longer ago than `retention` (seconds), at most `limit`.

    Returns how many they were; None: there was no event at all.
    """
    age = repr(float(retention)).encode()
    rows = await store.read_once(OLDEST_IS_OLD, age)
    if not rows.ntuples:
        return None
    if not read_bool(rows.get_value(0, 0)):
        return 0
    await watch(store, None, 0)  # so that there is a feed whose floor rises
    rows = await store.write_once(SWEEP, age, integer(limit))
    return read_int8(rows.get_value(0, 0))
