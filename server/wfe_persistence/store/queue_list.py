"""What is in the queues, for people: lists of items and statistics."""

from __future__ import annotations

from typing import Final

from google.protobuf.duration_pb2 import Duration

from wfe.persistence.v1.queue_pb2 import (
    GetQueueStatsRequest,
    ListedQueueItem,
    ListQueueItemsRequest,
    QueueItemState,
    QueueKind,
    QueueStats,
)
from wfe_persistence.store.lease import expired, unexpired
from wfe_persistence.store.paging import TIME, Cursor, Page, fill_page
from wfe_persistence.store.queue_parts import BY_TIME
from wfe_persistence.store.records import QUEUE_ITEM, QUEUE_KIND
from wfe_persistence.store.rows import (
    Param,
    PGresult,
    boolean,
    integer,
    read_int4,
    read_int8,
    read_text,
    read_time,
    text,
    text_list,
)
from wfe_persistence.store.tables import Store

_STATES: Final = {
    "Waiting": QueueItemState.QUEUE_ITEM_STATE_WAITING,
    "Delayed": QueueItemState.QUEUE_ITEM_STATE_DELAYED,
    "Leased": QueueItemState.QUEUE_ITEM_STATE_LEASED,
    "Dead": QueueItemState.QUEUE_ITEM_STATE_DEAD,
}

# What a state means: whether the item is dead, its visible_time is to come, and it has a lease_id.
_CONDITIONS: Final[dict[QueueItemState.ValueType, tuple[bool | None, bool | None, bool | None]]] = {
    QueueItemState.QUEUE_ITEM_STATE_UNSPECIFIED: (None, None, None),
    QueueItemState.QUEUE_ITEM_STATE_WAITING: (False, False, None),
    QueueItemState.QUEUE_ITEM_STATE_DELAYED: (False, True, False),
    QueueItemState.QUEUE_ITEM_STATE_LEASED: (False, True, True),
    QueueItemState.QUEUE_ITEM_STATE_DEAD: (True, None, None),
}

_STATE: Final = f"""CASE WHEN dead THEN 'Dead' WHEN {expired("visible_time")} THEN 'Waiting'
        WHEN lease_id IS NULL THEN 'Delayed' ELSE 'Leased' END"""

_read_item = QUEUE_ITEM.reader()
_VISIBLE_TIME: Final = QUEUE_ITEM.at("visible_time")

# An absent filter is NULL, and the planner, which knows the parameters, removes its condition. Of a
# state, the last condition tells where in the index the page starts.
LIST_QUEUE_ITEMS = f"""
SELECT {QUEUE_ITEM.selection()}, n, dead,
    {_STATE}, attempt, again_time, coalesce(lease_worker_id, ''), lease_epoch
FROM wfc.queue_items
WHERE queue = $1
    AND CASE WHEN $2::text IS NULL THEN {BY_TIME} ELSE id = $2 END
    AND ($3::boolean IS NULL OR dead = $3)
    AND ($4::boolean IS NULL OR ({unexpired("visible_time")}) = $4)
    AND ($5::boolean IS NULL OR (lease_id IS NOT NULL) = $5)
    AND ($6::timestamptz IS NULL OR (dead, visible_time, n) > ($8::boolean, $6, $7::bigint))
    AND ($3 IS NULL OR $6 IS NULL OR visible_time >= $6)
ORDER BY dead, visible_time, n
LIMIT $9
"""


async def list_queue_items(
    store: Store,
    request: ListQueueItemsRequest,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
) -> Page[ListedQueueItem]:
    """A queue's items in the order in which they are handed out, the dead ones last."""
    at: tuple[Param, Param] = (None, None)
    dead = None
    if after is not None:
        # Dead ones have a minus before their number.
        dead = boolean(after[1].startswith("-"))
        at = TIME.params((after[0], after[1].removeprefix("-")))
    rows = store.stream_once(
        LIST_QUEUE_ITEMS,
        text(request.queue),
        text(request.id) if request.id else None,
        *(None if each is None else boolean(each) for each in _CONDITIONS[request.state]),
        *at,
        dead,
        integer(page_size + 1),
    )
    return await fill_page(rows, _decode_listed, _in_order, page_size, page_bytes)


