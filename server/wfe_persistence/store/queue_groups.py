"""Enqueue, Dequeue and Acknowledge of single items, many callers' in one statement.

They never wait for a row that somebody else has locked: they skip it, and the caller does by itself
what was not done for it. Also whatever is wrong with a call is found there.

To start a plan costs PostgreSQL more than one item does. So there are statements for what is nearly
always all: that items are new, and that what was handled is removed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from wfe.persistence.v1.queue_item_pb2 import Acknowledgement, QueueItem
from wfe_persistence import metrics
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import queue, queue_settling
from wfe_persistence.store.documents import array, queue_item_document
from wfe_persistence.store.lease import (
    NEXT_EPOCH,
    expiry_after,
    new_lease_id,
    parse_lease_token,
)
from wfe_persistence.store.postgres.groups import MAX_CALLS, Group
from wfe_persistence.store.queue import enqueue_statement, wake_for
from wfe_persistence.store.queue_claims import CLAIM_COLUMNS, decode_claim, encode_claim
from wfe_persistence.store.queue_settling import (
    Settled,
    Settlement,
    remove_statement,
    settle_statement,
)
from wfe_persistence.store.queue_waiting import ANY_FLOOR, UNBLOCKED
from wfe_persistence.store.records import QUEUE_ITEM
from wfe_persistence.store.rows import (
    Param,
    PGresult,
    boolean,
    floor_param,
    iso,
    quote,
    read_bool,
    read_int4,
    read_text,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters

MAX_RECEIPTS: Final = 8
"""The most receipts of a call that is run with others."""

MAX_BYTES: Final = 4096
"""The largest item that is enqueued with others."""

Command = tuple[str, Sequence[Param]]

# A key that another transaction is inserting at the moment is waited for, but not for long. (A call
# that is alone holds nobody up.)
_BRIEFLY: Final = "set_config('lock_timeout', '100ms', TRUE)"
LOCK_BRIEFLY: Final = f"SELECT {_BRIEFLY}"

# Inserts what is not there. $2: whether it waits only briefly.
INSERT_TOGETHER = f"""
INSERT INTO wfc.queue_items (n, {QUEUE_ITEM.names()})
SELECT n, {QUEUE_ITEM.names()} FROM (
    SELECT nextval('wfc.queue_item_numbers') AS n,
        {QUEUE_ITEM.values("g")}
    FROM (SELECT CASE WHEN $2::boolean THEN {_BRIEFLY} END OFFSET 0) AS briefly,
    jsonb_to_recordset($1::jsonb) AS g(
        {QUEUE_ITEM.record()}
    )
) AS g(n, {QUEUE_ITEM.names()})
ORDER BY queue, id
ON CONFLICT (queue, id) DO NOTHING
RETURNING queue, id
"""

ENQUEUE_TOGETHER = enqueue_statement(together=True)


@dataclass(frozen=True, slots=True)
class _Enqueues(Group[QueueItem, bool]):
    """Items that are enqueued one by one."""

    store: Store
    waiters: Waiters

    async def run(self, calls: Sequence[QueueItem]) -> Sequence[bool | None]:
        """Enqueue each, unless its row is locked, or it is given twice."""
        places: dict[tuple[str, str], int] = {}
        for place, item in enumerate(calls):
            places.setdefault((item.queue, item.id), place)
        done: list[bool | None] = [None] * len(calls)

        def enqueued(rows: PGresult) -> None:
            for i in range(rows.ntuples):
                key = read_text(rows.get_value(i, 0)), read_text(rows.get_value(i, 1))
                done[places.pop(key)] = True

        def document() -> bytes:
            return array(queue_item_document(calls[place]) for place in places.values())

        is_alone = len(calls) == 1
        try:
            enqueued(await self.store.write(INSERT_TOGETHER, document(), boolean(not is_alone)))
            if places and not is_alone:
                merge = ENQUEUE_TOGETHER, (document(),)
                enqueued((await self.store.write_all((LOCK_BRIEFLY, ()), merge))[-1])
        except PersistenceError:
            if True not in done:
                raise  # else: those of which nothing was done go on by themselves
        wake_for(
            self.store,
            self.waiters,
            [item for item, is_done in zip(calls, done, strict=True) if is_done],
        )
        return done


async def enqueue(store: Store, items: Sequence[QueueItem], waiters: Waiters) -> None:
    """Put items into queues, all or none; a single one together with those of other calls."""
    if len(items) == 1 and (size := items[0].ByteSize()) <= MAX_BYTES:
        enqueues = _Enqueues(store, waiters)
        if await store.database.groups.run(_key(store, "enqueue"), enqueues, items[0], size):
            return
    await queue.enqueue(store, items, waiters)


SETTLE_TOGETHER = settle_statement(together=True)
REMOVE_TOGETHER = remove_statement(together=True)


class _Settling:
    """What several calls acknowledge and return, in one statement; false if it is nothing."""

    def __init__(self, store: Store, settlements: Sequence[Settlement]) -> None:
        self._store = store
        self._settlements = settlements
        self.returned: list[list[str]] = [[] for _ in settlements]
        """Of each call, the receipts that were not confirmed."""
        self.refused: set[int] = set()
        """The calls of which nothing is done."""
        taken: set[str] = set()
        self._calls: list[int] = []
        for call, settlement in enumerate(settlements):
            if not taken.isdisjoint(settlement.receipts):  # one receipt is not good for two
                self.refused.add(call)
            elif settlement:
                taken.update(settlement.receipts)
                self._calls.append(call)
        self._removes = all(
            settlements[call].is_plain and len(settlements[call].receipts) == 1
            for call in self._calls
        )
        # The receipts as they are numbered in the document, each with its call.
        self._receipts: list[tuple[int, str]] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    def command(self) -> Command:
        """The statement."""
        if self._removes:
            claims = ((call, self._settlements[call].claims[0]) for call in self._calls)
            return REMOVE_TOGETHER, (array(f'{{"call":{call},{each}}}' for call, each in claims),)
        documents: list[str] = []
        for call in self._calls:
            settlement = self._settlements[call]
            for receipt, members in zip(settlement.receipts, settlement.members, strict=True):
                documents.append(f'{{"at":{len(documents)},"call":{call},{members}}}')
                self._receipts.append((call, receipt))
        return SETTLE_TOGETHER, (array(documents),)

    def done(self, rows: PGresult, waiters: Waiters) -> None:
        """Know the outcome; whoever waits for what comes back is woken."""
        if self._removes:
            self.refused.update(json.loads(read_text(rows.get_value(0, 0))))
            return
        settled = Settled.read(rows)
        self.refused.update(json.loads(settled.setting))
        for at in settled.unconfirmed:
            call, receipt = self._receipts[at]
            self.returned[call].append(receipt)
        wake_for(self._store, waiters, (), settled.returned_to)


@dataclass(frozen=True, slots=True)
class _Settlements(Group[Settlement, list[str]]):
    """Items that are acknowledged and returned by calls that do nothing else."""

    store: Store
    waiters: Waiters

    async def run(self, calls: Sequence[Settlement]) -> Sequence[list[str] | None]:
        settling = _Settling(self.store, calls)
        if settling:
            [rows] = await self.store.write_all(settling.command())
            settling.done(rows, self.waiters)
        return [
            None if call in settling.refused else returned
            for call, returned in enumerate(settling.returned)
        ]


async def acknowledge(
    store: Store, acknowledgements: Sequence[Acknowledgement], waiters: Waiters
) -> list[str]:
    """Remove items that have been handled, all or none; returns the receipts of those that were
    not confirmed. A few together with those of other calls."""
    if len(acknowledgements) <= MAX_RECEIPTS:
        settlement = Settlement(acknowledge=acknowledgements)
        settlements = _Settlements(store, waiters)
        groups = store.database.groups
        returned = await groups.run(_key(store, "settle"), settlements, settlement)
        if returned is not None:
            return returned
    return await queue_settling.acknowledge(store, acknowledgements, waiters)


# $1 the calls, of which each gets one item, the first call the first item; $2 the queues and their
# floors. As DEQUEUE, except that what the planner knows of the parameters is the same
# whatever they are, so that it plans the statement once; and that an item that dies is returned,
# too, for the call that would have got it, so that all is written by one UPDATE.
DEQUEUE_TOGETHER = f"""
WITH visible AS MATERIALIZED (
    SELECT i.*, row_number() OVER (ORDER BY i.visible_time, i.n) AS place,
        coalesce(i.attempt >= q.max_attempts, FALSE) AS spent,
        coalesce(i.attempt >= q.max_attempts, FALSE) AND i.again_time IS NULL AS dies
    FROM jsonb_to_recordset($2::jsonb) AS g(name text, floor timestamptz)
    LEFT JOIN wfc.queues q ON q.name = g.name, LATERAL (
        SELECT * FROM (
            SELECT ctid AS tid, n, visible_time, attempt, again_time FROM wfc.queue_items
            WHERE queue = g.name AND NOT dead
                AND visible_time >= g.floor AND visible_time <= now() AND {UNBLOCKED}
            ORDER BY visible_time, n
            LIMIT (SELECT jsonb_array_length($1::jsonb))
            FOR UPDATE SKIP LOCKED
        ) f LIMIT {MAX_CALLS}
    ) i
    WHERE {ANY_FLOOR}
), claimed AS (
    UPDATE wfc.queue_items i SET
        dead = v.dies,
        visible_time = CASE WHEN v.dies THEN i.visible_time ELSE {expiry_after("c.lease_ms")} END,
        lease_id = CASE WHEN v.dies THEN i.lease_id ELSE c.lease_id END,
        lease_worker_id = c.worker_id, lease_epoch = {NEXT_EPOCH},
        attempt = CASE WHEN v.dies THEN i.attempt WHEN v.spent THEN 1
            ELSE least(i.attempt, 2147483646) + 1 END,
        again_time = NULL
    FROM visible v JOIN (
        SELECT g.*, row_number() OVER (ORDER BY g.call) AS place
        FROM jsonb_to_recordset($1::jsonb) AS g(call int, lease_id text, worker_id text,
            lease_ms bigint)
        WHERE NOT coalesce(nullif(current_setting('wfe.settled', TRUE), '')::jsonb
            @> to_jsonb(g.call), FALSE)
    ) c ON c.place = v.place
    WHERE i.ctid = v.tid
    RETURNING i.queue, i.id, i.payload, v.visible_time, i.blocked_by,
        i.n, i.visible_time AS lease_expiry, i.lease_epoch, i.attempt, c.call, i.dead
)
SELECT {QUEUE_ITEM.selection()}, n, lease_expiry, lease_epoch, attempt, call, dead FROM claimed
"""

# Items that were handed out to callers who had gone: as though they had not been. One that was
# enqueued meanwhile has been handled by nobody since, so once is enough.
GIVE_BACK = """
UPDATE wfc.queue_items i SET
    visible_time = least(g.visible_time, i.again_time), attempt = greatest(i.attempt - 1, 0),
    again_time = NULL, lease_id = NULL, lease_worker_id = NULL
