"""EventService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from wfe.persistence.v1 import event_pb2 as pb
from wfe_persistence import offload
from wfe_persistence.errors import PersistenceError
from wfe_persistence.rpc import bulk, paging
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check, read_back
from wfe_persistence.store import event, purge
from wfe_persistence.store.bulk import create_events
from wfe_persistence.store.request_key import random_id


class EventService:
    """Events."""

    async def CreateEvent(
        self, request: pb.CreateEventRequest, call: Call
    ) -> pb.CreateEventResponse:
        """Store a new event."""
        await offload.run(_prepare_create, request, call.check)
        await event.create_event(call.store, request.event, request.enqueue)
        call.written(request.enqueue)
        return pb.CreateEventResponse(id=request.event.id)

    @asynccontextmanager
    async def CreateEvents(
        self, call: Call
    ) -> AsyncIterator[
        Callable[[pb.CreateEventsRequest, Check], Awaitable[pb.CreateEventsResponse]]
    ]:
        """Store new events, those of each request together."""

        async def store(requests: list[pb.CreateEventRequest]) -> list[bool | PersistenceError]:
            found = await create_events(call.store, requests)
            call.written([item for request in requests for item in request.enqueue])
            return found

        async def answer(request: pb.CreateEventsRequest, check: Check) -> pb.CreateEventsResponse:
            return await bulk.answer(
                request,
                request.events,
                call,
                check,
                rpc="CreateEvents",
                prepare=_prepare_create,
                store=store,
                created=_fill_in_created,
                response=pb.CreateEventsResponse,
            )

        with call.env.bulk_streams.one(call.store.namespace):
            yield answer

    async def GetEvent(self, request: pb.GetEventRequest, call: Call) -> pb.GetEventResponse:
        """Return one event."""
        check = call.check
        check.id("", "id", request.id)
        check.done()
        return pb.GetEventResponse(event=await event.get_event(call.store, request.id))

    async def GetRunnableEvents(
        self, request: pb.GetRunnableEventsRequest, call: Call
    ) -> pb.GetRunnableEventsResponse:
        """Return the ids of events that are due and unprocessed."""
        check = call.check
        check.time("", "as_at", request.as_at)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await event.get_runnable_events(
            call.store,
            request.as_at if request.HasField("as_at") else None,
            *call.page(request, page_size),
            with_keys=request.with_order_keys,
        )
        return pb.GetRunnableEventsResponse(
            event_ids=page.items,
            next_page_token=paging.encode(request, call.store, page.next),
            order_keys=page.keys,
        )

    async def GetEvents(self, request: pb.GetEventsRequest, call: Call) -> pb.GetEventsResponse:
        """Return the ids of the events with a name and key."""
        check = call.check
        query = check.event_lookup(request)
        check.times(request, "", "event_time_from")
        page_size = check.page_size(request.page_size)
        check.done()
        page = await event.get_events(
            call.store,
            *query,
            request.event_time_from if request.HasField("event_time_from") else None,
            *call.page(request, page_size),
            with_keys=request.with_order_keys,
        )
        return pb.GetEventsResponse(
            event_ids=page.items,
            next_page_token=paging.encode(request, call.store, page.next),
            order_keys=page.keys,
        )

    async def MarkEventProcessed(
        self, request: pb.MarkEventProcessedRequest, call: Call
    ) -> pb.MarkEventProcessedResponse:
        """Mark an event as processed."""
        check = call.check
        check.id("", "id", request.id)
        check.done()
        await event.mark_event_processed(call.store, request.id)
        return pb.MarkEventProcessedResponse()

    async def MarkEventUnprocessed(
        self, request: pb.MarkEventUnprocessedRequest, call: Call
    ) -> pb.MarkEventUnprocessedResponse:
        """Mark an event as unprocessed."""
        check = call.check
        check.id("", "id", request.id)
        check.done()
        await event.mark_event_unprocessed(call.store, request.id)
        return pb.MarkEventUnprocessedResponse()

    async def ListEvents(self, request: pb.ListEventsRequest, call: Call) -> pb.ListEventsResponse:
        """Return events by event_time."""
        check = call.check
        check.event_key_with_name(request)
        check.times(request, "", "event_time_from", "event_time_before")
        order = check.order(request.order)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await event.list_events(
            call.store,
            request,
            order,
            *call.page(request, page_size),
        )
        return pb.ListEventsResponse(
            events=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def PurgeEvents(
        self, request: pb.PurgeEventsRequest, call: Call
    ) -> pb.PurgeEventsResponse:
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
            paging.decode(request, call.store),
            max_rows,
            include_unprocessed=request.include_unprocessed,
            dry_run=request.dry_run,
        )
        return pb.PurgeEventsResponse(
            events=events, next_page_token=paging.encode(request, call.store, after)
        )


def _prepare_create(
    request: pb.CreateEventRequest, check: Check, new_id: Callable[[], str] = random_id
) -> None:
    check.required(request, "event", check.event)
    check.queue_items("enqueue", request.enqueue, stands_for=request.event.id)
    check.done()
    request.event.id = request.event.id or new_id()
    for item in request.enqueue:
        item.id = item.id or request.event.id
    check.fits(read_back.create_event(request.event, request.enqueue))


def _fill_in_created(
    answer: pb.CreateEventResponse, request: pb.CreateEventRequest, _: bool | None
) -> None:
    answer.id = request.event.id
