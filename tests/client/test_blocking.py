"""The blocking provider is the async one, for callers without an event loop.

The fake runs on the test's event loop, so the blocking calls are made in other
threads.
"""

import asyncio
import inspect
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, TypeVar

import grpc
import pytest

from tests.client.conftest import FAST
from tests.client.fake_store import FakeStore, answers, broken, fails, hangs
from tests.client.test_calls import CALLS, EVENT, NOW, Clock
from tests.client.test_process_commands import CommandTable
from wfe.persistence.v1 import event_pb2, store_pb2
from wfe_persistence_client import (
    BlockingPersistenceProvider,
    CommandName,
    CommitOutcomeUnknown,
    DeadlineExceeded,
    EventNotFound,
    PersistenceProvider,
    ScheduledCommand,
    Unavailable,
    command,
    connect,
    connect_blocking,
)

T = TypeVar("T")


@pytest.fixture
async def blocking(store: FakeStore) -> AsyncIterator[BlockingPersistenceProvider]:
    provider = await asyncio.to_thread(connect_blocking, store.target, timeout=10, retry=FAST)
    yield provider
    await asyncio.to_thread(provider.close)


def public(kind: type[Any]) -> dict[str, Callable[..., Any]]:
    return {
        name: member
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


ASYNC = public(PersistenceProvider)
#: Those that are more than a forward, with the parameters that differ.
OWN: dict[str, set[str]] = {
    "close": set(),
    "with_timeout": set(),
    "with_namespace": set(),
    "with_reads": set(),
    "process_commands": {"handler"},
    "step": set(),
    "lock": set(),
    "worker": {"handler"},
}


def test_every_method_has_its_blocking_form() -> None:
    assert set(public(BlockingPersistenceProvider)) == set(ASYNC)


@pytest.mark.parametrize("name", sorted(ASYNC))
def test_the_blocking_form_is_of_the_method_of_its_name(name: str) -> None:
    blocking = public(BlockingPersistenceProvider)[name]
    assert not inspect.iscoroutinefunction(blocking)
    if name in OWN:
        theirs = inspect.signature(ASYNC[name]).parameters
        ours = inspect.signature(blocking).parameters
        assert list(ours) == list(theirs)
        for parameter in set(ours) - OWN[name]:
            assert ours[parameter] == theirs[parameter]
    else:
        assert inspect.unwrap(blocking) is inspect.unwrap(ASYNC[name])
        assert blocking.__doc__ == ASYNC[name].__doc__
        streams = ("create_workflows", "create_events", "move_namespace")
        iterates = name in streams or name.startswith(("iter_", "watch_", "export_"))
        assert inspect.isgeneratorfunction(blocking) == iterates
        assert inspect.iscoroutinefunction(ASYNC[name]) != iterates


def test_connect_takes_the_same() -> None:
    assert inspect.unwrap(connect_blocking) is inspect.unwrap(connect)


@pytest.mark.parametrize("rpc", sorted(CALLS))
async def test_every_call(store: FakeStore, blocking: Any, rpc: str) -> None:
    call, good = CALLS[rpc]
    store.on(rpc, answers(good))
    # The calls of the async tests serve as they are: they only name the method.
    await asyncio.to_thread(call, blocking)
    assert store.count(rpc) == 1


async def test_errors_and_retries(store: FakeStore, blocking: BlockingPersistenceProvider) -> None:
    store.on("CreateEvent", broken, answers(event_pb2.CreateEventResponse(id="e")))
    assert await asyncio.to_thread(blocking.create_event, EVENT) == "e"
    assert store.count("CreateEvent") == 2
    store.on("GetEvent", fails(grpc.StatusCode.NOT_FOUND, "EVENT_NOT_FOUND"))
    with pytest.raises(EventNotFound):
        await asyncio.to_thread(blocking.get_event, "e")


async def test_copies(store: FakeStore, blocking: BlockingPersistenceProvider) -> None:
    store.on("GetEvent", hangs())
    with pytest.raises(DeadlineExceeded):
        await asyncio.to_thread(blocking.with_timeout(0.05).get_event, "e")
    store.on("GetStoreInfo", answers(store_pb2.GetStoreInfoResponse()))
    await asyncio.to_thread(blocking.with_namespace("other").get_store_info)
    assert store.metadata["wfe-namespace"] == "other"


async def test_iterators_read_pages_as_they_are_wanted(
    store: FakeStore, blocking: BlockingPersistenceProvider
) -> None:
    first = event_pb2.GetEventsResponse(event_ids=["a", "b"], next_page_token="2")
    last = event_pb2.GetEventsResponse(event_ids=["c"])

    def read() -> None:
        store.on("GetEvents", answers(first), answers(last))
        events = blocking.iter_events("n", "k")
        assert [next(events), next(events)] == ["a", "b"]
        assert store.count("GetEvents") == 1
        assert list(events) == ["c"]
        assert store.count("GetEvents") == 2
        # One that is not read to its end leaves nothing behind.
        store.on("GetEvents", answers(first), answers(last))
        for event in blocking.iter_events("n", "k"):
            assert event == "a"
            break

    await asyncio.to_thread(read)


async def test_many_threads(store: FakeStore, blocking: BlockingPersistenceProvider) -> None:
    async def step(request: Any, context: Any) -> Any:
        return event_pb2.CreateEventResponse(id=request.event.id)

    store.on("CreateEvent", step)

    def work() -> list[str]:
        return [blocking.create_event(EVENT) for _ in range(10)]

    ids = await asyncio.gather(*(asyncio.to_thread(work) for _ in range(5)))
    assert len({event_id for some in ids for event_id in some}) == 50


# Ending


async def test_closing_ends_what_other_threads_wait_for(
    store: FakeStore, blocking: BlockingPersistenceProvider
) -> None:
    store.on("GetEvent", hangs())
    store.on("CreateEvent", hangs())
    read = asyncio.create_task(asyncio.to_thread(blocking.get_event, "e"))
    write = asyncio.create_task(asyncio.to_thread(blocking.create_event, EVENT))
    await store.called("GetEvent", "CreateEvent")
    await asyncio.to_thread(blocking.close)
    with pytest.raises(Unavailable):
        await read
    with pytest.raises(CommitOutcomeUnknown):
        await write


async def test_closing_ends_its_thread_and_may_be_repeated(store: FakeStore) -> None:
    def work() -> None:
        before = set(threading.enumerate())
        with connect_blocking(store.target) as provider:
            names = {thread.name for thread in set(threading.enumerate()) - before}
            assert "wfe-persistence-client" in names
        assert "wfe-persistence-client" not in {
            thread.name for thread in set(threading.enumerate()) - before
        }
        provider.close()
        with pytest.raises(RuntimeError, match="closed"):
            provider.get_event("e")
        with pytest.raises(RuntimeError, match="closed"):
            next(provider.iter_events("n", "k"))
        with pytest.raises(RuntimeError, match="closed"):
            provider.process_commands(NOW, print)

    await asyncio.to_thread(work)


def test_a_bad_argument_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="timeout"):
        connect_blocking("localhost:1", timeout=0)
    assert set(threading.enumerate()) <= before


