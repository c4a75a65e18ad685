"""Queues: items are enqueued by their ids, handed out under leases, and acknowledged.

An item under a lease is one with a `lease_id` and a `visible_time` to come: the lease's expiry. So
whoever looks for work does not even see it, and when the lease expires it is simply visible again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.queue_pb2 import ConfigureQueueRequest, RenewItemsResponse
from wfe_persistence import metrics, offload
from wfe_persistence.store.documents import array, queue_item_document
from wfe_persistence.store.lease import (
    ALL_HELD,
    check_held,
    expiry_after,
    receipt_claims,
    unexpired,
)
from wfe_persistence.store.queue_parts import BY_TIME, KEY_ORDER, MERGED
from wfe_persistence.store.queue_waiting import queue_line
from wfe_persistence.store.records import QUEUE_ITEM, QUEUE_KIND
from wfe_persistence.store.rows import (
    boolean,
    integer,
    pg_micros,
    read_int8,
    read_time,
    text,
    text_list,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters

_INSERT: Final = f"""INSERT INTO wfc.queue_items (n, {QUEUE_ITEM.names()})
SELECT n, {QUEUE_ITEM.names()} FROM given g
WHERE NOT EXISTS (SELECT FROM locked l WHERE l.queue = g.queue AND l.id = g.id)
ORDER BY queue, id"""


def enqueue_statement(*, together: bool) -> str:
    """The statement that enqueues items, all or none. `together`: each or not, of those whose row
    is locked, or is being inserted; it returns those that were enqueued.

    Rows are locked, and then inserted, in the order of their keys. Numbers are given in the order
    of the request.
    """
    skip, returning, end = "", "", f"\n{_INSERT}"
    if together:
        skip = " SKIP LOCKED"
        returning = "\n    RETURNING i.queue, i.id"
        end = f""", inserted AS (
{_INSERT}
    ON CONFLICT (queue, id) DO NOTHING
    RETURNING queue, id
)
SELECT queue, id FROM inserted UNION ALL SELECT queue, id FROM merged"""
    return f"""
WITH given (n, {QUEUE_ITEM.names()}) AS MATERIALIZED (
    SELECT nextval('wfc.queue_item_numbers'),
        {QUEUE_ITEM.values("g")}
    FROM jsonb_to_recordset($1::jsonb) AS g(
        {QUEUE_ITEM.record()}
    )
), locked AS MATERIALIZED (
    SELECT i.n, g.queue, g.id
    FROM (SELECT queue, id FROM given ORDER BY queue, id) g, LATERAL (
        SELECT n FROM wfc.queue_items WHERE queue = g.queue AND id = g.id FOR UPDATE{skip}
    ) i
), merged AS (
    UPDATE wfc.queue_items i SET{MERGED}
    FROM given g JOIN locked l ON l.queue = g.queue AND l.id = g.id
    WHERE i.n = l.n AND i.n = ANY (ARRAY (SELECT n FROM locked)){returning}
){end}
"""


ENQUEUE = enqueue_statement(together=False)


async def enqueue(store: Store, items: Sequence[QueueItem], waiters: Waiters) -> None:
    """Put items into queues, all or none."""
    if items:
        document = await offload.run(lambda: array(map(queue_item_document, items)))
        await store.write(ENQUEUE, document)
        wake_for(store, waiters, items)


def wake_for(
    store: Store, waiters: Waiters, enqueued: Iterable[QueueItem], returned_to: Iterable[str] = ()
) -> None:
    """Wake whoever waits for items that have been enqueued or have come back. `returned_to`: the
    queues of the latter, one for each."""
    if not enqueued and not returned_to:
        return
    ready: Counter[str] = Counter()
    later: Counter[str] = Counter()
    for item in enqueued:
        if item.HasField("visible_time"):
            later[item.queue] += 1
            store.floors.lower(item.queue, pg_micros(item.visible_time))
        else:
            ready[item.queue] += 1
    for queue in returned_to:
        later[queue] += 1
        store.floors.lower(queue)  # enqueued while it was handled, it may have been due for a while
    wake_queues(store, waiters, ready)
    wake_queues(store, waiters, later, are_ready=False)


def wake_queues(
    store: Store, waiters: Waiters, items: Mapping[str, int], *, are_ready: bool = True
) -> None:
    """Wake whoever waits, after so many items of these queues have been written. (Also if none is
    visible yet: when the next one will be is what the first of them waits for.)"""
    for queue, count in items.items():
        waiters.wake(queue_line(store, queue), count, is_ready=are_ready)


RENEW_ITEMS = f"""
WITH given AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS g(at int, n bigint, lease_id text)
), held AS MATERIALIZED (
    SELECT i.n, g.at
    FROM given g JOIN wfc.queue_items i ON i.n = g.n AND i.lease_id = g.lease_id
    WHERE i.n = ANY (ARRAY (SELECT n FROM given))
        AND CASE WHEN i.dead THEN FALSE ELSE {unexpired("i.visible_time")} END
    ORDER BY {KEY_ORDER}
    FOR UPDATE OF i
), renewed AS (
    UPDATE wfc.queue_items SET visible_time = {expiry_after("$2")}
    WHERE n = ANY (ARRAY (SELECT n FROM held))
        AND {ALL_HELD}
)
SELECT at, EXISTS (SELECT FROM held h WHERE h.at = g.at),
    {expiry_after("$2")}
