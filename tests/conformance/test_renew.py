"""Claims that live: RenewSubscriptionToken, RenewCommands, and the epochs that tell them apart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api
from tests.support.clock import database_time
from tests.support.commands import OwnCommands
from tests.support.expect import eventually, fails, failure_of
from tests.support.scene import never_due
from wfe.persistence.v1.subscription_pb2 import (
    EventSubscription,
    SetSubscriptionTokenRequest,
    SetSubscriptionTokenResponse,
)
from wfe.persistence.v1.workflow_pb2 import SubscriptionClaim

HOUR: Final = Duration(seconds=3600)
BRIEF: Final = Duration(nanos=1_000_000)
DEFAULT_SECONDS: Final = 30


async def created(api: Api, **fields: Any) -> EventSubscription:
    subscription = make.subscription(**fields)
    await api.create_event_subscription(subscription)
    return subscription


async def set_token(
    api: Api, id_: str, token: str = "token", worker: str = "worker", **fields: Any
) -> SetSubscriptionTokenResponse:
    """SetSubscriptionToken, with all of its answer."""
    request = SetSubscriptionTokenRequest(id=id_, token=token, worker_id=worker, **fields)
    return await api.subscriptions.SetSubscriptionToken(request)


async def claimed(api: Api, id_: str, token: str = "token", **fields: Any) -> int:
    """Take hold of an open subscription; the epoch."""
    answer = await set_token(api, id_, token, **fields)
    assert answer.acquired
    return answer.epoch


async def is_open(api: Api, subscription: EventSubscription) -> bool:
    answer = await api.get_subscriptions(
        event_name=subscription.event_name, event_key=subscription.event_key
    )
    return bool(answer.subscriptions)


async def claimed_and_expired(
    api: Api, subscription: EventSubscription, token: str = "token"
) -> int:
    """Take hold for a moment that has passed; the epoch."""
    epoch = await claimed(api, subscription.id, token, duration=BRIEF)
    await eventually(lambda: is_open(api, subscription))
    return epoch


def ns(time: Timestamp) -> int:
    return time.ToNanoseconds()


class Between:
    """The database's time before and after some calls: `async with`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._before = Timestamp()
        self._after = Timestamp()

    async def __aenter__(self) -> Between:
        self._before = await database_time(self._api)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._after = await database_time(self._api)

    def has(self, deadline: Timestamp, seconds: int) -> bool:
        """Whether a deadline is so many seconds from a moment in between, by that clock."""
        lease = seconds * 10**9
        return ns(self._before) + lease <= ns(deadline) <= ns(self._after) + lease


# SetSubscriptionToken with a duration.


async def test_duration_ends_the_hold_by_the_databases_clock(api: Api) -> None:
    subscription = await created(api)
    async with Between(api) as moment:
        answer = await set_token(api, subscription.id, duration=HOUR)
    assert moment.has(answer.expiry, 3600)
    stored = await api.get_subscription(subscription.id)
    assert stored.external_token_expiry == answer.expiry
    assert stored.external_token_epoch == answer.epoch


async def test_duration_that_has_passed_leaves_it_open(api: Api) -> None:
    subscription = await created(api)
    first = await claimed_and_expired(api, subscription)
    assert await claimed(api, subscription.id, "other", worker="another") > first


async def test_answer_tells_the_expiry_given_or_none(api: Api) -> None:
    subscription = await created(api)
    answer = await set_token(api, subscription.id, expiry=make.later(make.LAST_TIME, ns=999))
    assert answer.expiry == make.LAST_TIME
    answer = await set_token(api, subscription.id)
    assert answer.acquired
    assert not answer.HasField("expiry")


async def test_who_does_not_acquire_is_told_nothing_else(api: Api) -> None:
    subscription = await created(api)
    await claimed(api, subscription.id, duration=HOUR)
    other = await set_token(api, subscription.id, "other", duration=HOUR)
    assert other == SetSubscriptionTokenResponse(acquired=False)


