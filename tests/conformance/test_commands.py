"""ScheduledCommandService: what is due is claimed, handled and completed."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api, for_each
from tests.support.clock import database_time
from tests.support.commands import OwnCommands, commands, tokens
from tests.support.expect import eventually, fails
from wfe.persistence.v1.command_pb2 import ClaimedCommand, CommandName

SHORT = Duration(nanos=100_000_000)


# ScheduleCommand.


@pytest.mark.parametrize("name", [n for n in CommandName.values() if n], ids=CommandName.Name)
async def test_scheduled_command_is_handed_out_as_it_was_scheduled(
    own: OwnCommands, name: CommandName.ValueType
) -> None:
    command = await own.schedule(command_name=name)
    assert commands(await own.claim()) == [command]


async def test_scheduling_the_same_again_changes_nothing(own: OwnCommands) -> None:
    command = await own.schedule()
    await own.api.schedule_command(command)
    assert commands(await own.claim()) == [command]


@pytest.mark.parametrize("ms", [-1000, 1000])
async def test_scheduling_again_replaces_the_execute_time(own: OwnCommands, ms: int) -> None:
    first = await own.schedule()
    again = await own.schedule(ms, data=first.data)
    assert commands(await own.claim()) == [again]


async def test_scheduling_again_for_later_makes_it_due_later(own: OwnCommands) -> None:
    at = make.long_ago()
    first = await own.schedule()
    again = await own.schedule(data=first.data, execute_time=make.epoch_ms(at))
    assert await own.claim(as_of=make.later(at, ms=-1)) == []
    assert commands(await own.claim(as_of=at)) == [again]


async def test_same_data_under_another_name_is_another_command(own: OwnCommands) -> None:
    first = await own.schedule(command_name=CommandName.COMMAND_NAME_PROCESS_WORKFLOW)
    second = await own.schedule(
        1, data=first.data, command_name=CommandName.COMMAND_NAME_PROCESS_EVENT
    )
    assert commands(await own.claim()) == [first, second]


async def test_data_is_compared_byte_by_byte(own: OwnCommands) -> None:
    data = [text for pair in make.ALIKE for text in make.alike(*pair)]
    made = [await own.schedule(at, data=text) for at, text in enumerate(data)]
    assert commands(await own.claim()) == made


# ClaimCommands.


async def test_what_is_due_later_is_not_claimed(own: OwnCommands) -> None:
    at = make.long_ago()
    made = [await own.schedule(execute_time=make.epoch_ms(at) + ms) for ms in (-1, 0, 1)]
    assert commands(await own.claim(as_of=at)) == made[:2]


async def test_as_of_is_truncated_to_milliseconds(own: OwnCommands) -> None:
    at = make.long_ago()
    command = await own.schedule(execute_time=make.epoch_ms(at))
    await own.schedule(execute_time=make.epoch_ms(at) + 1)
    assert await own.claim(as_of=make.later(at, ns=-1)) == []
    assert commands(await own.claim(as_of=make.later(at, ns=999_999))) == [command]


async def test_without_as_of_the_databases_clock_counts(api: Api, own: OwnCommands) -> None:
    now = make.epoch_ms(await database_time(api))
    past = await own.schedule(execute_time=now - 1000)
    await own.schedule(execute_time=now + 3_600_000)
    everything: list[ClaimedCommand] = []
    while claims := await own.api.claim_commands(limit=1000):
        everything += claims
    for start in range(0, len(everything), 1000):
        await own.api.release_commands(*tokens(everything[start : start + 1000]))
    assert [c for c in commands(everything) if c.execute_time >= past.execute_time] == [past]


@pytest.mark.parametrize("name", [n for n in CommandName.values() if n], ids=CommandName.Name)
async def test_claim_by_name_leaves_the_others(
    own: OwnCommands, name: CommandName.ValueType
) -> None:
    made = [
        await own.schedule(at, command_name=n)
        for at, n in enumerate(2 * [n for n in CommandName.values() if n])
    ]
    wanted = [command for command in made if command.command_name == name]
    assert commands(await own.claim(command_name=name, limit=1)) == wanted[:1]
    assert commands(await own.claim(command_name=name)) == wanted[1:]
    assert await own.claim(command_name=name) == []
    assert commands(await own.claim()) == [c for c in made if c.command_name != name]


async def test_soonest_come_first(own: OwnCommands) -> None:
    made = [await own.schedule(at) for at in (5, -7, 3, 0, 4, -100)]
    assert commands(await own.claim()) == sorted(made, key=lambda c: c.execute_time)


async def test_limit_takes_the_soonest(own: OwnCommands) -> None:
    made = [await own.schedule(at) for at in (3, 1, 4, 0, 2)]
    by_time = sorted(made, key=lambda c: c.execute_time)
    for at in (0, 2, 4):
        assert commands(await own.claim(limit=2)) == by_time[at : at + 2]
    assert await own.claim(limit=2) == []


async def test_default_and_maximum_limit(own: OwnCommands) -> None:
    await for_each(own.schedule, range(1001))
    for limit, length in ((0, 100), (100, 100), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)):
        claims = await own.api.claim_commands(as_of=make.FIRST_TIME, limit=limit)
        assert len(claims) == length
        await own.api.release_commands(*tokens(claims))


async def test_claimed_command_is_not_claimed_again(own: OwnCommands) -> None:
    await own.schedule()
    assert len(await own.claim()) == 1
    assert await own.claim() == []
    assert await own.claim(worker_id="another") == []


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, 30),
        ({"lease_duration": Duration(seconds=3600)}, 3600),
        ({"lease_duration": Duration(seconds=24 * 3600)}, 24 * 3600),
        ({"lease_duration": Duration(seconds=7, nanos=500_000_000)}, 7.5),
    ],
)
async def test_lease_runs_by_the_databases_clock(
    api: Api, own: OwnCommands, given: dict[str, Any], seconds: float
) -> None:
    """If none is asked for, for 30 s."""
    await own.schedule()
    before = await database_time(api, seconds)
    [claim] = await own.claim(**given)
    after = await database_time(api, seconds)
    in_ns = Timestamp.ToNanoseconds
    assert in_ns(before) <= in_ns(claim.lease_expiry) <= in_ns(after)


async def test_expired_lease_makes_the_command_due_again(own: OwnCommands) -> None:
    command = await own.schedule()
    [first] = await own.claim(lease_duration=SHORT)
    second = await own.reclaim()
    assert second.command == command
    assert second.lease_token != first.lease_token
    assert await own.claim() == []


# CompleteCommands, ReleaseCommands.


async def test_completed_command_is_gone(own: OwnCommands) -> None:
    await own.schedule()
    await own.api.complete_commands(*tokens(await own.claim()))
    assert await own.claim() == []


async def test_completion_removes_nothing_but_what_was_claimed(own: OwnCommands) -> None:
    made = [await own.schedule(at) for at in range(4)]
    claims = await own.claim(limit=3)
    await own.api.complete_commands(claims[0].lease_token, claims[2].lease_token)
    assert commands(await own.claim()) == [made[3]]
    await own.api.release_commands(claims[1].lease_token)
    assert commands(await own.claim()) == [made[1]]


async def test_completed_command_can_be_scheduled_again(own: OwnCommands) -> None:
    command = await own.schedule()
    await own.api.complete_commands(*tokens(await own.claim()))
    await own.api.schedule_command(command)
    assert commands(await own.claim()) == [command]


async def test_released_command_is_due_at_once(own: OwnCommands) -> None:
    made = [await own.schedule(at) for at in range(3)]
    claims = await own.claim()
    await own.api.release_commands(*tokens(claims[1:]))
    assert commands(await own.claim()) == made[1:]


@pytest.mark.parametrize("first", ["complete", "release"])
@pytest.mark.parametrize("then", ["complete", "release"])
async def test_lease_that_has_ended_is_lost(own: OwnCommands, first: str, then: str) -> None:
    await own.schedule()
    [claim] = await own.claim()
    call = {"complete": own.api.complete_commands, "release": own.api.release_commands}
    await call[first](claim.lease_token)
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        await call[then](claim.lease_token)
    assert failure.metadata["lease_tokens"] == claim.lease_token
    assert len(await own.claim()) == (1 if first == "release" else 0)


@pytest.mark.parametrize("then", ["complete", "release"])
async def test_lease_is_lost_to_the_next_claimer_after_its_expiry(
    own: OwnCommands, then: str
) -> None:
    await own.schedule()
    [stale] = await own.claim(lease_duration=SHORT)
    current = await own.reclaim()
    call = own.api.complete_commands if then == "complete" else own.api.release_commands
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        await call(stale.lease_token)
    assert failure.metadata["lease_tokens"] == stale.lease_token
    assert await own.claim() == []
    await own.api.complete_commands(current.lease_token)


@pytest.mark.parametrize("then", ["complete", "release"])
async def test_expired_lease_is_not_lost_if_nobody_claimed_since(
    api: Api, own: OwnCommands, then: str
) -> None:
    await own.schedule()
    [claim] = await own.claim(lease_duration=SHORT)

    async def expired() -> bool:
        now = await database_time(api)
        return now.ToNanoseconds() > claim.lease_expiry.ToNanoseconds()

    await eventually(expired)
    call = own.api.complete_commands if then == "complete" else own.api.release_commands
    await call(claim.lease_token)
    assert len(await own.claim()) == (1 if then == "release" else 0)


@pytest.mark.parametrize("then", ["complete", "release"])
@pytest.mark.parametrize("lost", [0, 1, 2, 3])
async def test_one_lost_lease_fails_the_batch_and_nothing_is_changed(
    own: OwnCommands, then: str, lost: int
) -> None:
    for at in range(4):
        await own.schedule(at)
    claims = await own.claim()
    await own.api.complete_commands(claims[lost].lease_token)
    call = own.api.complete_commands if then == "complete" else own.api.release_commands
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        await call(*tokens(claims))
    assert failure.metadata["lease_tokens"] == claims[lost].lease_token
    del claims[lost]
    assert await own.claim() == []  # none was released
    await own.api.release_commands(*tokens(claims))  # none was removed
    assert commands(await own.claim()) == commands(claims)


async def test_all_lost_leases_are_told(own: OwnCommands) -> None:
    for at in range(4):
        await own.schedule(at)
    claims = await own.claim()
    lost = tokens(claims[1:3])
    await own.api.complete_commands(*lost)
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        await own.api.complete_commands(*tokens(claims))
    assert failure.metadata["lease_tokens"].split(",") == lost


@pytest.mark.parametrize("then", ["complete", "release"])
@pytest.mark.parametrize("stale_first", [True, False])
async def test_stale_lease_beside_the_current_one_of_the_same_command_is_lost(
    own: OwnCommands, then: str, stale_first: bool
) -> None:
    """One worker that claimed the same command twice must not hear that both are completed."""
    command = await own.schedule()
    [stale] = await own.claim(lease_duration=SHORT)
    current = await own.reclaim()
    call = own.api.complete_commands if then == "complete" else own.api.release_commands
    both = [stale.lease_token, current.lease_token]
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        await call(*(both if stale_first else both[::-1]))
    assert failure.metadata["lease_tokens"] == stale.lease_token
    await own.api.release_commands(current.lease_token)
    assert commands(await own.claim()) == [command]


# Scheduled again while claimed.


@pytest.mark.parametrize("ms", [-1000, 0, 1000])
async def test_rescheduled_while_claimed_stays_claimed_and_survives_its_completion(
    own: OwnCommands, ms: int
) -> None:
    """Also if it is scheduled for the same time again."""
    first = await own.schedule()
    [claim] = await own.claim()
    again = await own.schedule(ms, data=first.data)
    assert await own.claim() == []
    await own.api.complete_commands(claim.lease_token)
    claims = await own.claim()
    assert commands(claims) == [again]
    await own.api.complete_commands(*tokens(claims))
    assert await own.claim() == []


async def test_rescheduled_for_later_while_claimed_is_due_later(own: OwnCommands) -> None:
    at = make.long_ago()
    first = await own.schedule()
    [claim] = await own.claim()
    again = await own.schedule(data=first.data, execute_time=make.epoch_ms(at))
    await own.api.complete_commands(claim.lease_token)
    assert await own.claim(as_of=make.later(at, ms=-1)) == []
    assert commands(await own.claim(as_of=at)) == [again]


async def test_rescheduled_while_claimed_is_due_at_once_when_released(own: OwnCommands) -> None:
    first = await own.schedule()
    [claim] = await own.claim()
    again = await own.schedule(5, data=first.data)
    await own.api.release_commands(claim.lease_token)
    assert commands(await own.claim()) == [again]


async def test_rescheduled_while_claimed_is_due_when_the_lease_expires(own: OwnCommands) -> None:
    first = await own.schedule()
    [stale] = await own.claim(lease_duration=SHORT)
    again = await own.schedule(5, data=first.data)
    current = await own.reclaim()
    assert current.command == again
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await own.api.complete_commands(stale.lease_token)
    await own.api.complete_commands(current.lease_token)
    assert await own.claim() == []


async def test_completion_of_a_batch_keeps_only_what_was_rescheduled(own: OwnCommands) -> None:
    made = [await own.schedule(at) for at in range(4)]
    claims = await own.claim()
    again = [await own.schedule(n, data=made[n].data) for n in (1, 3)]
    await own.api.complete_commands(*tokens(claims))
    assert commands(await own.claim()) == again
