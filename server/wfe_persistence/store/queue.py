"""Queues: items are enqueued by their ids, handed out under leases, and acknowledged.

An item under a lease is one with a `lease_id` and a `visible_time` to come: the lease's expiry. So
whoever looks for work does not even see it, and when the lease expires it is simply visible again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from wfe.persistence.v1.queue_item_pb2 import Acknowledgement, QueueItem
from wfe.persistence.v1.queue_pb2 import ConfigureQueueRequest, RenewItemsResponse, ReturnedItem
from wfe_persistence import metrics, offload
from wfe_persistence.store.documents import array, queue_item_document
from wfe_persistence.store.lease import (
    ALL_HELD,
    check_held,
    expiry_after,
    lease_lost,
    parse_lease_token,
    unexpired,
)
from wfe_persistence.store.queue_parts import (
    EVENT_IS_UNPROCESSED,
    KEPT,
    MERGED,
    WORKFLOW_IS_DUE,
    backoff,
    not_done,
)
from wfe_persistence.store.queue_waiting import queue_line
from wfe_persistence.store.records import QUEUE_ITEM, QUEUE_KIND
from wfe_persistence.store.rows import (
    PGresult,
    integer,
    read_bool,
    read_int4,
    read_int8,
    read_text,
    read_time,
    text,
    text_list,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters

# Rows are locked, and then inserted, in the order of their keys. Numbers are given in the order of
# the request.
ENQUEUE = f"""
WITH given (at, {QUEUE_ITEM.names()}) AS MATERIALIZED (
    SELECT g.at,
        {QUEUE_ITEM.values("g")}
    FROM ROWS FROM (jsonb_to_recordset($1::jsonb) AS (
        {QUEUE_ITEM.record()}
    )) WITH ORDINALITY AS g({QUEUE_ITEM.names()}, at)
), locked AS MATERIALIZED (
    SELECT i.n, g.queue, g.id
    FROM (SELECT queue, id FROM given ORDER BY queue, id) g, LATERAL (
        SELECT n FROM wfc.queue_items WHERE queue = g.queue AND id = g.id FOR UPDATE
    ) i
), merged AS (
    UPDATE wfc.queue_items i SET{MERGED}
    FROM given g
    WHERE i.queue = g.queue AND i.id = g.id AND i.n = ANY (ARRAY (SELECT n FROM locked))
), fresh AS MATERIALIZED (
    SELECT nextval('wfc.queue_item_numbers') AS n, g.* FROM (
        SELECT {QUEUE_ITEM.names()} FROM given g
        WHERE NOT EXISTS (SELECT FROM locked l WHERE l.queue = g.queue AND l.id = g.id)
        ORDER BY at
    ) g
)
INSERT INTO wfc.queue_items (n, {QUEUE_ITEM.names()})
SELECT n, {QUEUE_ITEM.names()} FROM fresh ORDER BY queue, id
"""


async def enqueue(store: Store, items: Sequence[QueueItem], waiters: Waiters) -> None:
    """Put items into queues, all or none."""
    if items:
        document = await offload.run(lambda: array(map(queue_item_document, items)))
        await store.write(ENQUEUE, document)
        wake_queues(store, waiters, Counter(item.queue for item in items))


def wake_queues(store: Store, waiters: Waiters, items: Mapping[str, int]) -> None:
    """Wake whoever waits, after so many items of these queues have been written. (Also if none is
    visible yet: when the next one will be is what the first of them waits for.)"""
    for queue, count in items.items():
        waiters.wake(queue_line(store, queue), count)


_NOT_DONE: Final = not_done(WORKFLOW_IS_DUE, EVENT_IS_UNPROCESSED)

# Acknowledges and returns, all or nothing. An item that was enqueued since it was handed out
# (`again_time`) is neither removed nor dead. The setting tells DEQUEUE, in the same transaction,
# whether all were held.
SETTLE_ITEMS = f"""
WITH given AS MATERIALIZED (
    SELECT *
    FROM jsonb_to_recordset($1::jsonb) AS g(at int, n bigint, lease_id text, act text,
        delay_ms bigint)
), held AS MATERIALIZED (
    SELECT i.n, i.queue, i.id, i.dead, i.attempt, i.again_time, g.at, g.act, g.delay_ms
    FROM given g JOIN wfc.queue_items i ON i.n = g.n AND i.lease_id = g.lease_id
    WHERE i.n = ANY (ARRAY (SELECT n FROM given))
    ORDER BY i.queue, i.id
    FOR UPDATE OF i
), judged AS MATERIALIZED (
    SELECT h.*,
        h.act = 'acknowledge' OR (h.act = 'confirm' AND NOT {_NOT_DONE}) AS done,
        h.dead OR coalesce(h.attempt >= q.max_attempts, FALSE) AS spent,
        CASE h.act WHEN 'return' THEN h.delay_ms * interval '1 millisecond'
            ELSE {backoff("h.attempt")} END AS delay
    FROM held h LEFT JOIN wfc.queues q ON q.name = h.queue
    WHERE {ALL_HELD}
), removed AS (
    DELETE FROM wfc.queue_items
    WHERE n = ANY (ARRAY (SELECT n FROM judged WHERE done AND again_time IS NULL))
), kept AS (
    UPDATE wfc.queue_items i SET{KEPT}
    FROM judged j
    WHERE i.n = j.n AND NOT (j.done AND j.again_time IS NULL)
        AND i.n = ANY (ARRAY (SELECT n FROM judged))
)
SELECT at, EXISTS (SELECT FROM held h WHERE h.at = g.at),
    EXISTS (SELECT FROM judged j WHERE j.at = g.at AND j.act = 'confirm' AND NOT j.done),
    (SELECT queue FROM judged j WHERE j.at = g.at AND NOT (j.done AND j.again_time IS NULL)),
    set_config('wfe.settled', ({ALL_HELD})::text, TRUE)