async def test_duration_is_truncated_to_milliseconds(api: Api) -> None:
    subscription = await created(api)
    await claimed(api, subscription.id, duration=Duration(nanos=1_999_999))
    await eventually(lambda: is_open(api, subscription))


# Epochs of subscriptions.


async def test_each_claim_has_a_higher_epoch_than_all_before(api: Api) -> None:
    """Of whatever subscription: also after a clear, an expiry, and one that was made anew."""
    one, other = await created(api), await created(api)
    epochs = [0]
    epochs.append(await claimed(api, one.id))
    epochs.append(await claimed(api, other.id))
    await api.clear_subscription_token(one.id, "token")
    epochs.append(await claimed(api, one.id))
    await api.clear_subscription_token(one.id, "token")
    epochs.append(await claimed_and_expired(api, one))
    epochs.append(await claimed(api, one.id))
    await api.terminate_subscription(one.id)
    await api.create_event_subscription(one)
    assert (await api.get_subscription(one.id)).external_token_epoch == 0
    epochs.append(await claimed(api, one.id))
    await api.terminate_subscription(one.id, "token", epochs[-1])
    await api.create_event_subscription(one)
    epochs.append(await claimed(api, one.id))
    assert epochs == sorted(set(epochs))


async def test_same_holder_keeps_its_epoch(api: Api) -> None:
    subscription = await created(api)
    epoch = await claimed(api, subscription.id)
    for fields in ({}, {"duration": HOUR}, {"expiry": make.LAST_TIME}, {"epoch": epoch}):
        assert await claimed(api, subscription.id, **fields) == epoch
    renewed = await api.renew_subscription_token(subscription.id, "token")
    assert renewed.epoch == epoch
    assert (await api.get_subscription(subscription.id)).external_token_epoch == epoch


async def test_who_claims_again_after_its_expiry_has_a_new_epoch(api: Api) -> None:
    """Somebody else may have held and cleared it in between."""
    subscription = await created(api)
    epoch = await claimed_and_expired(api, subscription)
    assert await claimed(api, subscription.id) > epoch


async def test_hold_given_at_creation_gets_an_epoch_with_its_first_claim(api: Api) -> None:
    subscription = await created(
        api, external_token="token", external_worker_id="worker", external_token_epoch=7
    )
    assert (await api.get_subscription(subscription.id)).external_token_epoch == 0
    epoch = await claimed(api, subscription.id)
    assert epoch > 0
    assert await claimed(api, subscription.id) == epoch


async def test_claims_at_once_have_epochs_of_their_own(api: Api) -> None:
    subscriptions = [await created(api) for _ in range(10)]
    epochs = await asyncio.gather(*(claimed(api, each.id) for each in subscriptions))
    assert len(set(epochs)) == 10


async def test_of_claims_at_once_of_one_subscription_one_is_acquired(api: Api) -> None:
    subscription = await created(api)
    answers = await asyncio.gather(
        *(set_token(api, subscription.id, f"token {i}", duration=HOUR) for i in range(10))
    )
    [winner] = [answer for answer in answers if answer.acquired]
    stored = await api.get_subscription(subscription.id)
    assert stored.external_token_epoch == winner.epoch


async def test_set_with_an_epoch_prolongs_only_that_claim(api: Api) -> None:
    """It never takes hold of what is open."""
    subscription = await created(api)
    refused = SetSubscriptionTokenResponse(acquired=False)
    assert await set_token(api, subscription.id, epoch=1) == refused
    epoch = await claimed(api, subscription.id, duration=HOUR)
    for other in (epoch - 1, epoch + 1):
        assert not other or await set_token(api, subscription.id, epoch=other) == refused
    assert await set_token(api, subscription.id, "other", epoch=epoch) == refused
    assert await claimed(api, subscription.id, epoch=epoch) == epoch
    await api.clear_subscription_token(subscription.id, "token")
    assert await set_token(api, subscription.id, epoch=epoch) == refused
    assert await is_open(api, subscription)
    epoch = await claimed_and_expired(api, subscription)
    assert await set_token(api, subscription.id, epoch=epoch) == refused
    assert await is_open(api, subscription)


