"""Scheduled commands: claim, handle, complete."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

from wfe.persistence.v1 import command_pb2, store_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.calls import Deadline
from wfe_persistence_client.connection import LARGEST_PAGE, Connection
from wfe_persistence_client.errors import LeaseLost, PersistenceError, Unimplemented
from wfe_persistence_client.model import ClaimedCommand, CommandName, ScheduledCommand

#: Takes one due command; what it raises gives the command back.
CommandHandler = Callable[[ScheduledCommand], Awaitable[object]]

#: How often a claim is renewed while its lease would last.
_RENEWALS: Final = 3
#: Seconds between two renewals, at least.
_RENEWAL_PAUSE: Final = 0.1
#: Seconds that a renewal may take, at least.
_RENEWAL_TIMEOUT: Final = 1.0


class Commands(Connection):
    """The operations on scheduled commands."""

    async def supports_scheduled_commands(self) -> bool:
        """Whether the store has scheduled commands."""
        answer = await self._calls.unary(self._store.GetStoreInfo, store_pb2.GetStoreInfoRequest())
        return answer.capabilities.scheduled_commands

    async def schedule_command(self, command: ScheduledCommand) -> None:
        """Schedules a command; one of the same name and data gets the new time.

        A command that is claimed at that moment stays claimed, and stays scheduled
        when that claim is completed.
        """
        await self._calls.unary(
            self._commands.ScheduleCommand,
            command_pb2.ScheduleCommandRequest(command=convert.command_to_proto(command)),
        )

    async def claim_commands(
        self,
        as_of: datetime | None = None,
        *,
        limit: int = 0,
        lease_duration: timedelta | None = None,
        worker_id: str = "",
    ) -> list[ClaimedCommand]:
        """Claims due commands, soonest first, each for one claimer at a time.

        Due is what has `execute_time` up to and including `as_of` (truncated to
        milliseconds) and is not under somebody's lease. After a lost answer the
        claimed commands become due again when their leases expire.

        Args:
            as_of: None: now, by the database's clock.
            limit: how many at most, up to 1000; 0: 100.
            lease_duration: how long the claim holds, 1 ms to 24 h; None: 30 s.
            worker_id: who claims, for people who look.
        """
        answer = await self._calls.unary(
            self._commands.ClaimCommands,
            command_pb2.ClaimCommandsRequest(
                as_of=convert.optional_timestamp("as_of", as_of),
                limit=limit,
                lease_duration=convert.optional_duration(lease_duration),
                worker_id=worker_id,
            ),
        )
        return [convert.claimed_command_from_proto(message) for message in answer.commands]

    async def complete_commands(self, lease_tokens: Iterable[str]) -> None:
        """Removes claimed commands that are handled, all or nothing.

        A command scheduled again since its claim stays, with its new time.

        Args:
            lease_tokens: those of the claims; at most 1000, none twice.

        Raises:
            LeaseLost: some are no longer claimed so; nothing was changed. Only if
                `maybe_written`, they may also be lost because this very call was
                applied: the server names too few of them to tell.
        """
        tokens = list(lease_tokens)
        await self._calls.settle(
            self._commands.CompleteCommands,
            command_pb2.CompleteCommandsRequest(lease_tokens=tokens),
            _all_lost(tokens),
        )

    async def release_commands(self, lease_tokens: Iterable[str]) -> None:
        """Gives claimed commands back unhandled, due at once; all or nothing.

        Args:
            lease_tokens: those of the claims; at most 1000, none twice.

        Raises:
            LeaseLost: some are no longer claimed so; nothing was changed. Only if
                `maybe_written`, they may also be lost because this very call was
                applied: the server names too few of them to tell.
        """
        tokens = list(lease_tokens)
        await self._calls.settle(
            self._commands.ReleaseCommands,
            command_pb2.ReleaseCommandsRequest(lease_tokens=tokens),
            _all_lost(tokens),
        )

    async def renew_commands(
        self, lease_tokens: Iterable[str], *, lease_duration: timedelta | None = None
    ) -> datetime | None:
        """Holds claimed commands for longer, and answers until when; all or nothing.

        Args:
            lease_tokens: those of the claims; at most 1000, none twice. They stay valid.
            lease_duration: how long the leases last from now on, by the database's
                clock, 1 ms to 24 h; None: 30 s.

        Returns:
            When all these leases end by themselves, by the database's clock; None: no
            lease was named.

        Raises:
            LeaseLost: some are no longer claimed so, or have expired; nothing was
                changed.
        """
        answer = await self._calls.unary(
            self._commands.RenewCommands,
            command_pb2.RenewCommandsRequest(
                lease_tokens=list(lease_tokens),
                lease_duration=convert.optional_duration(lease_duration),
            ),
        )
        return convert.lease_expiry_from_proto(answer)

    async def process_commands(
        self,
        as_of: datetime | None,
        handler: CommandHandler,
        *,
        worker_id: str = "",
        batch_size: int = 10,
        lease_duration: timedelta = timedelta(seconds=30),
    ) -> int:
        """Handles the commands that are due, and answers how many it completed.

        It claims a small batch, handles one command after the other, soonest first,
        and completes each as soon as its handler returns, until no more are due.
        Any number of hosts may do so at the same time: each command is handed to
        one. A host that dies in between leaves the command to others when its lease
        expires, so a handler must bear being run again.

        - A handler that raises an Exception gives its command back, to be due again
          when this call ends; the other commands go on. At the end all failures are
          raised together.
        - No command (name and data) is handled twice within one call, even if it is
          scheduled again meanwhile; that is left to the next call.
        - While a handler runs, the claim of its command is renewed, from a third of the
          lease on, so that it may take longer than the lease. If the claim is lost all
          the same (the store could not be reached for so long, the handler blocked the
          event loop, the server is too old to renew), the handler goes on, but the
          command may be handed to somebody else meanwhile: then it counts as failed,
          with `LeaseLost`.
        - The others of its batch are not renewed. A command whose lease ran out while it
          waited is not handled; it is claimed anew, here or by another host.
        - When the store cannot be reached, or this call is cancelled, it ends at
          once; what it still has claimed becomes due when the leases expire.

        Args:
            as_of: None: now, by the database's clock.
            handler: an async function of one command.
            worker_id: who handles them, for people who look.
            batch_size: how many to claim at once, 1 to 1000.
            lease_duration: how long a claim holds unless it is renewed, 1 ms to 24 h:
                enough for the handlers of a whole batch. Under 1 s, too short to be
                renewed with certainty.

        Raises:
            ExceptionGroup: of what the handlers raised, each with a note naming the
                command, and of what went wrong with completing or claiming more.
            PersistenceError: the first claim failed.
        """
        if not 1 <= batch_size <= LARGEST_PAGE:
            raise ValueError("batch_size must be 1 to 1000")
        round_ = _CommandRound(self, handler, lease_duration)
        more = True
        while more:
            # Begun before the claim is sent, so it never ends after the real one.
            lease = Deadline(lease_duration.total_seconds())
            try:
                batch = await self.claim_commands(
                    as_of, limit=batch_size, lease_duration=lease_duration, worker_id=worker_id
                )
            except PersistenceError as exc:
                if not round_.handled:
                    raise
                round_.abandon(exc)
                break
            more = await round_.handle(batch, lease)
        return await round_.finish()


class _CommandRound:
    """What one `process_commands` has done so far."""

    def __init__(
        self, provider: Commands, handler: CommandHandler, lease_duration: timedelta
    ) -> None:
        self._provider = provider
        self._handler = handler
        self._lease_duration = lease_duration
        #: False: the server is too old for RenewCommands.
        self._renews = True
        self.handled: set[tuple[CommandName, str]] = set()
        self.failures: list[Exception] = []
        self._completed = 0
        self._set_aside: set[tuple[CommandName, str]] = set()
        # What failed stays claimed until the end, so that it is not handed out again
        # before everything else had its turn.
        self._to_release: list[str] = []
        self._store_failed = False

    async def handle(self, batch: Sequence[ClaimedCommand], lease: Deadline) -> bool:
        """Handles a batch; answers whether there may be more to do."""
        progress = False
        for position, claimed in enumerate(batch):
            key = (claimed.command.command_name, claimed.command.data)
            if key in self.handled:
                # Out of the way of the others until the end. Only once for each, lest
                # leases shorter than the round make it go on for ever.
                self._to_release.append(claimed.lease_token)
                progress |= key not in self._set_aside
                self._set_aside.add(key)
                continue
            if lease.remaining() <= 0:
                if not progress:
                    # Claiming again would only go on like this.
                    self.failures.append(
                        LeaseLost(
                            f"the leases of {len(batch) - position} commands ran out before "
                            "they could be handled: use a longer lease_duration"
                        )
                    )
                break
            self.handled.add(key)
            progress = True
            await self._handle_one(claimed, lease)
            if self._store_failed:
                return False
        return progress

    async def _handle_one(self, claimed: ClaimedCommand, lease: Deadline) -> None:
        command = claimed.command
        note = f"command: {command.command_name.name} {command.data!r}"
        try:
            async with self._renewed(claimed.lease_token, lease):
                await self._handler(command)
        except Exception as exc:
            exc.add_note(note)
            self.failures.append(exc)
            self._to_release.append(claimed.lease_token)
            return
        try:
            await self._provider.complete_commands([claimed.lease_token])
        except PersistenceError as exc:
            exc.add_note(note)
            if isinstance(exc, LeaseLost):
                self.failures.append(exc)
            else:
                self.abandon(exc)
        else:
            self._completed += 1

    @asynccontextmanager
    async def _renewed(self, token: str, lease: Deadline) -> AsyncIterator[None]:
        """Renews a claim as long as the block runs, whatever comes of the renewals."""
        if not self._renews:
            yield
            return
        renewing = asyncio.create_task(self._renew(token, lease))
        try:
            yield
        finally:
            renewing.cancel()
            # Its errors are left to the completion, which meets them too.
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self, token: str, lease: Deadline) -> None:
        every = max(self._lease_duration.total_seconds() / _RENEWALS, _RENEWAL_PAUSE)
        # A call that hangs must not take the time of those after it.
        timeout = min(max(every, _RENEWAL_TIMEOUT), self._provider._calls.timeout)
        provider = self._provider.with_timeout(timeout)
        # Some of the lease may be gone already: the command waited in its batch.
        await asyncio.sleep(lease.remaining() / _RENEWALS)
        while True:
            pause = Deadline(every)
            try:
                await provider.renew_commands([token], lease_duration=self._lease_duration)
            except LeaseLost:
                return
            except Unimplemented:
                self._renews = False
                return
            except PersistenceError:
                # The store is away, for example; it may be back in time.
                pass
            await asyncio.sleep(pause.remaining())

    def abandon(self, failure: PersistenceError) -> None:
        """Ends the round because the store fails; the leases end by themselves."""
        self.failures.append(failure)
        self._store_failed = True

    async def finish(self) -> int:
        """Gives back what failed; answers how many were completed, or raises."""
        if not self._store_failed:
            await self._release()
        if self.failures:
            raise ExceptionGroup(
                f"{len(self.failures)} failures while processing {len(self.handled)} commands",
                self.failures,
            )
        return self._completed

    async def _release(self) -> None:
        # One by one, since together one lost lease would keep all others claimed.
        for token in self._to_release:
            try:
                await self._provider.release_commands([token])
            except LeaseLost:
                # It ran out meanwhile: the command is free already.
                continue
            except PersistenceError as exc:
                self.failures.append(exc)
                return


def _all_lost(tokens: Sequence[str]) -> Callable[[PersistenceError], bool]:
    """Whether every one of these leases is lost.

    Completing and releasing are all or nothing: if one of them is still held, no
    earlier attempt was applied.
    """

    def all_lost(error: PersistenceError) -> bool:
        return isinstance(error, LeaseLost) and set(tokens) <= set(error.lease_tokens)

    return all_lost
