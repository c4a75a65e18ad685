"""SetSubscriptionToken, ClearSubscriptionToken: one worker at a time holds a subscription."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api
from tests.support.clock import database_time
from tests.support.expect import eventually, fails, failure_of, invalid
from wfe.persistence.v1.subscription_pb2 import EventSubscription


async def _created(api: Api, **fields: Any) -> EventSubscription:
    subscription = make.subscription(**fields)
    await api.create_event_subscription(subscription)
    return subscription


async def _without_epoch(api: Api, id_: str) -> EventSubscription:
    """A subscription as stored, without the number of its last claim, which stays."""
    subscription = await api.get_subscription(id_)
    subscription.ClearField("external_token_epoch")
    return subscription


async def _is_open(api: Api, subscription: EventSubscription) -> bool:
    answer = await api.get_subscriptions(
        event_name=subscription.event_name, event_key=subscription.event_key
    )
    return bool(answer.subscriptions)


async def _held(
    api: Api, token: str, worker: str, expiry: Timestamp | None = None
) -> EventSubscription:
    """A new subscription, held so."""
    subscription = await _created(api)
    assert await api.set_subscription_token(subscription.id, token, worker, expiry)
    return subscription


async def _let_expire(api: Api, subscription: EventSubscription, token: str, worker: str) -> None:
    """Hold a subscription until soon, and wait until that has passed."""
    seconds = 0.2
    while failure := await failure_of(
        api.set_subscription_token(
            subscription.id, token, worker, await database_time(api, seconds)
        )
    ):
        assert set(failure.violations) == {"expiry"}, failure  # a slow moment: give it longer
        seconds *= 2
    await eventually(lambda: _is_open(api, subscription))


async def test_open_subscription_is_acquired(api: Api) -> None:
    subscription = await _created(api)
    expiry = make.from_now(3600)
    assert await api.set_subscription_token(subscription.id, "token", "worker", expiry)
    assert not await _is_open(api, subscription)
    expected = EventSubscription(
        external_token="token", external_worker_id="worker", external_token_expiry=expiry
    )
    expected.MergeFrom(subscription)
    stored = await api.get_subscription(subscription.id)
    expected.external_token_epoch = stored.external_token_epoch
    assert stored == expected
    assert stored.external_token_epoch > 0


async def test_hold_without_expiry_has_none(api: Api) -> None:
    subscription = await _held(api, "token", "worker")
    stored = await api.get_subscription(subscription.id)
    assert not stored.HasField("external_token_expiry")


@pytest.mark.parametrize(
    ("token", "worker"),
    [("other", "worker"), ("token", "other"), ("token", ""), ("TOKEN", "worker")],
)
@pytest.mark.parametrize("with_expiry", [True, False])
async def test_held_by_another_is_not_acquired_and_nothing_changed(
    api: Api, token: str, worker: str, with_expiry: bool
) -> None:
    expiry = make.from_now(3600) if with_expiry else None
    subscription = await _held(api, "token", "worker", expiry)
    before = await api.get_subscription(subscription.id)
    assert not await api.set_subscription_token(subscription.id, token, worker)
    assert not await api.set_subscription_token(subscription.id, token, worker, make.from_now(7200))
    assert await api.get_subscription(subscription.id) == before


async def test_same_token_and_worker_acquire_again(api: Api) -> None:
    subscription = await _held(api, "token", "worker")
    assert await api.set_subscription_token(subscription.id, "token", "worker")


async def test_same_token_and_worker_extend_shorten_and_lift_the_expiry(api: Api) -> None:
    subscription = await _held(api, "token", "worker", make.from_now(3600))
    for expiry in (make.from_now(7200), make.from_now(1800), make.LAST_TIME):
        assert await api.set_subscription_token(subscription.id, "token", "worker", expiry)
        assert (await api.get_subscription(subscription.id)).external_token_expiry == expiry
    assert await api.set_subscription_token(subscription.id, "token", "worker")
    stored = await api.get_subscription(subscription.id)
    assert not stored.HasField("external_token_expiry")


async def test_without_a_worker_too_the_same_token_acquires_again(api: Api) -> None:
    subscription = await _held(api, "token", "")
    assert await api.set_subscription_token(subscription.id, "token", "")
    assert not await api.set_subscription_token(subscription.id, "other", "")


async def test_hold_given_at_creation_is_a_hold(api: Api) -> None:
    subscription = await _created(api, external_token="token", external_worker_id="worker")
    assert not await api.set_subscription_token(subscription.id, "other", "worker")
    assert await api.set_subscription_token(subscription.id, "token", "worker")
    await api.clear_subscription_token(subscription.id, "token")
    assert await _is_open(api, subscription)


async def test_expiry_that_has_passed_is_refused_and_nothing_changed(api: Api) -> None:
    subscription = await _created(api)
    for expiry in (await database_time(api), make.time(-3600), make.FIRST_TIME):
        with invalid("expiry", reason="TIME_RANGE"):
            await api.set_subscription_token(subscription.id, "token", "worker", expiry)
    assert await api.get_subscription(subscription.id) == subscription


async def test_holder_can_not_end_its_hold_by_an_expiry_that_has_passed(api: Api) -> None:
    subscription = await _held(api, "token", "worker")
    with invalid("expiry", reason="TIME_RANGE"):
        await api.set_subscription_token(subscription.id, "token", "worker", make.from_now(-3600))
    assert not await _is_open(api, subscription)


async def test_token_of_an_absent_subscription_is_not_found(api: Api) -> None:
    with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
        await api.set_subscription_token(make.new_id(), "token")
    with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
        await api.set_subscription_token(make.new_id(), "token", "w", make.from_now(3600))


# Expiry.


async def test_hold_that_expired_is_open_and_taken_by_another(api: Api) -> None:
    subscription = await _held(api, "token", "worker")
    await _let_expire(api, subscription, "token", "worker")
    assert await api.set_subscription_token(subscription.id, "other", "another")
    stored = await api.get_subscription(subscription.id)
    assert (stored.external_token, stored.external_worker_id) == ("other", "another")
    assert not stored.HasField("external_token_expiry")
    assert not await api.set_subscription_token(subscription.id, "token", "worker")
    with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
        await api.clear_subscription_token(subscription.id, "token")


async def test_hold_that_expired_is_taken_again_by_its_worker(api: Api) -> None:
    subscription = await _held(api, "token", "worker")
    await _let_expire(api, subscription, "token", "worker")
    assert await api.set_subscription_token(subscription.id, "token", "worker")
    assert not await _is_open(api, subscription)


async def test_hold_that_expired_is_cleared_with_its_token_if_nobody_took_it_since(
    api: Api,
) -> None:
    subscription = await _held(api, "token", "worker")
    await _let_expire(api, subscription, "token", "worker")
    await api.clear_subscription_token(subscription.id, "token")
    assert await _without_epoch(api, subscription.id) == subscription


async def test_extended_hold_does_not_expire_at_its_first_expiry(api: Api) -> None:
    early = await database_time(api, 0.3)
    subscription = await _created(api)
    # (In a slow moment this is refused, and the test shows less.)
    await failure_of(api.set_subscription_token(subscription.id, "token", "worker", early))
    await api.set_subscription_token(subscription.id, "token", "worker", make.from_now(3600))

    async def early_has_passed() -> bool:
        return (await database_time(api)).ToNanoseconds() > early.ToNanoseconds()

    await eventually(early_has_passed)
    assert not await _is_open(api, subscription)


# ClearSubscriptionToken.


async def test_clear_with_the_token_opens(api: Api) -> None:
    subscription = await _held(api, "token", "worker", make.from_now(3600))
    await api.clear_subscription_token(subscription.id, "token")
    assert await _without_epoch(api, subscription.id) == subscription
    assert await _is_open(api, subscription)
    assert await api.set_subscription_token(subscription.id, "other", "another")


async def test_clear_with_another_token_is_refused_and_nothing_changed(api: Api) -> None:
    subscription = await _held(api, "token", "worker")
    before = await api.get_subscription(subscription.id)
    for token in ("other", "TOKEN", "token "):
        with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
            await api.clear_subscription_token(subscription.id, token)
    assert await api.get_subscription(subscription.id) == before


async def test_clear_of_an_open_one_is_refused(api: Api) -> None:
    subscription = await _held(api, "token", "worker")
    await api.clear_subscription_token(subscription.id, "token")
    for id_ in (subscription.id, (await _created(api)).id):
        with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
            await api.clear_subscription_token(id_, "token")


async def test_clear_of_an_absent_one_is_not_found(api: Api) -> None:
    with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
        await api.clear_subscription_token(make.new_id(), "token")
