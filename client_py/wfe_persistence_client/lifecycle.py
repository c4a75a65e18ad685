"""Operations on lifecycle events: publish and watch what happens to workflows."""

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from datetime import timedelta

from wfe.persistence.v1 import lifecycle_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.calls import DEFAULT_HEARTBEAT
from wfe_persistence_client.connection import Connection
from wfe_persistence_client.misfit import build
from wfe_persistence_client.model import LifecycleEvent, LifecycleEventType


class Lifecycle(Connection):
    """The operations on lifecycle events."""

    async def publish(self, events: Iterable[LifecycleEvent]) -> None:
        """Publishes up to 1000 events, all or none, in their order.

        After a lost response it is repeated, and the events are published again: those
        who watch must expect events twice.
        """
        await self._calls.unary(
            self._lifecycle.Publish,
            lifecycle_pb2.PublishRequest(
                events=convert.lifecycle_events_to_proto("events", events)
            ),
        )

    def watch_lifecycle(
        self,
        *,
        after: str = "",
        workflow_id: str = "",
        workflow_definition_id: str = "",
        types: Iterable[LifecycleEventType] = (),
        heartbeat: timedelta = DEFAULT_HEARTBEAT,
    ) -> AsyncIterator[LifecycleEvent]:
        """Yields events as they are published, in the order of their commits, without end.

        None is left out, and each comes at least once. When the connection breaks, or the
        server stops, the stream is resumed where it was; `timeout` applies to each
        resumption. To resume after a restart of your own, keep the `cursor` of the last
        event that was handled, and pass it as `after`:

            async for event in provider.watch_lifecycle(after=cursor):
                ...
                cursor = event.cursor

        A server that is silent for two heartbeats counts as lost.

        Args:
            after: the cursor of an event: start behind it; empty: from now.
            workflow_id: only events of this workflow; empty: of any.
            workflow_definition_id: only events of this definition; empty: of any.
            types: only events of these types; none: of any.
            heartbeat: how often the server says at least that it is there, and how far it
                has looked; 1 s to 60 s.

        Raises:
            CursorExpired: events after the cursor were deleted, or it is from before a
                restore.
        """
        request = build(
            lifecycle_pb2.WatchRequest,
            after=after,
            workflow_id=workflow_id,
            workflow_definition_id=workflow_definition_id,
            types=[convert.lifecycle_event_type_to_proto(type_) for type_ in types],
            heartbeat=convert.duration(heartbeat),
        )
        return self._watched(request, heartbeat)

    async def _watched(
        self, request: lifecycle_pb2.WatchRequest, heartbeat: timedelta
    ) -> AsyncIterator[LifecycleEvent]:
        responses = self._calls.watch(self._lifecycle.Watch, request, heartbeat)
        async with aclosing(responses):
            async for response in responses:
                for watched in response.events:
                    yield convert.watched_event_from_proto(watched)