def _decode_listed(row: PGresult) -> ListedQueueItem:
    listed = ListedQueueItem()
    _read_item(row.get_value, 0, listed.item)
    state, attempt, again, worker, epoch = (
        row.get_value(0, len(QUEUE_ITEM) + column) for column in range(2, 7)
    )
    listed.state = _STATES[read_text(state)]
    listed.attempt = read_int4(attempt)
    if again is not None:
        read_time(again, listed.again_time)
    if listed.state == QueueItemState.QUEUE_ITEM_STATE_LEASED:
        listed.lease.worker_id = read_text(worker)
        listed.lease.expiry.CopyFrom(listed.item.visible_time)
        listed.lease.epoch = read_int8(epoch)
    return listed


def _in_order(row: PGresult, listed: ListedQueueItem) -> Cursor:
    n = read_int8(row.get_value(0, len(QUEUE_ITEM)))
    sign = "-" if listed.state == QueueItemState.QUEUE_ITEM_STATE_DEAD else ""
    return read_int8(row.get_value(0, _VISIBLE_TIME)), f"{sign}{n}"


# The recursion finds each name once, whatever the number of items. $1 the names (NULL: all), $2 the
# last name of the page before.
GET_QUEUE_STATS = f"""
WITH RECURSIVE used (name) AS (
    (SELECT queue FROM wfc.queue_items WHERE $1::jsonb IS NULL AND queue > coalesce($2, '')
        ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT queue FROM wfc.queue_items WHERE queue > used.name ORDER BY queue LIMIT 1)
    FROM used WHERE used.name IS NOT NULL
), named AS (
    SELECT name FROM used WHERE name IS NOT NULL
    UNION
    SELECT name FROM wfc.queues WHERE $1::jsonb IS NULL
    UNION
    SELECT name COLLATE "C" FROM jsonb_array_elements_text($1::jsonb) AS given(name)
), page AS (
    SELECT name FROM named WHERE name > coalesce($2::text, '') ORDER BY name LIMIT $3
)
SELECT p.name, coalesce(q.kind, 'Plain'), coalesce(q.max_attempts, 0),
    i.waiting, i.delayed, i.leased, i.dead,
    floor(extract(epoch FROM now() - i.oldest) * 1000000)::bigint
FROM page p
LEFT JOIN wfc.queues q ON q.name = p.name
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE state = 'Waiting') AS waiting,
        count(*) FILTER (WHERE state = 'Delayed') AS delayed,
        count(*) FILTER (WHERE state = 'Leased') AS leased,
        count(*) FILTER (WHERE state = 'Dead') AS dead,
        min(visible_time) FILTER (WHERE state = 'Waiting') AS oldest
    FROM (
        SELECT visible_time, {_STATE} AS state FROM wfc.queue_items WHERE queue = p.name
    ) items
) i
ORDER BY p.name
"""

_KINDS: Final = {name: kind for kind, name in QUEUE_KIND.items()}


async def get_queue_stats(
    store: Store,
    request: GetQueueStatsRequest,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
) -> Page[QueueStats]:
    """How many items queues have, in the order of the queues' names."""
    rows = store.stream_once(
        GET_QUEUE_STATS,
        text_list(request.queues) if request.queues else None,
        None if after is None else text(after[1]),
        integer(page_size + 1),
    )
    return await fill_page(rows, _decode_stats, _by_name, page_size, page_bytes)


def _decode_stats(row: PGresult) -> QueueStats:
    name, kind, max_attempts, waiting, delayed, leased, dead, age = (
        row.get_value(0, column) for column in range(8)
    )
    stats = QueueStats(
        queue=read_text(name),
        kind=_KINDS.get(read_text(kind), QueueKind.QUEUE_KIND_UNSPECIFIED),
        max_attempts=read_int4(max_attempts),
        waiting=read_int8(waiting),
        delayed=read_int8(delayed),
        leased=read_int8(leased),
        dead=read_int8(dead),
    )
    if age is not None:
        seconds, micros = divmod(max(read_int8(age), 0), 1_000_000)
        stats.oldest_waiting_age.CopyFrom(Duration(seconds=seconds, nanos=micros * 1000))
    return stats


def _by_name(_: PGresult, stats: QueueStats) -> Cursor:
    return 0, stats.queue
