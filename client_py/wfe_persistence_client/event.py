"""Operations on events: create, read by name and key, mark as processed, purge."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from datetime import datetime

from wfe.persistence.v1 import event_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.bulk import Bulk, BulkKind, BulkResult
from wfe_persistence_client.connection import LARGEST_PAGE, Connection, new_id
from wfe_persistence_client.misfit import build
from wfe_persistence_client.model import Event, ListOrder, QueueItem


class Events(Connection):
    """The operations on events."""

    async def create_event(self, event: Event, *, enqueue: Iterable[QueueItem] = ()) -> str:
        """Stores a new event, and returns its id.

        An empty id is replaced by a new UUID. Creating the same event again (same id,
        same content) changes nothing, even if it has been marked as processed since.

        Args:
            event: the event.
            enqueue: items to enqueue with it, in the same transaction, as by `enqueue`;
                an empty id stands for that of the event. An event that is stored already
                is not enqueued again: that was done when it was created.

        Raises:
            EventAlreadyExists: the id is in use with different content.
        """
        message = convert.event_to_proto(event)
        message.id = message.id or new_id()
        response = await self._calls.unary(
            self._events.CreateEvent,
            event_pb2.CreateEventRequest(
                event=message, enqueue=convert.queue_items_to_proto("enqueue", enqueue)
            ),
        )
        return response.id

    def create_events(
        self,
        events: Iterable[Event] | AsyncIterable[Event],
        *,
        enqueue: Iterable[QueueItem] = (),
    ) -> AsyncIterator[BulkResult[Event]]:
        """Stores many new events, and yields what became of each, in their order.

        Each is stored as by `create_event`, at a fraction of the cost; all else is as with
        `create_workflows`.

        Args:
            events: the events. Set their ids if you want to be able to repeat the call after
                an error.
            enqueue: items to enqueue with each of them; an empty id stands for that of the
                event.

        Raises:
            NamespaceFull: the namespace stores as much as it may.
            CommitOutcomeUnknown: what was sent last may or may not be stored.
        """
        items = convert.queue_items_to_proto("enqueue", enqueue)

        def to_proto(event: Event) -> event_pb2.CreateEventRequest:
            message = convert.event_to_proto(event)
            message.id = message.id or new_id()
            return event_pb2.CreateEventRequest(event=message, enqueue=items)

        kind = BulkKind(
            argument="events",
            type=Event,
            convert=to_proto,
            method=self._events.CreateEvents,
            request=lambda some: event_pb2.CreateEventsRequest(events=some),
            alone=self._events.CreateEvent,
            created=lambda _, answer: answer.id,
        )
        return Bulk(self._calls, kind).results(events)

    async def get_event(self, event_id: str) -> Event:
        """Returns one event.

        Raises:
            EventNotFound: it does not exist.
        """
        response = await self._calls.unary(
            self._events.GetEvent, build(event_pb2.GetEventRequest, id=event_id)
        )
        return convert.event_from_proto(response.event)

    async def get_runnable_events(self, as_at: datetime | None = None) -> list[str]:
        """Returns the ids of all unprocessed events, oldest first.

        These are the ones with `event_time` up to and including `as_at`. It reads page
        by page: an event that is marked as processed in the meantime may be missing.
        """
        pages = self._in_one_go().iter_runnable_events(as_at, page_size=LARGEST_PAGE)
        return [event_id async for event_id in pages]

    def iter_runnable_events(
        self, as_at: datetime | None = None, *, page_size: int = 0
    ) -> AsyncIterator[str]:
        """`get_runnable_events` as an async iterator that fetches pages on demand."""
        return self._calls.pages(
            self._events.GetRunnableEvents,
            build(
                event_pb2.GetRunnableEventsRequest,
                as_at=convert.optional_timestamp("as_at", as_at),
                page_size=page_size,
            ),
            lambda page: page.event_ids,
        )

    async def _keyed_runnable_events(
        self, as_at: datetime | None, page_size: int
    ) -> AsyncIterator[tuple[int, str]]:
        """`iter_runnable_events`, each with the number that it is ordered by."""
        pages = self._calls.pages(
            self._events.GetRunnableEvents,
            build(
                event_pb2.GetRunnableEventsRequest,
                as_at=convert.optional_timestamp("as_at", as_at),
                page_size=page_size,
                with_order_keys=True,
            ),
            lambda page: zip(page.order_keys, page.event_ids, strict=True),
        )
        async for keyed in pages:
            yield keyed

    async def _keyed_events(
        self,
        event_name: str,
        event_key: str,
        as_of: datetime | None,
        event_time_from: datetime | None,
        page_size: int,
    ) -> AsyncIterator[tuple[int, str]]:
        """`iter_events`, each with the number that it is ordered by."""
        pages = self._calls.pages(
            self._events.GetEvents,
            build(
                event_pb2.GetEventsRequest,
                event_name=event_name,
                event_key=event_key,
                as_of=convert.optional_timestamp("as_of", as_of),
                event_time_from=convert.optional_timestamp("event_time_from", event_time_from),
                page_size=page_size,
                with_order_keys=True,
            ),
            lambda page: zip(page.order_keys, page.event_ids, strict=True),
        )
        async for keyed in pages:
            yield keyed

    async def get_events(
        self,
        event_name: str,
        event_key: str,
        as_of: datetime | None = None,
        *,
        event_time_from: datetime | None = None,
    ) -> list[str]:
        """Returns the ids of all events with a name and key, oldest first.

        These are the ones with `event_time` up to and including `as_of`, processed or
        not.

        Args:
            event_name: their name.
            event_key: their key.
            as_of: None: now, by the database's clock.
            event_time_from: at or after this time; None: no lower bound. Engines of the
                workflow-core family, which ask for events since a time, set this.
        """
        pages = self._in_one_go().iter_events(
            event_name,
            event_key,
            as_of,
            event_time_from=event_time_from,
            page_size=LARGEST_PAGE,
        )
        return [event_id async for event_id in pages]

    def iter_events(
        self,
        event_name: str,
        event_key: str,
        as_of: datetime | None = None,
        *,
        event_time_from: datetime | None = None,
        page_size: int = 0,
    ) -> AsyncIterator[str]:
        """`get_events` as an async iterator that fetches pages on demand."""
        return self._calls.pages(
            self._events.GetEvents,
            build(
                event_pb2.GetEventsRequest,
                event_name=event_name,
                event_key=event_key,
                as_of=convert.optional_timestamp("as_of", as_of),
                event_time_from=convert.optional_timestamp("event_time_from", event_time_from),
                page_size=page_size,
            ),
            lambda page: page.event_ids,
        )

    async def list_events(
        self,
        *,
        event_name: str = "",
        event_key: str | None = None,
        is_processed: bool | None = None,
        event_time_from: datetime | None = None,
        event_time_before: datetime | None = None,
        order: ListOrder = ListOrder.NEWEST_FIRST,
    ) -> list[Event]:
        """Returns complete events ordered by event_time, for inspection.

        Args:
            event_name: only with this name; empty: any.
            event_key: only with this key, requires `event_name`; None: any.
            is_processed: True: only processed events; False: only unprocessed ones;
                None: both.
            event_time_from: at or after this time; None: no lower bound.
            event_time_before: before this time; None: no upper bound.
            order: by event_time; ties by id, in the same direction.
        """
        pages = self._in_one_go().iter_all_events(
            event_name=event_name,
            event_key=event_key,
            is_processed=is_processed,
            event_time_from=event_time_from,
            event_time_before=event_time_before,
            order=order,
            page_size=LARGEST_PAGE,
        )
        return [event async for event in pages]

    def iter_all_events(
        self,
        *,
        event_name: str = "",
        event_key: str | None = None,
        is_processed: bool | None = None,
        event_time_from: datetime | None = None,
        event_time_before: datetime | None = None,
        order: ListOrder = ListOrder.NEWEST_FIRST,
        page_size: int = 0,
    ) -> AsyncIterator[Event]:
        """`list_events` as an async iterator that fetches pages on demand."""
        return self._calls.pages(
            self._events.ListEvents,
            build(
                event_pb2.ListEventsRequest,
                event_name=event_name,
                event_key=event_key,
                is_processed=is_processed,
                event_time_from=convert.optional_timestamp("event_time_from", event_time_from),
                event_time_before=convert.optional_timestamp(
                    "event_time_before", event_time_before
                ),
                order=convert.order_to_proto(order),
                page_size=page_size,
            ),
            lambda page: map(convert.event_from_proto, page.events),
        )

    async def purge_events(
        self,
        event_time_before: datetime,
        *,
        event_name: str = "",
        include_unprocessed: bool = False,
        dry_run: bool = False,
        max_rows: int = 0,
    ) -> int:
        """Deletes all events before a time, oldest first, and returns how many.

        It makes as many calls as necessary, each with its own timeout, so it may take
        long. If it is interrupted, some have been deleted; calling it again continues.
        After lost responses the count may be too low. `iter_purge_events` reports
        progress.

        Args:
            event_time_before: only events before this time.
            event_name: only with this name; empty: any.
            include_unprocessed: also delete unprocessed events.
            dry_run: only count what would be deleted.
            max_rows: maximum number of events to delete per call, up to 100000; 0 means
                10000.
        """
        calls = self.iter_purge_events(
            event_time_before,
            event_name=event_name,
            include_unprocessed=include_unprocessed,
            dry_run=dry_run,
            max_rows=max_rows,
        )
        return sum([events async for events in calls])

    def iter_purge_events(
        self,
        event_time_before: datetime,
        *,
        event_name: str = "",
        include_unprocessed: bool = False,
        dry_run: bool = False,
        max_rows: int = 0,
    ) -> AsyncIterator[int]:
        """`purge_events` as an async iterator over the result of each call.

        The arguments are the same; the timeout applies to each call. Leaving the iteration
        stops the purge.
        """
        return self._calls.pages(
            self._events.PurgeEvents,
            build(
                event_pb2.PurgeEventsRequest,
                event_time_before=convert.timestamp("event_time_before", event_time_before),
                event_name=event_name,
                include_unprocessed=include_unprocessed,
                dry_run=dry_run,
                max_rows=max_rows,
            ),
            lambda page: [page.events],
        )

    async def mark_event_processed(self, event_id: str) -> None:
        """Marks an event as processed.

        Raises:
            EventNotFound: it does not exist.
        """
        await self._calls.unary(
            self._events.MarkEventProcessed, build(event_pb2.MarkEventProcessedRequest, id=event_id)
        )

    async def mark_event_unprocessed(self, event_id: str) -> None:
        """Marks an event as not processed; `get_runnable_events` returns it again.

        Raises:
            EventNotFound: it does not exist.
        """
        await self._calls.unary(
            self._events.MarkEventUnprocessed,
            build(event_pb2.MarkEventUnprocessedRequest, id=event_id),
        )
