"""ClaimCommands with `wait`: a call that finds nothing waits for what becomes due."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from tests.support.commands import OwnCommands, commands, tokens
from wfe.persistence.v1.command_pb2 import (
    ClaimCommandsRequest,
    ClaimedCommand,
    CommandName,
    ScheduledCommand,
)
from wfe.persistence.v1.workflow_pb2 import CommitWorkflowRequest

LONG = Duration(seconds=60)


def soon(ms: int = 500) -> int:
    return int(time.time() * 1000) + ms


async def claimed(own: OwnCommands, wanted: str, **fields: Any) -> ClaimedCommand:
    """The command with this data, as soon as it can be claimed; others are claimed before."""
    strange: list[str] = []
    try:
        while True:
            for claim in await own.api.claim_commands(**({"wait": LONG, "limit": 1} | fields)):
                if claim.command.data == wanted:
                    own.hold([claim])
                    return claim
                strange.append(claim.lease_token)
    finally:
        for token in strange:
            await own.api.release_commands(token)


def waiting(own: OwnCommands, command: ScheduledCommand, **fields: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(claimed(own, command.data, **fields))


async def settled(*tasks: asyncio.Task[Any]) -> None:
    """Until the calls are likely to have looked and to wait."""
    for _ in range(20):
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in tasks)


async def test_due_command_is_not_waited_for(own: OwnCommands) -> None:
    command = await own.schedule()
    assert (await claimed(own, command.data)).command == command


async def test_wait_ends_with_nothing(own: OwnCommands) -> None:
    while claims := await own.api.claim_commands(wait=Duration(nanos=50_000_000)):
        pass  # what others have left is under leases now
    assert claims == []


async def test_scheduled_command_ends_a_wait(own: OwnCommands) -> None:
    command = own.new()
    task = waiting(own, command)
    await settled(task)
    await own.api.schedule_command(command)
    assert (await task).command == command


async def test_only_commands_of_the_name_end_a_wait(own: OwnCommands) -> None:
    event = CommandName.COMMAND_NAME_PROCESS_EVENT
    other, wanted = own.new(), own.new(command_name=event)
    task = waiting(own, wanted, command_name=event)
    await settled(task)
    await own.api.schedule_command(other)
    await settled(task)
    await own.api.schedule_command(wanted)
    assert (await task).command == wanted


async def test_command_ends_a_wait_at_its_time(own: OwnCommands) -> None:
    before = await own.schedule(execute_time=soon())
    first = waiting(own, before)
    assert (await first).command == before
    command = own.new(execute_time=soon())
    task = waiting(own, command)
    await settled(task)
    await own.api.schedule_command(command)
    assert (await task).command.execute_time == command.execute_time


async def test_expired_lease_ends_a_wait(own: OwnCommands) -> None:
    command = await own.schedule()
    await own.claim(lease_duration=Duration(nanos=500_000_000))
    assert (await waiting(own, command)).command == command


async def test_released_command_ends_a_wait(own: OwnCommands) -> None:
    command = await own.schedule()
    held = await own.claim(lease_duration=Duration(seconds=3600))
    task = waiting(own, command)
    await settled(task)
    await own.api.release_commands(*tokens(held))
    assert (await task).command == command


async def test_broken_lease_ends_a_wait(own: OwnCommands) -> None:
    command = await own.schedule()
    await own.claim(lease_duration=Duration(seconds=3600))
    task = waiting(own, command)
    await settled(task)
    assert await own.api.break_command_lease(command) is not None
    assert (await task).command == command


async def test_command_that_survives_its_completion_ends_a_wait(own: OwnCommands) -> None:
    command = await own.schedule()
    held = await own.claim(lease_duration=Duration(seconds=3600))
    await own.api.schedule_command(command)
    task = waiting(own, command)
    await settled(task)
    await own.api.complete_commands(*tokens(held))
    assert (await task).command == command


async def test_command_that_a_commit_schedules_ends_a_wait(api: Api, own: OwnCommands) -> None:
    instance = make.instance()
    await api.create(instance)
    command = own.new()
    task = waiting(own, command)
    await settled(task)
    await api.workflows.CommitWorkflow(
        CommitWorkflowRequest(instance=instance, schedule_commands=[command])
    )
    assert (await task).command == command


async def test_each_command_ends_one_wait(own: OwnCommands) -> None:
    scheduled = [own.new() for _ in range(10)]
    tasks = [asyncio.ensure_future(own.api.claim_commands(wait=LONG, limit=1)) for _ in scheduled]
    await settled(*tasks)
    for command in scheduled:
        await own.api.schedule_command(command)
    answers = await asyncio.gather(*tasks)
    own.hold(claim for claims in answers for claim in claims)
    assert sorted(c.data for claims in answers for c in commands(claims)) == sorted(
        command.data for command in scheduled
    )


async def test_wait_ends_before_the_deadline(own: OwnCommands) -> None:
    await test_wait_ends_with_nothing(own)
    answer = await own.api.commands.ClaimCommands(ClaimCommandsRequest(wait=LONG), timeout=2)
    assert list(answer.commands) == []
