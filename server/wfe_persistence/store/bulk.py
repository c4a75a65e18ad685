"""Many workflows or events that are created together, each as if it were created alone.

One statement inserts all that are new. What it can't decide is run by itself, as a single create,
which is the only place where such errors arise: what is in the way was committed a moment ago, or
is given twice. If one of them fails the statement, it is run again in halves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.workflow_pb2 import CreateNewWorkflowRequest
from wfe_persistence import offload
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import event, workflow
from wfe_persistence.store.create_parts import MANY, NOTHING, Besides, inserting, is_stored
from wfe_persistence.store.documents import (
    event_document,
    owned_items_document,
    workflow_document,
)
from wfe_persistence.store.queue_parts import ENQUEUE_EACH_CREATED
from wfe_persistence.store.records import EVENT
from wfe_persistence.store.rows import PGresult, read_int8
from wfe_persistence.store.tables import Store

R = TypeVar("R", bound=CreateNewWorkflowRequest | CreateEventRequest)
T = TypeVar("T")

OF_ITEM: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_INVALID_FIELD,
        ErrorReason.ERROR_REASON_ANSWER_TOO_LARGE,
        ErrorReason.ERROR_REASON_WORKFLOW_ALREADY_EXISTS,
        ErrorReason.ERROR_REASON_NAME_TAKEN,
        ErrorReason.ERROR_REASON_LEASE_LOST,
        ErrorReason.ERROR_REASON_EVENT_ALREADY_EXISTS,
        ErrorReason.ERROR_REASON_ROW_LOCKED,
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
    }
)
"""What may be wrong with one item. All else would fail each of them."""

# What is returned of each that is not simply new: its number, and what the statement that creates
# one returns, which knows why; see `workflow.py`. (No EXISTS: for that PostgreSQL may read all
# names.)
_NUMBER: Final = 0
_FOUND: Final = 1
_FIRST_REVISION: Final = 4


def _create_workflows(besides: Besides = NOTHING) -> str:
    return f"""{workflow.inserting_workflows(MANY, besides)}
SELECT g.at,
    coalesce(c.first_revision > pg_sequence_last_value('wfc.revision_floor'), FALSE),
    CASE WHEN c.id IS NULL THEN (SELECT coalesce(w.content_hash = g.content_hash, FALSE)
        FROM wfc.workflows w WHERE w.id = g.id) END,
    CASE WHEN c.id IS NULL THEN coalesce((SELECT w.id <> g.id
        FROM wfc.workflows w WHERE w.name = g.name), FALSE) ELSE FALSE END,
    coalesce(c.first_revision, (SELECT w.first_revision FROM wfc.workflows w WHERE w.id = g.id))
FROM given g LEFT JOIN created c ON c.id = g.id
WHERE (c.first_revision = 1) IS NOT TRUE OR pg_sequence_last_value('wfc.revision_floor') > 0
"""


CREATE_WORKFLOWS = _create_workflows()
CREATE_WORKFLOWS_ENQUEUE = _create_workflows(ENQUEUE_EACH_CREATED)


async def create_workflows(
    store: Store, requests: Sequence[CreateNewWorkflowRequest]
) -> list[int | PersistenceError]:
    """Insert workflows, which must have ids and names, and enqueue items with them; the revision of
    each at its creation, or why it was not created."""
    kind: _Kind[CreateNewWorkflowRequest, int] = _Kind(
        CREATE_WORKFLOWS,
        CREATE_WORKFLOWS_ENQUEUE,
        document=lambda request: workflow_document(request.instance),
        keys=lambda request: (("id", request.instance.id), ("name", request.instance.name)),
        read=_read_workflow,
        alone=lambda r: workflow.create_new_workflow(
            store, r.instance, r.enqueue, r.held_lock_tokens
        ),
        new=1,
    )
    return await _create(store, kind, requests)


def _read_workflow(rows: PGresult, row: int) -> int | None:
    stored = is_stored(
        rows, row, exists=workflow.workflow_exists, taken=workflow.new_name_taken, first=_FOUND
    )
    return read_int8(rows.get_value(row, _FIRST_REVISION)) if stored else None


def _create_events(besides: Besides = NOTHING) -> str:
    return f"""{inserting("events", EVENT, MANY, besides)}
SELECT g.at, FALSE, (SELECT coalesce(e.content_hash = g.content_hash, FALSE)
        FROM wfc.events e WHERE e.id = g.id)
