"""Events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.event_pb2 import Event, ListEventsRequest
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe_persistence import offload
from wfe_persistence.errors import PersistenceError, field_error
from wfe_persistence.store.create_parts import create_each_statement, create_statement
from wfe_persistence.store.documents import event_document, queue_items_document
from wfe_persistence.store.paging import (
    DIRECTIONS,
    LEAST_TIME,
    TIME,
    Cursor,
    Direction,
    Page,
    behind,
    fill_page,
    page_of_ids,
)
from wfe_persistence.store.queue_parts import ENQUEUE_CREATED
from wfe_persistence.store.records import EVENT
from wfe_persistence.store.rows import (
    Param,
    PGresult,
    boolean,
    integer,
    read_int8,
    text,
    timestamp,
)
from wfe_persistence.store.tables import Store
from wfe_persistence.store.together import Each, by_column, documents, is_small

CREATE_EVENT = create_statement("events", EVENT)
CREATE_EACH_EVENT = create_each_statement("events", EVENT)
_CREATE_EACH = Each(CREATE_EACH_EVENT, documents)
CREATE_EVENT_ENQUEUE = create_statement("events", EVENT, ENQUEUE_CREATED)


async def create_event(store: Store, event: Event, enqueue: Sequence[QueueItem] = ()) -> None:
    """Insert an event, which must have an id, and enqueue items with it. Repeating the call changes
    nothing."""

    def params() -> tuple[Param, ...]:
        document = event_document(event)
        return (document, queue_items_document(enqueue)) if enqueue else (document,)

    await store.create(
        CREATE_EVENT_ENQUEUE if enqueue else CREATE_EVENT,
        *await offload.run(params),
        exists=new_event_exists,
        each=None if enqueue else _CREATE_EACH,
    )


_decode_event = EVENT.decoder()

GET_EVENT = f"""
SELECT {EVENT.selection()}
FROM wfc.events
WHERE id = $1
"""
# (LATERAL with LIMIT 1: each is looked up in the index, whatever number is expected.)
GET_EACH_EVENT = f"""
SELECT {EVENT.selection("e")}, asked.n
FROM unnest($1::text[]) WITH ORDINALITY AS asked(id, n), LATERAL (
    SELECT * FROM wfc.events e
    WHERE e.id = asked.id AND {is_small("e.event_data")}
    LIMIT 1
) e
"""
_GET_EACH = Each(GET_EACH_EVENT, by_column)


async def get_event(store: Store, id_: str) -> Event:
    """One event."""
    rows = await store.read_together(GET_EVENT, text(id_), each=_GET_EACH)
    if rows.ntuples == 0:
        raise event_not_found("id")
    return _decode_event(rows)


GET_RUNNABLE_EVENTS = f"""
SELECT id, event_time FROM wfc.events
WHERE NOT is_processed AND event_time <= coalesce($1::timestamptz, now())
    AND {behind("(event_time, id)", "$2::timestamptz", "$3::text", least=LEAST_TIME)}
ORDER BY event_time, id
LIMIT $4
"""


async def get_runnable_events(
    store: Store,
    as_at: Timestamp | None,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
    *,
    with_keys: bool = False,
) -> Page[str]:
    """The ids of unprocessed events, the oldest first. `as_at` None: the database's clock."""
    due = None if as_at is None else timestamp(as_at)
    return await page_of_ids(
        store, GET_RUNNABLE_EVENTS, [due], TIME, after, page_size, page_bytes, with_keys=with_keys
    )


# The lower bound is where the first page starts, so that an index finds it. Each later page starts
# behind an event that is at or after it.
_LEAST_EVENT_TIME: Final = f"coalesce($4::timestamptz, {LEAST_TIME})"

GET_EVENTS = f"""
SELECT id, event_time FROM wfc.events
WHERE event_name = $1 AND event_key = $2 AND event_time <= coalesce($3::timestamptz, now())
    AND {behind("(event_time, id)", "$5::timestamptz", "$6::text", least=_LEAST_EVENT_TIME)}
ORDER BY event_time, id
LIMIT $7
"""


