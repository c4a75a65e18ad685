"""SubscriptionService: who waits for which event, and which of them are open."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from tests.support import make
from tests.support.api import Api, pages
from tests.support.clock import database_time
from tests.support.expect import fails
from wfe.persistence.v1.subscription_pb2 import EventSubscription

MIB = 1024 * 1024


async def _created(api: Api, **fields: Any) -> EventSubscription:
    subscription = make.subscription(**fields)
    await api.create_event_subscription(subscription)
    return subscription


async def _open(api: Api, like: EventSubscription, **fields: Any) -> list[EventSubscription]:
    """All open subscriptions of this one's event name and key."""
    answers = await pages(
        api.get_subscriptions, event_name=like.event_name, event_key=like.event_key, **fields
    )
    return [s for answer in answers for s in answer.subscriptions]


async def _first_open(api: Api, like: EventSubscription, **fields: Any) -> EventSubscription | None:
    return await api.get_first_open_subscription(
        event_name=like.event_name, event_key=like.event_key, **fields
    )


def _full(**fields: Any) -> EventSubscription:
    """A subscription with every field set, held for an hour."""
    given: dict[str, Any] = {
        "step_id": 2**31 - 1,
        "subscription_data_json": '{"a": 1}',
        "external_token": "token",
        "external_worker_id": "worker",
        "external_token_expiry": make.from_now(3600),
    }
    return make.subscription(**(given | fields))


# CreateEventSubscription, GetSubscription.


async def test_create_answers_the_id_and_stores_every_field(api: Api) -> None:
    """Among them the workflow, which need not exist."""
    for subscription in (make.subscription(), _full()):
        assert await api.create_event_subscription(subscription) == subscription.id
        assert await api.get_subscription(subscription.id) == subscription


async def test_empty_id_becomes_a_uuid(api: Api) -> None:
    ids = [await api.create_event_subscription(make.subscription(id="")) for _ in range(2)]
    assert ids[0] != ids[1]
    for id_ in ids:
        assert str(uuid.UUID(id_)) == id_
        assert (await api.get_subscription(id_)).id == id_


async def test_same_create_again_answers_the_same_and_changes_nothing(api: Api) -> None:
    subscription = _full()
    for _ in range(2):
        assert await api.create_event_subscription(subscription) == subscription.id
        assert await api.get_subscription(subscription.id) == subscription


async def test_same_create_again_leaves_a_claimed_subscription_claimed(api: Api) -> None:
    subscription = await _created(api)
    await api.set_subscription_token(subscription.id, "token")
    held = await api.get_subscription(subscription.id)
    assert await api.create_event_subscription(subscription) == subscription.id
    assert await api.get_subscription(subscription.id) == held


async def test_same_create_again_leaves_a_cleared_subscription_open(api: Api) -> None:
    subscription = _full()
    await api.create_event_subscription(subscription)
    await api.clear_subscription_token(subscription.id, "token")
    assert await api.create_event_subscription(subscription) == subscription.id
    assert not (await api.get_subscription(subscription.id)).HasField("external_token")


async def test_json_of_other_member_order_is_the_same_content(api: Api) -> None:
    subscription = await _created(api, subscription_data_json='{"a": 1, "b": 2}')
    subscription.subscription_data_json = '{"b":2,"a":1}'
    assert await api.create_event_subscription(subscription) == subscription.id


@pytest.mark.parametrize(
    "field", make.fields_of(EventSubscription, but=("id", "external_token_epoch"))
)
async def test_same_id_with_another_field_is_refused(api: Api, field: str) -> None:
    subscription = _full()
    await api.create_event_subscription(subscription)
    with fails("ALREADY_EXISTS", "SUBSCRIPTION_ALREADY_EXISTS"):
        await api.create_event_subscription(make.changed(subscription, field))
    assert await api.get_subscription(subscription.id) == subscription


async def test_absent_subscription_is_not_found(api: Api) -> None:
    with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
        await api.get_subscription(make.new_id())


# GetSubscriptions, GetFirstOpenSubscription: which.


async def _assert_open(
    api: Api, like: EventSubscription, expected: Sequence[EventSubscription], **fields: Any
) -> None:
    """Both RPCs must find these, in this order."""
    assert await _open(api, like, **fields) == list(expected)
    assert await _first_open(api, like, **fields) == (expected[0] if expected else None)


async def test_found_by_event_name_and_key(api: Api) -> None:
    subscription = await _created(api)
    await _created(api, event_key=subscription.event_key, event_name="other")
    await _created(api, event_name=subscription.event_name)
    await _assert_open(api, subscription, [subscription])


async def test_empty_event_key_is_a_key_like_any_other(api: Api) -> None:
    name = make.new_id("name")
    empty = await _created(api, event_name=name, event_key="")
    other = await _created(api, event_name=name, event_key="k")
    await _assert_open(api, empty, [empty])
    await _assert_open(api, other, [other])


async def test_found_up_to_and_including_as_of(api: Api) -> None:
    at, key = make.time(), make.new_id("key")
    before, now, _ = [
        await _created(api, event_key=key, subscribe_as_of=make.later(at, us=us))
        for us in (-1, 0, 1)
    ]
    await _assert_open(api, now, [before, now], as_of=at)
    await _assert_open(api, now, [before], as_of=before.subscribe_as_of)
    await _assert_open(api, now, [], as_of=make.later(at, us=-2))


