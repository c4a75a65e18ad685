"""LifecycleService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

from wfe.persistence.v1 import lifecycle_pb2 as pb
from wfe_persistence import offload
from wfe_persistence.rpc import lasting
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check
from wfe_persistence.store import lifecycle


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
        after, heartbeat = check.watch(request)
        check.done()
        async for page in lasting.follow(
            call.env.feeds,
            call,
            after,
            heartbeat,
            response=pb.WatchResponse,
            items="events",
            item=_item(request),
        ):
            yield page


def _check_publish(request: pb.PublishRequest, check: Check) -> None:
    check.lifecycle_events("events", request.events)
    check.done()


def _item(request: pb.WatchRequest) -> Callable[[pb.LifecycleEvent, str], pb.WatchedEvent | None]:
    """What a watcher gets of an event, if it passes the filter."""
    workflow_id, definition_id = request.workflow_id, request.workflow_definition_id
    types = frozenset(request.types)

    def item(event: pb.LifecycleEvent, cursor: str) -> pb.WatchedEvent | None:
        passes = (
            (not workflow_id or event.workflow_id == workflow_id)
            and (not definition_id or event.workflow_definition_id == definition_id)
            and (not types or event.type in types)
        )
        return pb.WatchedEvent(event=event, cursor=cursor) if passes else None

    return item
