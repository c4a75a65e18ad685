"""create_workflows and create_events: any number, in order, each with its own outcome, and resumed
by themselves."""

from __future__ import annotations

import asyncio
import importlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from tests.client.conftest import FAST
from tests.client.fake_store import FakeStore, Forwarder, answers, fails, hangs
from tests.support import make
from tests.support.expect import eventually
from wfe.persistence.v1 import event_pb2, item_error_pb2
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence_client import (
    BulkResult,
    DeadlineExceeded,
    Event,
    EventAlreadyExists,
    InvalidArgument,
    NameTaken,
    PersistenceError,
    PersistenceProvider,
    QueueItem,
    TooLarge,
    WorkflowAlreadyExists,
    WorkflowInstance,
    WorkflowStatus,
    connect,
    connect_blocking,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def workflow(**fields: Any) -> WorkflowInstance:
    given: dict[str, Any] = {
        "id": make.new_id("workflow"),
        "workflow_definition_id": "d",
        "version": 1,
        "data": {},
        "status": WorkflowStatus.SUSPENDED,
    }
    return WorkflowInstance(**given | fields)


def event(**fields: Any) -> Event:
    given: dict[str, Any] = {
        "id": make.new_id("event"), "event_name": "n", "event_key": "k", "event_data": 1,
        "event_time": NOW, "is_processed": True,
    }  # fmt: skip
    return Event(**given | fields)


async def all_of(results: AsyncIterator[BulkResult[Any]]) -> list[BulkResult[Any]]:
    return [result async for result in results]


@pytest.fixture
async def real(target: str) -> AsyncIterator[PersistenceProvider]:
    async with connect(target, retry=FAST) as provider:
        yield provider


async def test_many_are_created_and_told_in_order(real: PersistenceProvider) -> None:
    given = [workflow() for _ in range(1203)]
    results = await all_of(real.create_workflows(given))
    assert [result.item for result in results] == given
    assert [result.error for result in results] == [None] * len(given)
    assert [result.id for result in results] == [each.id for each in given]
    assert {each.name for each in given} == {each.id for each in given}
    found = await real.get_workflow_instances([each.id for each in given[::100]])
    assert [each.revision for each in found] == [each.revision for each in given[::100]]
    events = [event() for _ in range(1203)]
    created = await all_of(real.create_events(events))
    assert [result.id for result in created] == [each.id for each in events]
    assert await real.get_event(events[-1].id) == events[-1]


async def test_one_that_is_refused_has_the_error_of_a_single_create(
    real: PersistenceProvider,
) -> None:
    taken = workflow()
    await real.create_new_workflow(taken)
    bad = [
        workflow(id=taken.id, workflow_definition_id="other"),
        workflow(name=taken.name),
        workflow(reference="x" * 513),
    ]
    given = [workflow(), *bad, workflow()]
    results = await all_of(real.create_workflows(given))
    assert [type(result.error) for result in results] == [
        type(None), WorkflowAlreadyExists, NameTaken, InvalidArgument, type(None),
    ]  # fmt: skip
    for one, result in zip(bad, results[1:4], strict=True):
        with pytest.raises(PersistenceError) as caught:
            await real.create_new_workflow(one)
        told = result.error
        assert told is not None
        assert not told.maybe_written
        assert (told.reason, told.status, told.metadata, told.violations, str(told)) == (
            caught.value.reason,
            caught.value.status,
            caught.value.metadata,
            caught.value.violations,
            str(caught.value),
        )
    there = event()
    await real.create_event(there)
    [refused] = await all_of(real.create_events([event(id=there.id, event_key="other")]))
    assert isinstance(refused.error, EventAlreadyExists)


async def test_items_are_enqueued_with_each(real: PersistenceProvider) -> None:
    queue = make.queue()
    given = [workflow() for _ in range(3)]
    await all_of(real.create_workflows(given, enqueue=[QueueItem(queue=queue, id="")]))
    items = await real.list_queue_items(queue)
    assert [listed.item.id for listed in items] == [each.id for each in given]


async def test_ids_are_chosen(real: PersistenceProvider) -> None:
    given = [workflow(id=""), workflow(id="")]
    results = await all_of(real.create_workflows(given))
    assert [each.id for each in given] == [result.id for result in results]
    assert len({*results[0].id, *results[1].id}) > 1
    [created] = await all_of(real.create_events([event(id="")]))
    assert (await real.get_event(created.id)).event_name == "n"


async def test_none_at_all(real: PersistenceProvider) -> None:
    assert await all_of(real.create_workflows([])) == []
    assert await all_of(real.create_events(iter(()))) == []


async def test_what_is_made_meanwhile_is_sent_soon_and_read_no_further_ahead_than_needed(
    real: PersistenceProvider,
) -> None:
    made: list[Event] = []
    go_on = asyncio.Event()

    async def source() -> AsyncIterator[Event]:
        for _ in range(3):
            made.append(event())
            yield made[-1]
        await go_on.wait()
        made.append(event())
        yield made[-1]

    async with asyncio.timeout(30), aclosing(real.create_events(source())) as results:  # type: ignore[type-var]
        told = [await anext(results) for _ in range(3)]
        assert [result.item for result in told] == made
        go_on.set()
        assert (await anext(results)).item is made[3]
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    def endless() -> Iterator[Event]:
        while True:
            made.append(event())
            yield made[-1]

    made.clear()
    async with aclosing(real.create_events(endless())) as results:  # type: ignore[type-var]
        for n in range(10):
            assert (await anext(results)).item is made[n]
        await asyncio.sleep(0.3)
        assert len(made) <= 4 * 500


async def test_a_stream_that_is_idle_is_given_back_and_opened_anew(
    real: PersistenceProvider,
) -> None:
    async def source() -> AsyncIterator[Event]:
        yield event()
        await asyncio.sleep(1.5)
        yield event()

    async with asyncio.timeout(30):
        results = await all_of(real.create_events(source()))
    assert [result.error for result in results] == [None, None]


async def test_an_error_of_the_source_comes_after_all_before_it(
    real: PersistenceProvider,
) -> None:
    first = event()

    def breaks() -> Iterator[Event]:
        yield first
        raise KeyError("source")

    for source, error, text in (
        (breaks(), KeyError, "source"),
        ([event(), 5], TypeError, r"events\[1\]: expected Event, not int"),
        ([event(), event(event_data=float("nan"))], ValueError, r"events\[1\]\.event_data"),
        ([event(), event(event_key=5)], TypeError, r"events\[1\]\.event_key"),
    ):
        told: list[BulkResult[Event]] = []
        results: Any = real.create_events(source)  # type: ignore[arg-type]
        with pytest.raises(error, match=text):  # noqa: PT012
            async for result in results:
                told.append(result)
        assert len(told) == 1
        assert (await real.get_event(told[0].id)).event_name == "n"


async def test_a_blocking_provider_has_them_too(target: str) -> None:
    def create() -> None:
        given = [workflow() for _ in range(3)]
        with connect_blocking(target) as provider:
            results = list(provider.create_workflows(given))
            assert [result.id for result in results] == [each.id for each in given]
            assert [r.error for r in provider.create_events(iter([event()]))] == [None]

    await asyncio.to_thread(create)


# A server that fails.


def created(*ids: str) -> list[event_pb2.CreateEventsResponse]:
    results = [
        event_pb2.CreateEventsResult(created=event_pb2.CreateEventResponse(id=id_)) for id_ in ids
    ]
    return [event_pb2.CreateEventsResponse(results=results)]


async def test_what_has_no_answer_is_sent_again_the_same_when_the_connection_breaks(
    store: FakeStore,
) -> None:
    forwarder = Forwarder(store)
    target = await forwarder.start()

    async def cut(request: Any, _context: Any) -> Any:
        forwarder.cut()
        await asyncio.sleep(0.05)
        return created("x")

    store.on("CreateEvents", cut, answers(created("x")))
    async with connect(target, retry=FAST) as provider:
        [result] = await all_of(provider.create_events([event(id="")]))
    assert result.error is None
    first, second = store.requests["CreateEvents"]
    assert first == second
    assert first.events[0].event.id
    await forwarder.stop()


async def test_an_item_that_may_be_tried_again_is_created_alone(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    busy = item_error_pb2.ItemError(
        code=grpc.StatusCode.ABORTED.value[0],
        reason=ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        message="busy",
    )
    busy.retry_delay.FromMilliseconds(1)
    results = [event_pb2.CreateEventsResult(error=busy)]
    store.on("CreateEvents", answers([event_pb2.CreateEventsResponse(results=results)]))
    store.on("CreateEvent", answers(event_pb2.CreateEventResponse(id="e")))
    [result] = await all_of(provider.create_events([event(id="e")]))
    assert (result.id, result.error) == ("e", None)
    assert store.requests["CreateEvent"] == list(store.requests["CreateEvents"][0].events)


async def test_batches_are_halved_for_a_server_with_a_lower_limit(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    async def step(request: Any, context: Any) -> Any:
        ids = [each.event.id for each in request.events]
        if len(ids) > 2 or "large" in ids:
            refuse = fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
            return await refuse(request, context)
        return created(*ids)

    store.on("CreateEvents", step)
    ids = [*"abcdefg", "large", *"hi"]
    results = await all_of(provider.create_events([event(id=id_) for id_ in ids]))
    assert [result.item.id for result in results] == ids
    assert [type(result.error) for result in results] == [
        TooLarge if id_ == "large" else type(None) for id_ in ids
    ]


async def test_why_a_batch_was_refused_is_learned_although_more_was_being_sent(
    store: FakeStore, provider: PersistenceProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC does not tell it then: it says only that what was being sent was not."""
    calls: Any = importlib.import_module("grpc.aio._call")
    write = calls.StreamStreamCall.write
    sent: Counter[int] = Counter()

    async def fails_behind_the_first(stream: Any, request: Any) -> None:
        sent[id(stream)] += 1
        if sent[id(stream)] > 1:
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.INTERNAL, nothing, nothing, "Internal error from Core"
            )
        await write(stream, request)

    monkeypatch.setattr(calls.StreamStreamCall, "write", fails_behind_the_first)

    async def step(request: Any, context: Any) -> Any:
        if len(request.events) > 1:
            refuse = fails(grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
            return await refuse(request, context)
        return created(*(each.event.id for each in request.events))

    store.on("CreateEvents", step)
    ids = [str(number) for number in range(8)]
    results = await all_of(provider.create_events([event(id=id_) for id_ in ids]))
    assert [(result.item.id, result.error) for result in results] == [(id_, None) for id_ in ids]
    assert max(sent.values()) > 1, "nothing was sent ahead"


async def test_a_server_that_does_not_answer_is_not_waited_for_beyond_the_timeout(
    store: FakeStore,
) -> None:
    store.on("CreateEvents", hangs())
    async with connect(store.target, timeout=0.3, retry=FAST) as provider:
        with pytest.raises(DeadlineExceeded) as caught:
            await all_of(provider.create_events([event()]))
    assert caught.value.maybe_written


async def test_leaving_early_ends_the_stream(store: FakeStore) -> None:
    ended = asyncio.Event()

    async def waits(_request: Any, context: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    store.on("CreateEvents", waits)
    async with connect(store.target, retry=FAST) as provider:
        reading = asyncio.ensure_future(all_of(provider.create_events([event()])))
        await store.called("CreateEvents")
        reading.cancel()

        async def has_ended() -> bool:
            return ended.is_set()

        await eventually(has_ended)
