"""Queues: items are enqueued by their ids, handed out under leases, and acknowledged.

An item under a lease is one with a `lease_id` and a `visible_time` to come: the lease's expiry. So
whoever looks for work does not even see it, and when the lease expires it is simply visible again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from wfe.persistence.v1.queue_item_pb2 import Acknowledgement, QueueItem
from wfe.persistence.v1.queue_pb2 import ConfigureQueueRequest, RenewItemsResponse, ReturnedItem
from wfe_persistence import metrics, offload
from wfe_persistence.store.documents import array, queue_item_document
from wfe_persistence.store.lease import (
    ALL_HELD,
    RECEIPT,
    bad_token,
    check_held,
    expiry_after,
    lease_lost,
    unexpired,
)
from wfe_persistence.store.queue_parts import (
    BY_TIME,
    EVENT_IS_UNPROCESSED,
    IS_REMOVED,
    KEPT,
    KEY_ORDER,
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
    pg_micros,
    read_int8,
    read_json,
    read_text,
    read_time,
    text,
    text_list,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters

_INSERT: Final = f"""INSERT INTO wfc.queue_items (n, {QUEUE_ITEM.names()})
SELECT n, {QUEUE_ITEM.names()} FROM fresh ORDER BY queue, id"""


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
WITH given (at, {QUEUE_ITEM.names()}) AS MATERIALIZED (
    SELECT g.at,
        {QUEUE_ITEM.values("g")}
    FROM ROWS FROM (jsonb_to_recordset($1::jsonb) AS (
        {QUEUE_ITEM.record()}
    )) WITH ORDINALITY AS g({QUEUE_ITEM.names()}, at)
), locked AS MATERIALIZED (
    SELECT i.n, g.queue, g.id
    FROM (SELECT queue, id FROM given ORDER BY queue, id) g, LATERAL (
        SELECT n FROM wfc.queue_items WHERE queue = g.queue AND id = g.id FOR UPDATE{skip}
    ) i
), merged AS (
    UPDATE wfc.queue_items i SET{MERGED}
    FROM given g JOIN locked l ON l.queue = g.queue AND l.id = g.id
    WHERE i.n = l.n AND i.n = ANY (ARRAY (SELECT n FROM locked)){returning}
), fresh AS MATERIALIZED (
    SELECT nextval('wfc.queue_item_numbers') AS n, g.* FROM (
        SELECT {QUEUE_ITEM.names()} FROM given g
        WHERE NOT EXISTS (SELECT FROM locked l WHERE l.queue = g.queue AND l.id = g.id)
        ORDER BY at
    ) g
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


_NOT_DONE: Final = not_done(WORKFLOW_IS_DUE, EVENT_IS_UNPROCESSED)


def settle_statement(*, together: bool) -> str:
    """The statement that acknowledges and returns, all or nothing. `together`: that of several
    calls, each of which is done or, also if a row is locked, left alone.

    An item that was enqueued since it was handed out (`again_time`) is neither removed nor dead.
    The setting tells what is run next in the same transaction whether all were held; of several
    calls, the numbers of those of which they were not.
    """
    call, of_call, skip, lost = "", "", "", ""
    all_held, settled = ALL_HELD, f"({ALL_HELD})::text"
    if together:
        call, of_call, skip = ", call int", ", g.call", " SKIP LOCKED"
        lost = """, lost AS MATERIALIZED (
    SELECT DISTINCT call FROM given WHERE at NOT IN (SELECT at FROM held)
)"""
        all_held = "h.call NOT IN (SELECT call FROM lost)"
        settled = "(SELECT coalesce(jsonb_agg(call), '[]') FROM lost)::text"
    return f"""
