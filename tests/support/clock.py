"""The clock that counts: the database's."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api

_HOUR = 3600


async def database_time(api: Api, seconds: float = 0.0) -> Timestamp:
    """The database's time, plus so many seconds.

    The wire shows that clock in one place only, the expiry of leases, so a command is claimed and
    completed for it. (A target without commands must run on this machine's clock.)
    """
    if not (await api.get_store_info()).capabilities.scheduled_commands:
        return make.from_now(seconds)
    command = make.command(execute_time=-(2**63))
    await api.schedule_command(command)
    while True:  # others may do the same at this moment
        for claim in await api.claim_commands(
            as_of=make.FIRST_TIME, limit=1, lease_duration=Duration(seconds=_HOUR)
        ):
            if claim.command == command:
                await api.complete_commands(claim.lease_token)
                return make.later(claim.lease_expiry, us=round((seconds - _HOUR) * 1e6))
            await api.release_commands(claim.lease_token)