async def get_events(
    store: Store,
    event_name: str,
    event_key: str,
    as_of: Timestamp | None,
    event_time_from: Timestamp | None,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
    *,
    with_keys: bool = False,
) -> Page[str]:
    """The ids of the events with this name and key, the oldest first. `as_of` None: the
    database's clock; `event_time_from` None: no lower bound."""
    filters = [
        text(event_name),
        text(event_key),
        *(None if time is None else timestamp(time) for time in (as_of, event_time_from)),
    ]
    return await page_of_ids(
        store, GET_EVENTS, filters, TIME, after, page_size, page_bytes, with_keys=with_keys
    )


MARK_EVENT_PROCESSED = """
UPDATE wfc.events SET is_processed = TRUE WHERE id = $1 RETURNING id
"""


async def mark_event_processed(store: Store, id_: str) -> None:
    """Mark an event as processed."""
    rows = await store.write(MARK_EVENT_PROCESSED, text(id_))
    if rows.ntuples == 0:
        raise event_not_found("id")


MARK_EVENT_UNPROCESSED = """
UPDATE wfc.events SET is_processed = FALSE WHERE id = $1 RETURNING id
"""


async def mark_event_unprocessed(store: Store, id_: str) -> None:
    """Mark an event as unprocessed."""
    rows = await store.write(MARK_EVENT_UNPROCESSED, text(id_))
    if rows.ntuples == 0:
        raise event_not_found("id")


def _list_events(direction: Direction) -> str:
    """The statement for one direction. An absent filter is NULL, and the planner, which knows the
    parameters, removes its condition."""
    since, until = direction.bounds("event_time", "$4::timestamptz", "$5::timestamptz", "$7")
    return f"""
SELECT {EVENT.selection()}
FROM wfc.events
WHERE ($1::text IS NULL OR event_name = $1) AND ($2::text IS NULL OR event_key = $2)
    AND ($3::boolean IS NULL OR is_processed = $3)
    AND {since}
    AND {until}
    AND ($7::text IS NULL OR (event_time, id) {direction.after} ($6::timestamptz, $7))
ORDER BY event_time {direction.order}, id {direction.order}
LIMIT $8
"""


_EVENT_TIME = EVENT.at("event_time")


def _by_time(row: PGresult, event: Event) -> Cursor:
    return read_int8(row.get_value(0, _EVENT_TIME)), event.id


LIST_EVENTS = {order: _list_events(direction) for order, direction in DIRECTIONS.items()}


async def list_events(
    store: Store,
    request: ListEventsRequest,
    order: ListOrder.ValueType,
    after: Cursor | None,
    page_size: int,
    page_bytes: int,
) -> Page[Event]:
    """Events in the order of event_time."""
    rows = store.stream_once(
        LIST_EVENTS[order],
        text(request.event_name) if request.event_name else None,
        text(request.event_key) if request.HasField("event_key") else None,
        boolean(request.is_processed) if request.HasField("is_processed") else None,
        timestamp(request.event_time_from) if request.HasField("event_time_from") else None,
        timestamp(request.event_time_before) if request.HasField("event_time_before") else None,
        *TIME.params(after),
        integer(page_size + 1),
    )
    return await fill_page(rows, _decode_event, _by_time, page_size, page_bytes)


def event_not_found(field: str) -> PersistenceError:
    """The error of an event that does not exist; `field`: the request's field."""
    return field_error(field, ErrorReason.ERROR_REASON_EVENT_NOT_FOUND, "no event has this id")


def event_exists(field: str) -> PersistenceError:
    """The error of an event id that is in use with different content."""
    return field_error(
        field,
        ErrorReason.ERROR_REASON_EVENT_ALREADY_EXISTS,
        "an event with this id and different content exists",
    )


def new_event_exists() -> PersistenceError:
    """The same of an event to create."""
    return event_exists("event.id")
