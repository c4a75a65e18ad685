"""ScheduledCommandService."""

from __future__ import annotations

from wfe.persistence.v1.command_pb2 import (
    ClaimCommandsRequest,
    ClaimCommandsResponse,
    CompleteCommandsRequest,
    CompleteCommandsResponse,
    ReleaseCommandsRequest,
    ReleaseCommandsResponse,
    RenewCommandsRequest,
    RenewCommandsResponse,
    ScheduleCommandRequest,
    ScheduleCommandResponse,
)
from wfe_persistence.rpc.boundary import Call
from wfe_persistence.store import command
from wfe_persistence.store.rows import epoch_ms


class ScheduledCommandService:
    """Work for later."""

    async def ScheduleCommand(
        self, request: ScheduleCommandRequest, call: Call
    ) -> ScheduleCommandResponse:
        """Schedule a command."""
        check = call.check
        if check.present(request, "command"):
            check.command(request.command, "command")
        check.done()
        await command.schedule_command(call.store, request.command)
        return ScheduleCommandResponse()

    async def ClaimCommands(
        self, request: ClaimCommandsRequest, call: Call
    ) -> ClaimCommandsResponse:
        """Claim due commands."""
        check = call.check
        check.time("", "as_of", request.as_of)
        limit = check.page_size(request.limit, "limit")
        lease_ms = check.lease_ms(
            "lease_duration", request.lease_duration, given=request.HasField("lease_duration")
        )
        check.key("", "worker_id", request.worker_id)
        check.done()
        claimed = await command.claim_commands(
            call.store,
            epoch_ms(request.as_of) if request.HasField("as_of") else None,
            limit,
            lease_ms,
            request.worker_id,
        )
        return ClaimCommandsResponse(commands=claimed)

    async def CompleteCommands(
        self, request: CompleteCommandsRequest, call: Call
    ) -> CompleteCommandsResponse:
        """Remove handled commands."""
        check = call.check
        check.lease_tokens("lease_tokens", request.lease_tokens)
        check.done()
        await command.complete_commands(call.store, request.lease_tokens)
        return CompleteCommandsResponse()

    async def ReleaseCommands(
        self, request: ReleaseCommandsRequest, call: Call
    ) -> ReleaseCommandsResponse:
        """Give claimed commands back."""
        check = call.check
        check.lease_tokens("lease_tokens", request.lease_tokens)
        check.done()
        await command.release_commands(call.store, request.lease_tokens)
        return ReleaseCommandsResponse()

    async def RenewCommands(
        self, request: RenewCommandsRequest, call: Call
    ) -> RenewCommandsResponse:
        """Hold claimed commands for longer."""
        check = call.check
        check.lease_tokens("lease_tokens", request.lease_tokens)
        lease_ms = check.lease_ms(
            "lease_duration", request.lease_duration, given=request.HasField("lease_duration")
        )
        check.done()
        answer = RenewCommandsResponse()
        await command.renew_commands(
            call.store, request.lease_tokens, lease_ms, answer.lease_expiry
        )
        return answer