FROM jsonb_to_recordset($1::jsonb) AS g(n bigint, lease_id text, visible_time timestamptz)
WHERE i.n = g.n AND i.lease_id = g.lease_id AND NOT i.dead
RETURNING i.queue
"""


class Want(NamedTuple):
    """A call that wants one item of queues."""

    settlement: Settlement
    worker_id: str
    lease_ms: int


class Taken(NamedTuple):
    """What a call got."""

    item: bytes | None
    """Encoded."""
    returned: list[str]
    """The receipts that were not confirmed."""
    look_again: bool
    """Items have died that were in the way; there may be others behind."""


@dataclass(frozen=True, slots=True)
class _Dequeues(Group[Want, Taken]):
    """Calls that want one item each of the same queues."""

    store: Store
    waiters: Waiters
    queues: Sequence[str]

    async def run(self, calls: Sequence[Want]) -> Sequence[Taken | None]:
        settling = _Settling(self.store, [call.settlement for call in calls])
        lease_ids = [new_lease_id() for _ in calls]
        document = array(
            f'{{"call":{at},"lease_id":"{lease_ids[at]}","lease_ms":{call.lease_ms},'
            f'"worker_id":{quote(call.worker_id)}}}'
            for at, call in enumerate(calls)
            if at not in settling.refused
        )
        queues = array(
            f'{{"name":"{name}","floor":"{floor_param(self.store.floors.of(name)).decode()}"}}'
            for name in self.queues
        )
        commands: list[Command] = [(DEQUEUE_TOGETHER, (document, queues))]
        if settling:
            commands.insert(0, settling.command())
        *settled, rows = await self.store.write_all(*commands)
        if settled:
            settling.done(settled[0], self.waiters)
        items: list[bytes | None] = [None] * len(calls)
        died = False
        for i in range(rows.ntuples):
            if read_bool(rows.get_value(i, _DEAD)):
                died = True
            else:
                at = read_int4(rows.get_value(i, _CALL))
                items[at] = encode_claim(rows, i, lease_ids[at].encode())
        metrics.CLAIMS_TAKEN.add(("queue_item",), len(calls) - items.count(None))
        return [
            None if at in settling.refused else Taken(item, returned, item is None and died)
            for at, (item, returned) in enumerate(zip(items, settling.returned, strict=True))
        ]

    async def take_back(self, results: Sequence[Taken]) -> None:
        documents = []
        for item in (decode_claim(result.item) for result in results if result.item):
            (n,), lease_id = parse_lease_token(item.receipt, "", numbers=1, origin="")
            documents.append(
                f'{{"n":{n},"lease_id":"{lease_id}","visible_time":"{iso(item.item.visible_time)}"}}'
            )
        if documents:
            rows = await self.store.write(GIVE_BACK, array(documents))
            queues = (read_text(rows.get_value(i, 0)) for i in range(rows.ntuples))
            wake_for(self.store, self.waiters, (), queues)


async def dequeue_one(
    store: Store, queues: Sequence[str], want: Want, waiters: Waiters
) -> Taken | None:
    """Settle a few items, then take one of these queues, together with other calls. None: it has to
    be done alone."""
    if len(want.settlement.receipts) > MAX_RECEIPTS:
        return None
    dequeues = _Dequeues(store, waiters, queues)
    return await store.database.groups.run(_key(store, "dequeue", *queues), dequeues, want)


_CALL: Final = CLAIM_COLUMNS
_DEAD: Final = _CALL + 1


def _key(store: Store, *kind: str) -> tuple[str, ...]:
    """What calls have in common that are run together."""
    return (store.schema.name, store.schema.table_prefix, *kind)
