"""Watching through the adapter: it resumes by itself, where it was."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import grpc
import pytest

from tests.client.fake_store import Context, FakeStore, Step, answers, broken, fails
from wfe.persistence.v1 import lifecycle_pb2 as pb
from wfe_persistence_client import (
    CursorExpired,
    LifecycleEventType,
    PersistenceProvider,
    RetryPolicy,
    connect,
)


def response(*cursors: str, type_: int = 1) -> pb.WatchResponse:
    events = [
        pb.WatchedEvent(
            event=pb.LifecycleEvent(
                type=pb.LifecycleEventType.ValueType(type_), workflow_id=cursor
            ),
            cursor=cursor,
        )
        for cursor in cursors
    ]
    return pb.WatchResponse(events=events, cursor=cursors[-1])


def then_breaks(*responses: pb.WatchResponse) -> Step:
    async def step(request: Any, context: Context) -> Any:
        for each in responses:
            await context.write(each)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    return step


async def watched(provider: PersistenceProvider, count: int, **options: Any) -> list[str]:
    found: list[str] = []
    async with aclosing(provider.watch_lifecycle(**options)) as events:  # type: ignore[type-var]
        async for event in events:
            assert event.cursor == event.workflow_id
            found.append(event.cursor)
            if len(found) == count:
                return found
    raise AssertionError("it ended")


async def test_a_broken_stream_is_resumed_behind_the_last_response(store: FakeStore) -> None:
    heartbeat = pb.WatchResponse(cursor="h")
    store.on(
        "Watch",
        then_breaks(response("a", "b"), heartbeat),
        broken,
        answers([response("c")]),  # one that ends is resumed, too
        answers([response("d")]),
    )
    retry = RetryPolicy(initial_backoff=0.01)
    async with connect(store.target, retry=retry) as provider:
        assert await watched(provider, 4, after="z", workflow_id="w") == ["a", "b", "c", "d"]
    requests = store.requests["Watch"]
    assert [request.after for request in requests] == ["z", "h", "h", "c"]
    assert {request.workflow_id for request in requests} == {"w"}


async def test_an_expired_cursor_is_the_callers_to_handle(store: FakeStore) -> None:
    store.on(
        "Watch",
        fails(grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED", metadata={"oldest_cursor": "o"}),
    )
    async with connect(store.target) as provider:
        with pytest.raises(CursorExpired) as caught:
            await watched(provider, 1, after="z")
    assert caught.value.oldest_cursor == "o"
    assert store.count("Watch") == 1


async def test_a_type_that_is_newer_than_the_client_is_unknown(store: FakeStore) -> None:
    store.on("Watch", answers([response("a", type_=99)]))
    async with connect(store.target) as provider:
        events = provider.watch_lifecycle()
        assert (await anext(events)).type is LifecycleEventType.UNKNOWN
