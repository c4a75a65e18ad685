"""claim → handle → complete, over a table of commands as the store keeps it.

That leases are renewed meanwhile is tested against the real server too.
"""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from tests.client.fake_store import UNAVAILABLE, FakeStore, Step, broken, fails, hangs
from tests.client.test_calls import NOW, Clock
from tests.client.wire import provider_on
from wfe.persistence.v1 import command_pb2
from wfe_persistence_client import (
    CommandName,
    LeaseLost,
    PersistenceProvider,
    ScheduledCommand,
    Unavailable,
    Unimplemented,
    convert,
    deadline,
)
from wfe_persistence_client import command as command_module

NOW_MS = int(NOW.timestamp() * 1000)


@dataclass
class Row:
    command: ScheduledCommand
    token: str | None = None
    lease_end: float = 0
    rescheduled: bool = False


@dataclass
class CommandTable:
    """What the store promises for commands, with a clock of its own."""

    clock: Clock
    rows: dict[str, Row] = field(default_factory=dict)
    claims: int = 0
    #: What happened, in order.
    log: list[str] = field(default_factory=list)

    def install(self, store: FakeStore) -> None:
        store.on("ScheduleCommand", self.schedule)
        store.on("ClaimCommands", self.claim)
        store.on("CompleteCommands", self.complete)
        store.on("ReleaseCommands", self.release)
        store.on("RenewCommands", self.renew)

    def add(self, *names: str) -> None:
        for position, name in enumerate(names):
            self.rows[name] = Row(command(name, NOW_MS - 1000 + position))

    def held(self) -> set[str]:
        now = self.clock.monotonic()
        return {name for name, row in self.rows.items() if row.token and row.lease_end > now}

    async def schedule(self, request: Any, _context: Any) -> Any:
        given = convert.command_from_proto(request.command)
        row = self.rows.setdefault(given.data, Row(given))
        row.command = given
        row.rescheduled = row.token is not None
        return command_pb2.ScheduleCommandResponse()

    async def claim(self, request: Any, _context: Any) -> Any:
        as_of = request.as_of.seconds * 1000 + request.as_of.nanos // 1_000_000
        held = self.held()
        due = sorted(
            (
                row
                for name, row in self.rows.items()
                if name not in held and row.command.execute_time <= as_of
            ),
            key=lambda row: row.command.execute_time,
        )
        claimed = []
        for row in due[: request.limit]:
            self.claims += 1
            row.token = f"t{self.claims}"
            row.rescheduled = False
            row.lease_end = self._lease_end(request)
            claimed.append(
                command_pb2.ClaimedCommand(
                    command=convert.command_to_proto(row.command),
                    lease_token=row.token,
                    lease_expiry=convert.timestamp("lease_expiry", NOW),
                )
            )
        self.log.append("claim " + " ".join(message.command.data for message in claimed))
        return command_pb2.ClaimCommandsResponse(commands=claimed)

    async def complete(self, request: Any, context: Any) -> Any:
        for name in await self._by_token(request, context):
            self.log.append(f"complete {name}")
            row = self.rows[name]
            if row.rescheduled:
                row.token = None
            else:
                del self.rows[name]
        return command_pb2.CompleteCommandsResponse()

    async def release(self, request: Any, context: Any) -> Any:
        for name in await self._by_token(request, context):
            self.log.append(f"release {name}")
            self.rows[name].token = None
        return command_pb2.ReleaseCommandsResponse()

    async def renew(self, request: Any, context: Any) -> Any:
        names = await self._by_token(request, context)
        if not self.held().issuperset(names):
            await LOST(request, context)
        for name in names:
            self.log.append(f"renew {name}")
            self.rows[name].lease_end = self._lease_end(request)
        return command_pb2.RenewCommandsResponse()

    def _lease_end(self, request: Any) -> float:
        given = request.lease_duration
        return self.clock.monotonic() + (given.seconds + given.nanos / 1e9 or 30)

    async def _by_token(self, request: Any, context: Any) -> list[str]:
        by_token = {row.token: name for name, row in self.rows.items()}
        lost = [token for token in request.lease_tokens if token not in by_token]
        if lost:
            metadata = {"lease_tokens": ",".join(lost)}
            step = fails(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST", metadata=metadata)
            await step(request, context)
        return [by_token[token] for token in request.lease_tokens]


LOST: Step = fails(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST")


def command(name: str, execute_time: int = 0) -> ScheduledCommand:
    return ScheduledCommand(
        command_name=CommandName.PROCESS_WORKFLOW, data=name, execute_time=execute_time
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(deadline, "time", clock)
    return clock


@pytest.fixture
def table(store: FakeStore, clock: Clock) -> CommandTable:
    table = CommandTable(clock)
    table.install(store)
    return table


class Handler:
    """Remembers what it was given; fails for what it is told to."""

    def __init__(self, table: CommandTable, *bad: str) -> None:
        self.seen: list[str] = []
        self._table = table
        self._bad = bad

    async def __call__(self, given: ScheduledCommand) -> None:
        self.seen.append(given.data)
        self._table.log.append(f"handle {given.data}")
        if given.data in self._bad:
            raise LookupError(given.data)


async def test_each_is_handled_then_completed(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore
) -> None:
    table.add("a", "b", "c")
    table.rows["later"] = Row(command("later", NOW_MS + 1))
    handler = Handler(table)
    completed = await provider.process_commands(
        NOW,
        handler,
        batch_size=2,
        worker_id="me",
        command_name=CommandName.PROCESS_WORKFLOW,
        lease_duration=timedelta(seconds=9),
    )
    assert completed == 3
    for request in store.requests["ClaimCommands"]:
        assert request.command_name == CommandName.PROCESS_WORKFLOW.value
    assert table.log == [
        "claim a b",
        "handle a",
        "complete a",
        "handle b",
        "complete b",
        "claim c",
        "handle c",
        "complete c",
        "claim ",
    ]
    assert set(table.rows) == {"later"}
    for request in store.requests["ClaimCommands"]:
        assert (request.worker_id, request.limit, request.lease_duration.seconds) == ("me", 2, 9)


async def test_nothing_due(table: CommandTable, provider: PersistenceProvider) -> None:
    assert await provider.process_commands(NOW, Handler(table)) == 0
    assert table.log == ["claim "]


async def test_a_failing_handler_does_not_hold_up_the_rest(
    table: CommandTable, provider: PersistenceProvider
) -> None:
    table.add("a", "bad", "b", "worse", "c")
    handler = Handler(table, "bad", "worse")
    with pytest.raises(ExceptionGroup) as caught:
        await provider.process_commands(NOW, handler, batch_size=1)
    # Each once, though the failed ones were soonest and due all the time.
    assert handler.seen == ["a", "bad", "b", "worse", "c"]
    # Given back only when all others had their turn.
    assert table.log[-2:] == ["release bad", "release worse"]
    assert set(table.rows) == {"bad", "worse"}
    assert table.held() == set()
    assert [str(error) for error in caught.value.exceptions] == ["bad", "worse"]
    assert caught.value.exceptions[0].__notes__ == ["command: PROCESS_WORKFLOW 'bad'"]
    # The next call has them again.
    assert await provider.process_commands(NOW, Handler(table)) == 2


async def test_a_command_rescheduled_by_its_handler_stays_and_waits_for_the_next_call(
    table: CommandTable, provider: PersistenceProvider
) -> None:
    table.add("a", "b")
    handled: list[str] = []

    async def handler(given: ScheduledCommand) -> None:
        handled.append(given.data)
        if given.data == "a":
            await provider.schedule_command(command("a", NOW_MS - 5000))

    assert await provider.process_commands(NOW, handler, batch_size=1) == 2
    assert handled == ["a", "b"]
    assert set(table.rows) == {"a"}
    assert table.held() == set()


async def test_a_command_is_not_handled_after_its_lease(
    table: CommandTable, provider: PersistenceProvider, clock: Clock
) -> None:
    table.add("slow", "b", "c")
    handler = Handler(table)

    async def slow_at_first(given: ScheduledCommand) -> None:
        await handler(given)
        if given.data == "slow":
            clock.ahead += 31

    await provider.process_commands(NOW, slow_at_first)
    assert handler.seen == ["slow", "b", "c"]
    # Nobody else took it, so it could be completed still; the others were claimed anew.
    assert table.log[:4] == ["claim slow b c", "handle slow", "complete slow", "claim b c"]
    assert table.rows == {}


async def test_what_somebody_else_took_meanwhile_is_not_handled(
    table: CommandTable, provider: PersistenceProvider, clock: Clock
) -> None:
    table.add("slow", "b", "c")
    handler = Handler(table)

    async def slow_at_first(given: ScheduledCommand) -> None:
        await handler(given)
        if given.data == "slow":
            clock.ahead += 31
            others = await provider.claim_commands(NOW, limit=2)
            assert [claimed.command.data for claimed in others] == ["slow", "b"]

    with pytest.raises(ExceptionGroup) as caught:
        await provider.process_commands(NOW, slow_at_first)
    (failure,) = caught.value.exceptions
    assert isinstance(failure, LeaseLost)
    assert failure.__notes__ == ["command: PROCESS_WORKFLOW 'slow'"]
    assert handler.seen == ["slow", "c"]
    # What the other one claimed is still its own.
    assert set(table.rows) == table.held() == {"slow", "b"}


async def test_leases_too_short_to_handle_anything_are_told(
    table: CommandTable, provider: PersistenceProvider, clock: Clock, store: FakeStore
) -> None:
    table.add("a", "b")

    async def slow_claim(request: Any, context: Any) -> Any:
        answer = await table.claim(request, context)
        clock.ahead += 1
        return answer

    store.on("ClaimCommands", slow_claim)
    handler = Handler(table)
    with pytest.raises(ExceptionGroup) as caught:
        await provider.process_commands(NOW, handler, lease_duration=timedelta(milliseconds=500))
    (failure,) = caught.value.exceptions
    assert isinstance(failure, LeaseLost)
    assert "longer lease_duration" in str(failure)
    assert handler.seen == []
    assert store.count("ClaimCommands") == 1


async def test_a_lost_answer_to_complete_is_no_failure(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore
) -> None:
    table.add("a")

    async def applied_then_broken(request: Any, context: Any) -> Any:
        await table.complete(request, context)
        return await broken(request, context)

    store.on("CompleteCommands", applied_then_broken, table.complete)
    assert await provider.process_commands(NOW, Handler(table)) == 1
    assert store.count("CompleteCommands") == 2


GONE: Step = fails(UNAVAILABLE, "DATABASE_UNAVAILABLE")


async def test_the_first_claim_fails(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore
) -> None:
    store.on("ClaimCommands", GONE)
    with pytest.raises(Unavailable):
        await provider.process_commands(NOW, Handler(table))


async def test_a_later_claim_fails(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore
) -> None:
    table.add("bad", "b")
    store.on("ClaimCommands", table.claim, GONE)
    with pytest.raises(ExceptionGroup) as caught:
        await provider.process_commands(NOW, Handler(table, "bad"))
    assert [type(error) for error in caught.value.exceptions] == [LookupError, Unavailable]
    # With the store away there is no use in releasing; the lease will end.
    assert store.count("ReleaseCommands") == 0


async def test_no_more_is_handled_when_it_cannot_be_completed(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore
) -> None:
    table.add("a", "b")
    store.on("CompleteCommands", GONE)
    handler = Handler(table)
    with pytest.raises(ExceptionGroup) as caught:
        await provider.process_commands(NOW, handler)
    assert [type(error) for error in caught.value.exceptions] == [Unavailable]
    assert handler.seen == ["a"]
    assert store.count("ReleaseCommands") == 0
    assert store.count("ClaimCommands") == 1


async def test_releasing_fails(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore
) -> None:
    table.add("bad")
    store.on("ReleaseCommands", GONE)
    with pytest.raises(ExceptionGroup) as caught:
        await provider.process_commands(NOW, Handler(table, "bad"))
    assert [type(error) for error in caught.value.exceptions] == [LookupError, Unavailable]


async def test_a_lease_that_ran_out_need_not_be_released(
    table: CommandTable, provider: PersistenceProvider, clock: Clock
) -> None:
    table.add("bad", "slow")

    async def handler(given: ScheduledCommand) -> None:
        if given.data == "bad":
            raise LookupError
        clock.ahead += 31
        others = await provider.claim_commands(NOW, limit=1)
        assert [claimed.command.data for claimed in others] == ["bad"]

    with pytest.raises(ExceptionGroup) as caught:
        await provider.process_commands(NOW, handler)
    assert [type(error) for error in caught.value.exceptions] == [LookupError]
    assert "release bad" not in table.log


async def test_cancelled_while_handling(table: CommandTable, provider: PersistenceProvider) -> None:
    table.add("a", "b")
    started = asyncio.Event()

    async def handler(given: ScheduledCommand) -> None:
        started.set()
        await asyncio.Event().wait()

    work = asyncio.create_task(provider.process_commands(NOW, handler))
    await started.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert set(table.rows) == table.held() == {"a", "b"}


async def test_many_workers_handle_each_once(
    table: CommandTable, provider: PersistenceProvider
) -> None:
    names = [f"c{number}" for number in range(60)]
    table.add(*names)
    handlers = [Handler(table) for _ in range(4)]
    completed = await asyncio.gather(
        *(provider.process_commands(NOW, handler, batch_size=7) for handler in handlers)
    )
    assert sum(completed) == 60
    assert sorted(name for handler in handlers for name in handler.seen) == sorted(names)


@pytest.mark.parametrize("batch_size", [0, -1, 1001])
async def test_the_batch_size_has_bounds(
    table: CommandTable, provider: PersistenceProvider, batch_size: int
) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        await provider.process_commands(NOW, Handler(table), batch_size=batch_size)


# Renewing

HOUR = timedelta(hours=1)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewals follow each other at once: so leases can be too long to end in a test."""
    monkeypatch.setattr(command_module, "_RENEWALS", 1_000_000)
    monkeypatch.setattr(command_module, "_RENEWAL_PAUSE", 0.01)


def renewing() -> list[str]:
    """The tasks that renew a claim."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if name.endswith("._renew")]


async def renewed(store: FakeStore, times: int) -> None:
    async with asyncio.timeout(30):
        while store.count("RenewCommands") < times:
            await asyncio.sleep(0.001)


async def renewing_ended() -> None:
    async with asyncio.timeout(30):
        while renewing():
            await asyncio.sleep(0.001)


@pytest.mark.usefixtures("often")
async def test_a_claim_is_renewed_while_its_handler_runs(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore
) -> None:
    table.add("slow", "b")
    tasks: list[str] = []

    async def handler(given: ScheduledCommand) -> None:
        if given.data == "slow":
            await renewed(store, 2)
            tasks.extend(renewing())

    assert await provider.process_commands(NOW, handler, lease_duration=HOUR, batch_size=1) == 2
    assert len(tasks) == 1
    assert renewing() == []
    for request in store.requests["RenewCommands"]:
        assert request.lease_tokens == ["t1"]
        assert request.lease_duration.seconds == 3600
    count = table.log.count("renew slow")
    assert count >= 2
    assert table.log[: count + 2] == ["claim slow", *["renew slow"] * count, "complete slow"]


async def test_the_first_renewal_reckons_with_what_is_gone_of_the_lease(
    table: CommandTable,
    provider: PersistenceProvider,
    store: FakeStore,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command_module, "_RENEWALS", 100)
    table.add("a", "late")

    async def handler(given: ScheduledCommand) -> None:
        if given.data == "a":
            clock.ahead += 24 * 3600 - 30
        else:
            # A hundredth of the whole lease would be beyond this test's time.
            await renewed(store, 1)

    assert await provider.process_commands(NOW, handler, lease_duration=24 * HOUR) == 2
    assert "renew late" in table.log


@pytest.mark.usefixtures("often")
async def test_a_lost_lease_ends_the_renewals_and_not_the_handler(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore
) -> None:
    table.add("taken", "b")
    ended: list[str] = []

    async def handler(given: ScheduledCommand) -> None:
        if given.data == "taken":
            table.rows["taken"].token = "another's"
            await renewed(store, 1)
            await renewing_ended()
        ended.append(given.data)

    with pytest.raises(ExceptionGroup) as caught:
        await provider.process_commands(NOW, handler, lease_duration=HOUR, batch_size=1)
    (failure,) = caught.value.exceptions
    assert isinstance(failure, LeaseLost)
    assert failure.__notes__ == ["command: PROCESS_WORKFLOW 'taken'"]
    assert ended == ["taken", "b"]
    assert set(table.rows) == {"taken"}


@pytest.mark.usefixtures("often")
async def test_a_server_too_old_to_renew_is_asked_once(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore
) -> None:
    table.add("a", "b")
    store.on("RenewCommands", fails(grpc.StatusCode.UNIMPLEMENTED))

    async def handler(given: ScheduledCommand) -> None:
        if given.data == "a":
            await renewed(store, 1)
            await renewing_ended()
        else:
            assert renewing() == []

    assert await provider.process_commands(NOW, handler, lease_duration=HOUR, batch_size=1) == 2
    assert store.count("RenewCommands") == 1


@pytest.mark.usefixtures("often")
async def test_a_renewal_that_fails_is_followed_by_others(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore
) -> None:
    table.add("a")
    # One more than the attempts of a call.
    store.on("RenewCommands", *[GONE] * 6, table.renew)

    async def handler(given: ScheduledCommand) -> None:
        await renewed(store, 7)

    assert await provider.process_commands(NOW, handler, lease_duration=HOUR) == 1


@pytest.mark.usefixtures("often")
async def test_a_renewal_that_hangs_holds_up_nothing(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore
) -> None:
    table.add("a", "b")
    store.on("RenewCommands", hangs())

    async def handler(given: ScheduledCommand) -> None:
        if given.data == "a":
            # The second comes though the first was never answered.
            await renewed(store, 2)

    completed = await provider.process_commands(NOW, handler, lease_duration=HOUR, batch_size=1)
    assert completed == 2
    assert renewing() == []


@pytest.mark.parametrize("how", ["raises", "is cancelled", "is cancelled twice"])
@pytest.mark.parametrize("step", ["answered", "hanging"])
@pytest.mark.usefixtures("often")
async def test_no_renewal_outlives_its_handler(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore, how: str, step: str
) -> None:
    table.add("a")
    if step == "hanging":
        store.on("RenewCommands", hangs())

    async def handler(given: ScheduledCommand) -> None:
        await renewed(store, 1)
        if how == "raises":
            raise LookupError
        await asyncio.Event().wait()

    work = asyncio.create_task(provider.process_commands(NOW, handler, lease_duration=HOUR))
    await renewed(store, 1)
    assert len(renewing()) == 1
    if how == "raises":
        with pytest.raises(ExceptionGroup):
            await work
    else:
        work.cancel()
        if how == "is cancelled twice":
            await asyncio.sleep(0)
            work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        if how == "is cancelled twice":
            await asyncio.sleep(0)
    assert renewing() == []


@pytest.mark.usefixtures("often")
async def test_a_provider_closed_meanwhile(
    table: CommandTable, provider: PersistenceProvider, store: FakeStore
) -> None:
    table.add("a")

    async def handler(given: ScheduledCommand) -> None:
        await provider.close()
        await renewing_ended()

    # The completion says so, and not the renewal.
    with pytest.raises(RuntimeError, match="closed"):
        await provider.process_commands(NOW, handler, lease_duration=HOUR)


# Against the real server


@pytest.fixture
async def other(target: str) -> AsyncIterator[PersistenceProvider]:
    async with provider_on(target) as provider:
        yield provider


async def taken_meanwhile(
    provider: PersistenceProvider, other: PersistenceProvider, lease: timedelta
) -> tuple[set[str], list[Exception]]:
    """What another host gets while a handler takes longer than its lease; and the failures.

    No clock is looked at: the other host claims a second command under a lease as long,
    later, and when that lease has ended, the handler's has too unless it was renewed.
    """
    # Due long before what anybody else's test can claim.
    first, base = datetime(1, 1, 1, tzinfo=UTC), random.randrange(-(2**63), -(2**62))
    slow, second = (command(str(uuid.uuid4()), base + n) for n in range(2))
    await other.schedule_command(slow)
    got: dict[str, str] = {}

    async def claim(lease_duration: timedelta) -> dict[str, str]:
        claims = await other.claim_commands(first, lease_duration=lease_duration)
        return {claimed.command.data: claimed.lease_token for claimed in claims}

    async def handler(given: ScheduledCommand) -> None:
        assert given == slow
        await other.schedule_command(second)
        assert set(await claim(lease)) == {second.data}
        while second.data not in got:
            got.update(await claim(timedelta(hours=1)))
            await asyncio.sleep(0.02)

    failures: list[Exception] = []
    try:
        await provider.process_commands(first, handler, lease_duration=lease, batch_size=1)
    except ExceptionGroup as group:
        failures.extend(group.exceptions)
    await other.complete_commands(got.values())
    return {"slow" if data == slow.data else "second" for data in got}, failures


async def test_a_handler_longer_than_its_lease_keeps_its_command(
    target: str, other: PersistenceProvider
) -> None:
    async with provider_on(target) as provider:
        taken, failures = await taken_meanwhile(provider, other, timedelta(seconds=5))
    assert (taken, failures) == ({"second"}, [])


async def test_without_renewals_it_would_be_taken(
    target: str, other: PersistenceProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def too_old(*_args: Any, **_options: Any) -> None:
        raise Unimplemented("too old")

    monkeypatch.setattr(PersistenceProvider, "renew_commands", too_old)
    async with provider_on(target) as provider:
        taken, failures = await taken_meanwhile(provider, other, timedelta(seconds=2))
    assert taken == {"slow", "second"}
    assert [type(failure) for failure in failures] == [LeaseLost]