# A stale holder: its claim has ended, and another one with the very same token has begun.

Stale = Callable[[Api, str, int], Awaitable[object]]


async def _commit(api: Api, id_: str, epoch: int, *, of_patch: bool = False) -> object:
    """A commit that hangs on the claim."""
    instance = never_due()
    first = await api.create(instance)
    claim = SubscriptionClaim(subscription_id=id_, token="token", epoch=epoch)
    if not of_patch:
        return await api.commit_workflow(instance=instance, held_subscriptions=[claim])
    return await api.commit_workflow(
        patch=make.patch(instance.id, reference="x"),
        expected_revision=first,
        held_subscriptions=[claim],
    )


STALE: Final[dict[str, Stale]] = {
    "clear": lambda api, id_, epoch: api.clear_subscription_token(id_, "token", epoch),
    "renew": lambda api, id_, epoch: api.renew_subscription_token(id_, "token", epoch=epoch),
    "terminate": lambda api, id_, epoch: api.terminate_subscription(id_, "token", epoch),
    "commit of an instance": _commit,
    "commit of a patch": lambda api, id_, epoch: _commit(api, id_, epoch, of_patch=True),
}


@pytest.mark.parametrize("act", STALE.values(), ids=list(STALE))
async def test_stale_holder_is_refused_even_with_the_same_token(api: Api, act: Stale) -> None:
    subscription = await created(api)
    stale = await claimed_and_expired(api, subscription)
    epoch = await claimed(api, subscription.id, worker="another", duration=HOUR)
    before = await api.get_subscription(subscription.id)
    for other in (stale, epoch + 1):
        with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
            await act(api, subscription.id, other)
    assert await api.get_subscription(subscription.id) == before
    await act(api, subscription.id, epoch)


@pytest.mark.parametrize("name", [name for name in STALE if name != "clear"])
async def test_holder_whose_claim_has_expired_is_refused(api: Api, name: str) -> None:
    """Also if nobody else took the subscription yet."""
    subscription = await created(api)
    epoch = await claimed_and_expired(api, subscription)
    before = await api.get_subscription(subscription.id)
    with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
        await STALE[name](api, subscription.id, epoch)
    assert await api.get_subscription(subscription.id) == before
    assert await is_open(api, subscription)


@pytest.mark.parametrize("act", STALE.values(), ids=list(STALE))
async def test_claim_of_an_absent_subscription_is_not_found(api: Api, act: Stale) -> None:
    with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
        await act(api, make.new_id(), 1)


async def test_set_by_a_stale_holder_is_not_acquired(api: Api) -> None:
    subscription = await created(api)
    stale = await claimed_and_expired(api, subscription)
    epoch = await claimed(api, subscription.id, duration=HOUR)
    before = await api.get_subscription(subscription.id)
    assert not (await set_token(api, subscription.id, epoch=stale)).acquired
    assert await api.get_subscription(subscription.id) == before
    assert await claimed(api, subscription.id, epoch=epoch) == epoch


# TerminateSubscription with a token.


async def test_terminate_with_the_token_removes(api: Api) -> None:
    subscription = await created(api)
    await claimed(api, subscription.id)
    for token in ("other", "TOKEN"):
        with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
            await api.terminate_subscription(subscription.id, token)
    await api.terminate_subscription(subscription.id, "token")
    with fails("NOT_FOUND", "SUBSCRIPTION_NOT_FOUND"):
        await api.terminate_subscription(subscription.id, "token")


async def test_terminate_of_an_open_one_with_a_token_is_refused(api: Api) -> None:
    subscription = await created(api)
    with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
        await api.terminate_subscription(subscription.id, "token")
    await claimed(api, subscription.id)
    await api.clear_subscription_token(subscription.id, "token")
    with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
        await api.terminate_subscription(subscription.id, "token")
    await api.terminate_subscription(subscription.id)


# RenewSubscriptionToken.


