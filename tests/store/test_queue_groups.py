"""Single items of many callers in one statement: nobody notices the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.queue_item_pb2 import Acknowledgement, QueueItem
from wfe.persistence.v1.queue_pb2 import (
    ConfigureQueueRequest,
    DequeuedItem,
    DequeueRequest,
    DequeueResponse,
    QueueKind,
    ReturnedItem,
)
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import queue, queue_groups
from wfe_persistence.store.dequeue import dequeue
from wfe_persistence.store.queue_claims import decode_claim
from wfe_persistence.store.queue_groups import Want
from wfe_persistence.store.queue_settling import Settlement
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters

LEASE_MS = 60_000
LOST = ErrorReason.ERROR_REASON_LEASE_LOST


class Queue:
    """A queue, used by many at once. (What is begun in one turn of the event loop is run as one
    call, and the rest together.)"""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.waiters = Waiters()

    def item(self, id_: str, **fields: Any) -> QueueItem:
        return make.item("q", id=id_, **fields)

    def enqueue(self, id_: str, **fields: Any) -> Awaitable[None]:
        return queue_groups.enqueue(self.store, [self.item(id_, **fields)], self.waiters)

    def dequeue(self, *acknowledge: DequeuedItem, **fields: Any) -> Awaitable[DequeueResponse]:
        acknowledgements = [Acknowledgement(receipt=claim.receipt) for claim in acknowledge]
        request = DequeueRequest(queues=["q"], acknowledge=acknowledgements, **fields)
        return dequeue(self.store, request, 1, LEASE_MS, 2**22, 0.0, self.waiters)

    def acknowledge(self, claim: DequeuedItem, **fields: Any) -> Awaitable[list[str]]:
        acknowledgement = Acknowledgement(receipt=claim.receipt, **fields)
        return queue_groups.acknowledge(self.store, [acknowledgement], self.waiters)

    async def fill(self, count: int) -> list[str]:
        ids = [f"item{i:03}" for i in range(count)]
        for id_ in ids:
            await self.enqueue(id_)
        return ids

    async def taken(self, count: int) -> list[DequeuedItem]:
        """Items of so many concurrent callers."""
        results = await together(*(self.dequeue() for _ in range(count)))
        return [claim for got in results for claim in got.items]


async def together(*calls: Awaitable[Any], errors: bool = False) -> list[Any]:
    async with asyncio.timeout(60):
        return list(await asyncio.gather(*calls, return_exceptions=errors))


def ids(results: list[DequeueResponse]) -> list[str]:
    return [claim.item.id for got in results for claim in got.items]


def reasons(results: list[Any]) -> list[Any]:
    return [error.reason if isinstance(error, PersistenceError) else None for error in results]


@pytest.fixture
def q(store: Store) -> Queue:
    return Queue(store)


@pytest.fixture
async def outsider(database_url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Another transaction, rolled back at the end."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        yield connection
        await connection.rollback()


async def test_callers_get_the_first_items_each_its_own(q: Queue) -> None:
    expected = await q.fill(20)
    claims = await q.taken(20)
    assert [claim.item.id for claim in claims] == expected  # whoever comes first gets the first
    assert len({claim.receipt.rpartition(".")[2] for claim in claims}) == 20
    epochs = [claim.epoch for claim in claims]
    assert len(set(epochs)) == 20
    assert {claim.attempt for claim in claims} == {1}
    assert not ids(await together(*(q.dequeue() for _ in range(3))))


async def test_each_call_keeps_its_own_lease(q: Queue, store: Store) -> None:
    await q.fill(3)
    group = queue_groups._Dequeues(store, q.waiters, ["q"])
    wants = [Want(Settlement(), f"worker{i}", 100_000 * (i + 1)) for i in range(3)]
    taken = await group.run(wants)
    row = await store.read(
        "SELECT string_agg(id || lease_worker_id || seconds, ' ' ORDER BY n) FROM wfc.queue_items,"
        " round(extract(epoch FROM visible_time - now()), -2) AS seconds"
    )
    assert all(got and got.item for got in taken)
    text = (row.get_value(0, 0) or b"").decode()
    assert text == "item000worker0100 item001worker1200 item002worker2300"


async def test_locked_item_is_waited_for_by_its_own_caller_only(
    q: Queue, outsider: psycopg.AsyncConnection[Any]
) -> None:
    await q.fill(2)
    await outsider.execute("SELECT FROM wfc.queue_items WHERE id = 'item001' FOR UPDATE")
    names = ["a", "item000", "item001", "b"]
    tasks = {name: asyncio.ensure_future(q.enqueue(name)) for name in names}
    waiting = tasks.pop("item001")
    await together(*tasks.values())
    assert not waiting.done()
    await outsider.rollback()
    await together(waiting)


async def test_item_that_another_transaction_inserts_is_waited_for_by_its_own_caller_only(
    q: Queue, outsider: psycopg.AsyncConnection[Any]
) -> None:
    await outsider.execute(
        "INSERT INTO wfc.queue_items (queue, id, visible_time) VALUES ('q', 'theirs', now())"
    )
    tasks = {name: asyncio.ensure_future(q.enqueue(name)) for name in ("a", "theirs", "b", "c")}
    waiting = tasks.pop("theirs")
    await together(*tasks.values())
    assert not waiting.done()
    await outsider.rollback()
    await together(waiting)
    assert sorted(ids(await together(*(q.dequeue() for _ in range(5))))) == [
        "a",
        "b",
        "c",
        "theirs",
    ]


async def test_same_item_of_several_callers_is_enqueued_once(q: Queue) -> None:
    await together(*(q.enqueue("x", payload_json=f"{i}") for i in range(5)), q.enqueue("y"))
    claims = await q.taken(4)
    assert sorted(claim.item.id for claim in claims) == ["x", "y"]


async def test_item_that_cannot_be_stored_fails_its_own_caller_only(q: Queue) -> None:
    """The checks would have refused it; so may the database."""
    bad = '{"a": 1e200000}'
    results = await together(
        q.enqueue("a"), q.enqueue("b"), q.enqueue("bad", payload_json=bad), q.enqueue("c"),
        errors=True,
    )  # fmt: skip
    assert reasons(results) == [None, None, ErrorReason.ERROR_REASON_INVALID_FIELD, None]
    assert sorted(ids(await together(*(q.dequeue() for _ in range(5))))) == ["a", "b", "c"]


async def test_lost_lease_fails_its_own_caller_only(q: Queue) -> None:
    await q.fill(10)
    claims = await q.taken(5)
    await q.acknowledge(claims[2])
    results = await together(*map(q.dequeue, claims), errors=True)
    assert reasons(results) == [None, None, LOST, None, None]
    got = [
        claim.item.id
        for result in results
        if isinstance(result, DequeueResponse)
        for claim in result.items
    ]
    assert got == ["item005", "item006", "item007", "item008"]
    results = await together(*map(q.acknowledge, claims), errors=True)
    assert reasons(results) == [LOST] * 5


async def test_call_of_which_one_lease_is_lost_settles_nothing(q: Queue) -> None:
    await q.fill(6)
    claims = await q.taken(4)
    await q.acknowledge(claims[3])
    results = await together(
        q.dequeue(), q.dequeue(claims[0], claims[3]), q.dequeue(claims[1]), errors=True
    )
    assert reasons(results) == [None, LOST, None]
    answers = [result for result in results if isinstance(result, DequeueResponse)]
    assert [len(answer.items) for answer in answers] == [1, 1]
    await q.acknowledge(claims[0])


async def test_receipt_is_good_for_one_of_several_callers(q: Queue) -> None:
    await q.fill(2)
    claims = await q.taken(2)
    results = await together(
        q.acknowledge(claims[0]), *(q.acknowledge(claims[1]) for _ in range(5)), errors=True
    )
    assert sorted(reasons(results), key=str) == sorted(
        [None, None, LOST, LOST, LOST, LOST], key=str
    )


async def test_unconfirmed_item_is_told_to_its_own_caller(q: Queue, store: Store) -> None:
    configure = ConfigureQueueRequest(queue="q", kind=QueueKind.QUEUE_KIND_EVENT)
    await queue.configure_queue(store, configure)
    await store.write_once(
        "INSERT INTO wfc.events (id, event_name, event_key, event_data, event_time, is_processed)"
        " VALUES ('item001', 'n', 'k', '1', now(), FALSE)"
    )
    await q.fill(3)
    claims = await q.taken(3)
    results = await together(*(q.acknowledge(claim, confirmed=True) for claim in claims))
    assert results == [[], [claims[1].receipt], []]


async def test_returned_item_may_go_to_a_neighbour(q: Queue) -> None:
    await q.fill(1)
    [claim] = await q.taken(1)
    results = await together(
        q.dequeue(), q.dequeue(return_items=[ReturnedItem(receipt=claim.receipt)]), q.dequeue()
    )
    assert ids(results) == ["item000"]


async def test_dead_items_are_passed_by(q: Queue, store: Store) -> None:
    await q.fill(5)
    await store.write_once("UPDATE wfc.queue_items SET attempt = 2 WHERE id < 'item003'")
    configure = ConfigureQueueRequest(queue="q", kind=QueueKind.QUEUE_KIND_PLAIN, max_attempts=2)
    await queue.configure_queue(store, configure)
    assert sorted(ids(await together(*(q.dequeue() for _ in range(3))))) == ["item003", "item004"]


async def test_item_that_nobody_took_is_as_if_it_had_not_been_handed_out(
    q: Queue, store: Store
) -> None:
    """Also if one more time would be too often."""
    configure = ConfigureQueueRequest(queue="q", kind=QueueKind.QUEUE_KIND_PLAIN, max_attempts=1)
    await queue.configure_queue(store, configure)
    ids_ = await q.fill(3)
    group = queue_groups._Dequeues(store, q.waiters, ["q"])
    first, second, third = await group.run([Want(Settlement(), "", LEASE_MS)] * 3)
    assert first
    assert second
    assert third
    assert third.item
    await q.enqueue(ids_[0])  # while it is under the lease
    await q.acknowledge(decode_claim(third.item))  # nobody holds it any more
    await group.take_back([first, second, third])
    claims = await q.taken(3)
    assert [claim.item.id for claim in claims] == ids_[:2]
    assert [claim.attempt for claim in claims] == [1, 1]
    await together(*map(q.acknowledge, claims))
    assert not await q.taken(2)


async def test_items_of_callers_that_have_gone_are_had_by_others(
    q: Queue, outsider: psycopg.AsyncConnection[Any]
) -> None:
    await q.fill(4)
    await outsider.execute("LOCK TABLE wfc.queue_items")
    first = asyncio.ensure_future(q.dequeue())
    gone = [asyncio.ensure_future(q.dequeue()) for _ in range(2)]
    stays = asyncio.ensure_future(q.dequeue())
    await until_locked(outsider, 2)
    for task in gone:
        task.cancel()
    await outsider.rollback()
    await together(*gone, errors=True)
    got = ids(await together(first, stays))
    async with asyncio.timeout(30):
        while len(got) < 4:
            got += ids(await together(q.dequeue()))
    assert sorted(got) == ["item000", "item001", "item002", "item003"]


async def until_locked(outsider: psycopg.AsyncConnection[Any], statements: int) -> None:
    """Until so many statements wait for a lock."""
    async with asyncio.timeout(30):
        while True:
            cursor = await outsider.execute(
                "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
                " WHERE NOT granted AND datname = current_database()"
            )
            row = await cursor.fetchone()
            if row and row[0] >= statements:
                return
            await asyncio.sleep(0.01)


async def test_stop_ends_all_calls_of_a_group(
    q: Queue, store: Store, outsider: psycopg.AsyncConnection[Any]
) -> None:
    await outsider.execute("LOCK TABLE wfc.queue_items")
    calls = [asyncio.ensure_future(q.enqueue(f"{i}")) for i in range(5)]
    await until_locked(outsider, 2)
    await store.database.stop_statements(5.0)
    results = await together(*calls, errors=True)
    assert reasons(results) == [ErrorReason.ERROR_REASON_SHUTTING_DOWN] * 5
    await outsider.rollback()
    cursor = await outsider.execute("SELECT count(*) FROM wfc.queue_items")
    assert await cursor.fetchone() == (0,)


async def test_item_due_before_all_others_is_found(q: Queue, store: Store) -> None:
    """Although dequeues begin behind what has gone: also one that comes through another server, or
    was due while it was handled."""
    await q.fill(2)
    first, second = await q.taken(2)
    long_ago = Timestamp(seconds=1)
    await q.enqueue("here", visible_time=long_ago)
    assert [claim.item.id for claim in await q.taken(1)] == ["here"]
    elsewhere = Queue(Store(store.database, store.schema, store.namespace))
    await elsewhere.enqueue("there", visible_time=long_ago)
    async with asyncio.timeout(30):
        while not (found := await q.taken(1)):
            await asyncio.sleep(0.01)
    assert [claim.item.id for claim in found] == ["there"]
    await q.enqueue(first.item.id, visible_time=long_ago)
    await q.acknowledge(first)
    assert [claim.item.id for claim in await q.taken(1)] == [first.item.id]
    await q.acknowledge(second)
