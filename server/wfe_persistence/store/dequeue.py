"""Dequeue: items of queues are handed out, at once or when there are some."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Final

from wfe.persistence.v1.queue_pb2 import DequeueRequest, DequeueResponse
from wfe_persistence import metrics
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import queue_groups
from wfe_persistence.store.lease import (
    NEXT_EPOCH,
    expiry_after,
    new_lease_id,
)
from wfe_persistence.store.queue_claims import CLAIM_COLUMNS, encode_claims
from wfe_persistence.store.queue_settling import (
    REMOVE_ITEMS,
    SETTLE_ITEMS,
    Settlement,
    is_removed,
)
from wfe_persistence.store.queue_waiting import ANY_FLOOR, UNBLOCKED, queue_line
from wfe_persistence.store.records import QUEUE_ITEM
from wfe_persistence.store.rows import (
    Param,
    PGresult,
    floor_array,
    floor_param,
    integer,
    read_int8,
    text,
    text_array,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters

# What an item has at most in the answer, beside its texts.
_CLAIM_BYTES: Final = 160

_ITEM_BYTES: Final = f"""octet_length(queue) + octet_length(id)
                + coalesce(octet_length(payload::text), 0)
                + octet_length(array_to_string(blocked_by, '')) + 4 * cardinality(blocked_by)
                + {_CLAIM_BYTES}"""

MAX_ITEMS: Final = 1000
"""The most items that a call can ask for."""

# $1 the queues, $2 the most items, $3 the lease in ms, $4 its id, $5 the worker, $6 the most bytes,
# $7 the floors of the queues.
# An item that was handed out too often dies here, if its last lease has expired; if that is all
# there was, there may be others behind. There is always a row, which tells how many died. (Planning
# it takes as long as running it. So how many queues and items are asked for is hidden from the
# planner: then it makes one plan, and keeps it. It must expect one row: if it expected more, it
# would read a whole table that is small when the plan is made, and keep that plan as the table
# grows; and with many times the cost the database compiles the statement at each call. So the floor
# is compared with all that there is, which the planner takes for a narrow range.)
#
# The rows found are locked, so they stay where they are: `tid`. One that somebody has written since
# the statement began is not seen there, and left alone as if it were locked.
DEQUEUE = f"""
WITH wanted AS MATERIALIZED (
    SELECT g.name, g.floor, q.max_attempts
    FROM unnest((SELECT $1::text[]), (SELECT $7::timestamptz[])) AS g(name, floor)
    LEFT JOIN wfc.queues q ON q.name = g.name
    WHERE coalesce(current_setting('wfe.settled', TRUE), '') <> 'false'
        AND {ANY_FLOOR}
), visible AS MATERIALIZED (
    SELECT i.*, coalesce(i.attempt >= w.max_attempts, FALSE) AS spent
    FROM wanted w, LATERAL (
        SELECT * FROM (
            SELECT ctid AS tid, n, visible_time, attempt, again_time, {_ITEM_BYTES} AS bytes
            FROM wfc.queue_items
            WHERE queue = w.name AND NOT dead
                AND visible_time >= w.floor AND visible_time <= now() AND {UNBLOCKED}
            ORDER BY visible_time, n
            LIMIT (SELECT $2::int)
            FOR UPDATE SKIP LOCKED
        ) f LIMIT {MAX_ITEMS}
    ) i
), died AS (
    UPDATE wfc.queue_items i SET dead = TRUE
    FROM visible v
    WHERE i.ctid = v.tid AND v.spent AND v.again_time IS NULL
    RETURNING 1
), fitting AS MATERIALIZED (
    SELECT tid, visible_time, spent FROM (
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
    WHERE i.ctid = f.tid
    RETURNING i.queue, i.id, i.payload, f.visible_time, i.blocked_by,
        i.n, i.visible_time AS lease_expiry, i.lease_epoch, i.attempt
)
SELECT {QUEUE_ITEM.selection()}, n, lease_expiry, lease_epoch, attempt, died.count
FROM (SELECT count(*) FROM died) AS died LEFT JOIN claimed ON TRUE
ORDER BY visible_time, n
"""
_COUNT_OF_DEAD: Final = CLAIM_COLUMNS


def dequeue(
    store: Store,
    request: DequeueRequest,
    max_items: int,
    lease_ms: int,
    answer_bytes: int,
    until: float,
    waiters: Waiters,
) -> Awaitable[DequeueResponse]:
    """Settle items handed out before, then hand out others, in one transaction; if there are none,
    wait for some until this time of the event loop.

    No more are handed out than fit into an answer of `answer_bytes`, but at least one. A call that
    waits goes on waiting while the database is away. It does so without the request, so that the
    caller can let go of it.
    """
    return _Ask(store, request, max_items, lease_ms, answer_bytes, waiters).run(until)


# The first item of a queue that is visible, or withheld by a lock, from $2 on. A transaction may
# commit a little after the time that its items have.
QUEUE_FLOOR = """
SELECT least(now() - interval '250 milliseconds', (
    SELECT visible_time FROM wfc.queue_items
    WHERE queue = $1 AND NOT dead AND visible_time >= $2 AND visible_time <= now()
    ORDER BY visible_time, n
    LIMIT 1
))
"""


class _Ask:
    """What one call asks for. Nothing else of its request is kept, except for what is settled
    first."""

    __slots__ = (
        "_answer_bytes", "_lease_ms", "_max_items", "_queues", "_returned", "_settlement",
        "_store", "_waiters", "_worker_id",
    )  # fmt: skip

    def __init__(
        self,
        store: Store,
        request: DequeueRequest,
        max_items: int,
        lease_ms: int,
        answer_bytes: int,
        waiters: Waiters,
    ) -> None:
        self._store = store
        self._queues = tuple(request.queues)
        self._worker_id = request.worker_id
        self._max_items = max_items
        self._lease_ms = lease_ms
        self._answer_bytes = answer_bytes
        self._waiters = waiters
        # What the first look settles before.
        self._settlement: Settlement | None = None
        if request.acknowledge or request.return_items:
            self._settlement = Settlement(request.acknowledge, request.return_items)
        # The receipts that were not confirmed; None: nothing has been settled.
        self._returned: list[str] | None = None

    async def run(self, until: float) -> DequeueResponse:
        """The answer."""
        try:
            items = await self._waiters.take(
                self._store,
                (queue_line(self._store, name) for name in self._queues),
                self.claim,
                until,
            )
        except PersistenceError:
            # What was settled must be told, whatever becomes of the rest, or it would seem lost.
            if self._returned is None:
                raise
            items = []
        response = DequeueResponse.FromString(b"".join(items))
        response.returned_receipts.extend(self._returned or ())
        return response

    async def claim(self) -> list[bytes]:
        """A look: the items, encoded."""
        queues, floors = self._queues, self._store.floors
        items = await self._claim_visible()
        if not items and floors.may_hide(queues):
            for queue in queues:
                floors.lower(queue)
            items = await self._claim_visible()
        floors.keep_up(queues, self._find_floor)
        return items

    async def _claim_visible(self) -> list[bytes]:
        if self._max_items == 1:
            settlement = self._settlement or Settlement()
            want = queue_groups.Want(settlement, self._worker_id, self._lease_ms)
            taken = await queue_groups.dequeue_one(self._store, self._queues, want, self._waiters)
            if taken is not None:
                self._settled(taken.returned)
                if not taken.look_again:
                    return [taken.item] if taken.item else []
        return await self._claim_alone()

    def _settled(self, returned: list[str]) -> None:
        if self._settlement is not None:
            self._returned, self._settlement = returned, None

    async def _claim_alone(self) -> list[bytes]:
        lease_id = new_lease_id()
        dequeue = DEQUEUE, self._params(lease_id)
        if self._settlement is not None and self._settlement.is_plain:
            removed, rows = await self._store.write_all(
                (REMOVE_ITEMS, (self._settlement.removal(),)), dequeue
            )
            if is_removed(removed):
                self._settled([])
                return self._items(rows, lease_id) or await self._behind_dead(rows)
        if self._settlement is None:
            [rows] = await self._store.write_all(dequeue)
        else:
            settled, rows = await self._store.write_all(
                (SETTLE_ITEMS, (self._settlement.document(),)), dequeue
            )
            self._settled(self._settlement.outcome(settled, self._store, self._waiters))
        return self._items(rows, lease_id) or await self._behind_dead(rows)

    async def _find_floor(self, queue: str, start: int | None) -> int:
        row = await self._store.read(QUEUE_FLOOR, text(queue), floor_param(start))
        return read_int8(row.get_value(0, 0))

    def _params(self, lease_id: str) -> Sequence[Param]:
        return (
            text_array(self._queues),
            integer(self._max_items),
            integer(self._lease_ms),
            text(lease_id),
            text(self._worker_id),
            integer(self._answer_bytes),
            floor_array(map(self._store.floors.of, self._queues)),
        )

    def _items(self, rows: PGresult, lease_id: str) -> list[bytes]:
        if rows.get_value(0, 0) is None:
            return []
        metrics.CLAIMS_TAKEN.add(("queue_item",), rows.ntuples)
        return encode_claims(rows, lease_id)

    async def _behind_dead(self, rows: PGresult) -> list[bytes]:
        """If all that was found had died, there may be others behind."""
        return await self._claim_alone() if read_int8(rows.get_value(0, _COUNT_OF_DEAD)) else []