@pytest.mark.parametrize("given", [{}, {"expiry": make.LAST_TIME}, {"duration": HOUR}])
@pytest.mark.parametrize("seconds", [0, 60, 24 * 3600])
async def test_renewed_hold_lasts_from_now_by_the_databases_clock(
    api: Api, given: dict[str, Any], seconds: int
) -> None:
    """However long it would have lasted: longer, shorter, without an end. 0: the default."""
    subscription = await created(api)
    epoch = await claimed(api, subscription.id, **given)
    duration = {"duration": Duration(seconds=seconds)} if seconds else {}
    async with Between(api) as moment:
        answer = await api.renew_subscription_token(subscription.id, "token", **duration)
    assert answer.epoch == epoch
    assert moment.has(answer.expiry, seconds or DEFAULT_SECONDS)
    stored = await api.get_subscription(subscription.id)
    assert stored.external_token_expiry == answer.expiry
    assert (stored.external_token, stored.external_worker_id) == ("token", "worker")


async def test_renewed_hold_outlives_its_first_end(api: Api) -> None:
    subscription = await created(api)
    first = await set_token(api, subscription.id, duration=Duration(nanos=300_000_000))
    # (In a slow moment this is too late, and the test shows less.)
    if await failure_of(api.renew_subscription_token(subscription.id, "token", duration=HOUR)):
        return

    async def first_end_has_passed() -> bool:
        return ns(await database_time(api)) > ns(first.expiry)

    await eventually(first_end_has_passed)
    assert not await is_open(api, subscription)


async def test_hold_can_be_renewed_to_end_at_once(api: Api) -> None:
    subscription = await created(api)
    await claimed(api, subscription.id)
    await api.renew_subscription_token(subscription.id, "token", duration=BRIEF)
    await eventually(lambda: is_open(api, subscription))


async def test_renewal_of_what_is_not_held_so_is_refused_and_changes_nothing(api: Api) -> None:
    subscription = await created(api)
    with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
        await api.renew_subscription_token(subscription.id, "token")
    assert await is_open(api, subscription)
    await claimed(api, subscription.id, duration=HOUR)
    before = await api.get_subscription(subscription.id)
    for token in ("other", "TOKEN", "token "):
        with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
            await api.renew_subscription_token(subscription.id, token)
    assert await api.get_subscription(subscription.id) == before
    await api.clear_subscription_token(subscription.id, "token")
    with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
        await api.renew_subscription_token(subscription.id, "token")
    assert await is_open(api, subscription)


async def test_of_a_renewal_and_a_takeover_at_once_only_one_succeeds(api: Api) -> None:
    """Around the moment at which the hold ends, whenever that is."""

    async def both_at_once(ms: int) -> tuple[bool, bool]:
        subscription = await created(api)
        epoch = await claimed(api, subscription.id, duration=Duration(nanos=ms * 1_000_000))
        while True:
            taken, lost = await asyncio.gather(
                set_token(api, subscription.id, worker="another", duration=HOUR),
                failure_of(
                    api.renew_subscription_token(
                        subscription.id, "token", epoch=epoch, duration=HOUR
                    )
                ),
            )
            assert lost is None or lost.reason == "TOKEN_MISMATCH"
            if taken.acquired or lost is None:
                stored = await api.get_subscription(subscription.id)
                assert stored.external_token_epoch == (taken.epoch if taken.acquired else epoch)
                return taken.acquired, lost is None

    outcomes = [await both_at_once(ms) for ms in range(1, 21)]
    assert (True, True) not in outcomes


async def test_expired_hold_can_not_be_renewed_without_an_epoch_either(api: Api) -> None:
    subscription = await created(api)
    await claimed_and_expired(api, subscription)
    with fails("FAILED_PRECONDITION", "TOKEN_MISMATCH"):
        await api.renew_subscription_token(subscription.id, "token")
    assert await is_open(api, subscription)


# RenewCommands.


