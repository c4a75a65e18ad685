"""Whether what a request stores can be read back: the largest responses in which it is returned.

A response is measured with its JSON documents as PostgreSQL returns them, which may be larger than
they were sent. The functions are generators, so that nothing is copied unless it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1.command_pb2 import (
    CommandLease,
    ListCommandsResponse,
    ListedCommand,
    ScheduledCommand,
)
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.event_pb2 import Event, ListEventsResponse
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.queue_pb2 import (
    ListedQueueItem,
    ListQueueItemsResponse,
    QueueItemLease,
    QueueItemState,
)
from wfe.persistence.v1.store_pb2 import ExecutionError, ListErrorsResponse
from wfe.persistence.v1.subscription_pb2 import EventSubscription, GetSubscriptionsResponse
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    ExecutionPointer,
    ListExecutionPointersResponse,
    ListWorkflowsResponse,
    PersistWorkflowWithSubscriptionsRequest,
    WorkflowInstance,
    WorkflowView,
)
from wfe_persistence.errors import PersistenceError, unreadable
from wfe_persistence.rpc.check.bounds import (
    LAST_SECOND,
    MAX_HEADER_ATTRIBUTES_BYTES,
    MAX_ID_BYTES,
    MAX_INT4,
    MAX_REVISION,
)
from wfe_persistence.rpc.paging import FRAMING_BYTES, MAX_TOKEN_BYTES

# The largest answer in which something is returned is a page of a list with nothing else in it, and
# another page to follow: the token is as long as what a page reserves for it, and for all else.
_TOKEN: Final = "x" * (MAX_TOKEN_BYTES + FRAMING_BYTES + 4)
_ID: Final = "x" * MAX_ID_BYTES
# A header can be read whatever patches do to it: its description and its data share what all other
# fields, at their largest, leave of a message. So it does not matter in which order they are set,
# and a patch that sets neither need not be measured.
HEADER_BYTES: Final = 4096 + MAX_HEADER_ATTRIBUTES_BYTES
"""The bytes of a message that description and data can't have. The largest header without them and
its attributes, in a page with a token, has about 3,500."""

_LAST_TIME: Final = Timestamp(seconds=LAST_SECOND, nanos=999_999_999)


def require_readable(
    responses: Iterable[Message], max_message_bytes: int, stored_bytes: Callable[[str], int]
) -> None:
    """Raise ANSWER_TOO_LARGE if one of the responses could not be sent.

    `stored_bytes` tells how large a JSON document is when it is read back.
    """
    for response in responses:
        size = response.ByteSize() + _growth(response, stored_bytes)
        if isinstance(response, ListWorkflowsResponse):
            [read] = response.instances
            texts = len(read.description.encode()) + stored_bytes(read.data_json)
            size = max(size, texts + HEADER_BYTES)
        if size > max_message_bytes:
            raise unreadable(max_message_bytes)


def require_sendable(answer_bytes: int, max_message_bytes: int) -> None:
    """Raise ANSWER_TOO_LARGE if an answer could not be sent."""
    if answer_bytes > max_message_bytes:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_ANSWER_TOO_LARGE,
            f"the answer would not fit in one message of {max_message_bytes} bytes",
            metadata={"limit_bytes": str(max_message_bytes)},
        )


def workflow(instance: WorkflowInstance) -> Iterator[ListWorkflowsResponse]:
    """A workflow, with what the store sets: the largest name, revision and view."""
    response = ListWorkflowsResponse(instances=[instance], next_page_token=_TOKEN)
    [read] = response.instances
    read.revision = MAX_REVISION
    read.name = read.name or _ID
    read.view = WorkflowView.WORKFLOW_VIEW_HEADER
    yield response


def pointers(items: Iterable[ExecutionPointer]) -> Iterator[ListExecutionPointersResponse]:
    """Execution pointers."""
    for item in items:
        yield ListExecutionPointersResponse(
            execution_pointers=[item], next_page_token=_TOKEN, revision=MAX_REVISION
        )


def subscriptions(items: Iterable[EventSubscription]) -> Iterator[GetSubscriptionsResponse]:
    """Subscriptions, each with the largest claim that there may be on it."""
    for item in items:
        response = GetSubscriptionsResponse(subscriptions=[item], next_page_token=_TOKEN)
        [read] = response.subscriptions
        read.external_token = read.external_worker_id = _ID
        read.external_token_expiry.CopyFrom(_LAST_TIME)
        read.external_token_epoch = MAX_REVISION
        yield response


def events(items: Iterable[Event]) -> Iterator[ListEventsResponse]:
    """Events, which are processed one day."""
    for item in items:
        response = ListEventsResponse(events=[item], next_page_token=_TOKEN)
        response.events[0].is_processed = True
        yield response


def errors(items: Iterable[ExecutionError]) -> Iterator[ListErrorsResponse]:
    """Logged errors."""
    for item in items:
        yield ListErrorsResponse(errors=[item], next_page_token=_TOKEN)


def commands(items: Iterable[ScheduledCommand]) -> Iterator[ListCommandsResponse]:
    """Commands, each under the largest lease. A claim, which has a token instead of the worker and
    the page token, is smaller."""
    lease = CommandLease(worker_id=_ID, expiry=_LAST_TIME, epoch=MAX_REVISION)
    for item in items:
        listed = ListedCommand(command=item, lease=lease)
        yield ListCommandsResponse(commands=[listed], next_page_token=_TOKEN)


def queue_items(items: Iterable[QueueItem]) -> Iterator[ListQueueItemsResponse]:
    """Items of queues, each under the largest lease. When one is handed out, it is smaller: it has
    a receipt instead of the worker and the page token."""
    lease = QueueItemLease(worker_id=_ID, expiry=_LAST_TIME, epoch=MAX_REVISION)
    for item in items:
        response = ListQueueItemsResponse(
            items=[
                ListedQueueItem(
                    item=item,
                    state=QueueItemState.QUEUE_ITEM_STATE_LEASED,
                    attempt=MAX_INT4,
                    lease=lease,
                    again_time=_LAST_TIME,
                )
            ],
            next_page_token=_TOKEN,
        )
        response.items[0].item.visible_time.CopyFrom(_LAST_TIME)
        yield response


def create(instance: WorkflowInstance, enqueued: Iterable[QueueItem]) -> Iterator[Message]:
    """A workflow and the items that are enqueued with it."""
    yield from workflow(instance)
    yield from queue_items(enqueued)


def create_event(event: Event, enqueued: Iterable[QueueItem]) -> Iterator[Message]:
    """An event and the items that are enqueued with it."""
    yield from events([event])
    yield from queue_items(enqueued)


def persist(request: PersistWorkflowWithSubscriptionsRequest) -> Iterator[Message]:
    """A workflow, and the subscriptions and items that are written with it."""
    yield from create(request.instance, request.enqueue)
    yield from subscriptions(request.subscriptions)


def commit(request: CommitWorkflowRequest) -> Iterator[Message]:
    """All that a commit stores. Patches can make a workflow too large for one message, one pointer
    after the other, and lists leave them out then. But its header always fits: what a patch leaves
    of it is measured in the database (`Check.header_room`)."""
    if request.HasField("patch"):
        yield from workflow(request.patch.header)
        yield from pointers(request.patch.execution_pointers)
    else:
        yield from workflow(request.instance)
    yield from subscriptions(request.create_subscriptions)
    yield from events(request.create_events)
    yield from errors(request.errors)
    yield from commands(request.schedule_commands)
    yield from queue_items(request.enqueue)


def _growth(message: Message, stored_bytes: Callable[[str], int]) -> int:
    """By how many bytes an encoded message grows if its JSON documents have the size that they have
    when they are read back."""
    growth = 0
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, text in value.items():
                inner = _resized(size := len(text.encode()), stored_bytes(text) - size)
                key_size = len(key.encode())
                entry = 2 + key_size + _length_bytes(key_size) + size + _length_bytes(size)
                growth += _resized(entry, inner)
        elif field.message_type is not None:
            for item in value if field.is_repeated else (value,):
                if inner := _growth(item, stored_bytes):
                    growth += _resized(item.ByteSize(), inner)
        elif field.name.endswith("_json"):
            size = len(value.encode())
            growth += _resized(size, stored_bytes(value) - size)
    return growth


def _resized(size: int, growth: int) -> int:
    """By how much a value and its length grow together."""
    return growth + _length_bytes(size + growth) - _length_bytes(size)


def _length_bytes(size: int) -> int:
    """How many bytes the length of a value of this size takes."""
    return max((size.bit_length() + 6) // 7, 1)
