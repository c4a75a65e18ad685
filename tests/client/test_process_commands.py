"""claim → handle → complete, over a table of commands as the store keeps it."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import pytest

from tests.client.fake_store import UNAVAILABLE, FakeStore, Step, broken, fails
from tests.client.test_calls import NOW, Clock
from wfe.persistence.v1 import command_pb2
from wfe_persistence_client import (
    CommandName,
    LeaseLost,
    PersistenceProvider,
    ScheduledCommand,
    Unavailable,
    calls,
    convert,
)

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
            given = request.lease_duration
            seconds = given.seconds + given.nanos / 1e9
            row.lease_end = self.clock.monotonic() + (seconds or 30)
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

    async def _by_token(self, request: Any, context: Any) -> list[str]:
        by_token = {row.token: name for name, row in self.rows.items()}
        lost = [token for token in request.lease_tokens if token not in by_token]
        if lost:
            metadata = {"lease_tokens": ",".join(lost)}
            step = fails(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST", metadata=metadata)
            await step(request, context)
        return [by_token[token] for token in request.lease_tokens]


def command(name: str, execute_time: int = 0) -> ScheduledCommand:
    return ScheduledCommand(
        command_name=CommandName.PROCESS_WORKFLOW, data=name, execute_time=execute_time
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(calls, "time", clock)
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
        NOW, handler, batch_size=2, worker_id="me", lease_duration=timedelta(seconds=9)
    )
    assert completed == 3
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
