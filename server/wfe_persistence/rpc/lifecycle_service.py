"""LifecycleService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from wfe.persistence.v1 import lifecycle_pb2 as pb
from wfe.persistence.v1.error_reason_pb2 import FieldViolationReason
from wfe_persistence import offload
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check
from wfe_persistence.store import lifecycle
from wfe_persistence.store.lifecycle import Cursor, Entry
from wfe_persistence.store.lifecycle_feed import Feed

# A response is sent before it becomes larger than this, by one event at most.
_RESPONSE_BYTES = 262_144


class LifecycleService:
    """What happens to workflows."""

    async def Publish(self, request: pb.PublishRequest, call: Call) -> pb.PublishResponse:
        """Publish events."""
        await offload.run(_check_publish, request, call.check)
        await lifecycle.publish(call.store, request.events)
        if request.events:
            call.env.feeds.published(call.store)
        return pb.PublishResponse()

    async def Watch(
        self, request: pb.WatchRequest, call: Call
    ) -> AsyncIterator[Iterable[pb.WatchResponse]]:
        """Send events as they come."""
        check = call.check
        heartbeat = check.watch(request)
        after = Cursor.parse(request.after) if request.after else None
        if request.after and after is None:
            check.add(
                "",
                "after",
                FieldViolationReason.FIELD_VIOLATION_REASON_FORMAT,
                "is not a cursor of Watch",
            )
        check.done()
        passes = _filter(request)
        loop = asyncio.get_running_loop()
        with call.env.feeds.follow(call.store) as feed:
            position = await feed.start(after)
            yield [pb.WatchResponse(cursor=feed.cursor(position))]
            sent = loop.time()
            while True:
                entries, position = await feed.read(position, sent + heartbeat - loop.time())
                for response in _responses(filter(passes, entries), feed):
                    yield [response]
                    sent = loop.time()
                if loop.time() >= sent + heartbeat:
                    yield [pb.WatchResponse(cursor=feed.cursor(position))]
                    sent = loop.time()
                if entries:
                    await asyncio.sleep(0)  # others come in between, however far behind this one is


def _check_publish(request: pb.PublishRequest, check: Check) -> None:
    check.lifecycle_events("events", request.events)
    check.done()


def _filter(request: pb.WatchRequest) -> Callable[[Entry], bool]:
    workflow_id, definition_id = request.workflow_id, request.workflow_definition_id
    types = frozenset(request.types)

    def passes(entry: Entry) -> bool:
        event = entry.event
        return (
            (not workflow_id or event.workflow_id == workflow_id)
            and (not definition_id or event.workflow_definition_id == definition_id)
            and (not types or event.type in types)
        )

    return passes


def _responses(entries: Iterable[Entry], feed: Feed) -> Iterator[pb.WatchResponse]:
    response = pb.WatchResponse()
    size = 0
    for position, event in entries:
        cursor = feed.cursor(position)
        response.events.add(event=event, cursor=cursor)
        response.cursor = cursor
        size += event.ByteSize()
        if size >= _RESPONSE_BYTES:
            yield response
            response, size = pb.WatchResponse(), 0
    if response.events:
        yield response
