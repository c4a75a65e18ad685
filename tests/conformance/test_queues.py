"""QueueService: what is enqueued is handed out under a lease, and acknowledged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api, for_each
from tests.support.clock import database_time
from tests.support.expect import eventually, fails, invalid
from tests.support.queues import (
    DEAD,
    DELAYED,
    SHORT,
    WAITING,
    OwnQueue,
    ids,
    receipts,
)
from wfe.persistence.v1 import queue_item_pb2, queue_pb2


@pytest.fixture
async def own(api: Api) -> AsyncIterator[OwnQueue]:
    queue = OwnQueue(api)
    yield queue
    await queue.clear()


@pytest.fixture
async def other(api: Api) -> AsyncIterator[OwnQueue]:
    queue = OwnQueue(api)
    yield queue
    await queue.clear()


# Enqueue.


async def test_enqueued_item_is_handed_out_as_it_was_enqueued(own: OwnQueue) -> None:
    item = make.item(
        own.name,
        payload_json='{"a": [1, null, "é"]}',
        visible_time=make.time(),
        blocked_by=[make.new_id("lock"), make.new_id("lock")],
    )
    await own.api.enqueue(item)
    claim = await own.take()
    assert claim.item == item
    assert claim.attempt == 1


async def test_item_without_anything_else_is_visible_now(api: Api, own: OwnQueue) -> None:
    before = await database_time(api)
    item = await own.enqueue()
    claim = await own.take()
    assert claim.item.visible_time.ToDatetime() >= before.ToDatetime()
    claim.item.ClearField("visible_time")
    assert claim.item == item


async def test_an_empty_payload_is_not_none(own: OwnQueue) -> None:
    await own.enqueue(payload_json="null")
    assert (await own.take()).item.payload_json == "null"
    await own.enqueue()
    assert not (await own.take()).item.HasField("payload_json")


async def test_visible_time_is_truncated_to_microseconds(own: OwnQueue) -> None:
    await own.enqueue(visible_time=make.later(make.time(), ns=999))
    assert (await own.take()).item.visible_time == make.time()


async def test_nothing_to_enqueue_is_no_error(api: Api) -> None:
    await api.enqueue()


async def test_items_of_several_queues_are_enqueued_by_one_call(
    own: OwnQueue, other: OwnQueue
) -> None:
    await own.api.enqueue(make.item(own.name, id="a"), make.item(other.name, id="a"))
    assert (await own.take()).item.id == (await other.take()).item.id == "a"


async def test_enqueue_is_all_or_nothing(own: OwnQueue) -> None:
    with invalid("items[1].queue", reason="REQUIRED"):
        await own.api.enqueue(make.item(own.name), make.item(""))
    assert await own.items() == []


async def test_ids_are_compared_byte_by_byte(own: OwnQueue) -> None:
    made = [text for pair in make.ALIKE for text in make.alike(*pair)]
    await own.api.enqueue(*(make.item(own.name, id=id_) for id_ in made))
    assert ids(await own.dequeue()) == made


async def test_enqueuing_again_changes_nothing(own: OwnQueue) -> None:
    await own.enqueue("a")
    [before] = await own.items()
    await own.enqueue("a")
    assert await own.items() == [before]
    assert len(await own.dequeue()) == 1


async def test_waiting_item_keeps_its_place(own: OwnQueue) -> None:
    for id_ in ("a", "b", "a"):
        await own.enqueue(id_, visible_time=make.time())
    assert ids(await own.dequeue()) == ["a", "b"]


@pytest.mark.parametrize("seconds", [-5, 5])
async def test_visible_time_becomes_the_earlier_one(own: OwnQueue, seconds: int) -> None:
    await own.enqueue("a", visible_time=make.time())
    await own.enqueue("a", visible_time=make.time(seconds))
    assert (await own.take()).item.visible_time == make.time(min(seconds, 0))


async def test_delayed_item_becomes_visible_when_it_is_enqueued_for_now(own: OwnQueue) -> None:
    await own.enqueue("a", visible_time=make.from_now(3600))
    assert await own.dequeue() == []
    await own.enqueue("a")
    assert ids(await own.dequeue()) == ["a"]


async def test_payload_and_blockers_become_those_of_the_last_enqueue(own: OwnQueue) -> None:
    locks = [make.new_id("lock") for _ in range(2)]
    await own.enqueue("a", payload_json="1", blocked_by=locks[:1])
    await own.enqueue("a", payload_json="2", blocked_by=locks[1:])
    [listed] = await own.items()
    assert (listed.item.payload_json, list(listed.item.blocked_by)) == ("2", locks[1:])
    await own.enqueue("a")
    [listed] = await own.items()
    assert not listed.item.HasField("payload_json")
    assert not listed.item.blocked_by


async def test_item_enqueued_while_it_is_handled_comes_once_more(own: OwnQueue) -> None:
    claim = await own.taken("a")
    for payload in ("1", "2"):
        await own.enqueue("a", payload_json=payload)
    assert await own.dequeue() == []  # never twice at once
    await own.api.acknowledge(claim.receipt)
    again = await own.take()
    assert (again.item.id, again.item.payload_json, again.attempt) == ("a", "2", 1)
    await own.api.acknowledge(again.receipt)
    assert await own.items() == []


async def test_item_enqueued_while_it_is_handled_comes_at_the_earliest_time(own: OwnQueue) -> None:
    claim = await own.taken("a")
    for seconds in (7200, 3600, 5400):
        await own.enqueue("a", visible_time=make.from_now(seconds))
    [listed] = await own.items()
    assert 3500 < listed.again_time.seconds - make.from_now(0).seconds <= 3600
    await own.api.acknowledge(claim.receipt)
    [after] = await own.items()
    assert (after.state, after.item.visible_time) == (DELAYED, listed.again_time)
    assert not after.HasField("again_time")


async def test_item_enqueued_after_its_lease_expired_survives_a_late_acknowledgement(
    own: OwnQueue,
) -> None:
    claim = await own.taken("a", lease_duration=SHORT)
    await eventually(lambda: _has(own, WAITING))
    await own.enqueue("a")
    await own.api.acknowledge(claim.receipt)
    assert ids(await own.dequeue()) == ["a"]


async def test_item_handed_out_again_has_been_enqueued_for_no_other_time(own: OwnQueue) -> None:
    await own.taken("a", lease_duration=SHORT)
    await own.enqueue("a")
    claim = await own.retake()
    await own.api.acknowledge(claim.receipt)
    assert await own.items() == []


async def test_dead_item_is_revived_by_an_enqueue(own: OwnQueue) -> None:
    await _dead(own, "a")
    await own.enqueue("a")
    assert (await own.take()).attempt == 1


# Dequeue.


async def test_items_come_in_the_order_of_visible_time_and_arrival(own: OwnQueue) -> None:
    times = {"e": 3, "a": 1, "d": 3, "b": 1, "c": 2}
    await own.api.enqueue(
        *(make.item(own.name, id=id_, visible_time=make.time(at)) for id_, at in times.items())
    )
    assert ids(await own.dequeue()) == ["a", "b", "c", "e", "d"]


async def test_order_is_that_of_all_queues_named(own: OwnQueue, other: OwnQueue) -> None:
    for at in range(6):
        queue = (own, other)[at % 2]
        await queue.enqueue(str(at), visible_time=make.time(at))
    answer = await own.api.dequeue(queues=[own.name, other.name], max_items=4)
    assert ids(answer.items) == ["0", "1", "2", "3"]
    assert [claim.item.queue for claim in answer.items] == [own.name, other.name] * 2
    assert ids(await own.dequeue()) == ["4"]
    assert ids(await other.dequeue()) == ["5"]


async def test_max_items_takes_the_first_ones(own: OwnQueue) -> None:
    for at in range(5):
        await own.enqueue(str(at), visible_time=make.time(at))
    assert ids(await own.dequeue(2)) == ["0", "1"]
    assert ids(await own.dequeue(2)) == ["2", "3"]
    assert ids(await own.dequeue(2)) == ["4"]
    assert await own.dequeue(2) == []


async def test_default_and_maximum_number_of_items(own: OwnQueue) -> None:
    for start in range(0, 1100, 550):
        await own.api.enqueue(
            *(make.item(own.name, id=str(at)) for at in range(start, start + 550))
        )
    for most, length in ((0, 1), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)):
        claims = await own.dequeue(most)
        assert len(claims) == length
        await own.api.return_items(*receipts(claims))


async def test_delayed_item_is_not_handed_out_before_its_time(api: Api, own: OwnQueue) -> None:
    at = make.later(await database_time(api), ms=300)
    await own.enqueue(visible_time=at)
    assert await own.dequeue() == []
    await own.retake()
    assert (await database_time(api)).ToDatetime() >= at.ToDatetime()


async def test_item_under_a_lease_is_not_handed_out(own: OwnQueue) -> None:
    await own.taken()
    assert await own.dequeue() == []


async def test_item_is_handed_out_again_when_its_lease_expires(own: OwnQueue) -> None:
    first = await own.taken(lease_duration=SHORT)
    second = await own.retake()
    assert second.item.id == first.item.id
    assert (first.attempt, second.attempt) == (1, 2)
    assert second.receipt != first.receipt
    assert second.epoch > first.epoch


async def test_lease_lasts_as_long_as_asked_for(api: Api, own: OwnQueue) -> None:
    for duration, seconds in ((None, 30), (Duration(seconds=3600), 3600)):
        before = await database_time(api)
        claim = await own.taken(lease_duration=duration)
        after = await database_time(api)
        lasts = [(claim.lease_expiry.ToDatetime() - at.ToDatetime()).total_seconds()
                 for at in (after, before)]  # fmt: skip
        assert lasts[0] <= seconds <= lasts[1]


async def test_epochs_rise_with_every_claim_of_the_store(own: OwnQueue, other: OwnQueue) -> None:
    epochs = []
    for queue in (own, other, own):
        await queue.api.enqueue(*(make.item(queue.name) for _ in range(3)))
        epochs.append(sorted(claim.epoch for claim in await queue.dequeue()))
    assert epochs == sorted(epochs)
    assert len({epoch for some in epochs for epoch in some}) == 9


async def test_no_more_are_handed_out_than_fit_in_an_answer(api: Api, own: OwnQueue) -> None:
    most = (await api.get_store_info()).max_message_bytes
    payload = f'"{"x" * min(65_534, most // 4)}"'
    count = min(most // len(payload) + 5, 1000)
    await for_each(lambda _: own.enqueue(payload_json=payload), range(count))
    first = await own.dequeue()
    assert most // len(payload) - 4 < len(first) < count
    assert len(await own.dequeue()) == count - len(first)


async def test_items_handled_before_are_settled_first(own: OwnQueue) -> None:
    done, back = await own.taken(), await own.taken()
    new = await own.enqueue(visible_time=make.time())
    claims = await own.dequeue(
        acknowledge=[queue_item_pb2.Acknowledgement(receipt=done.receipt)],
        return_items=[queue_pb2.ReturnedItem(receipt=back.receipt)],
    )
    assert ids(claims) == [new.id, back.item.id]
    assert len(await own.items()) == 2


async def test_item_that_was_enqueued_again_is_handed_out_by_the_call_that_acknowledges_it(
    own: OwnQueue,
) -> None:
    claim = await own.taken("a")
    await own.enqueue("a")
    acknowledge = [queue_item_pb2.Acknowledgement(receipt=claim.receipt)]
    assert ids(await own.dequeue(acknowledge=acknowledge)) == ["a"]


@pytest.mark.parametrize("field", ["acknowledge", "return_items"])
async def test_nothing_is_changed_and_handed_out_if_one_is_lost(own: OwnQueue, field: str) -> None:
    lost, held = await own.taken(), await own.taken()
    await own.api.acknowledge(lost.receipt)
    await own.enqueue("new")
    before = await own.items()
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        settle: Any = {field: [{"receipt": held.receipt}, {"receipt": lost.receipt}]}
        await own.dequeue(**settle)
    assert failure.metadata == {"lease_tokens": lost.receipt, "lost": "1", "field": field}
    assert await own.items() == before
    assert ids(await own.dequeue()) == ["new"]  # also on a connection that has just failed


async def test_item_is_withheld_while_somebody_holds_a_lock(api: Api, own: OwnQueue) -> None:
    locks = [make.new_id("lock") for _ in range(3)]
    await own.enqueue("a", blocked_by=locks)
    await own.enqueue("b", blocked_by=[make.new_id("lock")])
    tokens = [(await api.acquire_lock(resource=lock)).token for lock in locks[1:]]
    assert ids(await own.dequeue()) == ["b"]
    assert (await own.states())["a"] == WAITING
    for token in tokens:
        assert await own.dequeue() == []
        await api.release_lock(token)
    assert ids(await own.dequeue()) == ["a"]


async def test_expired_lock_withholds_nothing(api: Api, own: OwnQueue) -> None:
    lock = make.new_id("lock")
    await own.enqueue("a", blocked_by=[lock])
    await api.acquire_lock(resource=lock, ttl=SHORT)
    assert ids([await own.retake()]) == ["a"]


async def test_queue_that_never_had_an_item_is_empty(own: OwnQueue) -> None:
    assert await own.dequeue() == []


# Acknowledge.


async def test_acknowledged_items_are_gone(own: OwnQueue) -> None:
    await own.api.enqueue(*(make.item(own.name) for _ in range(3)))
    claims = await own.dequeue()
    assert await own.api.acknowledge(*receipts(claims)) == []
    assert await own.items() == []


async def test_second_acknowledgement_is_lost(own: OwnQueue) -> None:
    claim = await own.taken()
    await own.api.acknowledge(claim.receipt)
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await own.api.acknowledge(claim.receipt)


async def test_acknowledgement_is_all_or_nothing(own: OwnQueue) -> None:
    lost = await own.taken(lease_duration=SHORT)
    again = await own.retake()
    held = await own.taken()
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        await own.api.acknowledge(held.receipt, lost.receipt)
    assert failure.metadata["lease_tokens"] == lost.receipt
    await own.api.acknowledge(held.receipt, again.receipt)


async def test_late_acknowledgement_is_good_if_nobody_has_got_the_item_since(
    own: OwnQueue,
) -> None:
    claim = await own.taken(lease_duration=SHORT)
    await eventually(lambda: _has(own, WAITING))
    await own.api.acknowledge(claim.receipt)
    assert await own.items() == []


async def test_altered_receipts_acknowledge_nothing(own: OwnQueue) -> None:
    claim, other = await own.taken(), await own.taken()
    before = await own.items()
    row, secret = claim.receipt.split(".")
    for forged in (
        f"{row}.{'0' * 32}",
        f"{row}.{other.receipt.split('.')[1]}",
        f"{10**17}.{secret}",
        f"0.{secret}",
    ):
        for call in (own.api.acknowledge, own.api.return_items, own.api.renew_items):
            with fails("FAILED_PRECONDITION", "LEASE_LOST"):
                await call(forged)
    assert await own.items() == before


@pytest.mark.parametrize("receipt", ["x", "1", "1.", ".", "01.{0}", "-1.{0}", "1.{0}0", "1.1.{0}"])
async def test_what_is_no_receipt_is_refused(own: OwnQueue, receipt: str) -> None:
    receipt = receipt.format("0" * 32)
    with invalid("acknowledge[0].receipt", reason="FORMAT"):
        await own.api.acknowledge(receipt)
    with invalid("return_items[0].receipt", reason="FORMAT"):
        await own.api.return_items(receipt)
    with invalid("receipts[0]", reason="FORMAT"):
        await own.api.renew_items(receipt)
    with invalid("acknowledge[0].receipt", reason="FORMAT"):
        await own.dequeue(acknowledge=[{"receipt": receipt}])


async def test_receipts_must_be_distinct(own: OwnQueue) -> None:
    receipt = (await own.taken()).receipt
    with invalid("acknowledge[1].receipt", reason="DUPLICATE"):
        await own.api.acknowledge(receipt, receipt)
    with invalid("return_items[1].receipt", reason="DUPLICATE"):
        await own.api.return_items(receipt, receipt)
    with invalid("receipts[1]", reason="DUPLICATE"):
        await own.api.renew_items(receipt, receipt)
    with invalid("return_items[0].receipt", reason="DUPLICATE"):
        await own.dequeue(acknowledge=[{"receipt": receipt}], return_items=[{"receipt": receipt}])
    await own.api.renew_items(receipt)


async def test_other_duplicates_are_refused(own: OwnQueue) -> None:
    with invalid("items[1].id", reason="DUPLICATE"):
        await own.api.enqueue(make.item(own.name, id="a"), make.item(own.name, id="a"))
    with invalid("items[0].blocked_by[1]", reason="DUPLICATE"):
        await own.enqueue(blocked_by=["a", "a"])
    with invalid("queues[1]", reason="DUPLICATE"):
        await own.api.dequeue(queues=[own.name, own.name])
    with invalid("ids[1]", reason="DUPLICATE"):
        await own.api.delete_items(queue=own.name, ids=["a", "a"])


async def test_too_many_items_are_refused(own: OwnQueue) -> None:
    receipt = f"1.{'0' * 32}"
    with invalid("items", reason="NUMBER_RANGE"):
        await own.api.enqueue(*[make.item(own.name)] * 1001)
    with invalid("items[0].blocked_by", reason="NUMBER_RANGE"):
        await own.enqueue(blocked_by=[str(i) for i in range(9)])
    with invalid("queues", reason="NUMBER_RANGE"):
        await own.api.dequeue(queues=[make.queue() for _ in range(11)])
    with invalid("queues", reason="REQUIRED"):
        await own.api.dequeue(queues=[])
    with invalid("acknowledge", reason="NUMBER_RANGE"):
        await own.api.acknowledge(*[receipt] * 1001)
    with invalid("return_items", reason="NUMBER_RANGE"):
        await own.api.return_items(*[receipt] * 1001)
    with invalid("receipts", reason="NUMBER_RANGE"):
        await own.api.renew_items(*[receipt] * 1001)
    for field in ("acknowledge", "return_items"):
        with invalid(field, reason="NUMBER_RANGE"):
            settle: Any = {field: [{"receipt": receipt}] * 1001}
            await own.dequeue(**settle)
    for change in (own.api.requeue_items, own.api.delete_items):
        with invalid("ids", reason="NUMBER_RANGE"):
            await change(queue=own.name, ids=[str(i) for i in range(1001)])
    with invalid("queues", reason="NUMBER_RANGE"):
        await own.api.get_queue_stats(queues=[make.queue() for _ in range(1001)])


async def test_as_many_as_allowed_are_handled_at_once(own: OwnQueue) -> None:
    await own.api.enqueue(*(make.item(own.name, id=str(i)) for i in range(1000)))
    claims = await own.dequeue()
    assert ids(claims) == [str(i) for i in range(1000)]
    await own.api.renew_items(*receipts(claims))
    await own.api.return_items(*receipts(claims[:500]))
    await own.api.acknowledge(*receipts(claims[500:]))
    assert len(await own.items()) == 500


# ReturnItems.


async def test_returned_item_is_visible_at_once(own: OwnQueue) -> None:
    claim = await own.taken()
    await own.api.return_items(claim.receipt)
    again = await own.take()
    assert (again.item.id, again.attempt) == (claim.item.id, 2)


async def test_returned_item_is_visible_after_its_delay(api: Api, own: OwnQueue) -> None:
    claim = await own.taken()
    at = await database_time(api)
    await own.api.return_items(claim.receipt, delay=Duration(seconds=3600))
    [listed] = await own.items()
    assert listed.state == DELAYED
    delay = (listed.item.visible_time.ToDatetime() - at.ToDatetime()).total_seconds()
    assert 3600 <= delay < 3630


async def test_returned_item_that_was_enqueued_since_is_visible_sooner(own: OwnQueue) -> None:
    claim = await own.taken("a")
    await own.enqueue("a")
    await own.api.return_items(claim.receipt, delay=Duration(seconds=3600))
    assert ids(await own.dequeue()) == ["a"]


async def test_returned_receipt_is_lost(own: OwnQueue) -> None:
    claim = await own.taken()
    await own.api.return_items(claim.receipt)
    for call in (own.api.acknowledge, own.api.return_items, own.api.renew_items):
        with fails("FAILED_PRECONDITION", "LEASE_LOST"):
            await call(claim.receipt)


async def test_return_is_all_or_nothing(own: OwnQueue) -> None:
    lost, held = await own.taken(), await own.taken()
    await own.api.acknowledge(lost.receipt)
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await own.api.return_items(held.receipt, lost.receipt)
    assert await own.dequeue() == []


# RenewItems.


async def test_renewed_lease_lasts_from_now(api: Api, own: OwnQueue) -> None:
    claims = [await own.taken() for _ in range(2)]
    before = await database_time(api)
    answer = await own.api.renew_items(*receipts(claims), lease_duration=Duration(seconds=3600))
    lasts = (answer.lease_expiry.ToDatetime() - before.ToDatetime()).total_seconds()
    assert 3600 <= lasts < 3630
    assert {listed.lease.expiry.ToDatetime() for listed in await own.items()} == {
        answer.lease_expiry.ToDatetime()
    }
    await own.api.acknowledge(*receipts(claims))  # by the same receipts


async def test_renewing_nothing_has_no_expiry(api: Api) -> None:
    assert not (await api.renew_items()).HasField("lease_expiry")


async def test_expired_lease_is_not_renewed(own: OwnQueue) -> None:
    claim = await own.taken(lease_duration=SHORT)
    await eventually(lambda: _has(own, WAITING))
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        await own.api.renew_items(claim.receipt)
    assert failure.metadata["field"] == "receipts"


async def test_renewal_is_all_or_nothing(own: OwnQueue) -> None:
    lost, held = await own.taken(), await own.taken()
    await own.api.acknowledge(lost.receipt)
    before = await own.items()
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await own.api.renew_items(held.receipt, lost.receipt, lease_duration=Duration(seconds=9))
    assert await own.items() == before


async def _has(own: OwnQueue, state: queue_pb2.QueueItemState.ValueType) -> bool:
    return state in (await own.states()).values()


async def _dead(own: OwnQueue, *ids_: str) -> None:
    """Items that are dead."""
    await own.configure(max_attempts=1)
    for id_ in ids_:
        claim = await own.taken(id_)
        await own.api.return_items(claim.receipt)
    assert {(await own.states())[id_] for id_ in ids_} == {DEAD}