FROM given g
"""


async def renew_items(store: Store, receipts: Sequence[str], lease_ms: int) -> RenewItemsResponse:
    """Extend these leases by `lease_ms` from now, all or none."""
    claims = receipt_claims(receipts, "receipts[{}]")
    document = array(f'{{"at":{at},{claim}}}' for at, claim in enumerate(claims))
    rows = await store.write(RENEW_ITEMS, document, integer(lease_ms))
    check_held(rows, receipts, field="receipts")
    metrics.CLAIMS_RENEWED.add(("queue_item",), len(receipts))
    response = RenewItemsResponse()
    if rows.ntuples:
        read_time(rows.get_value(0, 2), response.lease_expiry)
    return response


CONFIGURE_QUEUE = """
INSERT INTO wfc.queues (name, kind, max_attempts) VALUES ($1, $2, nullif($3::int, 0))
ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, max_attempts = excluded.max_attempts
"""


async def configure_queue(store: Store, request: ConfigureQueueRequest) -> None:
    """Set how a queue works."""
    await store.write(
        CONFIGURE_QUEUE,
        text(request.queue),
        text(QUEUE_KIND[request.kind]),
        integer(request.max_attempts),
    )


# $1 the queue, $2 ids, $3 the most dead items besides ($4 whether leases are broken, $5 of the ids
# only the lease with this epoch).
_NAMED_AND_DEAD: Final = f"""
WITH named AS MATERIALIZED (
    SELECT i.n FROM jsonb_array_elements_text($2::jsonb) AS g(id), LATERAL (
        SELECT n FROM wfc.queue_items WHERE queue = $1 AND id = g.id LIMIT 1
    ) i
), chosen AS MATERIALIZED (
    SELECT n FROM wfc.queue_items
    WHERE n = ANY (ARRAY (
        SELECT n FROM named
        UNION (
            SELECT n FROM wfc.queue_items WHERE queue = $1 AND dead AND {BY_TIME}
            ORDER BY visible_time, n LIMIT $3
        )
    ))
    ORDER BY {KEY_ORDER}
    FOR UPDATE
)"""

REQUEUE_ITEMS = f"""{_NAMED_AND_DEAD}, requeued AS (
    UPDATE wfc.queue_items SET
        visible_time = now(), dead = FALSE, attempt = 0,
        again_time = NULL, lease_id = NULL, lease_worker_id = NULL
    WHERE n = ANY (ARRAY (SELECT n FROM chosen))
        AND CASE
            WHEN $5::bigint IS NOT NULL AND n = ANY (ARRAY (SELECT n FROM named))
                THEN lease_id IS NOT NULL AND lease_epoch = $5
            WHEN dead THEN TRUE
            WHEN lease_id IS NULL THEN {unexpired("visible_time")}
            ELSE $4::boolean
        END
    RETURNING 1
)
SELECT count(*) FROM requeued
"""


async def requeue_items(
    store: Store,
    queue: str,
    ids: Iterable[str],
    max_dead: int,
    waiters: Waiters,
    *,
    break_leases: bool = False,
    break_epoch: int | None = None,
) -> int:
    """Make dead and delayed items visible, and leased ones if their leases are to be broken;
    returns how many. `break_epoch`: of `ids`, only what is leased with this epoch."""
    row = await store.write_once(
        REQUEUE_ITEMS,
        text(queue),
        text_list(ids),
        integer(max_dead),
        boolean(break_leases),
        None if break_epoch is None else integer(break_epoch),
    )
    requeued = read_int8(row.get_value(0, 0))
    wake_queues(store, waiters, {queue: requeued})
    return requeued


DELETE_ITEMS = f"""{_NAMED_AND_DEAD}, deleted AS (
    DELETE FROM wfc.queue_items WHERE n = ANY (ARRAY (SELECT n FROM chosen))
    RETURNING 1
)
SELECT count(*) FROM deleted
"""


async def delete_items(store: Store, queue: str, ids: Iterable[str], max_dead: int) -> int:
    """Delete items, whatever their state; returns how many."""
    row = await store.write_once(DELETE_ITEMS, text(queue), text_list(ids), integer(max_dead))
    return read_int8(row.get_value(0, 0))