WITH given AS MATERIALIZED (
    SELECT *
    FROM jsonb_to_recordset($1::jsonb) AS g(at int, n bigint, lease_id text, act text,
        delay_ms bigint{call})
), held AS MATERIALIZED (
    SELECT i.n, i.queue, i.id, i.dead, i.attempt, i.again_time,
        g.at, g.act, g.delay_ms{of_call}
    FROM given g JOIN wfc.queue_items i ON i.n = g.n AND i.lease_id = g.lease_id
    WHERE i.n = ANY (ARRAY (SELECT n FROM given))
    ORDER BY {KEY_ORDER}
    FOR UPDATE OF i{skip}
){lost}, judged AS MATERIALIZED (
    SELECT h.*,
        h.act = 'acknowledge' OR (h.act = 'confirm' AND NOT {_NOT_DONE}) AS done,
        h.dead OR coalesce(h.attempt >= q.max_attempts, FALSE) AS spent,
        CASE h.act WHEN 'return' THEN h.delay_ms * interval '1 millisecond'
            ELSE {backoff("h.attempt")} END AS delay
    FROM held h LEFT JOIN wfc.queues q ON q.name = h.queue
    WHERE {all_held}
), removed AS (
    DELETE FROM wfc.queue_items
    WHERE n = ANY (ARRAY (SELECT n FROM judged WHERE done AND again_time IS NULL))
), kept AS (
    UPDATE wfc.queue_items i SET{KEPT}
    FROM judged j
    WHERE i.n = j.n AND NOT (j.done AND j.again_time IS NULL)
        AND i.n = ANY (ARRAY (SELECT n FROM judged))
)
SELECT (SELECT jsonb_agg(at ORDER BY at) FROM given WHERE at NOT IN (SELECT at FROM held)),
    (SELECT jsonb_agg(at ORDER BY at) FROM judged WHERE act = 'confirm' AND NOT done),
    (SELECT jsonb_agg(queue) FROM judged WHERE NOT ({IS_REMOVED})),
    set_config('wfe.settled', {settled}, TRUE)
"""


SETTLE_ITEMS = settle_statement(together=False)


class Settled(NamedTuple):
    """What a statement has settled. Items are numbered as in its document."""

    lost: Sequence[int]
    """Those that are no longer held."""
    unconfirmed: Sequence[int]
    returned_to: Sequence[str]
    """The queues of the items that come back, one for each."""
    setting: str
    """What the statements behind it in the same transaction are told."""

    @classmethod
    def read(cls, row: PGresult) -> Settled:
        """Out of the statement's row."""
        lists = (row.get_value(0, column) for column in range(3))
        lost, unconfirmed, queues = ([] if v is None else json.loads(read_json(v)) for v in lists)
        return cls(lost, unconfirmed, queues, read_text(row.get_value(0, 3)))


class Settlement:
    """Items that were handed out, and what becomes of them. Raises PersistenceError if a receipt
    can't be one."""

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
        self.members: Final = list(self._claims())
        """The members of the document of each item, without its number in it."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._receipts)

    @property
    def receipts(self) -> Sequence[str]:
        """Their receipts, in the order of `members`."""
        return self._receipts

    def document(self) -> bytes:
        """The parameter of the statement."""
        return array(f'{{"at":{at},{each}}}' for at, each in enumerate(self.members))

    def _claims(self) -> Iterator[str]:
        yield from _acknowledgements(self._acknowledge)
        for i, item in enumerate(self._return_items):
            delay_ms = item.delay.seconds * 1000 + item.delay.nanos // 1_000_000
            act = f',"act":"return","delay_ms":{delay_ms}'
            yield _claim(item.receipt, "return_items[{}].receipt", i, act)

    def outcome(self, rows: PGresult, store: Store, waiters: Waiters) -> list[str]:
        """The receipts that were not confirmed; whoever waits for what comes back is woken. Raises
        PersistenceError if any is lost."""
        settled = Settled.read(rows)
        if lost := settled.lost:
            raise lease_lost(
                [self._receipts[at] for at in lost],
                of=len(self._receipts),
                field="acknowledge" if lost[0] < len(self._acknowledge) else "return_items",
            )
        wake_for(store, waiters, (), settled.returned_to)
        return [self._receipts[at] for at in settled.unconfirmed]


def acknowledgement_documents(acknowledgements: Iterable[Acknowledgement]) -> Iterator[str]:
    """Acknowledgements as numbered documents. Raises PersistenceError if a receipt can't be one."""
    for at, members in enumerate(_acknowledgements(acknowledgements)):
        yield f'{{"at":{at},{members}}}'


def _acknowledgements(acknowledgements: Iterable[Acknowledgement]) -> Iterator[str]:
    for i, each in enumerate(acknowledgements):
        act = ',"act":"confirm"' if each.confirmed else ',"act":"acknowledge"'
        yield _claim(each.receipt, "acknowledge[{}].receipt", i, act)


def _claim(receipt: str, path: str, at: int, members: str = "") -> str:
    """The members of the document of a receipt, with more of them. `path`: the field, with braces
    where `at` belongs."""
    if (match := RECEIPT(receipt)) is None:
        raise bad_token(path.format(at), origin="Dequeue")
    return f'"n":{match[1]},"lease_id":"{match[2]}"{members}'


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
    document = array(
        f'{{"at":{at},{_claim(each, "receipts[{}]", at)}}}' for at, each in enumerate(receipts)
    )
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
