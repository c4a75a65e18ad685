"""QueueService for people: what is in queues, what died there, and how queues are configured."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support import make
from tests.support.api import Api, pages
from tests.support.expect import eventually, fails, invalid
from tests.support.queues import (
    DEAD,
    DELAYED,
    LEASED,
    SHORT,
    WAITING,
    OwnQueue,
    ids,
)
from wfe.persistence.v1.queue_pb2 import QueueKind, QueueStats

PLAIN = QueueKind.QUEUE_KIND_PLAIN


@pytest.fixture
async def own(api: Api) -> AsyncIterator[OwnQueue]:
    queue = OwnQueue(api)
    yield queue
    await queue.clear()


async def filled(own: OwnQueue) -> None:
    """Two items in each state, named after it."""
    await own.configure(max_attempts=1)
    for at in (1, 2):
        await own.enqueue(f"dead {at}", visible_time=make.time(at))
        await own.enqueue(f"leased {at}", visible_time=make.time(10 + at))
    for at in (1, 2):
        claim = await own.take()
        assert claim.item.id == f"dead {at}"
        await own.api.return_items(claim.receipt)
    for _ in range(2):
        await own.take(worker_id="somebody")
    for at in (1, 2):
        await own.enqueue(f"waiting {at}", visible_time=make.time(at))
        await own.enqueue(f"delayed {at}", visible_time=make.from_now(3600 * at))


STATES = {"waiting": WAITING, "delayed": DELAYED, "leased": LEASED, "dead": DEAD}
IN_ORDER = [f"{state} {at}" for state in ("waiting", "leased", "delayed", "dead") for at in (1, 2)]


# ListQueueItems.


async def test_items_are_listed_in_their_order_the_dead_ones_last(own: OwnQueue) -> None:
    await filled(own)
    listed = await own.items()
    assert ids(listed) == IN_ORDER
    assert [each.state for each in listed] == [STATES[id_.split()[0]] for id_ in IN_ORDER]
    assert [each.attempt for each in listed] == [0, 0, 1, 1, 0, 0, 1, 1]


async def test_leased_item_is_listed_with_its_lease_and_no_receipt(own: OwnQueue) -> None:
    await own.enqueue("a", payload_json="[1]")
    claim = await own.take(worker_id="somebody")
    [listed] = await own.items()
    assert listed.lease.worker_id == "somebody"
    assert listed.lease.expiry == claim.lease_expiry == listed.item.visible_time
    assert listed.lease.epoch == claim.epoch
    assert listed.item.payload_json == "[1]"
    assert claim.receipt.split(".")[1].encode() not in listed.SerializeToString()


async def test_expired_lease_is_not_listed(own: OwnQueue) -> None:
    await own.taken(lease_duration=SHORT)

    async def waiting() -> bool:
        return WAITING in (await own.states()).values()

    await eventually(waiting)
    [listed] = await own.items()
    assert not listed.HasField("lease")
    assert listed.attempt == 1


@pytest.mark.parametrize("state", STATES)
async def test_items_are_listed_by_state(own: OwnQueue, state: str) -> None:
    await filled(own)
    assert ids(await own.items(state=STATES[state])) == [f"{state} 1", f"{state} 2"]


async def test_one_item_is_looked_up(own: OwnQueue) -> None:
    await filled(own)
    assert ids(await own.items(id="leased 2")) == ["leased 2"]
    assert await own.items(id="leased 2", state=WAITING) == []
    assert await own.items(id="leased 3") == []


@pytest.mark.parametrize("size", [1, 3, 8, 9])
async def test_list_is_the_same_in_pages(own: OwnQueue, size: int) -> None:
    await filled(own)
    answers = await pages(own.api.list_queue_items, queue=own.name, page_size=size)
    assert [len(answer.items) for answer in answers] == [
        min(size, 8 - at) for at in range(0, 8, size)
    ]
    assert [id_ for answer in answers for id_ in ids(answer.items)] == IN_ORDER


async def test_items_that_stay_are_listed_once_while_others_move(own: OwnQueue) -> None:
    await own.api.enqueue(
        *(make.item(own.name, id=str(at), visible_time=make.time(at)) for at in range(6))
    )
    first = await own.api.list_queue_items(queue=own.name, page_size=3)
    assert ids(await own.dequeue(2)) == ["0", "1"]
    await own.api.delete_items(queue=own.name, ids=["3"])
    token = first.next_page_token
    rest = await pages(own.api.list_queue_items, queue=own.name, page_size=3, page_token=token)
    found = ids(first.items) + [id_ for answer in rest for id_ in ids(answer.items)]
    assert [id_ for id_ in found if id_ in "245"] == ["2", "4", "5"]


async def test_queue_without_items_is_listed_empty(own: OwnQueue) -> None:
    assert await own.items() == []


# GetQueueStats.


async def test_stats_count_items_by_state(own: OwnQueue) -> None:
    await filled(own)
    stats = await own.stats()
    assert stats.oldest_waiting_age.seconds > 0
    stats.ClearField("oldest_waiting_age")
    assert stats == QueueStats(
        queue=own.name, kind=PLAIN, max_attempts=1, waiting=2, delayed=2, leased=2, dead=2
    )


async def test_age_is_that_of_the_first_waiting_item(own: OwnQueue) -> None:
    await own.enqueue(visible_time=make.from_now(-1000))
    await own.enqueue(visible_time=make.from_now(-2000))
    assert 1990 < (await own.stats()).oldest_waiting_age.seconds < 2100


async def test_queue_without_items_has_stats_if_it_is_named(own: OwnQueue) -> None:
    assert await own.stats() == QueueStats(queue=own.name, kind=PLAIN)


async def test_stats_of_queues_named_come_in_the_order_of_names(api: Api) -> None:
    names = [make.queue() for _ in range(5)]
    answers = await pages(api.get_queue_stats, queues=names, page_size=2)
    assert [len(answer.queues) for answer in answers] == [2, 2, 1]
    assert [stats.queue for answer in answers for stats in answer.queues] == sorted(names)


async def test_all_queues_with_items_or_a_configuration_have_stats(api: Api, own: OwnQueue) -> None:
    configured = OwnQueue(api)
    await configured.configure(max_attempts=7)
    await own.enqueue()
    for size in (2, 1000):
        answers = await pages(api.get_queue_stats, page_size=size)
        found = {stats.queue: stats for answer in answers for stats in answer.queues}
        assert list(found) == sorted(found)
        assert found[own.name].waiting == 1
        assert found[configured.name].max_attempts == 7


# max_attempts.


async def test_returned_item_dies_after_max_attempts(own: OwnQueue) -> None:
    await own.configure(max_attempts=3)
    await own.enqueue("a")
    for attempt in (1, 2, 3):
        claim = await own.take()
        assert claim.attempt == attempt
        await own.api.return_items(claim.receipt)
    assert await own.states() == {"a": DEAD}
    assert await own.dequeue() == []


async def test_item_whose_leases_expired_dies_after_max_attempts(own: OwnQueue) -> None:
    await own.configure(max_attempts=2)
    await own.taken("a", lease_duration=SHORT)
    claim = await own.retake(lease_duration=SHORT)
    assert claim.attempt == 2

    async def dead() -> bool:
        assert await own.dequeue() == []
        return (await own.states())["a"] == DEAD

    await eventually(dead)


async def test_items_behind_dying_ones_are_handed_out(own: OwnQueue) -> None:
    await own.configure(max_attempts=1)
    await own.api.enqueue(
        *(make.item(own.name, id=f"a{at}", visible_time=make.time()) for at in range(5))
    )
    await own.dequeue(lease_duration=SHORT)

    async def expired() -> bool:
        return set((await own.states()).values()) == {WAITING}

    await eventually(expired)
    await own.enqueue("b")
    assert ids(await own.dequeue(2)) == ["b"]
    assert (await own.stats()).dead == 5


async def test_dead_item_may_still_be_acknowledged_by_who_held_it_last(own: OwnQueue) -> None:
    await own.configure(max_attempts=1)
    claim = await own.taken("a", lease_duration=SHORT)

    async def dead() -> bool:
        assert await own.dequeue() == []
        return (await own.states())["a"] == DEAD

    await eventually(dead)
    await own.api.acknowledge(claim.receipt)
    assert await own.items() == []


async def test_item_that_was_enqueued_since_does_not_die(own: OwnQueue) -> None:
    await own.configure(max_attempts=1)
    claim = await own.taken("a")
    await own.enqueue("a")
    await own.api.return_items(claim.receipt)
    claim = await own.take(lease_duration=SHORT)
    assert claim.attempt == 1
    await own.enqueue("a")
    assert (await own.retake()).attempt == 1


async def test_without_max_attempts_an_item_never_dies(own: OwnQueue) -> None:
    await own.enqueue("a")
    for attempt in range(1, 20):
        claim = await own.take()
        assert claim.attempt == attempt
        await own.api.return_items(claim.receipt)
    assert await own.states() == {"a": WAITING}


# ConfigureQueue.


async def test_configuration_is_replaced(own: OwnQueue) -> None:
    for kind in (QueueKind.QUEUE_KIND_WORKFLOW, QueueKind.QUEUE_KIND_EVENT, PLAIN):
        for attempts in (0, 1, 2**31 - 1):
            for _ in range(2):
                await own.api.configure_queue(own.name, kind, attempts)
            stats = await own.stats()
            assert (stats.kind, stats.max_attempts) == (kind, attempts)


async def test_dead_items_stay_dead_when_the_queue_is_configured(own: OwnQueue) -> None:
    await filled(own)
    await own.configure()
    assert (await own.stats()).dead == 2


# RequeueItems and DeleteItems.

CHOICES: list[tuple[dict[str, Any], list[str]]] = [
    ({"ids": ["dead 2"]}, ["dead 2"]),
    ({"max_dead": 1}, ["dead 1"]),
    ({"max_dead": 1000}, ["dead 1", "dead 2"]),
    ({"ids": ["delayed 1"], "max_dead": 1}, ["dead 1", "delayed 1"]),
    ({"ids": ["dead 1", "absent"], "max_dead": 1}, ["dead 1"]),
    ({}, []),
]


@pytest.mark.parametrize(("choice", "changed"), CHOICES)
async def test_requeued_items_are_visible_with_attempt_0(
    own: OwnQueue, choice: dict[str, Any], changed: list[str]
) -> None:
    await filled(own)
    assert await own.api.requeue_items(queue=own.name, **choice) == len(changed)
    for id_, state in (await own.states()).items():
        assert state == (WAITING if id_ in changed else STATES[id_.split()[0]])
    claims = {claim.item.id: claim for claim in await own.dequeue()}
    assert set(claims) == {"waiting 1", "waiting 2", *changed}
    assert {claim.attempt for claim in claims.values()} == {1}


async def test_waiting_and_leased_items_are_not_requeued(own: OwnQueue) -> None:
    await filled(own)
    before = await own.items()
    assert await own.api.requeue_items(queue=own.name, ids=["waiting 1", "leased 1"]) == 0
    assert await own.items() == before


async def test_leases_are_broken_if_that_is_asked_for(own: OwnQueue) -> None:
    await filled(own)
    chosen = {"ids": ["waiting 1", "leased 1", "delayed 1", "absent"], "break_leases": True}
    assert await own.api.requeue_items(queue=own.name, **chosen) == 2
    states = await own.states()
    assert [states[f"{state} 1"] for state in ("waiting", "leased", "delayed")] == [WAITING] * 3
    assert (states["leased 2"], states["dead 1"]) == (LEASED, DEAD)


async def test_a_worker_whose_lease_was_broken_has_lost_the_item(own: OwnQueue) -> None:
    claim = await own.taken("a")
    assert await own.api.requeue_items(queue=own.name, ids=["a"], break_leases=True) == 1
    for use in (own.api.acknowledge, own.api.return_items, own.api.renew_items):
        with fails("FAILED_PRECONDITION", "LEASE_LOST"):
            await use(claim.receipt)
    again = {each.item.id: each for each in await own.dequeue()}
    assert again["a"].epoch > claim.epoch
    assert again["a"].attempt == 1


async def test_a_lease_is_broken_even_if_it_has_expired(own: OwnQueue) -> None:
    claim = await own.taken("a", lease_duration=SHORT)

    async def has_expired() -> bool:
        return (await own.states())["a"] == WAITING

    await eventually(has_expired)
    assert await own.api.requeue_items(queue=own.name, ids=["a"], break_leases=True) == 1
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await own.api.acknowledge(claim.receipt)


async def test_only_the_lease_with_the_epoch_is_broken(own: OwnQueue) -> None:
    first = await own.taken("a")
    await own.api.return_items(first.receipt)
    second = await own.take()
    chosen = {"queue": own.name, "ids": ["a"]}
    assert await own.api.requeue_items(**chosen, break_epoch=first.epoch) == 0
    await own.api.renew_items(second.receipt)
    assert await own.api.requeue_items(**chosen, break_epoch=second.epoch) == 1
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await own.api.acknowledge(second.receipt)
    assert await own.api.requeue_items(**chosen, break_epoch=second.epoch) == 0
    assert await own.states() == {"a": WAITING}


async def test_with_an_epoch_what_is_under_no_lease_is_left_alone(own: OwnQueue) -> None:
    await filled(own)
    before = await own.items()
    for state in ("waiting", "delayed", "dead"):
        ids = [f"{state} 1"]
        assert await own.api.requeue_items(queue=own.name, ids=ids, break_epoch=1) == 0
    assert await own.items() == before
    chosen = {"ids": ["delayed 1"], "max_dead": 1}
    assert await own.api.requeue_items(queue=own.name, **chosen, break_epoch=1) == 1
    states = await own.states()
    assert (states["dead 1"], states["delayed 1"]) == (WAITING, DELAYED)


@pytest.mark.parametrize(
    "beside",
    [{"ids": []}, {"ids": ["a", "b"]}, {"break_leases": True}],
    ids=["no id", "two ids", "break_leases"],
)
async def test_an_epoch_is_of_one_item(own: OwnQueue, beside: dict[str, Any]) -> None:
    claim = await own.taken("a")
    chosen = {"queue": own.name, "ids": ["a"], "break_epoch": claim.epoch}
    with invalid("break_epoch", reason="DUPLICATE"):
        await own.api.requeue_items(**(chosen | beside))
    await own.api.renew_items(claim.receipt)


async def test_what_is_chosen_by_max_dead_breaks_no_lease(own: OwnQueue) -> None:
    await filled(own)
    assert await own.api.requeue_items(queue=own.name, max_dead=10, break_leases=True) == 2
    assert (await own.states())["leased 1"] == LEASED


async def test_requeueing_again_changes_nothing(own: OwnQueue) -> None:
    await filled(own)
    assert await own.api.requeue_items(queue=own.name, max_dead=10) == 2
    before = await own.items()
    assert await own.api.requeue_items(queue=own.name, max_dead=10) == 0
    assert await own.items() == before


@pytest.mark.parametrize(
    ("choice", "changed"),
    [*CHOICES, ({"ids": ["waiting 1", "leased 2"]}, ["waiting 1", "leased 2"])],
)
async def test_deleted_items_are_gone(
    own: OwnQueue, choice: dict[str, Any], changed: list[str]
) -> None:
    await filled(own)
    assert await own.api.delete_items(queue=own.name, **choice) == len(changed)
    assert ids(await own.items()) == [id_ for id_ in IN_ORDER if id_ not in changed]
    assert await own.api.delete_items(queue=own.name, ids=changed) == 0


async def test_items_of_other_queues_are_left_alone(api: Api, own: OwnQueue) -> None:
    await filled(own)
    await api.delete_items(queue=make.queue(), ids=IN_ORDER, max_dead=1000)
    await api.requeue_items(queue=make.queue(), ids=IN_ORDER, max_dead=1000)
    assert ids(await own.items()) == IN_ORDER


async def test_deleted_item_is_lost_to_its_worker(own: OwnQueue) -> None:
    claim = await own.taken("a")
    await own.api.delete_items(queue=own.name, ids=["a"])
    await own.enqueue("a")
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await own.api.acknowledge(claim.receipt)
    assert await own.states() == {"a": WAITING}
