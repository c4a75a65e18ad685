"""ScheduledCommandService."""

from __future__ import annotations

import logging
from functools import partial

from wfe.persistence.v1 import command_pb2 as pb
from wfe_persistence.rpc import paging
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import R, read_back
from wfe_persistence.store import command
from wfe_persistence.store.records import COMMAND_NAME
from wfe_persistence.store.rows import epoch_ms

log = logging.getLogger(__name__)


class ScheduledCommandService:
    """Scheduled commands and their leases."""

    async def ScheduleCommand(
        self, request: pb.ScheduleCommandRequest, call: Call
    ) -> pb.ScheduleCommandResponse:
        """Schedule a command."""
        check = call.check
        check.required(request, "command", check.command)
        check.done()
        check.fits(read_back.commands([request.command]))
        await command.schedule_command(call.store, request.command)
        command.stir_commands(call.store, call.env.waiters, request.command.command_name)
        return pb.ScheduleCommandResponse()

    async def ClaimCommands(
        self, request: pb.ClaimCommandsRequest, call: Call
    ) -> pb.ClaimCommandsResponse:
        """Claim due commands."""
        check = call.check
        check.time("", "as_of", request.as_of)
        limit = check.page_size(request.limit, "limit")
        lease_ms = check.lease_ms(request, "lease_duration")
        check.key("", "worker_id", request.worker_id)
        if request.command_name:
            check.enum("", "command_name", request.command_name, COMMAND_NAME)
        wait = check.wait_seconds(request)
        if request.HasField("wait") and request.HasField("as_of"):
            check.add(
                "",
                "wait",
                R.FIELD_VIOLATION_REASON_DUPLICATE,
                "must not be set together with as_of",
            )
        check.done()
        claim = partial(
            command.claim_commands,
            call.store,
            epoch_ms(request.as_of) if request.HasField("as_of") else None,
            limit,
            lease_ms,
            request.worker_id,
            call.env.max_message_bytes,
            request.command_name,
        )
        with call.waiting(wait) as until:
            lines = command.command_lines(call.store, request.command_name)
            claiming = call.env.waiters.take(call.store, lines, claim, until)
            del request, lines  # ten thousand may wait here
            claimed = await claiming
        return pb.ClaimCommandsResponse(commands=claimed)

    async def CompleteCommands(
        self, request: pb.CompleteCommandsRequest, call: Call
    ) -> pb.CompleteCommandsResponse:
        """Delete commands that were handled."""
        check = call.check
        check.lease_tokens("lease_tokens", request.lease_tokens)
        check.done()
        await command.complete_commands(call.store, request.lease_tokens)
        # Those that were scheduled again since may be due.
        command.stir_commands(call.store, call.env.waiters)
        return pb.CompleteCommandsResponse()

    async def ReleaseCommands(
        self, request: pb.ReleaseCommandsRequest, call: Call
    ) -> pb.ReleaseCommandsResponse:
        """Release leases before they expire."""
        check = call.check
        check.lease_tokens("lease_tokens", request.lease_tokens)
        check.done()
        await command.release_commands(call.store, request.lease_tokens)
        command.stir_commands(call.store, call.env.waiters)
        return pb.ReleaseCommandsResponse()

    async def RenewCommands(
        self, request: pb.RenewCommandsRequest, call: Call
    ) -> pb.RenewCommandsResponse:
        """Extend leases."""
        check = call.check
        check.lease_tokens("lease_tokens", request.lease_tokens)
        lease_ms = check.lease_ms(request, "lease_duration")
        check.done()
        return await command.renew_commands(call.store, request.lease_tokens, lease_ms)

    async def BreakCommandLease(
        self, request: pb.BreakCommandLeaseRequest, call: Call
    ) -> pb.BreakCommandLeaseResponse:
        """End somebody else's lease."""
        check = call.check
        check.named_command(request)
        check.revision(request, "epoch")
        check.done()
        broken = await command.break_command_lease(call.store, request)
        if broken is not None:
            log.warning(
                "%s broke the lease on the command %s of %r in the namespace %s, which %r held "
                "with epoch %d",
                call.caller.principal or "somebody",
                COMMAND_NAME[request.command_name],
                request.data,
                call.store.namespace,
                broken.worker_id,
                broken.epoch,
            )
            command.stir_commands(call.store, call.env.waiters, request.command_name)
        return pb.BreakCommandLeaseResponse(broken=broken)

    async def ListCommands(
        self, request: pb.ListCommandsRequest, call: Call
    ) -> pb.ListCommandsResponse:
        """Return commands, under a lease or not."""
        check = call.check
        check.command_query(request)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await command.list_commands(
            call.store,
            request,
            *call.page(request, page_size),
        )
        return pb.ListCommandsResponse(
            commands=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )
