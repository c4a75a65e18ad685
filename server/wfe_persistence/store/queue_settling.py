"""Settling: what becomes of items of queues that were handed out, all or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from wfe.persistence.v1.queue_item_pb2 import Acknowledgement
from wfe.persistence.v1.queue_pb2 import ReturnedItem
from wfe_persistence.store.documents import array
from wfe_persistence.store.lease import ALL_HELD, lease_lost, receipt_claims
from wfe_persistence.store.queue import wake_for
from wfe_persistence.store.queue_parts import (
    EVENT_IS_UNPROCESSED,
    IS_REMOVED,
    KEPT,
    KEY_ORDER,
    WORKFLOW_IS_DUE,
    backoff,
    not_done,
)
from wfe_persistence.store.rows import PGresult, read_json, read_text
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters

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


def remove_statement(*, together: bool) -> str:
    """The statement that acknowledges what is handled for good, which is nearly always all that
    there is to settle: all or nothing. `together`: that of several calls of one item each, which
    are done or, also if a row is locked, left alone.

    What it does not do is left to the statement that settles, which knows why: that an item is no
    longer held, or was enqueued since it was handed out. The setting is the same.
    """
    call, skip, all_held = "", "", f" AND {ALL_HELD}"
    settled = "((SELECT count(*) FROM removed) = (SELECT count(*) FROM given))::text"
    if together:
        call, skip, all_held = ", call int", " SKIP LOCKED", ""
        settled = """(SELECT coalesce(jsonb_agg(call), '[]') FROM given
    WHERE n NOT IN (SELECT n FROM removed))::text"""
    return f"""
WITH given AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS g(n bigint, lease_id text{call})
), held AS MATERIALIZED (
    SELECT i.n
    FROM given g JOIN wfc.queue_items i ON i.n = g.n AND i.lease_id = g.lease_id
    WHERE i.n = ANY (ARRAY (SELECT n FROM given)) AND i.again_time IS NULL
    ORDER BY {KEY_ORDER}
    FOR UPDATE OF i{skip}
), removed AS (
    DELETE FROM wfc.queue_items
    WHERE n = ANY (ARRAY (SELECT n FROM held)){all_held}
    RETURNING n
)
SELECT set_config('wfe.settled', {settled}, TRUE)
"""


REMOVE_ITEMS = remove_statement(together=False)


def is_removed(rows: PGresult) -> bool:
    """Whether that statement has done it."""
    return read_text(rows.get_value(0, 0)) == "true"


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
        self.receipts: Final = [each.receipt for each in acknowledge]
        """Their receipts, in the order of the documents."""
        self.claims: Final = receipt_claims(self.receipts, "acknowledge[{}].receipt")
        """The members of the document of each item that tell which it is."""
        if return_items:
            returned = [each.receipt for each in return_items]
            self.receipts.extend(returned)
            self.claims.extend(receipt_claims(returned, "return_items[{}].receipt"))
        self.is_plain: Final = not return_items and not any(each.confirmed for each in acknowledge)
        """Whether the items are only to be removed."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.receipts)

    @property
    def members(self) -> Iterator[str]:
        """The members of the document of each item, without its number in it."""
        return map(str.__add__, self.claims, self._acts())

    def document(self) -> bytes:
        """The parameter of the statement that settles."""
        return array(f'{{"at":{at},{each}}}' for at, each in enumerate(self.members))

    def removal(self) -> bytes:
        """That of the statement that removes."""
        return array([f"{{{each}}}" for each in self.claims])

    def _acts(self) -> Iterator[str]:
        yield from map(_act, self._acknowledge)
        for item in self._return_items:
            delay_ms = item.delay.seconds * 1000 + item.delay.nanos // 1_000_000
            yield f',"act":"return","delay_ms":{delay_ms}'

    def outcome(self, rows: PGresult, store: Store, waiters: Waiters) -> list[str]:
        """The receipts that were not confirmed; whoever waits for what comes back is woken. Raises
        PersistenceError if any is lost."""
        settled = Settled.read(rows)
        if lost := settled.lost:
            raise lease_lost(
                [self.receipts[at] for at in lost],
                of=len(self.receipts),
                field="acknowledge" if lost[0] < len(self._acknowledge) else "return_items",
            )
        wake_for(store, waiters, (), settled.returned_to)
        return [self.receipts[at] for at in settled.unconfirmed]


def acknowledgement_documents(acknowledgements: Iterable[Acknowledgement]) -> Iterator[str]:
    """Acknowledgements as numbered documents. Raises PersistenceError if a receipt can't be one."""
    acknowledgements = list(acknowledgements)
    claims = receipt_claims([each.receipt for each in acknowledgements], "acknowledge[{}].receipt")
    for at, (claim, each) in enumerate(zip(claims, acknowledgements, strict=True)):
        yield f'{{"at":{at},{claim}{_act(each)}}}'


def _act(acknowledgement: Acknowledgement) -> str:
    return ',"act":"confirm"' if acknowledgement.confirmed else ',"act":"acknowledge"'


ACKNOWLEDGE = REMOVE_ITEMS


async def acknowledge(
    store: Store, acknowledgements: Sequence[Acknowledgement], waiters: Waiters
) -> list[str]:
    """Remove items that have been handled, all or none; returns the receipts of those that were
    not confirmed."""
    settlement = Settlement(acknowledge=acknowledgements)
    if settlement.is_plain and is_removed(await store.write(ACKNOWLEDGE, settlement.removal())):
        return []
    rows = await store.write(SETTLE_ITEMS, settlement.document())
    return settlement.outcome(rows, store, waiters)


RETURN_ITEMS = SETTLE_ITEMS


async def return_items(store: Store, items: Sequence[ReturnedItem], waiters: Waiters) -> None:
    """Give back items unhandled, all or none."""
    settlement = Settlement(return_items=items)
    rows = await store.write(RETURN_ITEMS, settlement.document())
    settlement.outcome(rows, store, waiters)
