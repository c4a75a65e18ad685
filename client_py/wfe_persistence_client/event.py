"""Events: kept until they are processed, and read by name and key."""

from collections.abc import AsyncIterator
from datetime import datetime

from wfe.persistence.v1 import event_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.connection import LARGEST_PAGE, Connection, new_id
from wfe_persistence_client.model import Event, ListOrder


class Events(Connection):
    """The operations on events."""

    async def create_event(self, event: Event) -> str:
        """Stores a new event, and answers its id.

        An empty id is replaced by a new UUID. The same event again (same id, same
        content) changes nothing, even if it was marked processed since.

        Raises:
            EventAlreadyExists: the id is in use by other content.
        """
        message = convert.event_to_proto(event)
        message.id = message.id or new_id()
        answer = await self._calls.unary(
            self._events.CreateEvent, event_pb2.CreateEventRequest(event=message)
        )
        return answer.id

    async def get_event(self, event_id: str) -> Event:
        """Answers one event.

        Raises:
            EventNotFound: it does not exist.
        """
        answer = await self._calls.unary(
            self._events.GetEvent, event_pb2.GetEventRequest(id=event_id)
        )
        return convert.event_from_proto(answer.event)

    async def get_runnable_events(self, as_at: datetime | None = None) -> list[str]:
        """Answers the ids of all unprocessed events, oldest first.

        Those with `event_time` up to and including `as_at`. It reads page by page:
        one that is marked processed meanwhile may be missing.
        """
        pages = self._in_one_go().iter_runnable_events(as_at, page_size=LARGEST_PAGE)
        return [event_id async for event_id in pages]

    def iter_runnable_events(
        self, as_at: datetime | None = None, *, page_size: int = 0
    ) -> AsyncIterator[str]:
        """`get_runnable_events`, with its arguments, page by page as they are wanted.

        Args:
            page_size: ids a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._calls.pages(
            self._events.GetRunnableEvents,
            event_pb2.GetRunnableEventsRequest(
                as_at=convert.optional_timestamp("as_at", as_at), page_size=page_size
            ),
            lambda page: page.event_ids,
        )

    async def get_events(
        self, event_name: str, event_key: str, as_of: datetime | None = None
    ) -> list[str]:
        """Answers the ids of all events of a name and key, oldest first.

        Those with `event_time` up to and including `as_of`, processed or not.
        """
        pages = self._in_one_go().iter_events(event_name, event_key, as_of, page_size=LARGEST_PAGE)
        return [event_id async for event_id in pages]

    def iter_events(
        self,
        event_name: str,
        event_key: str,
        as_of: datetime | None = None,
        *,
        page_size: int = 0,
    ) -> AsyncIterator[str]:
        """`get_events`, with its arguments, page by page as they are wanted.

        Args:
            page_size: ids a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._calls.pages(
            self._events.GetEvents,
            event_pb2.GetEventsRequest(
                event_name=event_name,
                event_key=event_key,
                as_of=convert.optional_timestamp("as_of", as_of),
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
        """Answers events by their event_time, whole ones, for looking into a store.

        Args:
            event_name: of this kind; empty: of any.
            event_key: with this event key, with an `event_name`; None: with any.
            is_processed: True: processed ones; False: those still to be processed;
                None: both.
            event_time_from: at this time or later; None: at any.
            event_time_before: before this time; None: at any.
            order: by event_time; equal times by id, or in the reverse.
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
        """`list_events`, with its arguments, page by page as they are wanted.

        Args:
            page_size: events a page, up to 1000; 0: 100. The timeout is for one page.
        """
        return self._calls.pages(
            self._events.ListEvents,
            event_pb2.ListEventsRequest(
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
        """Deletes all events before a time, the oldest first, and answers how many.

        It makes as many calls as it takes, each with the timeout of its own: it may take
        long. Stopped in the middle it has deleted some; calling again goes on. After
        lost answers the count may be too low. `iter_purge_events` tells how far it is.

        Args:
            event_time_before: only events before this time.
            event_name: only of this kind; empty: of any.
            include_unprocessed: also events that were never processed.
            dry_run: only count what would be deleted.
            max_rows: how many events to delete a call, up to 100000; 0: 10000.
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
        """`purge_events`, call by call as they are wanted: how many each call deleted.

        The arguments are as there; the timeout is for one call. Who stops asking stops
        the purge.
        """
        return self._calls.pages(
            self._events.PurgeEvents,
            event_pb2.PurgeEventsRequest(
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
            self._events.MarkEventProcessed, event_pb2.MarkEventProcessedRequest(id=event_id)
        )

    async def mark_event_unprocessed(self, event_id: str) -> None:
        """Marks an event as not processed, so that it is handed out again.

        Raises:
            EventNotFound: it does not exist.
        """
        await self._calls.unary(
            self._events.MarkEventUnprocessed, event_pb2.MarkEventUnprocessedRequest(id=event_id)
        )