FROM given g LEFT JOIN created c ON c.id = g.id
WHERE c.id IS NULL
"""


CREATE_EVENTS = _create_events()
CREATE_EVENTS_ENQUEUE = _create_events(ENQUEUE_EACH_CREATED)


async def create_events(
    store: Store, requests: Sequence[CreateEventRequest]
) -> list[bool | PersistenceError]:
    """Insert events, which must have ids, and enqueue items with them; of each that it is there, or
    why it was not created."""

    async def alone(request: CreateEventRequest) -> bool:
        await event.create_event(store, request.event, request.enqueue)
        return True

    kind: _Kind[CreateEventRequest, bool] = _Kind(
        CREATE_EVENTS,
        CREATE_EVENTS_ENQUEUE,
        document=lambda request: event_document(request.event),
        keys=lambda request: (("id", request.event.id),),
        read=lambda rows, row: (
            is_stored(rows, row, exists=event.new_event_exists, first=_FOUND) or None
        ),
        alone=alone,
        new=True,
    )
    return await _create(store, kind, requests)


@dataclass(frozen=True, slots=True)
class _Kind(Generic[R, T]):
    """How what is created is written."""

    statement: str
    enqueuing: str
    """The statement that enqueues, too."""
    document: Callable[[R], bytes]
    keys: Callable[[R], tuple[tuple[str, str], ...]]
    """What no two in one statement may have in common."""
    read: Callable[[PGresult, int], T | None]
    """What a row says of one of them; None: nothing yet. Raises PersistenceError."""
    alone: Callable[[R], Awaitable[T]]
    new: T
    """What is said of one of which nothing is returned, because it was simply new."""


async def _create(
    store: Store, kind: _Kind[R, T], requests: Sequence[R]
) -> list[T | PersistenceError]:
    results: dict[int, T | PersistenceError] = {}
    await _together(store, kind, requests, _distinct(kind, requests), results)
    for n, request in enumerate(requests):
        if n not in results:
            try:
                results[n] = await kind.alone(request)
            except PersistenceError as exc:
                if exc.reason not in OF_ITEM:
                    raise
                results[n] = exc
    return [results[n] for n in range(len(requests))]


def _distinct(kind: _Kind[R, T], requests: Sequence[R]) -> list[int]:
    """The numbers of those that have nothing in common with one before."""
    if not any(request.enqueue for request in requests):
        columns = zip(*map(kind.keys, requests), strict=True)
        if all(len(set(column)) == len(requests) for column in columns):
            return list(range(len(requests)))
    seen: set[tuple[str, ...]] = set()
    numbers: list[int] = []
    for n, request in enumerate(requests):
        keys: list[tuple[str, ...]] = [*kind.keys(request)]
        keys += (("item", item.queue, item.id) for item in request.enqueue)
        if seen.isdisjoint(keys):
            numbers.append(n)
        seen.update(keys)
    return numbers


async def _together(
    store: Store,
    kind: _Kind[R, T],
    requests: Sequence[R],
    numbers: Sequence[int],
    results: dict[int, T | PersistenceError],
) -> None:
    """Run these as one statement; the results of those that it has decided."""
    # Those that depend on locks alone.
    numbers = [n for n in numbers if not getattr(requests[n], "held_lock_tokens", ())]
    if len(numbers) < 2:
        return  # alone
    given = [requests[n] for n in numbers]
    items = [(at, item) for at, r in enumerate(given, 1) for item in r.enqueue]
    params = [await offload.run(_documents, map(kind.document, given))]
    if items:
        params.append(await offload.run(owned_items_document, items))
    try:
        rows = await store.write_apart(kind.enqueuing if items else kind.statement, *params)
    except PersistenceError as exc:
        if exc.reason not in OF_ITEM:
            raise
        half = len(numbers) // 2
        await _together(store, kind, requests, numbers[:half], results)
        await _together(store, kind, requests, numbers[half:], results)
        return
    results.update(dict.fromkeys(numbers, kind.new))
    for row in range(rows.ntuples):
        n = numbers[read_int8(rows.get_value(row, _NUMBER)) - 1]
        try:
            found = kind.read(rows, row)
        except PersistenceError as exc:
            results[n] = exc
        else:
            if found is None:
                del results[n]
            else:
                results[n] = found


def _documents(documents: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(documents) + b"]"
