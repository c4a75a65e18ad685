"""Operations on scheduled commands: schedule, claim, handle, complete."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

from wfe.persistence.v1 import command_pb2, store_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.calls import all_lost
from wfe_persistence_client.connection import LARGEST_PAGE, Connection
from wfe_persistence_client.deadline import Deadline
from wfe_persistence_client.errors import LeaseLost, PersistenceError, Unimplemented
from wfe_persistence_client.misfit import FieldTypeError, FieldValueError, build
from wfe_persistence_client.model import (
    ClaimedCommand,
    CommandLease,
    CommandName,
    ListedCommand,
    ScheduledCommand,
)

#: Handles one due command; if it raises, the command is released.
CommandHandler = Callable[[ScheduledCommand], Awaitable[object]]

#: Renewals per lease duration.
_RENEWALS: Final = 3
#: Minimum number of seconds between two renewals.
_RENEWAL_PAUSE: Final = 0.1
#: Minimum timeout of a renewal, in seconds.
_RENEWAL_TIMEOUT: Final = 1.0


class Commands(Connection):
    """The operations on scheduled commands."""

    async def supports_scheduled_commands(self) -> bool:
        """Whether the store supports scheduled commands."""
        response = await self._calls.unary(
            self._store.GetStoreInfo, store_pb2.GetStoreInfoRequest()
        )
        return response.capabilities.scheduled_commands

    async def schedule_command(self, command: ScheduledCommand) -> None:
        """Schedules a command; one with the same name and data gets the new time.

        A command that is claimed at the time stays claimed, and remains scheduled when
        that claim is completed.
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
        command_name: CommandName | None = None,
        wait: timedelta | None = None,
    ) -> list[ClaimedCommand]:
        """Claims due commands, soonest first, each for one worker at a time.

        A command is due if its `execute_time` is at or before `as_of` (truncated to
        milliseconds) and it is not under a lease. If the response is lost, the claimed
        commands become due again when their leases expire.

        Args:
            as_of: None: now, by the database's clock.
            limit: maximum number of commands, up to 1000; 0 means 100.
            lease_duration: how long the lease lasts, 1 ms to 24 h; None: 30 s.
            worker_id: the worker that claims, for information only.
            command_name: only commands with this name; None: any.
            wait: how long to wait if no command is due, up to 60 s, in addition to
                `timeout`; None: not at all. Must not be given
                together with `as_of`.
        """
        waiting = 0.0 if wait is None else max(wait.total_seconds(), 0.0)
        response = await self._calls.unary(
            self._commands.ClaimCommands,
            build(
                command_pb2.ClaimCommandsRequest,
                as_of=convert.optional_timestamp("as_of", as_of),
                limit=limit,
                lease_duration=convert.optional_duration(lease_duration),
                worker_id=worker_id,
                command_name=convert.command_name_to_proto(command_name),
                wait=convert.optional_duration(wait),
            ),
            # The wait ends before the deadline, on which the server decides.
            Deadline(self._calls.timeout + waiting),
        )
        return [convert.claimed_command_from_proto(message) for message in response.commands]

    async def complete_commands(self, lease_tokens: Iterable[str]) -> None:
        """Removes claimed commands that have been handled, all or nothing.

        A command rescheduled since its claim stays, with its new time.

        Args:
            lease_tokens: the tokens of the claims; at most 1000, no duplicates.

        Raises:
            LeaseLost: some are no longer claimed under these leases; nothing was
                changed. If `maybe_written` is set, they may also be lost because this
                very call was applied: the server lists too few of them to decide.
        """
        tokens = list(lease_tokens)
        await self._calls.settle(
            self._commands.CompleteCommands,
            build(command_pb2.CompleteCommandsRequest, lease_tokens=tokens),
            all_lost(tokens),
        )

    async def release_commands(self, lease_tokens: Iterable[str]) -> None:
        """Releases claimed commands, which are due again immediately; all or nothing.

        Args:
            lease_tokens: the tokens of the claims; at most 1000, no duplicates.

        Raises:
            LeaseLost: some are no longer claimed under these leases; nothing was
                changed. If `maybe_written` is set, they may also be lost because this
                very call was applied: the server lists too few of them to decide.
        """
        tokens = list(lease_tokens)
        await self._calls.settle(
            self._commands.ReleaseCommands,
            build(command_pb2.ReleaseCommandsRequest, lease_tokens=tokens),
            all_lost(tokens),
        )

    async def renew_commands(
        self, lease_tokens: Iterable[str], *, lease_duration: timedelta | None = None
    ) -> datetime | None:
        """Renews the leases of claimed commands, all or nothing.

        Args:
            lease_tokens: the tokens of the claims; at most 1000, no duplicates. They
                stay valid.
            lease_duration: how long the leases last from now, by the database's clock,
                1 ms to 24 h; None: 30 s.

        Returns:
            When all these leases expire, by the database's clock; None: no lease was
            given.

        Raises:
            LeaseLost: some are no longer held, or have expired; nothing was changed.
        """
        response = await self._calls.unary(
            self._commands.RenewCommands,
            build(
                command_pb2.RenewCommandsRequest,
                lease_tokens=list(lease_tokens),
                lease_duration=convert.optional_duration(lease_duration),
            ),
        )
        return convert.lease_expiry_from_proto(response)

    async def break_command_lease(
        self, command_name: CommandName, data: str, *, epoch: int | None = None
    ) -> CommandLease | None:
        """Ends the lease on a command without its token, for operators: its worker is gone for
        good, or must be stopped. It gets `LeaseLost`.

        Args:
            command_name: the command's name.
            data: its data.
            epoch: only if the lease has this epoch, as `list_commands` tells; None: whoever
                holds it. A repetition after a lost response would break the next worker's lease.

        Returns:
            The lease that was ended, which may have expired; None: there was none, or not with
            this epoch.
        """
        response = await self._calls.unary(
            self._commands.BreakCommandLease,
            build(
                command_pb2.BreakCommandLeaseRequest,
                command_name=convert.command_name_to_proto(command_name),
                data=data,
                epoch=epoch,
            ),
        )
        return (
            convert.command_lease_from_proto(response.broken)
            if response.HasField("broken")
            else None
        )

    async def list_commands(
        self,
        *,
        command_name: CommandName | None = None,
        data: str | None = None,
        due_before: datetime | None = None,
        leased: bool | None = None,
        worker_id: str = "",
    ) -> list[ListedCommand]:
        """Returns commands, due or not, soonest first, without claiming them.

        Args:
            command_name: only with this name; None: any.
            data: only with this data, requires `command_name`; None: any.
            due_before: only due before this time (truncated to milliseconds); None: any.
            leased: True: only those under a lease; False: only others; None: both.
            worker_id: only under a lease of this worker; empty: any.
        """
        pages = self._in_one_go().iter_commands(
            command_name=command_name,
            data=data,
            due_before=due_before,
            leased=leased,
            worker_id=worker_id,
            page_size=LARGEST_PAGE,
        )
        return [command async for command in pages]

    def iter_commands(
        self,
        *,
        command_name: CommandName | None = None,
        data: str | None = None,
        due_before: datetime | None = None,
        leased: bool | None = None,
        worker_id: str = "",
        page_size: int = 0,
    ) -> AsyncIterator[ListedCommand]:
        """`list_commands` as an async iterator that fetches pages on demand."""
        return self._calls.pages(
            self._commands.ListCommands,
            build(
                command_pb2.ListCommandsRequest,
                command_name=convert.command_name_to_proto(command_name),
                data=data,
                due_before=convert.optional_timestamp("due_before", due_before),
                leased=leased,
                worker_id=worker_id,
                page_size=page_size,
            ),
            lambda page: map(convert.listed_command_from_proto, page.commands),
        )

    async def process_commands(
        self,
        as_of: datetime | None,
        handler: CommandHandler,
        *,
        worker_id: str = "",
        command_name: CommandName | None = None,
        batch_size: int = 10,
        lease_duration: timedelta = timedelta(seconds=30),
    ) -> int:
        """Handles the commands that are due, and returns how many it completed.

        It claims a small batch, handles the commands one at a time, soonest first, and
        completes each as soon as its handler returns, until no more are due. Any number
        of hosts may do this at the same time: each command goes to one of them. If a
        host crashes, another one gets its command when the lease expires, so handlers
        must be idempotent.

        - If a handler raises an Exception, its command is released when this call ends;
          the other commands are still handled. At the end all failures are raised
          together.
        - No command (name and data) is handled twice within one call, even if it is
          scheduled again in the meantime; the next call handles it.
        - While a handler runs, the lease of its command is renewed, starting after a
          third of the lease, so a handler may take longer than the lease. If the lease
          is lost nevertheless (the store was unreachable for too long, the handler
          blocked the event loop, the server is too old to renew), the handler
          continues, but another worker may claim the command in the meantime; it then
          counts as failed, with `LeaseLost`.
        - Leases of commands that wait in the batch are not renewed. A command whose
          lease expires while it waits is not handled; this or another host claims it
          again.
        - If the store is unreachable, or this call is cancelled, it ends immediately;
          the commands that it still holds become due again when their leases expire.

        Args:
            as_of: None: now, by the database's clock.
            handler: an async function that takes one command, or a callable that
                returns an awaitable.
            worker_id: the worker that handles them, for information only.
            command_name: only commands with this name; None: any.
            batch_size: how many commands to claim at a time, 1 to 1000.
            lease_duration: how long a lease lasts unless it is renewed, 1 ms to 24 h:
                enough for the handlers of a whole batch. Below 1 s, renewals are not
                reliable.

        Raises:
            ExceptionGroup: the exceptions of the handlers, each with a note that names
                the command, and the errors of completing or claiming further commands.
            PersistenceError: the first claim failed.
            TypeError: the handler is not async. If that shows only when it has run, its
                command and those that wait are released.
        """
        if not 1 <= batch_size <= LARGEST_PAGE:
            raise FieldValueError("batch_size", "must be 1 to 1000")
        if is_plain(handler):
            raise FieldTypeError("handler", "expected an async function, not a plain one")
        round_ = _CommandRound(self, handler, lease_duration)
        more = True
        while more:
            # Started before the claim is sent, so it never ends after the actual lease.
            lease = Deadline(lease_duration.total_seconds())
            try:
                batch = await self.claim_commands(
                    as_of,
                    limit=batch_size,
                    lease_duration=lease_duration,
                    worker_id=worker_id,
                    command_name=command_name,
                )
            except PersistenceError as exc:
                if not round_.handled:
                    raise
                round_.abandon(exc)
                break
            more = await round_.handle(batch, lease)
        return await round_.finish()


