"""LockService: one holder at a time for each resource, until release or expiry."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api, pages
from tests.support.clock import database_time
from tests.support.expect import eventually, fails, invalid
from wfe.persistence.v1.lock_pb2 import AcquireLockRequest, AcquireLockResponse, Lock

SHORT = Duration(nanos=100_000_000)
LONG = Duration(seconds=60)
NOT_OURS = f"999999999999999999.{'0' * 32}"


@pytest.fixture
def resource() -> str:
    """A resource that nobody else locks."""
    return make.new_id("resource")


async def acquired(api: Api, resource: str, **fields: Any) -> AcquireLockResponse:
    answer = await api.acquire_lock(resource, **({"ttl": LONG} | fields))
    assert answer.acquired
    assert not answer.HasField("holder")
    return answer


async def holder(api: Api, resource: str) -> Lock | None:
    """Who holds exactly this resource."""
    found = (await api.list_locks(resource_prefix=resource)).locks
    return next((lock for lock in found if lock.resource == resource), None)


# AcquireLock.


async def test_a_lock_that_nobody_holds_is_acquired(api: Api, resource: str) -> None:
    answer = await acquired(api, resource, owner="me")
    held = await holder(api, resource)
    assert held is not None
    assert (held.owner, held.epoch, held.expiry) == ("me", answer.epoch, answer.expiry)
    assert answer.token not in str(held)


@pytest.mark.parametrize("owner", ["me", "another", ""])
async def test_while_it_is_held_everybody_is_refused_and_told_by_whom(
    api: Api, resource: str, owner: str
) -> None:
    """Its holder too: it is not re-entrant."""
    await acquired(api, resource, owner="me")
    answer = await api.acquire_lock(resource, owner=owner)
    assert answer == AcquireLockResponse(holder=await holder(api, resource))
    assert answer.holder.owner == "me"


async def test_the_same_attempt_sent_again_is_answered_as_the_first_was(
    api: Api, resource: str
) -> None:
    attempt = {"owner": "me", "request_id": make.request_id()}
    first = await acquired(api, resource, **attempt)
    before = await holder(api, resource)
    assert await acquired(api, resource, **attempt) == first
    assert await acquired(api, resource, **attempt, ttl=Duration(seconds=5)) == first
    assert await acquired(api, resource, **attempt, wait=LONG) == first
    assert await holder(api, resource) == before


@pytest.mark.parametrize(
    "other",
    [
        {"owner": "me", "request_id": make.request_id()},
        {"owner": "me"},
        {"owner": "another", "request_id": "00000000-0000-4000-8000-000000000001"},
    ],
    ids=["another request", "no request id", "another owner"],
)
async def test_another_attempt_is_refused(api: Api, resource: str, other: dict[str, Any]) -> None:
    await acquired(api, resource, owner="me", request_id="00000000-0000-4000-8000-000000000001")
    assert not (await api.acquire_lock(resource, **other)).acquired


async def test_the_request_id_is_forgotten_with_the_lock(api: Api, resource: str) -> None:
    attempt = {"owner": "me", "request_id": make.request_id()}
    first = await acquired(api, resource, **attempt)
    assert await api.release_lock(first.token)
    second = await acquired(api, resource, **attempt)
    assert second.token != first.token
    assert second.epoch > first.epoch


async def test_resources_are_compared_byte_by_byte(api: Api, resource: str) -> None:
    texts = [f"{resource} {text}" for pair in make.ALIKE for text in make.alike(*pair)]
    answers = [await acquired(api, text) for text in dict.fromkeys(texts)]
    assert len({answer.token for answer in answers}) == len(answers)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, 30),
        ({"ttl": Duration(seconds=7, nanos=500_999_999)}, 7.5),
        ({"ttl": Duration(seconds=24 * 3600)}, 24 * 3600),
    ],
)
async def test_a_lock_runs_by_the_databases_clock(
    api: Api, resource: str, given: dict[str, Any], seconds: float
) -> None:
    """If no ttl is asked for, for 30 s."""
    before = await database_time(api, seconds)
    answer = await api.acquire_lock(resource, **given)
    after = await database_time(api, seconds)
    held = await holder(api, resource)
    assert held is not None
    in_ns = Timestamp.ToNanoseconds
    assert in_ns(before) <= in_ns(answer.expiry) + 999_999
    assert in_ns(answer.expiry) <= in_ns(after)
    assert abs(in_ns(answer.expiry) - in_ns(held.acquire_time) - seconds * 1e9) < 1e9


async def test_it_expires_without_anybodys_help(api: Api, resource: str) -> None:
    first = await acquired(api, resource, ttl=SHORT)

    async def is_free() -> bool:
        return await holder(api, resource) is None

    await eventually(is_free)
    second = await acquired(api, resource)
    assert second.token != first.token
    assert second.epoch > first.epoch


async def test_epochs_rise_with_every_claim_of_the_store(api: Api, resource: str) -> None:
    epochs = []
    for n in range(3):
        answer = await acquired(api, f"{resource} {n}")
        epochs.append(answer.epoch)
        subscription = await api.create_event_subscription(make.subscription())
        assert await api.set_subscription_token(subscription, "t")
        epochs.append((await api.get_subscription(subscription)).external_token_epoch)
        await api.release_lock(answer.token)
        epochs.append((await acquired(api, f"{resource} {n}")).epoch)
    assert epochs == sorted(set(epochs))


# Waiting.


async def test_without_wait_a_call_is_answered_at_once(api: Api, resource: str) -> None:
    await acquired(api, resource)
    async with asyncio.timeout(20):  # the lock lasts longer
        assert not (await api.acquire_lock(resource)).acquired


async def test_a_wait_ends_with_the_present_holder(api: Api, resource: str) -> None:
    await acquired(api, resource, owner="me")
    answer = await api.acquire_lock(resource, wait=SHORT)
    assert answer == AcquireLockResponse(holder=await holder(api, resource))


async def test_who_waits_gets_it_when_it_is_released(api: Api, resource: str) -> None:
    first = await acquired(api, resource)
    waiting = asyncio.ensure_future(api.acquire_lock(resource, owner="next", wait=LONG))
    assert not (await asyncio.wait([waiting], timeout=0.3))[0]
    assert await api.release_lock(first.token)
    assert (await waiting).acquired
    held = await holder(api, resource)
    assert held is not None
    assert held.owner == "next"


async def test_who_waits_gets_it_when_it_expires(api: Api, resource: str) -> None:
    first = await acquired(api, resource, ttl=SHORT)
    second = await acquired(api, resource, wait=LONG)
    assert second.epoch > first.epoch


async def test_who_waits_gets_it_when_it_is_broken(api: Api, resource: str) -> None:
    await acquired(api, resource)
    waiting = asyncio.ensure_future(api.acquire_lock(resource, wait=LONG))
    assert not (await asyncio.wait([waiting], timeout=0.1))[0]
    assert await api.break_lock(resource)
    assert (await waiting).acquired


async def test_those_who_wait_are_served_in_the_order_of_arrival(api: Api, resource: str) -> None:
    token = (await acquired(api, resource)).token
    waiting: list[asyncio.Future[AcquireLockResponse]] = []
    for n in range(5):
        waiting.append(
            asyncio.ensure_future(api.acquire_lock(resource, owner=f"{n}", ttl=LONG, wait=LONG))
        )
        # Each must have arrived before the next one sets out.
        await asyncio.sleep(0.05)
        await api.list_locks(resource_prefix=resource)
    for call in waiting:
        assert await api.release_lock(token)
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert done == {call}
        token = call.result().token
        waiting = waiting[1:]


async def test_a_wait_ends_before_the_deadline(api: Api, resource: str) -> None:
    await acquired(api, resource, owner="me")
    request = AcquireLockRequest(resource=resource, wait=LONG)
    answer = await api.locks.AcquireLock(request, timeout=2)
    assert answer.holder.owner == "me"


async def test_who_hangs_up_waits_no_longer(api: Api, resource: str) -> None:
    """Nor does anybody wait for the lock in vain who came later."""
    first = await acquired(api, resource)
    gone = api.locks.AcquireLock(AcquireLockRequest(resource=resource, owner="gone", wait=LONG))
    assert not (await asyncio.wait([asyncio.ensure_future(gone.code())], timeout=0.2))[0]
    waiting = asyncio.ensure_future(api.acquire_lock(resource, owner="next", wait=LONG))
    assert not (await asyncio.wait([waiting], timeout=0.2))[0]
    gone.cancel()
    assert await gone.code() == grpc.StatusCode.CANCELLED
    assert await api.release_lock(first.token)
    assert (await waiting).acquired
    held = await holder(api, resource)
    assert held is not None
    assert held.owner == "next"


# RenewLocks.


async def test_renewed_locks_last_ttl_from_now(api: Api, resource: str) -> None:
    tokens = [(await acquired(api, f"{resource} {n}")).token for n in range(3)]
    for seconds in (3600, 60):  # later, and sooner again
        before = await database_time(api, seconds)
        answer = await api.renew_locks(*tokens, ttl=Duration(seconds=seconds))
        after = await database_time(api, seconds)
        assert before.ToNanoseconds() <= answer.expiry.ToNanoseconds() <= after.ToNanoseconds()
        locks = (await api.list_locks(resource_prefix=resource)).locks
        assert [lock.expiry for lock in locks] == [answer.expiry] * 3


async def test_by_default_a_renewal_is_for_30_s(api: Api, resource: str) -> None:
    answer = await acquired(api, resource)
    before = await database_time(api, 30)
    renewed = await api.renew_locks(answer.token)
    assert renewed.expiry.ToNanoseconds() >= before.ToNanoseconds()
    assert renewed.expiry.ToNanoseconds() <= (await database_time(api, 30)).ToNanoseconds()


async def test_renewing_nothing_is_answered_with_nothing(api: Api) -> None:
    assert not (await api.renew_locks()).HasField("expiry")


async def test_a_renewed_lock_outlives_its_first_expiry(api: Api, resource: str) -> None:
    first = await acquired(api, resource, ttl=Duration(seconds=1))
    await api.renew_locks(first.token, ttl=LONG)
    answer = await api.acquire_lock(resource, wait=Duration(seconds=1, nanos=500_000_000))
    assert not answer.acquired
    assert answer.holder.epoch == first.epoch


async def _released(api: Api, resource: str) -> str:
    answer = await acquired(api, resource)
    assert await api.release_lock(answer.token)
    return answer.token


async def _broken(api: Api, resource: str) -> str:
    answer = await acquired(api, resource)
    assert await api.break_lock(resource)
    return answer.token


async def _expired(api: Api, resource: str) -> str:
    """Not acquired by anybody since."""
    answer = await acquired(api, resource, ttl=SHORT)

    async def is_free() -> bool:
        return await holder(api, resource) is None

    await eventually(is_free)
    return answer.token


async def _superseded(api: Api, resource: str) -> str:
    """Somebody else has the lock now."""
    answer = await acquired(api, resource, ttl=SHORT)
    await acquired(api, resource, wait=LONG)
    return answer.token


async def _unknown(api: Api, resource: str) -> str:
    return NOT_OURS


STALE = pytest.mark.parametrize(
    "stale", [_released, _broken, _expired, _superseded, _unknown], ids=lambda f: f.__name__[1:]
)


@STALE
async def test_a_stale_holder_has_lost_its_lease_and_nothing_is_renewed(
    api: Api, resource: str, stale: Any
) -> None:
    good = await acquired(api, f"{resource} good")
    token = await stale(api, resource)
    before = await api.list_locks(resource_prefix=resource)
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        await api.renew_locks(good.token, token, ttl=Duration(seconds=3600))
    assert failure.metadata == {"lease_tokens": token, "lost": "1", "field": "tokens"}
    assert await api.list_locks(resource_prefix=resource) == before


async def test_the_same_token_twice_is_refused(api: Api, resource: str) -> None:
    token = (await acquired(api, resource)).token
    with invalid("tokens[1]", reason="DUPLICATE"):
        await api.renew_locks(token, token)


@pytest.mark.parametrize("token", ["x", "1", "1.2", f"x.{'0' * 32}", f"1.{'0' * 31}g"])
async def test_what_is_no_token_cannot_be_renewed(api: Api, token: str) -> None:
    with invalid("tokens[0]", reason="FORMAT"):
        await api.renew_locks(token)


async def test_at_most_1000_locks_are_renewed_at_once(api: Api) -> None:
    with invalid("tokens", reason="NUMBER_RANGE"):
        await api.renew_locks(*(f"{n}.{'0' * 32}" for n in range(1, 1002)))


# ReleaseLock.


async def test_a_released_lock_is_free(api: Api, resource: str) -> None:
    first = await acquired(api, resource)
    assert await api.release_lock(first.token) is True
    assert await holder(api, resource) is None
    await acquired(api, resource)


@STALE
async def test_releasing_with_a_stale_token_releases_nobody_else(
    api: Api, resource: str, stale: Any
) -> None:
    token = await stale(api, resource)
    before = await api.list_locks(resource_prefix=resource)
    for _ in range(2):
        assert await api.release_lock(token) is False
    assert await api.list_locks(resource_prefix=resource) == before


@pytest.mark.parametrize("token", ["x", "1.1", "what nobody ever handed out", "1" * 512])
async def test_a_token_that_is_none_is_unknown(api: Api, token: str) -> None:
    assert await api.release_lock(token) is False


# BreakLock.


async def test_breaking_a_lock_needs_no_token(api: Api, resource: str) -> None:
    answer = await acquired(api, resource, owner="me")
    held = await holder(api, resource)
    assert await api.break_lock(resource) == held
    assert await holder(api, resource) is None
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await api.renew_locks(answer.token)


async def test_breaking_what_nobody_holds_changes_nothing(api: Api, resource: str) -> None:
    assert await api.break_lock(resource) is None
    await _expired(api, resource)
    assert await api.break_lock(resource) is None


async def test_with_an_epoch_the_next_holder_is_spared(api: Api, resource: str) -> None:
    first = await acquired(api, resource)
    await api.release_lock(first.token)
    second = await acquired(api, resource)
    assert await api.break_lock(resource, first.epoch) is None
    broken = await api.break_lock(resource, second.epoch)
    assert broken is not None
    assert broken.epoch == second.epoch


# ListLocks.


async def test_locks_are_listed_by_resource_in_pages(api: Api, resource: str) -> None:
    names = [f"{resource}{end}" for end in ("", "%", "A", "_", "a", "b", "é", "😀")]
    for n, name in enumerate(names[::-1]):
        await acquired(api, name, owner="odd" if n % 2 else "even")
    answers = await pages(api.list_locks, resource_prefix=resource, page_size=3)
    assert [len(answer.locks) for answer in answers] == [3, 3, 2]
    assert [lock.resource for answer in answers for lock in answer.locks] == names
    odd = await api.list_locks(resource_prefix=resource, owner="odd")
    assert [lock.resource for lock in odd.locks] == names[::2]
    for prefix in (f"{resource}%", f"{resource}_", f"{resource}é"):
        listed = (await api.list_locks(resource_prefix=prefix)).locks
        assert [lock.resource for lock in listed] == [prefix]


async def test_what_is_released_or_expired_is_not_listed(api: Api, resource: str) -> None:
    await _released(api, f"{resource} released")
    await _expired(api, f"{resource} expired")
    await acquired(api, f"{resource} held")
    listed = (await api.list_locks(resource_prefix=resource)).locks
    assert [lock.resource for lock in listed] == [f"{resource} held"]


# Many at once.


async def test_holders_never_overlap_and_everybody_gets_it(api: Api, resource: str) -> None:
    """By the database's clock, whoever asks how, and however it ends."""
    held: list[tuple[int, int, int]] = []

    async def contend(n: int) -> None:
        for turn in range(3):
            answer = await api.acquire_lock(
                resource, owner=f"{n}", ttl=LONG, wait=LONG, request_id=make.request_id()
            )
            assert answer.acquired
            found = await holder(api, resource)
            assert found is not None
            assert (found.owner, found.epoch) == (f"{n}", answer.epoch)
            begin = found.acquire_time.ToNanoseconds()
            if (n + turn) % 3:
                end = await database_time(api)
                assert await api.release_lock(answer.token)
            else:  # it expires by itself
                end = (await api.renew_locks(answer.token, ttl=Duration(nanos=50_000_000))).expiry
            held.append((begin, end.ToNanoseconds(), answer.epoch))

    await asyncio.gather(*map(contend, range(12)))
    assert len(held) == 36
    held.sort()
    for (_, end, epoch), (begin, _, next_epoch) in pairwise(held):
        assert end <= begin
        assert epoch < next_epoch


async def test_of_many_at_once_exactly_one_gets_it(api: Api, resource: str) -> None:
    for _ in range(3):
        answers = await asyncio.gather(*(api.acquire_lock(resource) for _ in range(20)))
        winners = [answer for answer in answers if answer.acquired]
        assert len(winners) == 1
        [winner] = winners
        for answer in answers:
            assert answer.acquired or answer.holder.epoch == winner.epoch
        assert await api.release_lock(winner.token)


async def test_the_same_attempt_many_times_at_once_is_one(api: Api, resource: str) -> None:
    fields = {"owner": "me", "request_id": make.request_id()}
    answers = await asyncio.gather(*(acquired(api, resource, **fields) for _ in range(10)))
    assert all(answer == answers[0] for answer in answers)
