"""EventService."""

from __future__ import annotations

import uuid

from wfe.persistence.v1.event_pb2 import (
    CreateEventRequest,
    CreateEventResponse,
    GetEventRequest,
    GetEventResponse,
    GetEventsRequest,
    GetEventsResponse,
    GetRunnableEventsRequest,
    GetRunnableEventsResponse,
    MarkEventProcessedRequest,
    MarkEventProcessedResponse,
    MarkEventUnprocessedRequest,
    MarkEventUnprocessedResponse,
)
from wfe_persistence.rpc import paging
from wfe_persistence.rpc.boundary import Call
from wfe_persistence.store import event
from wfe_persistence.store.paging import START


class EventService:
    """Events."""

    async def CreateEvent(self, request: CreateEventRequest, call: Call) -> CreateEventResponse:
        """Store a new event."""
        check = call.check
        if check.present(request, "event"):
            check.event(request.event, "event")
        check.done()
        request.event.id = request.event.id or str(uuid.uuid4())
        check.fits(
            call.size, call.max_message_bytes, lambda: [GetEventResponse(event=request.event)]
        )
        await event.create_event(call.store, request.event)
        return CreateEventResponse(id=request.event.id)

    async def GetEvent(self, request: GetEventRequest, call: Call) -> GetEventResponse:
        """Answer one event."""
        check = call.check
        check.id("", "id", request.id)
        check.done()
        return GetEventResponse(event=await event.get_event(call.store, request.id))

    async def GetRunnableEvents(
        self, request: GetRunnableEventsRequest, call: Call
    ) -> GetRunnableEventsResponse:
        """Answer the ids of events to be processed."""
        check = call.check
        check.time("", "as_at", request.as_at)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await event.get_runnable_events(
            call.store,
            request.as_at if request.HasField("as_at") else None,
            paging.decode(request, call.store, request.page_token, START),
            page_size,
        )
        return GetRunnableEventsResponse(
            event_ids=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def GetEvents(self, request: GetEventsRequest, call: Call) -> GetEventsResponse:
        """Answer the ids of a name's and key's events."""
        check = call.check
        check.id("", "event_name", request.event_name)
        check.key("", "event_key", request.event_key)
        check.time("", "as_of", request.as_of)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await event.get_events(
            call.store,
            request.event_name,
            request.event_key,
            request.as_of if request.HasField("as_of") else None,
            paging.decode(request, call.store, request.page_token, START),
            page_size,
        )
        return GetEventsResponse(
            event_ids=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def MarkEventProcessed(
        self, request: MarkEventProcessedRequest, call: Call
    ) -> MarkEventProcessedResponse:
        """Mark an event as processed."""
        check = call.check
        check.id("", "id", request.id)
        check.done()
        await event.mark_event_processed(call.store, request.id)
        return MarkEventProcessedResponse()

    async def MarkEventUnprocessed(
        self, request: MarkEventUnprocessedRequest, call: Call
    ) -> MarkEventUnprocessedResponse:
        """Mark an event as still to be processed."""
        check = call.check
        check.id("", "id", request.id)
        check.done()
        await event.mark_event_unprocessed(call.store, request.id)
        return MarkEventUnprocessedResponse()
