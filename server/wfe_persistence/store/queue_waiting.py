"""What those wait for who want items of a queue, and how the lookout looks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from wfe_persistence.store.lease import unexpired
from wfe_persistence.store.lock import lock_line
from wfe_persistence.store.rows import (
    floor_array,
    integer,
    read_int8,
    read_json,
    read_text,
    text_array,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Ahead, Kind, Line

UNBLOCKED: Final = f"""(blocked_by = '{{}}' OR NOT EXISTS (
                SELECT FROM wfc.locks l
                WHERE l.resource = ANY (blocked_by) AND {unexpired("l.expiry")}))"""
"""The condition that nobody holds a lock that an item is withheld for, in SQL. (Most items are
blocked by nothing, and the locks are looked up for the others only.)"""

ANY_FLOOR: Final = "g.floor BETWEEN '-infinity' AND 'infinity'"
"""A condition that every queue meets which a dequeue looks into, of which the planner thinks that
hardly any does."""

# How many waiters of a queue are woken at once, and how many of its first items are looked at for
# the locks that withhold them.
_MOST: Final = 100

# $1 the queues, $2 how many items, at most, are counted of each. Per queue: how many items could be
# had now, in how many milliseconds one becomes visible or a lock expires that withholds some, and
# these locks. $3 their floors.
LOOK_AT_QUEUES = f"""
SELECT g.name, ready.count,
    (extract(epoch FROM least(coming.at, locks.expiry) - now()) * 1000)::bigint, locks.resources
FROM unnest($1::text[], $3::timestamptz[]) AS g(name, floor)
CROSS JOIN LATERAL (
    SELECT count(*) FROM (
        SELECT FROM wfc.queue_items
        WHERE queue = g.name AND NOT dead
            AND visible_time >= g.floor AND visible_time <= now() AND {UNBLOCKED}
        ORDER BY visible_time, n
        LIMIT $2
    ) i
) ready
LEFT JOIN LATERAL (
    SELECT visible_time AS at FROM wfc.queue_items
    WHERE queue = g.name AND NOT dead AND {unexpired("visible_time")}
    ORDER BY visible_time, n
    LIMIT 1
) coming ON TRUE
CROSS JOIN LATERAL (
    SELECT min(l.expiry) AS expiry, jsonb_agg(DISTINCT l.resource) AS resources FROM (
        SELECT blocked_by FROM wfc.queue_items
        WHERE queue = g.name AND NOT dead
            AND visible_time >= g.floor AND visible_time <= now()
        ORDER BY visible_time, n
        LIMIT $2
    ) i, unnest(i.blocked_by) AS b(resource), wfc.locks l
    WHERE l.resource = b.resource AND {unexpired("l.expiry")}
) locks
WHERE ready.count > 0 OR coming.at IS NOT NULL OR locks.expiry IS NOT NULL
"""


async def look_at_queues(store: Store, names: Sequence[str]) -> Iterator[Ahead]:
    """Which of these queues have items, now or later."""
    floors = floor_array(map(store.floors.known, names))
    rows = await store.read(LOOK_AT_QUEUES, text_array(names), integer(_MOST), floors)
    get = rows.get_value

    def ahead(i: int) -> Ahead:
        name, ready, ms, locks = (get(i, column) for column in range(4))
        resources = [] if locks is None else json.loads(read_json(locks))
        return Ahead(
            read_text(name),
            read_int8(ready),
            None if ms is None else read_int8(ms) / 1000,
            [lock_line(store, resource) for resource in resources],
        )

    return map(ahead, range(rows.ntuples))


QUEUE: Final = Kind("queue", look_at_queues)


def queue_line(store: Store, queue: str) -> Line:
    """Where those wait who want items of a queue."""
    return Line(store.namespace, QUEUE, queue)
