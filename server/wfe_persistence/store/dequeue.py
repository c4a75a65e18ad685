"""Dequeue: items of queues are handed out, at once or when there are some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from wfe.persistence.v1.queue_pb2 import DequeuedItem, DequeueRequest
from wfe_persistence import metrics
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.lease import (
    NEXT_EPOCH,
    expiry_after,
    lease_token,
    new_lease_id,
)
from wfe_persistence.store.queue import SETTLE_ITEMS, Settlement
from wfe_persistence.store.queue_waiting import UNBLOCKED, queue_line
from wfe_persistence.store.records import QUEUE_ITEM
from wfe_persistence.store.rows import (
    Param,
    PGresult,
    integer,
    read_int4,
    read_int8,
    read_time,
    text,
    text_array,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters

_read_item = QUEUE_ITEM.reader()


class Dequeued(NamedTuple):
    """What a dequeue came to."""

    items: list[DequeuedItem]
    returned_receipts: list[str]
    """The receipts of the acknowledgements that were not confirmed."""


# What an item has at most in the answer, beside its texts.
_CLAIM_BYTES: Final = 160

_ITEM_BYTES: Final = f"""octet_length(queue) + octet_length(id)
                + coalesce(octet_length(payload::text), 0)
                + octet_length(array_to_string(blocked_by, '')) + 4 * cardinality(blocked_by)
                + {_CLAIM_BYTES}"""

# $1 the queues, $2 the most items, $3 the lease in ms, $4 its id, $5 the worker, $6 the most bytes.
# An item that was handed out too often dies here, if its last lease has expired; if that is all
# there was, there may be others behind. There is always a row, which tells how many died. (Of an
# array the planner knows the length. It must not expect many times the rows and the cost, or the
# database compiles the statement at each call.)
DEQUEUE = f"""
WITH wanted AS MATERIALIZED (
    SELECT g.name, q.max_attempts
    FROM unnest($1::text[]) AS g(name)
    LEFT JOIN wfc.queues q ON q.name = g.name
    WHERE coalesce(current_setting('wfe.settled', TRUE), '') <> 'false'
), visible AS MATERIALIZED (
    SELECT i.*, coalesce(i.attempt >= w.max_attempts, FALSE) AS spent
    FROM wanted w, LATERAL (
        SELECT n, visible_time, attempt, again_time, {_ITEM_BYTES} AS bytes
        FROM wfc.queue_items
        WHERE queue = w.name AND NOT dead AND visible_time <= now() AND {UNBLOCKED}
        ORDER BY visible_time, n
        LIMIT $2
        FOR UPDATE SKIP LOCKED
    ) i
), died AS (
    UPDATE wfc.queue_items SET dead = TRUE
    WHERE n = ANY (ARRAY (SELECT n FROM visible WHERE spent AND again_time IS NULL))
    RETURNING 1
), fitting AS MATERIALIZED (
    SELECT n, visible_time, spent FROM (
        SELECT *, sum(bytes) OVER in_order AS bytes_so_far, row_number() OVER in_order AS place
        FROM visible WHERE NOT spent OR again_time IS NOT NULL
        WINDOW in_order AS (ORDER BY visible_time, n)
    ) v WHERE place <= $2 AND (bytes_so_far <= $6 OR place = 1)
), claimed AS (
    UPDATE wfc.queue_items i SET
        visible_time = {expiry_after("$3")},
        lease_id = $4, lease_worker_id = $5, lease_epoch = {NEXT_EPOCH},
        attempt = CASE WHEN f.spent THEN 1 ELSE least(i.attempt, 2147483646) + 1 END,
        again_time = NULL
    FROM fitting f
    WHERE i.n = f.n AND i.n = ANY (ARRAY (SELECT n FROM fitting))
    RETURNING i.queue, i.id, i.payload, f.visible_time, i.blocked_by,
        i.n, i.visible_time AS lease_expiry, i.lease_epoch, i.attempt
)
SELECT {QUEUE_ITEM.selection()}, n, lease_expiry, lease_epoch, attempt, died.count
FROM (SELECT count(*) FROM died) AS died LEFT JOIN claimed ON TRUE
ORDER BY visible_time, n
"""
_COUNT_OF_DEAD: Final = len(QUEUE_ITEM) + 4


async def dequeue(
    store: Store,
    request: DequeueRequest,
    max_items: int,
    lease_ms: int,
    answer_bytes: int,
    until: float,
    waiters: Waiters,
) -> Dequeued:
    """Settle items handed out before, then hand out others, in one transaction; if there are none,
    wait for some until this time of the event loop.

    No more are handed out than fit into an answer of `answer_bytes`, but at least one. A call that
    waits goes on waiting while the database is away.
    """
    settlement = Settlement(request.acknowledge, request.return_items)
    ask = _Ask(store, request, max_items, lease_ms, answer_bytes, waiters, settlement or None)
    lines = (queue_line(store, name) for name in request.queues)
    try:
        items = await waiters.take(store, lines, ask.claim, until)
    except PersistenceError:
        # What was settled must be told, whatever becomes of the rest, or it would seem lost.
        if ask.returned is None:
            raise
        items = []
    return Dequeued(items, ask.returned or [])


@dataclass(slots=True)
class _Ask:
    """What one call asks for."""

    store: Store
    request: DequeueRequest
    max_items: int
    lease_ms: int
    answer_bytes: int
    waiters: Waiters
    settlement: Settlement | None
    """What the first look settles before."""
    returned: list[str] | None = None
    """The receipts that were not confirmed; None: nothing has been settled."""

    async def claim(self) -> list[DequeuedItem]:
        """A look: the items."""
        lease_id = new_lease_id()
        if self.settlement is None:
            rows = await self.store.write(DEQUEUE, *self._params(lease_id))
        else:
            settled, rows = await self.store.write_all(
                (SETTLE_ITEMS, (self.settlement.document(),)), (DEQUEUE, self._params(lease_id))
            )
            self.returned = self.settlement.outcome(settled, self.store, self.waiters)
            self.settlement = None
        return self._items(rows, lease_id) or await self._behind_dead(rows)

    def _params(self, lease_id: str) -> Sequence[Param]:
        return (
            text_array(self.request.queues),
            integer(self.max_items),
            integer(self.lease_ms),
            text(lease_id),
            text(self.request.worker_id),
            integer(self.answer_bytes),
        )

    def _items(self, rows: PGresult, lease_id: str) -> list[DequeuedItem]:
        if rows.get_value(0, 0) is None:
            return []
        metrics.CLAIMS_TAKEN.add(("queue_item",), rows.ntuples)
        return [_decode_claim(rows, i, lease_id) for i in range(rows.ntuples)]

    async def _behind_dead(self, rows: PGresult) -> list[DequeuedItem]:
        """If all that was found had died, there may be others behind."""
        return await self.claim() if read_int8(rows.get_value(0, _COUNT_OF_DEAD)) else []


def _decode_claim(rows: PGresult, i: int, lease_id: str) -> DequeuedItem:
    get = rows.get_value
    claim = DequeuedItem()
    _read_item(get, i, claim.item)
    n, expiry, epoch, attempt = (get(i, len(QUEUE_ITEM) + column) for column in range(4))
    claim.receipt = lease_token(lease_id, read_int8(n))
    read_time(expiry, claim.lease_expiry)
    claim.epoch = read_int8(epoch)
    claim.attempt = read_int4(attempt)
    return claim