async def test_found_without_as_of_up_to_the_databases_clock(api: Api) -> None:
    key = make.new_id("key")
    past = await _created(api, event_key=key, subscribe_as_of=make.from_now(-3600))
    await _created(api, event_key=key, subscribe_as_of=make.from_now(3600))
    await _assert_open(api, past, [past])


async def test_none_is_an_empty_answer(api: Api) -> None:
    await _assert_open(api, make.subscription(), [])


async def test_held_without_expiry_is_not_open(api: Api) -> None:
    subscription = await _created(api, external_token="token")
    await _assert_open(api, subscription, [])


async def test_held_until_later_is_not_open(api: Api) -> None:
    expiry = await database_time(api, 60)
    subscription = await _created(api, external_token="token", external_token_expiry=expiry)
    await _assert_open(api, subscription, [])


async def test_held_until_a_time_that_has_passed_is_open(api: Api) -> None:
    expiry = await database_time(api, -0.001)
    subscription = await _created(api, external_token="token", external_token_expiry=expiry)
    await _assert_open(api, subscription, [subscription])


async def test_worker_or_expiry_without_a_token_hold_nothing(api: Api) -> None:
    subscription = await _created(
        api, external_worker_id="worker", external_token_expiry=make.from_now(3600)
    )
    await _assert_open(api, subscription, [subscription])


async def test_oldest_comes_first_and_equal_times_in_the_order_of_ids(api: Api) -> None:
    key = make.new_id("key")
    made = [
        await _created(api, event_key=key, subscribe_as_of=make.later(make.time(), us=us))
        for us in (0, -1, 0, -1_000_000, 0, -1)
    ]
    expected = sorted(made, key=lambda s: (s.subscribe_as_of.ToNanoseconds(), s.id))
    for page_size in (0, 1, 2, 5, 6):
        assert await _open(api, made[0], page_size=page_size) == expected
    assert await _first_open(api, made[0]) == expected[0]


async def test_first_open_passes_over_held_ones_and_claims_none(api: Api) -> None:
    held, first, _ = [
        await _created(api, event_key=key, subscribe_as_of=make.time(n))
        for key in [make.new_id("key")]
        for n in range(3)
    ]
    await api.set_subscription_token(held.id, "token")
    for _ in range(2):
        assert await _first_open(api, held) == first
    assert await api.get_subscription(first.id) == first


# Pages.


async def test_subscription_claimed_between_two_pages_is_left_out(api: Api) -> None:
    key = make.new_id("key")
    made = [await _created(api, event_key=key, subscribe_as_of=make.time(n)) for n in range(5)]
    query = {"event_name": made[0].event_name, "event_key": key, "page_size": 2}
    first = await api.get_subscriptions(**query)
    await api.set_subscription_token(made[2].id, "token")
    second = await api.get_subscriptions(page_token=first.next_page_token, **query)
    listed = [*first.subscriptions, *second.subscriptions]
    assert listed == [*made[:2], *made[3:]]


async def _many(api: Api, count: int, **fields: Any) -> list[EventSubscription]:
    """So many subscriptions of the same event name and key, in the order of their ids."""
    workflow = make.instance()
    await api.create_new_workflow(workflow)
    given = {"event_key": make.new_id("key")} | fields
    made = [make.subscription(**given) for _ in range(count)]
    await api.persist_workflow_with_subscriptions(workflow, made)
    return sorted(made, key=lambda s: s.id)


async def test_default_and_maximum_page_size(api: Api) -> None:
    made = await _many(api, 1001)
    query = {"event_name": made[0].event_name, "event_key": made[0].event_key}
    for page_size, length in ((0, 100), (100, 100), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)):
        answer = await api.get_subscriptions(page_size=page_size, **query)
        assert list(answer.subscriptions) == made[:length]
        assert answer.next_page_token
    for page_size in (0, 1000):
        assert await _open(api, made[0], page_size=page_size) == made


async def test_page_is_shorter_where_the_next_one_does_not_fit_into_a_message(
    api: Api, target: str
) -> None:
    """Through a channel with gRPC's own limit of 4 MiB a message."""
    key, large = make.new_id("key"), f'"{"x" * (3 * MIB // 2)}"'
    made = [
        await _created(
            api, event_key=key, subscribe_as_of=make.time(n), subscription_data_json=large
        )
        for n in range(5)
    ]
    async with grpc.aio.insecure_channel(target) as channel:
        assert await _open(Api(channel), made[0]) == made


# TerminateSubscription.


async def test_terminate_removes_open_and_held_ones(api: Api) -> None:
    opened = await _created(api)
    held = await _created(api, event_key=opened.event_key, external_token="token")
    other = await _created(api, event_key=opened.event_key)
    for subscription in (opened, held):
        await api.terminate_subscription(subscription.id)
        with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
            await api.get_subscription(subscription.id)
    await _assert_open(api, opened, [other])


async def test_terminating_an_absent_one_is_not_found(api: Api) -> None:
    subscription = await _created(api)
    await api.terminate_subscription(subscription.id)
    for id_ in (make.new_id(), subscription.id):
        with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
            await api.terminate_subscription(id_)


async def test_terminated_id_is_free_again(api: Api) -> None:
    subscription = await _created(api)
    await api.terminate_subscription(subscription.id)
    other = make.changed(subscription, "event_key")
    await api.create_event_subscription(other)
    assert await api.get_subscription(subscription.id) == other
