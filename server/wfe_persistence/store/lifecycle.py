"""Lifecycle events: publishing, and their feed (see `feed.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from wfe.persistence.v1.lifecycle_pb2 import LifecycleEvent
from wfe_persistence import offload
from wfe_persistence.store import feed
from wfe_persistence.store.documents import array, lifecycle_document
from wfe_persistence.store.feed import CLUSTER, SELECTION_AT, Entry, Page, Position
from wfe_persistence.store.records import LIFECYCLE_EVENT
from wfe_persistence.store.rows import PGresult, integer, read_int8
from wfe_persistence.store.tables import Store

_MAX_ATTEMPTS: Final = 3

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


_read_event = LIFECYCLE_EVENT.reader(SELECTION_AT)

# Events from another cluster, after a move or the restore of a backup, may have ids of transactions
# that are still to come here. They get one that is before those of all events that were published
# here meanwhile, or are being published; else who watches from now on would be sent old events as
# new ones. There may be very many, so it is done in parts. Until then the feed is `ADOPTING`, and
# its floor says which they are: those up to the number n that are not up to the transaction xid.

# Of a namespace that was moved, when it is put into use: this transaction is before all that will
# write here.
NEW_FEED = f"""
INSERT INTO wfc.lifecycle_feed AS f (cluster, floor_xid, floor_n)
VALUES ('{feed.ADOPTING}', pg_current_xact_id(),
    coalesce(pg_sequence_last_value(pg_get_serial_sequence('wfc.lifecycle_events', 'n')), 0))
ON CONFLICT (only_row) DO UPDATE SET
    feed_id = EXCLUDED.feed_id, cluster = EXCLUDED.cluster,
    floor_xid = EXCLUDED.floor_xid, floor_n = EXCLUDED.floor_n
"""

# Of what is found to be from elsewhere: whatever has such an id, and all with lower numbers.
BEGIN_FEED = f"""
INSERT INTO wfc.lifecycle_feed AS f (cluster, floor_xid, floor_n)
SELECT CASE WHEN theirs.n IS NULL THEN {CLUSTER} ELSE '{feed.ADOPTING}' END,
    coalesce((least(
        pg_snapshot_xmin(now.snapshot)::text::bigint,
        (SELECT e.xid::text::bigint FROM wfc.lifecycle_events e
            WHERE e.n > theirs.n AND e.xid < pg_snapshot_xmax(now.snapshot)
            ORDER BY e.xid LIMIT 1)
    ) - 1)::text::xid8, '0'),
    coalesce(theirs.n, 0)
FROM (SELECT pg_current_snapshot() AS snapshot) now
CROSS JOIN LATERAL (
    SELECT max(n) AS n FROM wfc.lifecycle_events WHERE xid >= pg_snapshot_xmax(now.snapshot)
) theirs
ON CONFLICT (only_row) DO UPDATE SET
    feed_id = EXCLUDED.feed_id, cluster = EXCLUDED.cluster,
    floor_xid = EXCLUDED.floor_xid, floor_n = EXCLUDED.floor_n
WHERE f.cluster NOT IN ({CLUSTER}, '{feed.ADOPTING}')
"""

# At most $1 of them; with the last ones, the feed is valid.
ADOPT = f"""
WITH part AS MATERIALIZED (
    SELECT ctid FROM wfc.lifecycle_events
    WHERE xid > (SELECT floor_xid FROM wfc.lifecycle_feed WHERE cluster = '{feed.ADOPTING}')
        AND n <= (SELECT floor_n FROM wfc.lifecycle_feed)
    ORDER BY xid, n
    LIMIT $1::bigint
), adopted AS (
    UPDATE wfc.lifecycle_events e SET xid = (SELECT floor_xid FROM wfc.lifecycle_feed)
    FROM part WHERE e.ctid = part.ctid
), valid AS (
    UPDATE wfc.lifecycle_feed f
    SET feed_id = gen_random_uuid(), cluster = {CLUSTER}, floor_xid = '0', floor_n = 0
    WHERE f.cluster = '{feed.ADOPTING}' AND (SELECT count(*) FROM part) < $1::bigint
)
SELECT count(*) FROM part
"""

_ADOPTED_AT_ONCE: Final = 5_000


async def _make_valid(store: Store) -> None:
    """Do what is left until the feed is valid. Raises PersistenceError."""
    await store.write_once(BEGIN_FEED)
    adopted = _ADOPTED_AT_ONCE
    while adopted == _ADOPTED_AT_ONCE:
        rows = await store.write_once(ADOPT, integer(_ADOPTED_AT_ONCE), jit=False)
        adopted = read_int8(rows.get_value(0, 0))


WATCH = feed.reading(
    "lifecycle_events", "lifecycle_feed", f"f.cluster = {CLUSTER}", LIFECYCLE_EVENT.selection("e")
)

WATCH_COPY = feed.reading(
    "lifecycle_events", "lifecycle_feed", "TRUE", LIFECYCLE_EVENT.selection("e")
)


async def watch(store: Store, after: Position | None, limit: int) -> Page[LifecycleEvent]:
    """The events behind a position; see `Source.read`."""
    for _ in range(_MAX_ATTEMPTS):
        page = await feed.read_page(store, WATCH, after, limit, _decode)
        if page is not None:
            return page
        await _make_valid(store)
    raise feed.changed_repeatedly()


def _decode(rows: PGresult, row: int, position: Position) -> Entry[LifecycleEvent]:
    event = LifecycleEvent()
    _read_event(rows.get_value, row, event)
    return Entry(position, event, event.ByteSize())


OLDEST_IS_OLD = feed.looking_for_old("lifecycle_events")

SWEEP = feed.sweeping("lifecycle_events", "lifecycle_feed")


class LifecycleEvents:
    """The feed of lifecycle events."""

    name = "lifecycle events"
    table = "lifecycle_events"

    async def read(self, store: Store, after: Position | None, limit: int) -> Page[LifecycleEvent]:
        """See `Source`."""
        return await watch(store, after, limit)

    async def read_copy(
        self, store: Store, after: Position, limit: int
    ) -> Page[LifecycleEvent] | None:
        """See `Source`."""
        return await feed.read_page(store, WATCH_COPY, after, limit, _decode)

    async def keep(self, store: Store) -> None:
        """Events are kept whether anybody watches or not."""

    async def sweep(self, store: Store, retention: float, limit: int) -> int | None:
        """See `Source`."""
        is_old = await feed.oldest_is_old(store, OLDEST_IS_OLD, retention)
        if not is_old:
            return None if is_old is None else 0
        await watch(store, None, 0)  # so that there is a feed whose floor rises
        return await feed.delete_old(store, SWEEP, retention, limit)