class _CommandRound:
    """The state of one run of `process_commands`."""

    def __init__(
        self, provider: Commands, handler: CommandHandler, lease_duration: timedelta
    ) -> None:
        self._provider = provider
        self._handler = handler
        self._lease_duration = lease_duration
        #: False: the server is too old to support RenewCommands.
        self._renews = True
        self.handled: set[tuple[CommandName, str]] = set()
        self.failures: list[Exception] = []
        self._completed = 0
        self._set_aside: set[tuple[CommandName, str]] = set()
        # Failed commands stay claimed until the end, so that they are not claimed again
        # before all others have been handled.
        self._to_release: list[str] = []
        self._store_failed = False

    async def handle(self, batch: Sequence[ClaimedCommand], lease: Deadline) -> bool:
        """Handles a batch; returns whether there may be more to do."""
        progress = False
        for position, claimed in enumerate(batch):
            key = (claimed.command.command_name, claimed.command.data)
            if key in self.handled:
                # Held back until the end. Only once each, because with leases shorter
                # than the run this would never end.
                self._to_release.append(claimed.lease_token)
                progress |= key not in self._set_aside
                self._set_aside.add(key)
                continue
            if lease.remaining() <= 0:
                if not progress:
                    # Claiming again would have the same result.
                    self.failures.append(
                        LeaseLost(
                            f"the leases of {len(batch) - position} commands expired before "
                            "they could be handled: use a longer lease_duration"
                        )
                    )
                break
            self.handled.add(key)
            progress = True
            try:
                await self._handle_one(claimed, lease)
            except FieldTypeError:
                # Every other command would fare the same.
                self._to_release += [left.lease_token for left in batch[position:]]
                await self._release()
                raise
            if self._store_failed:
                return False
        return progress

    async def _handle_one(self, claimed: ClaimedCommand, lease: Deadline) -> None:
        command = claimed.command
        note = f"command: {command.command_name.name} {command.data!r}"
        try:
            async with self._renewed(claimed.lease_token, lease):
                # Not only awaited: a TypeError of the handler itself is a failure like
                # any other.
                running = self._handler(command)
                if inspect.isawaitable(running):
                    await running
        except Exception as exc:
            exc.add_note(note)
            self.failures.append(exc)
            self._to_release.append(claimed.lease_token)
            return
        if not inspect.isawaitable(running):
            returned = type(running).__name__
            raise FieldTypeError("handler", f"it returned {returned} instead of an awaitable")
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
        """Renews a lease while the block runs; failures to renew are not raised."""
        if not self._renews:
            yield
            return
        renewing = asyncio.create_task(self._renew(token, lease))
        try:
            yield
        finally:
            renewing.cancel()
            # Its errors are ignored: completing the command reports them too.
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self, token: str, lease: Deadline) -> None:
        every = max(self._lease_duration.total_seconds() / _RENEWALS, _RENEWAL_PAUSE)
        # A call that hangs must not delay the following renewals.
        timeout = min(max(every, _RENEWAL_TIMEOUT), self._provider._calls.timeout)
        provider = self._provider.with_timeout(timeout)
        # Part of the lease may have passed already: the command waited in its batch.
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
                # For example, the store is unreachable; it may be back before the lease
                # expires.
                pass
            await asyncio.sleep(pause.remaining())

    def abandon(self, failure: PersistenceError) -> None:
        """Ends the run because the store failed; the leases expire."""
        self.failures.append(failure)
        self._store_failed = True

    async def finish(self) -> int:
        """Releases the failed commands; returns how many were completed, or raises."""
        if not self._store_failed:
            await self._release()
        if self.failures:
            raise ExceptionGroup(
                f"{len(self.failures)} failures while processing {len(self.handled)} commands",
                self.failures,
            )
        return self._completed

    async def _release(self) -> None:
        # One at a time, because in one call a single lost lease would keep all others
        # claimed.
        for token in self._to_release:
            try:
                await self._provider.release_commands([token])
            except LeaseLost:
                # It has expired in the meantime: the command is available already.
                continue
            except PersistenceError as exc:
                self.failures.append(exc)
                return


def is_plain(handler: object) -> bool:
    """Whether it is certainly not async: some lambdas and wrappers return a coroutine."""
    return (
        inspect.isroutine(handler)
        and not inspect.iscoroutinefunction(inspect.unwrap(handler))
        and getattr(handler, "__name__", "") != "<lambda>"
    )
