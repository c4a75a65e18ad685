"""LifecycleService: events in the order of their commits, none left out, resumable."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails, failure_of, invalid
from wfe.persistence.v1.lifecycle_pb2 import (
    LifecycleEvent,
    LifecycleEventType,
    WatchedEvent,
    WatchRequest,
    WatchResponse,
)

TYPES = [type_ for type_ in LifecycleEventType.values() if type_]
SECOND = Duration(seconds=1)


async def take(responses: AsyncIterator[WatchResponse], count: int) -> list[WatchedEvent]:
    """The next events of a stream."""
    found: list[WatchedEvent] = []
    async with asyncio.timeout(30):
        while len(found) < count:
            found += (await anext(responses)).events
    assert len(found) == count
    return found


def events(watched: list[WatchedEvent]) -> list[LifecycleEvent]:
    return [each.event for each in watched]


@pytest.mark.parametrize("type_", TYPES, ids=LifecycleEventType.Name)
async def test_every_type_and_every_field_come_as_they_were_published(
    api: Api, type_: LifecycleEventType.ValueType
) -> None:
    full = make.lifecycle_event(type=type_)
    least = LifecycleEvent(
        type=type_,
        workflow_id=full.workflow_id,
        workflow_definition_id="d",
        event_time=make.time(),
    )
    zeros = make.lifecycle_event(
        type=type_, workflow_id=full.workflow_id, step_id=0, step_name="", message="", reference=""
    )
    async with api.watch(workflow_id=full.workflow_id) as responses:
        await anext(responses)
        await api.publish(full, least, zeros)
        assert events(await take(responses, 3)) == [full, least, zeros]


async def test_publishing_nothing_is_fine(api: Api) -> None:
    await api.publish()


async def test_at_most_1000_events_all_or_none_in_their_order(api: Api) -> None:
    id_ = make.new_id("workflow")
    many = [make.lifecycle_event(workflow_id=id_, step_id=n) for n in range(1001)]
    cursor = await api.cursor()
    with invalid("events", reason="NUMBER_RANGE"):
        await api.publish(*many)
    bad = make.lifecycle_event(workflow_id=id_, workflow_definition_id="")
    with invalid("events[1].workflow_definition_id", reason="REQUIRED"):
        await api.publish(many[0], bad)
    assert await api.published_since(cursor, [id_]) == []
    await api.publish(*many[:1000])
    assert events(await api.published_since(cursor, [id_])) == many[:1000]


async def test_publishing_again_publishes_again(api: Api) -> None:
    event = make.lifecycle_event()
    cursor = await api.cursor()
    for _ in range(2):
        await api.publish(event)
    found = await api.published_since(cursor, [event.workflow_id])
    assert events(found) == [event, event]
    assert found[0].cursor != found[1].cursor


async def test_first_response_comes_at_once_with_the_cursor_of_the_start(api: Api) -> None:
    async with asyncio.timeout(5), api.watch(heartbeat=Duration(seconds=60)) as responses:
        first = await anext(responses)
    assert not first.events
    event = make.lifecycle_event()
    await api.publish(event)
    assert events(await api.published_since(first.cursor, [event.workflow_id])) == [event]


async def test_every_cursor_resumes_behind_its_event(api: Api) -> None:
    id_ = make.new_id("workflow")
    published = [make.lifecycle_event(workflow_id=id_, step_id=n) for n in range(6)]
    cursor = await api.cursor()
    await api.publish(*published[:3])
    for event in published[3:]:
        await api.publish(event)
    found = await api.published_since(cursor, [id_])
    for n, each in enumerate(found, 1):
        rest = await api.published_since(each.cursor, [id_])
        assert events(rest) == published[n:]
        assert rest == found[n:], "a cursor changes from one stream to the other"


async def test_the_cursor_of_a_response_is_behind_all_its_events(api: Api) -> None:
    id_ = make.new_id("workflow")
    async with api.watch(workflow_id=id_) as responses:
        await anext(responses)
        await api.publish(*(make.lifecycle_event(workflow_id=id_) for _ in range(3)))
        seen = 0
        while seen < 3:
            response = await anext(responses)
            seen += len(response.events)
    rest = await api.published_since(response.cursor, [id_])
    assert len(rest) == 3 - seen == 0


async def test_filters_by_workflow_definition_and_type(api: Api) -> None:
    started = LifecycleEventType.LIFECYCLE_EVENT_TYPE_STARTED
    error = LifecycleEventType.LIFECYCLE_EVENT_TYPE_ERROR
    suspended = LifecycleEventType.LIFECYCLE_EVENT_TYPE_SUSPENDED
    d, e = make.new_id("definition"), make.new_id("definition")
    w, x = make.new_id("workflow"), make.new_id("workflow")
    published = [
        make.lifecycle_event(workflow_definition_id=d, workflow_id=w, type=started),
        make.lifecycle_event(workflow_definition_id=d, workflow_id=w, type=error),
        make.lifecycle_event(workflow_definition_id=d, workflow_id=x, type=suspended),
        make.lifecycle_event(workflow_definition_id=e, workflow_id=w, type=started),
    ]
    cursor = await api.cursor()
    await api.publish(*published)
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"workflow_id": w}, [0, 1, 3]),
        ({"workflow_definition_id": d}, [0, 1, 2]),
        ({"workflow_definition_id": d, "types": [started, suspended]}, [0, 2]),
        ({"workflow_id": w, "workflow_definition_id": d, "types": [error]}, [1]),
    ]
    for fields, expected in cases:
        async with api.watch(after=cursor, **fields) as responses:
            found = events(await take(responses, len(expected)))
        assert found == [published[n] for n in expected]


async def test_a_cursor_is_valid_with_another_filter(api: Api) -> None:
    one, other = make.lifecycle_event(), make.lifecycle_event()
    async with api.watch(workflow_id=one.workflow_id) as responses:
        await anext(responses)
        await api.publish(one)
        [found] = await take(responses, 1)
    await api.publish(other)
    async with api.watch(workflow_id=other.workflow_id, after=found.cursor) as responses:
        assert events(await take(responses, 1)) == [other]


async def test_heartbeats_come_with_a_cursor_beyond_what_the_filter_leaves_out(api: Api) -> None:
    other = make.lifecycle_event()
    async with asyncio.timeout(30), api.watch(workflow_id="nobody", heartbeat=SECOND) as responses:
        cursor = (await anext(responses)).cursor
        await api.publish(other)
        assert events(await api.published_since(cursor, [other.workflow_id])) == [other]
        while await api.published_since(cursor, [other.workflow_id]):
            heartbeat = await anext(responses)
            assert not heartbeat.events
            cursor = heartbeat.cursor


async def test_a_silent_stream_has_its_heartbeat_and_no_sooner(api: Api) -> None:
    loop = asyncio.get_running_loop()
    async with api.watch(workflow_id="nobody", heartbeat=SECOND) as responses:
        await anext(responses)
        began = loop.time()
        for _ in range(2):
            await anext(responses)
        assert loop.time() - began > 1.8


async def test_watchers_that_come_and_go_all_get_everything(api: Api) -> None:
    id_ = make.new_id("workflow")
    published = [make.lifecycle_event(workflow_id=id_, step_id=n) for n in range(200)]
    cursor = await api.cursor()

    async def publish() -> None:
        for event in published:
            await api.publish(event)

    async def follow(stop: int) -> list[LifecycleEvent]:
        """Resumes after every few events."""
        found: list[WatchedEvent] = []
        at = cursor
        while len(found) < len(published):
            async with api.watch(workflow_id=id_, after=at) as responses:
                fresh = 0
                while fresh < stop and len(found) < len(published):
                    response = await anext(responses)
                    fresh += len(response.events)
                    found += response.events
                    at = response.cursor
        return events(found)

    async with asyncio.timeout(60):
        _, *all_found = await asyncio.gather(publish(), *map(follow, (7, 50, 1000)))
    for found in all_found:
        assert found == published


async def test_a_cursor_of_another_namespace_has_expired(api: Api) -> None:
    cursor = await api.cursor()
    foreign = ("B" if cursor[0] == "A" else "A") + cursor[1:]
    failure = await failure_of(_first(api, after=foreign))
    assert failure is not None
    assert failure.code == grpc.StatusCode.OUT_OF_RANGE
    assert failure.reason == "CURSOR_EXPIRED"
    oldest = failure.metadata["oldest_cursor"]
    event = make.lifecycle_event()
    await api.publish(event)
    assert events(await api.published_since(oldest, [event.workflow_id])) == [event]


async def test_a_cursor_of_the_future_has_expired(api: Api) -> None:
    """As after a restore: what comes now would be left out."""
    cursor = await api.cursor()
    raw = bytearray(base64.urlsafe_b64decode(cursor + "="))
    raw[16] = 0x7F
    future = base64.urlsafe_b64encode(raw).decode().rstrip("=")
    with fails("OUT_OF_RANGE", "CURSOR_EXPIRED"):
        await _first(api, after=future)


async def _first(api: Api, after: str) -> WatchResponse:
    async with api.watch(after=after) as responses:
        return await anext(responses)


async def test_a_deadline_ends_a_stream(api: Api) -> None:
    call = api.lifecycle.Watch(WatchRequest(workflow_id="nobody", heartbeat=SECOND), timeout=1.5)
    failure = await failure_of(_read_all(call))
    assert failure is not None
    assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await api.get_store_info()).capabilities.lifecycle


async def _read_all(call: AsyncIterable[WatchResponse]) -> None:
    async for _ in call:
        pass
