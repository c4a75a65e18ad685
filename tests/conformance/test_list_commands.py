"""ListCommands: which commands there are, and who holds them, without claiming any."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import pages
from tests.support.commands import OwnCommands, commands, tokens
from tests.support.expect import eventually
from wfe.persistence.v1.command_pb2 import CommandName, ListedCommand, ScheduledCommand

WORKFLOW = CommandName.COMMAND_NAME_PROCESS_WORKFLOW
EVENT = CommandName.COMMAND_NAME_PROCESS_EVENT


async def listed(own: OwnCommands, **fields: Any) -> list[ListedCommand]:
    """The commands of all pages."""
    answers = await pages(own.api.list_commands, **fields)
    return [command for answer in answers for command in answer.commands]


def at(base: Timestamp, ms: int) -> int:
    return make.epoch_ms(base) + ms


async def test_commands_that_pass_the_filter_soonest_first(own: OwnCommands) -> None:
    base, far = make.long_ago(), make.LAST_TIME
    given: list[ScheduledCommand] = []
    for i, ms in enumerate(random.Random(5).sample(range(12), 12)):
        # Pairs are due at the same time, in the order in which they were scheduled.
        name = WORKFLOW if i % 3 else EVENT
        due = at(base, ms // 2) if i % 4 else at(far, ms // 2)
        given.append(await own.schedule(command_name=name, execute_time=due))
    given.sort(key=lambda c: c.execute_time)  # stable
    one = given[3]
    filters: list[tuple[dict[str, Any], Callable[[ScheduledCommand], bool]]] = [
        ({}, lambda c: True),
        ({"command_name": EVENT}, lambda c: c.command_name == EVENT),
        ({"command_name": one.command_name, "data": one.data}, lambda c: c == one),
        ({"command_name": WORKFLOW, "data": ""}, lambda c: False),
        ({"due_before": make.later(base, ms=3)}, lambda c: c.execute_time < at(base, 3)),
        (
            {"due_before": make.later(base, ms=3, ns=999_999)},
            lambda c: c.execute_time < at(base, 3),
        ),
        ({"due_before": base}, lambda c: False),
        (
            {"due_before": make.later(base, ms=5), "command_name": WORKFLOW, "leased": False},
            lambda c: c.execute_time < at(base, 5) and c.command_name == WORKFLOW,
        ),
        ({"leased": False}, lambda c: True),
        ({"leased": True}, lambda c: False),
        ({"worker_id": "worker"}, lambda c: False),
    ]
    ours = {c.data for c in given}
    for fields, passes in filters:
        for size in (1, 5, 0):
            found = await listed(own, page_size=size, **fields)
            assert [each.command for each in found if each.command.data in ours] == [
                c for c in given if passes(c)
            ], fields
            assert not any(each.HasField("lease") for each in found if each.command.data in ours)
    for command in given:  # so that they are cleaned up with the others
        command.execute_time = -(2**62)
        await own.api.schedule_command(command)


async def test_empty_data_is_data(own: OwnCommands) -> None:
    command = await own.schedule(data="", command_name=EVENT)
    await own.schedule(command_name=EVENT)
    assert [c.command for c in await listed(own, command_name=EVENT, data="")] == [command]


async def test_lease_is_shown_without_its_token(own: OwnCommands) -> None:
    await own.schedule()
    free = await own.schedule(1)
    worker = make.new_id("worker")
    [claim] = await own.claim(limit=1, worker_id=worker, lease_duration=Duration(seconds=60))
    query: dict[str, Any] = {"command_name": claim.command.command_name}
    [held] = await listed(own, **query, data=claim.command.data)
    assert held.command == claim.command
    assert held.lease.worker_id == worker
    assert held.lease.expiry == claim.lease_expiry
    assert held.lease.epoch == claim.epoch
    assert claim.lease_token.encode() not in held.SerializeToString()
    assert claim.lease_token.split(".")[2].encode() not in held.SerializeToString()
    [other] = await listed(own, **query, data=free.data)
    assert other == ListedCommand(command=free)
    assert await listed(own, worker_id=worker) == [held]
    assert await listed(own, worker_id=worker, leased=True) == [held]
    assert await listed(own, worker_id=worker, leased=False) == []
    assert await listed(own, worker_id=worker[:-1]) == []
    assert held in await listed(own, leased=True)
    assert held not in await listed(own, leased=False)
    assert other in await listed(own, leased=False)
    assert other not in await listed(own, leased=True)


async def test_lease_of_a_worker_without_a_name(own: OwnCommands) -> None:
    await own.schedule()
    [claim] = await own.claim()
    [held] = await listed(own, command_name=WORKFLOW, data=claim.command.data, leased=True)
    assert held.lease.epoch == claim.epoch
    assert not held.lease.worker_id


async def test_lease_ends_when_it_expires_is_released_or_completed(own: OwnCommands) -> None:
    command = await own.schedule()
    query: dict[str, Any] = {"command_name": command.command_name, "data": command.data}

    async def is_free() -> bool:
        free = [ListedCommand(command=command)]
        [held, is_open] = [await listed(own, leased=leased, **query) for leased in (True, False)]
        if held and is_open:  # the lease has expired between the two
            return False
        assert len(held) + len(is_open) == 1
        return is_open == free and await listed(own, **query) == free

    await own.claim(lease_duration=Duration(nanos=1_000_000), worker_id="worker")
    await eventually(is_free)
    claim = await own.reclaim()
    assert not await is_free()
    assert await listed(own, leased=False, **query) == []
    await own.api.release_commands(claim.lease_token)
    assert await is_free()
    [claim] = await own.claim()
    await own.api.complete_commands(claim.lease_token)
    assert await listed(own, **query) == []


async def test_listing_changes_nothing(own: OwnCommands) -> None:
    """Neither for the worker whose lease has expired nor for the next one."""
    slow = await own.schedule()
    free = await own.schedule(1)
    [claim] = await own.claim(limit=1, lease_duration=Duration(nanos=1_000_000))

    async def has_expired() -> bool:
        [found] = await listed(own, command_name=slow.command_name, data=slow.data)
        return not found.HasField("lease")

    await eventually(has_expired)
    await listed(own)
    # It is the slow worker's until another one claims it.
    await own.api.complete_commands(claim.lease_token)
    assert commands(await own.claim()) == [free]


async def test_pages_neither_shift_nor_repeat(own: OwnCommands) -> None:
    given = [await own.schedule(i // 3) for i in range(9)]
    seen: list[ScheduledCommand] = []
    query: dict[str, Any] = {"page_size": 2, "due_before": make.FIRST_TIME}
    page = await own.api.list_commands(**query)
    while True:
        seen += [c.command for c in page.commands if c.command in given]
        # What has been listed goes, and what is due before it comes.
        await own.schedule(-1)
        claims = await own.claim()
        await own.api.complete_commands(*tokens(c for c in claims if c.command in seen))
        if not (token := page.next_page_token):
            break
        page = await own.api.list_commands(page_token=token, **query)
    assert seen == given
