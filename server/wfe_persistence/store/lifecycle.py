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
from wfe_persistence.store.rows import PGresult
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

# Events that were restored into another cluster may have ids of transactions that are still to come
# there: they become ones of this transaction, in their order.
ADOPT = f"""
WITH adopted AS (
    INSERT INTO wfc.lifecycle_feed AS f (cluster)
    VALUES ({CLUSTER})
    ON CONFLICT (only_row) DO UPDATE SET
        feed_id = EXCLUDED.feed_id, cluster = EXCLUDED.cluster, floor_xid = '0', floor_n = 0
    WHERE f.cluster <> EXCLUDED.cluster
    RETURNING only_row
)
UPDATE wfc.lifecycle_events SET xid = pg_current_xact_id()
WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()) AND EXISTS (SELECT FROM adopted)
"""

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
        await store.write(ADOPT)
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
