"""Scheduled commands."""

from datetime import datetime
from typing import Final

from wfe.persistence.v1 import command_pb2, queue_pb2
from wfe_persistence_client import model
from wfe_persistence_client.convert.scalars import enum_from_proto, time_from_proto
from wfe_persistence_client.hints import Fields
from wfe_persistence_client.misfit import build, check_text

_COMMAND: Final = Fields(model.ScheduledCommand)
_CLAIMED: Final = Fields(model.ClaimedCommand)


def command_to_proto(value: model.ScheduledCommand) -> command_pb2.ScheduledCommand:
    """A scheduled command as a message."""
    _COMMAND.check(value)
    return build(
        command_pb2.ScheduledCommand,
        command_name=command_pb2.CommandName.ValueType(value.command_name.value),
        data=value.data,
        execute_time=value.execute_time,
    )


def command_from_proto(message: command_pb2.ScheduledCommand) -> model.ScheduledCommand:
    """A scheduled command from a message."""
    return model.ScheduledCommand(
        command_name=enum_from_proto(model.CommandName, message.command_name),
        data=message.data,
        execute_time=message.execute_time,
    )


def claimed_command_from_proto(message: command_pb2.ClaimedCommand) -> model.ClaimedCommand:
    """A claimed command from a message."""
    return model.ClaimedCommand(
        command=command_from_proto(message.command),
        lease_token=message.lease_token,
        lease_expiry=time_from_proto(message.lease_expiry),
        epoch=message.epoch,
    )


def command_lease_from_proto(message: command_pb2.CommandLease) -> model.CommandLease:
    """A lease on a command from a message."""
    return model.CommandLease(
        worker_id=message.worker_id, expiry=time_from_proto(message.expiry), epoch=message.epoch
    )


def listed_command_from_proto(message: command_pb2.ListedCommand) -> model.ListedCommand:
    """A command of a list from a message."""
    lease = command_lease_from_proto(message.lease) if message.HasField("lease") else None
    return model.ListedCommand(command=command_from_proto(message.command), lease=lease)


def command_name_to_proto(value: model.CommandName | None) -> command_pb2.CommandName.ValueType:
    """The name of commands to list as in a message; None: any."""
    return command_pb2.CommandName.ValueType(0 if value is None else value.value)


def lease_token(claimed: model.ClaimedCommand) -> str:
    """The lease token of a claimed command."""
    _CLAIMED.check(claimed)
    check_text("lease_token", claimed.lease_token)
    return claimed.lease_token


def lease_expiry_from_proto(
    message: command_pb2.RenewCommandsResponse | queue_pb2.RenewItemsResponse,
) -> datetime | None:
    """When renewed leases expire."""
    return time_from_proto(message.lease_expiry) if message.HasField("lease_expiry") else None
