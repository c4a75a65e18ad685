"""BreakCommandLease: an operator ends the lease of a worker that is gone, or must be stopped."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api, for_each
from tests.support.commands import OwnCommands, commands
from tests.support.expect import eventually, fails
from wfe.persistence.v1.command_pb2 import CommandLease, CommandName, ScheduledCommand
from wfe.persistence.v1.workflow_pb2 import WorkflowPatch

HOUR = Duration(seconds=3600)


async def lease_of(own: OwnCommands, command: ScheduledCommand) -> CommandLease | None:
    """The lease on a command, as people see it."""
    [listed] = (
        await own.api.list_commands(command_name=command.command_name, data=command.data)
    ).commands
    return listed.lease if listed.HasField("lease") else None


async def test_the_command_is_due_again_and_its_worker_has_lost_it(own: OwnCommands) -> None:
    command = await own.schedule()
    [claim] = await own.claim(lease_duration=HOUR, worker_id="gone")
    lease = await lease_of(own, command)
    assert lease is not None
    assert await own.api.break_command_lease(command) == lease
    assert (lease.worker_id, lease.epoch) == ("gone", claim.epoch)
    assert await lease_of(own, command) is None
    for use in (own.api.complete_commands, own.api.release_commands, own.api.renew_commands):
        with fails("FAILED_PRECONDITION", "LEASE_LOST"):
            await use(claim.lease_token)
    [again] = await own.claim()
    assert again.command == command
    assert again.epoch > claim.epoch


async def test_a_worker_whose_lease_was_broken_can_commit_nothing(
    api: Api, own: OwnCommands
) -> None:
    instance = make.instance()
    revision = await api.create(instance)
    command = await own.schedule(data=instance.id)
    [claim] = await own.claim(lease_duration=HOUR)
    await api.break_command_lease(command, epoch=claim.epoch)
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await api.commit_workflow(
            patch=WorkflowPatch(id=instance.id),
            expected_revision=revision,
            held_lease_tokens=[claim.lease_token],
        )


async def test_what_nobody_holds_is_left_alone(own: OwnCommands) -> None:
    command = await own.schedule()
    assert await own.api.break_command_lease(command) is None
    assert await own.api.break_command_lease(own.new()) is None, "there is no such command"
    assert commands(await own.claim()) == [command]


async def test_only_the_lease_that_was_meant_is_broken(own: OwnCommands) -> None:
    command = await own.schedule()
    other = await own.schedule(1)
    namesake = await own.schedule(
        2, data=command.data, command_name=CommandName.COMMAND_NAME_PROCESS_EVENT
    )
    first, *others = await own.claim(lease_duration=HOUR)
    await own.api.release_commands(first.lease_token)
    [second] = await own.claim(lease_duration=HOUR)
    assert await own.api.break_command_lease(command, epoch=first.epoch) is None
    assert await own.api.break_command_lease(command, epoch=2**63 - 1) is None
    assert await own.renew(second.lease_token)
    broken = await own.api.break_command_lease(command, epoch=second.epoch)
    assert broken is not None
    assert broken.epoch == second.epoch
    assert commands(others) == [other, namesake]
    for claim in others:
        assert await own.renew(claim.lease_token)


async def test_one_that_has_expired_is_broken_too(own: OwnCommands) -> None:
    """Until another worker claims the command, its worker could still complete it."""
    command = await own.schedule()
    [claim] = await own.claim(lease_duration=Duration(nanos=1_000_000))

    async def has_expired() -> bool:
        return await lease_of(own, command) is None

    await eventually(has_expired)
    broken = await own.api.break_command_lease(command)
    assert broken is not None
    assert broken.epoch == claim.epoch
    with fails("FAILED_PRECONDITION", "LEASE_LOST"):
        await own.api.complete_commands(claim.lease_token)
    assert commands(await own.claim()) == [command]


async def test_a_command_scheduled_again_meanwhile_keeps_its_new_time(own: OwnCommands) -> None:
    first = await own.schedule()
    await own.claim(lease_duration=HOUR)
    later = await own.schedule(data=first.data, execute_time=make.epoch_ms(make.time()))
    assert await own.api.break_command_lease(first) is not None
    assert await own.claim() == []
    assert await lease_of(own, later) is None
    await own.schedule(data=first.data)


async def test_of_many_at_once_one_ends_it(api: Api, own: OwnCommands) -> None:
    command = await own.schedule()
    [claim] = await own.claim(lease_duration=HOUR)
    broken = await for_each(lambda _: api.break_command_lease(command, epoch=claim.epoch), range(8))
    assert [each.epoch for each in broken if each is not None] == [claim.epoch]
