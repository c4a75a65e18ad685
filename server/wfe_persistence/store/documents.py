"""Messages as the JSON documents that the writing statements take apart.

A whole aggregate goes to PostgreSQL as one JSON parameter (`jsonb_to_record`): about twice as fast
as a list parameter per column once there are some dozen rows, and since hosts send their JSON as
text already, making it is only joining strings. How each column is written is declared in
records.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.lifecycle_pb2 import LifecycleEvent
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    ExecutionPointer,
    WorkflowInstance,
    WorkflowPatch,
)
from wfe_persistence.store.columns import Column, Columns, M, strings
from wfe_persistence.store.records import (
    COMMAND,
    ERROR,
    EVENT,
    LIFECYCLE_EVENT,
    POINTER,
    QUEUE_ITEM,
    SUBSCRIPTION,
    WORKFLOW,
)
from wfe_persistence.store.rows import quote

HEADER_FIELDS: Final[dict[str, Column]] = {
    column.field_name: column for column in WORKFLOW.written if not column.key
}
"""The header fields that a patch can name."""


def array(documents: Iterable[str]) -> bytes:
    """Documents as one JSON array parameter."""
    return f"[{','.join(documents)}]".encode()


def workflow_document(w: WorkflowInstance) -> bytes:
    """A workflow with its pointers."""
    members = WORKFLOW.members(w)
    members.append(f'"execution_pointers":{pointers_document(w.execution_pointers)}')
    return f"{{{','.join(members)}}}".encode()


def pointers_document(pointers: Iterable[ExecutionPointer], first: int = 0) -> str:
    """Execution pointers, numbered from `first` on."""
    members = POINTER.members
    documents = [
        f'{{"ordinal":{ordinal},{",".join(members(pointer))}}}'
        for ordinal, pointer in enumerate(pointers, first)
    ]
    return f"[{','.join(documents)}]"


class HeaderRoom(NamedTuple):
    """How large description and data may be if a patch sets one of them, in bytes as read back."""

    together: int
    other: int
    """What the one that stays may have at least, whatever the size of the new one turns out to be
    (exactly that if the new one is a description)."""
    limit_bytes: int
    """The limit of a message that this follows from."""


def patch_document(patch: WorkflowPatch, room: HeaderRoom | None) -> bytes:
    """A patch: only the header fields to change, `null` for those that become absent."""
    members = [
        WORKFLOW.member(HEADER_FIELDS[name], patch.header) for name in patch.header_mask.paths
    ]
    members.append(f'"execution_pointers":{pointers_document(patch.execution_pointers)}')
    members.append(f'"removed":{strings(patch.removed_pointer_ids)}')
    if room is not None:
        members.append(f'"room":{{"together":{room.together},"other":{room.other}}}')
    return f"{{{','.join(members)}}}".encode()


def effects_document(
    request: CommitWorkflowRequest,
    leases: Iterable[str],
    locks: Iterable[str],
    acknowledgements: Iterable[str],
) -> bytes:
    """What a commit does besides the state itself. `leases`, `locks`, `acknowledgements`: documents
    of tokens and receipts."""
    claims = ",".join(
        f'{{"n":{n},"id":{quote(claim.subscription_id)},"token":{quote(claim.token)}'
        + (f',"epoch":{claim.epoch}}}' if claim.HasField("epoch") else "}")
        for n, claim in enumerate(request.held_subscriptions)
    )
    return (
        f'{{"claims":[{claims}],"leases":[{",".join(leases)}],'
        f'"locks":[{",".join(locks)}],'
        f'"acknowledge":[{",".join(acknowledgements)}],'
        f'"enqueue":{_documents(QUEUE_ITEM, request.enqueue)},'
        f'"publish":{_documents(LIFECYCLE_EVENT, request.publish)},'
        f'"terminated":{strings(request.terminate_subscription_ids)},'
        f'"events":{_documents(EVENT, request.create_events)},'
        f'"skip_unawaited":{"true" if request.skip_unawaited_events else "false"},'
        f'"processed":{strings(request.processed_event_ids)},'
        f'"errors":{_documents(ERROR, request.errors)},'
        f'"commands":{_documents(COMMAND, request.schedule_commands)}}}'
    ).encode()


def event_document(e: Event) -> bytes:
    """An event."""
    return _document(EVENT, e).encode()


def subscription_document(s: EventSubscription) -> str:
    """A subscription."""
    return _document(SUBSCRIPTION, s)


def error_document(e: ExecutionError) -> str:
    """A logged error."""
    return _document(ERROR, e)


def queue_item_document(i: QueueItem) -> str:
    """An item of a queue."""
    if i.HasField("payload_json") or i.HasField("visible_time") or i.blocked_by:
        return _document(QUEUE_ITEM, i)
    return f'{{"queue":{quote(i.queue)},"id":{quote(i.id)}}}'  # as most are


def queue_items_document(items: Iterable[QueueItem]) -> bytes:
    """Items of queues, as one parameter."""
    return _documents(QUEUE_ITEM, items).encode()


def owned_items_document(items: Iterable[tuple[int, QueueItem]]) -> bytes:
    """Items of queues, each with the number of what it is enqueued with."""
    return array(
        f'{{"owner":{owner},{",".join(QUEUE_ITEM.members(item))}}}' for owner, item in items
    )


def lifecycle_document(e: LifecycleEvent) -> str:
    """A lifecycle event."""
    return _document(LIFECYCLE_EVENT, e)


def _document(columns: Columns[M], message: M) -> str:
    return f"{{{','.join(columns.members(message))}}}"


def _documents(columns: Columns[M], messages: Iterable[M]) -> str:
    return f"[{','.join(_document(columns, message) for message in messages)}]"
