"""EventService."""

from __future__ import annotations

import uuid

from wfe.persistence.v1.event_pb2 import (
    CreateEventRequest,
    CreateEventResponse,
    Event,
    GetEventRequest,
    GetEventResponse,
    GetEventsRequest,
    GetEventsResponse,
    GetRunnableEventsRequest,
    GetRunnableEventsResponse,
    ListEventsRequest,
    ListEventsResponse,
    MarkEventProcessedRequest,
    MarkEventProcessedResponse,
    MarkEventUnprocessedRequest,
    MarkEventUnprocessedResponse,
    PurgeEventsRequest,
    PurgeEventsResponse,
)
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe_persistence.rpc import paging
from wfe_persistence.rpc.boundary import Call
from wfe_persistence.rpc.check import R
from wfe_persistence.store import event, purge
from wfe_persistence.store.paging import END, START


class EventService:
    """Events."""

    async def CreateEvent(self, request: CreateEventRequest, call: Call) -> CreateEventResponse:
        """Store a new event."""
        check = call.check
        if check.present(request, "event"):
            check.event(request.event, "event")
        check.done()
        request.event.id = request.event.id or str(uuid.uuid4())
        check.fits(call.size, call.max_message_bytes, lambda: [read_back(request.event)])
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

    async def ListEvents(self, request: ListEventsRequest, call: Call) -> ListEventsResponse:
        """Answer events by event_time."""
        check = call.check
        check.key("", "event_name", request.event_name)
        check.key("", "event_key", request.event_key)
        if request.HasField("event_key") and not request.event_name:
            check.add(
                "", "event_name", R.FIELD_VIOLATION_REASON_REQUIRED, "is required with an event_key"
            )
        check.times(request, "", "event_time_from", "event_time_before")
        order = check.order(request.order)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await event.list_events(
            call.store,
            request,
            order,
            paging.decode(
                request,
                call.store,
                request.page_token,
                START if order == ListOrder.LIST_ORDER_OLDEST_FIRST else END,
            ),
            page_size,
            paging.page_bytes(call.max_message_bytes),
        )
        return ListEventsResponse(
            events=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def PurgeEvents(self, request: PurgeEventsRequest, call: Call) -> PurgeEventsResponse:
        """Delete old events."""
        check = call.check
        check.required_time("", "event_time_before", request)
        check.key("", "event_name", request.event_name)
        max_rows = check.purged_rows(request.max_rows)
        check.done()
        events, after = await purge.purge_events(
            call.store,
            request.event_time_before,
            request.event_name,
            paging.decode(request, call.store, request.page_token, START),
            max_rows,
            include_unprocessed=request.include_unprocessed,
            dry_run=request.dry_run,
        )
        return PurgeEventsResponse(
            events=events, next_page_token=paging.encode(request, call.store, after)
        )


def read_back(event: Event) -> ListEventsResponse:
    """The largest answer in which an event must fit: a page of its own, with more to come."""
    return ListEventsResponse(events=[event], next_page_token="x" * paging.MAX_TOKEN_BYTES)