FROM given g
"""


class Settlement:
    """Items that were handed out, and what becomes of them."""

    def __init__(
        self,
        acknowledge: Sequence[Acknowledgement] = (),
        return_items: Sequence[ReturnedItem] = (),
    ) -> None:
        self._acknowledge = acknowledge
        self._return_items = return_items
        # Numbered as in the document.
        self._receipts = [each.receipt for each in acknowledge]
        self._receipts += [each.receipt for each in return_items]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._receipts)

    def document(self) -> bytes:
        """The parameter of the statement. Raises PersistenceError if a receipt can't be one."""
        return array(self._documents())

    def _documents(self) -> Iterator[str]:
        yield from acknowledgement_documents(self._acknowledge)
        for i, item in enumerate(self._return_items):
            delay_ms = item.delay.seconds * 1000 + item.delay.nanos // 1_000_000
            yield _claim(
                len(self._acknowledge) + i,
                item.receipt,
                f"return_items[{i}].receipt",
                f',"act":"return","delay_ms":{delay_ms}',
            )

    def outcome(self, rows: PGresult, store: Store, waiters: Waiters) -> list[str]:
        """The receipts that were not confirmed; whoever waits for what comes back is woken. Raises
        PersistenceError if any is lost."""
        get = rows.get_value
        held = {read_int4(get(i, 0)): read_bool(get(i, 1)) for i in range(rows.ntuples)}
        if lost := sorted(at for at, is_held in held.items() if not is_held):
            raise lease_lost(
                [self._receipts[at] for at in lost],
                of=len(held),
                field="acknowledge" if lost[0] < len(self._acknowledge) else "return_items",
            )
        back = (get(i, 3) for i in range(rows.ntuples))
        wake_queues(
            store, waiters, Counter(read_text(queue) for queue in back if queue is not None)
        )
        returned = sorted(read_int4(get(i, 0)) for i in range(rows.ntuples) if read_bool(get(i, 2)))
        return [self._receipts[at] for at in returned]