async def test_an_interrupt_while_waiting_abandons_the_call(
    store: FakeStore, blocking: BlockingPersistenceProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = asyncio.Event()

    async def step(request: Any, context: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    store.on("GetEvent", step)
    thread = blocking._thread
    start = thread._start

    def interrupted(work: Any) -> Any:
        running = start(work)

        def result() -> None:
            while not store.count("GetEvent"):
                pass
            raise KeyboardInterrupt

        monkeypatch.setattr(running, "result", result)
        return running

    monkeypatch.setattr(thread, "_start", interrupted)

    def work() -> None:
        with pytest.raises(KeyboardInterrupt):
            blocking.get_event("e")

    await asyncio.to_thread(work)
    async with asyncio.timeout(5):
        await cancelled.wait()
    monkeypatch.undo()


def test_a_program_may_end_without_closing() -> None:
    program = (
        "from wfe_persistence_client import *\n"
        "p = connect_blocking('127.0.0.1:1', retry=RetryPolicy(max_attempts=1))\n"
        "try: p.get_event('e')\n"
        "except Unavailable: print('unavailable')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "unavailable\n"
    assert "Traceback" not in done.stderr


# Commands


@pytest.fixture
def table(store: FakeStore) -> CommandTable:
    table = CommandTable(Clock())
    table.install(store)
    return table


async def test_plain_handlers_run_in_the_calling_thread(
    table: CommandTable, blocking: BlockingPersistenceProvider
) -> None:
    table.add("a", "bad", "stop", "b")
    handled: list[str] = []

    def work() -> None:
        caller = threading.get_ident()

        def handler(given: ScheduledCommand) -> None:
            assert threading.get_ident() == caller
            handled.append(given.data)
            # The provider is free for the handler's own calls.
            blocking.schedule_command(
                ScheduledCommand(
                    command_name=given.command_name, data=f"{given.data}+", execute_time=2**62
                )
            )
            if given.data == "bad":
                raise LookupError(given.data)
            if given.data == "stop":
                raise StopIteration

        with pytest.raises(ExceptionGroup) as caught:
            blocking.process_commands(NOW, handler, batch_size=2)
        assert isinstance(caught.value.exceptions[0], LookupError)
        assert len(caught.value.exceptions) == 2

    await asyncio.to_thread(work)
    assert handled == ["a", "bad", "stop", "b"]
    assert set(table.rows) == {"bad", "stop", "a+", "bad+", "stop+", "b+"}
    assert table.held() == set()


async def test_process_commands_answers_how_many(
    table: CommandTable, blocking: BlockingPersistenceProvider, store: FakeStore
) -> None:
    table.add("a", "b")
    seen: list[ScheduledCommand] = []

    def work() -> int:
        return blocking.process_commands(
            NOW,
            seen.append,
            worker_id="me",
            command_name=CommandName.PROCESS_WORKFLOW,
            batch_size=3,
            lease_duration=timedelta(seconds=9),
        )

    assert await asyncio.to_thread(work) == 2
    assert [given.data for given in seen] == ["a", "b"]
    request = store.requests["ClaimCommands"][0]
    assert (request.worker_id, request.limit, request.lease_duration.seconds) == ("me", 3, 9)
    assert request.command_name == CommandName.PROCESS_WORKFLOW.value


async def test_a_claim_is_renewed_while_a_plain_handler_blocks(
    table: CommandTable,
    blocking: BlockingPersistenceProvider,
    store: FakeStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "_RENEWALS", 100_000)
    table.add("a")

    def handler(given: ScheduledCommand) -> None:
        while store.count("RenewCommands") < 2:
            time.sleep(0.001)

    def work() -> int:
        return blocking.process_commands(NOW, handler, lease_duration=timedelta(hours=1))

    assert await asyncio.to_thread(work) == 1


async def test_an_interrupt_in_a_handler_ends_it_all(
    table: CommandTable, blocking: BlockingPersistenceProvider
) -> None:
    table.add("a", "b")
    handled: list[str] = []

    def work() -> None:
        def handler(given: ScheduledCommand) -> None:
            handled.append(given.data)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            blocking.process_commands(NOW, handler)

    await asyncio.to_thread(work)
    assert handled == ["a"]
    assert set(table.rows) == table.held() == {"a", "b"}