@pytest.mark.parametrize("seconds", [0, 60, 24 * 3600])
async def test_renewed_leases_last_from_now_by_the_databases_clock(
    own: OwnCommands, seconds: int
) -> None:
    for _ in range(3):
        await own.schedule()
    tokens = [claim.lease_token for claim in await own.claim(lease_duration=HOUR)]
    duration = Duration(seconds=seconds) if seconds else None
    async with Between(own.api) as moment:
        answer = await own.api.renew_commands(*tokens, lease_duration=duration)
    assert moment.has(answer.lease_expiry, seconds or DEFAULT_SECONDS)
    assert not await own.claim()
    await own.api.complete_commands(*tokens)  # the tokens are still good


async def test_renewed_lease_ends_when_the_renewal_says(own: OwnCommands) -> None:
    command = await own.schedule()
    [claim] = await own.claim(lease_duration=HOUR)
    await own.api.renew_commands(claim.lease_token, lease_duration=BRIEF)
    again = await own.reclaim()
    assert again.command == command
    assert again.epoch > claim.epoch


async def test_renewed_lease_outlives_its_first_end(own: OwnCommands) -> None:
    await own.schedule()
    [claim] = await own.claim(lease_duration=Duration(nanos=300_000_000))
    # (In a slow moment this is too late, and the test shows less.)
    if await failure_of(own.api.renew_commands(claim.lease_token, lease_duration=HOUR)):
        return

    async def first_end_has_passed() -> bool:
        return ns(await database_time(own.api)) > ns(claim.lease_expiry)

    await eventually(first_end_has_passed)
    assert not await own.claim()


async def test_no_lease_is_renewed_if_one_is_lost(own: OwnCommands) -> None:
    """Completed, released, or expired, even if nobody else claimed the command yet."""
    for _ in range(3):
        await own.schedule()
    first, second, third = await own.claim(lease_duration=HOUR)
    await own.api.complete_commands(first.lease_token)
    await own.api.release_commands(second.lease_token)
    for lost in (first, second):
        with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
            await own.api.renew_commands(third.lease_token, lost.lease_token, lease_duration=BRIEF)
        assert failure.metadata["lease_tokens"] == lost.lease_token
        assert failure.metadata["lost"] == "1"
    await own.claim(lease_duration=HOUR)  # the second one
    # The third one has its lease of an hour still: the brief one was never made.
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await own.api.renew_commands(second.lease_token)
    await own.api.renew_commands(third.lease_token, lease_duration=HOUR)


async def test_expired_lease_can_not_be_renewed(own: OwnCommands) -> None:
    await own.schedule()
    [claim] = await own.claim(lease_duration=BRIEF)

    async def has_expired() -> bool:
        return ns(await database_time(own.api)) > ns(claim.lease_expiry)

    await eventually(has_expired)
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await own.api.renew_commands(claim.lease_token, lease_duration=HOUR)
    again = await own.reclaim()
    assert again.epoch > claim.epoch
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await own.api.renew_commands(claim.lease_token)


async def test_rescheduled_command_can_be_renewed_and_survives_its_completion(
    own: OwnCommands,
) -> None:
    command = await own.schedule()
    [claim] = await own.claim(lease_duration=HOUR)
    await own.api.schedule_command(command)
    await own.api.renew_commands(claim.lease_token, lease_duration=HOUR)
    await own.api.complete_commands(claim.lease_token)
    [again] = await own.claim()
    assert again.command == command


async def test_renewal_of_nothing_has_no_deadline(own: OwnCommands) -> None:
    assert not (await own.api.renew_commands()).HasField("lease_expiry")


async def test_each_claim_of_a_command_has_a_higher_epoch_than_all_before(
    own: OwnCommands,
) -> None:
    """Also after a release, a completion, and of what was scheduled anew; one claim's are
    distinct."""
    epochs = [0]
    command = await own.schedule()
    for end in (own.api.release_commands, own.api.complete_commands, own.api.release_commands):
        [claim] = await own.claim()
        epochs.append(claim.epoch)
        await end(claim.lease_token)
        await own.api.schedule_command(command)
    for _ in range(3):
        await own.schedule()
    together = [claim.epoch for claim in await own.claim()]
    assert len(set(together)) == 4
    epochs.append(min(together))
    assert epochs == sorted(set(epochs))