def acknowledgement_documents(acknowledgements: Iterable[Acknowledgement]) -> Iterator[str]:
    """Acknowledgements as numbered documents. Raises PersistenceError if a receipt can't be one."""
    for at, each in enumerate(acknowledgements):
        act = "confirm" if each.confirmed else "acknowledge"
        yield _claim(at, each.receipt, f"acknowledge[{at}].receipt", f',"act":"{act}"')


def _claim(at: int, receipt: str, path: str, members: str = "") -> str:
    """The document of a receipt, with more members."""
    (n,), lease_id = parse_lease_token(receipt, path, numbers=1, origin="Dequeue")
    return f'{{"at":{at},"n":{n},"lease_id":"{lease_id}"{members}}}'


ACKNOWLEDGE = SETTLE_ITEMS


async def acknowledge(
    store: Store, acknowledgements: Sequence[Acknowledgement], waiters: Waiters
) -> list[str]:
    """Remove items that have been handled, all or none; returns the receipts of those that were
    not confirmed."""
    settlement = Settlement(acknowledge=acknowledgements)
    rows = await store.write(ACKNOWLEDGE, settlement.document())
    return settlement.outcome(rows, store, waiters)


RETURN_ITEMS = SETTLE_ITEMS


async def return_items(store: Store, items: Sequence[ReturnedItem], waiters: Waiters) -> None:
    """Give back items unhandled, all or none."""
    settlement = Settlement(return_items=items)
    rows = await store.write(RETURN_ITEMS, settlement.document())
    settlement.outcome(rows, store, waiters)


RENEW_ITEMS = f"""
WITH given AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS g(at int, n bigint, lease_id text)
), held AS MATERIALIZED (
    SELECT i.n, g.at
    FROM given g JOIN wfc.queue_items i ON i.n = g.n AND i.lease_id = g.lease_id
    WHERE i.n = ANY (ARRAY (SELECT n FROM given))
        AND NOT i.dead AND {unexpired("i.visible_time")}
    ORDER BY i.queue, i.id
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
    document = array(_claim(at, receipt, f"receipts[{at}]") for at, receipt in enumerate(receipts))
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


# $1 the queue, $2 ids, $3 the most dead items besides.
_NAMED_AND_DEAD: Final = """
WITH named AS MATERIALIZED (
    SELECT i.n FROM jsonb_array_elements_text($2::jsonb) AS g(id), LATERAL (
        SELECT n FROM wfc.queue_items WHERE queue = $1 AND id = g.id LIMIT 1
    ) i
), chosen AS MATERIALIZED (
    SELECT n FROM wfc.queue_items
    WHERE n = ANY (ARRAY (
        SELECT n FROM named
        UNION (
            SELECT n FROM wfc.queue_items WHERE queue = $1 AND dead
            ORDER BY visible_time, n LIMIT $3
        )
    ))
    ORDER BY queue, id
    FOR UPDATE
)"""

REQUEUE_ITEMS = f"""{_NAMED_AND_DEAD}, requeued AS (
    UPDATE wfc.queue_items SET
        visible_time = now(), dead = FALSE, attempt = 0,
        again_time = NULL, lease_id = NULL, lease_worker_id = NULL
    WHERE n = ANY (ARRAY (SELECT n FROM chosen))
        AND (dead OR (lease_id IS NULL AND {unexpired("visible_time")}))
    RETURNING 1
)
SELECT count(*) FROM requeued
"""


async def requeue_items(
    store: Store, queue: str, ids: Iterable[str], max_dead: int, waiters: Waiters
) -> int:
    """Make dead and delayed items visible; returns how many."""
    row = await store.write_once(REQUEUE_ITEMS, text(queue), text_list(ids), integer(max_dead))
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
