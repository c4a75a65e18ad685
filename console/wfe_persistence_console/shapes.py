"""What the store holds as JSON for the browser.

Times are milliseconds since 1970, as JavaScript counts them. Stored documents stay text: a browser
would round their numbers. Revisions and epochs are text, for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1.command_pb2 import CommandName, ListedCommand
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.lock_pb2 import Lock
from wfe.persistence.v1.queue_pb2 import ListedQueueItem, QueueItemState, QueueKind, QueueStats
from wfe.persistence.v1.store_pb2 import (
    ExecutionError,
    GetStorageReportResponse,
    Namespace,
    RetentionCounts,
    RetentionPolicy,
)
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    PointerStatus,
    WorkflowCount,
    WorkflowInstance,
    WorkflowStatus,
)

Shape = dict[str, Any]


def _labels(enum: Any, prefix: str) -> dict[int, str]:
    labels = {number: name.removeprefix(prefix) for name, number in enum.items()}
    return {number: "UNKNOWN" if name == "UNSPECIFIED" else name for number, name in labels.items()}


WORKFLOW_STATUSES: Final = _labels(WorkflowStatus, "WORKFLOW_STATUS_")
POINTER_STATUSES: Final = _labels(PointerStatus, "POINTER_STATUS_")
QUEUE_KINDS: Final = _labels(QueueKind, "QUEUE_KIND_")
ITEM_STATES: Final = _labels(QueueItemState, "QUEUE_ITEM_STATE_")
COMMAND_NAMES: Final = _labels(CommandName, "COMMAND_NAME_")


def label(labels: dict[int, str], number: int) -> str:
    """The name of a value, also of one that is newer than this console."""
    return labels.get(number, "UNKNOWN")


def milliseconds(time: Timestamp) -> float:
    """A time."""
    return time.seconds * 1000 + time.nanos / 1_000_000


def time_of(message: Any, field: str) -> float | None:
    """The time in a field; None: it is absent."""
    return milliseconds(getattr(message, field)) if message.HasField(field) else None


def seconds_of(message: Any, field: str) -> float | None:
    """The duration in a field; None: it is absent."""
    if not message.HasField(field):
        return None
    duration: Duration = getattr(message, field)
    return duration.seconds + duration.nanos / 1e9


def _optional(message: Any, field: str) -> Any:
    return getattr(message, field) if message.HasField(field) else None


def header(workflow: WorkflowInstance) -> Shape:
    """A workflow in a list."""
    return {
        "id": workflow.id,
        "name": workflow.name,
        "root": _optional(workflow, "root_workflow_id"),
        "definition": workflow.workflow_definition_id,
        "version": workflow.version,
        "reference": _optional(workflow, "reference"),
        "status": label(WORKFLOW_STATUSES, workflow.status),
        "created": time_of(workflow, "create_time"),
        "completed": time_of(workflow, "complete_time"),
        # An engine may store any number; the browser shows one that is no time as it is.
        "next": _optional(workflow, "next_execution"),
        "revision": str(workflow.revision),
    }


def workflow(of: WorkflowInstance) -> Shape:
    """A workflow on its page, without its pointers."""
    return {
        **header(of),
        "description": _optional(of, "description"),
        "data": of.data_json,
        "attributes": dict(of.extension_attributes_json),
    }


_DOCUMENTS: Final = ("outcome", "persistence_data", "event_data", "context_item")


def pointer(of: ExecutionPointer) -> Shape:
    """A pointer as it is in the graph and in the timeline; what is usual is left out."""
    shape: Shape = {
        "id": of.id,
        "step": of.step_id,
        "status": label(POINTER_STATUSES, of.status),
    }
    if of.active:
        shape["active"] = True
    if of.retry_count:
        shape["retries"] = of.retry_count
    for name, field in (("start", "start_time"), ("end", "end_time"), ("sleep", "sleep_until")):
        if of.HasField(field):  # type: ignore[arg-type]
            shape[name] = milliseconds(getattr(of, field))
    for name, field in (
        ("name", "step_name"),
        ("event", "event_name"),
        ("key", "event_key"),
        ("predecessor", "predecessor_id"),
    ):
        if of.HasField(field):  # type: ignore[arg-type]
            shape[name] = getattr(of, field)
    if of.event_published:
        shape["published"] = True
    if of.children:
        shape["children"] = list(of.children)
    if of.scope:
        shape["scope"] = list(of.scope)
    return shape


def whole_pointer(of: ExecutionPointer) -> Shape:
    """A pointer with its documents."""
    return {
        **pointer(of),
        "documents": {
            name: getattr(of, f"{name}_json")
            for name in _DOCUMENTS
            if of.HasField(f"{name}_json")  # type: ignore[arg-type]
        },
        "attributes": dict(of.extension_attributes_json),
    }


def counts(of: Iterable[WorkflowCount]) -> dict[str, int]:
    """How many workflows have each status."""
    return {label(WORKFLOW_STATUSES, one.status): one.count for one in of}


def event(of: Event) -> Shape:
    """An event."""
    return {
        "id": of.id,
        "name": of.event_name,
        "key": of.event_key,
        "time": time_of(of, "event_time"),
        "processed": of.is_processed,
        "data": of.event_data_json,
    }


def subscription(of: EventSubscription) -> Shape:
    """A subscription. Its token, which proves the claim, stays here."""
    return {
        "id": of.id,
        "workflow": of.workflow_id,
        "step": of.step_id,
        "pointer": of.execution_pointer_id,
        "event": of.event_name,
        "key": of.event_key,
        "since": time_of(of, "subscribe_as_of"),
        "data": _optional(of, "subscription_data_json"),
        "held": of.HasField("external_token"),
        "worker": _optional(of, "external_worker_id"),
        "expiry": time_of(of, "external_token_expiry"),
        "epoch": str(of.external_token_epoch),
    }


def error(of: ExecutionError) -> Shape:
    """An error."""
    return {
        "time": time_of(of, "error_time"),
        "workflow": of.workflow_id,
        "pointer": of.execution_pointer_id,
        "message": of.message,
    }


def _lease(of: Any) -> Shape | None:
    if not of.HasField("lease"):
        return None
    lease = of.lease
    return {
        "worker": lease.worker_id,
        "expiry": time_of(lease, "expiry"),
        "epoch": str(lease.epoch),
    }


def command(of: ListedCommand) -> Shape:
    """A command."""
    return {
        "name": label(COMMAND_NAMES, of.command.command_name),
        "data": of.command.data,
        "due": of.command.execute_time,
        "lease": _lease(of),
    }


def queue(of: QueueStats) -> Shape:
    """A queue."""
    return {
        "name": of.queue,
        "kind": label(QUEUE_KINDS, of.kind),
        "max_attempts": of.max_attempts,
        "waiting": of.waiting,
        "delayed": of.delayed,
        "leased": of.leased,
        "dead": of.dead,
        "oldest_seconds": seconds_of(of, "oldest_waiting_age"),
    }


def queue_item(of: ListedQueueItem) -> Shape:
    """An item of a queue."""
    return {
        "id": of.item.id,
        "state": label(ITEM_STATES, of.state),
        "attempt": of.attempt,
        "visible": time_of(of.item, "visible_time"),
        "again": time_of(of, "again_time"),
        "blocked_by": list(of.item.blocked_by),
        "payload": _optional(of.item, "payload_json"),
        "lease": _lease(of),
    }


def lock(of: Lock) -> Shape:
    """A lock."""
    return {
        "resource": of.resource,
        "owner": of.owner,
        "epoch": str(of.epoch),
        "acquired": time_of(of, "acquire_time"),
        "expiry": time_of(of, "expiry"),
    }


def namespace(of: Namespace) -> Shape:
    """A namespace."""
    return {
        "name": of.name,
        "schema": of.schema,
        "schema_version": of.schema_version,
        "rows": of.estimated_rows,
    }


def retention_policy(of: RetentionPolicy) -> Shape:
    """What the servers delete by themselves; ages in seconds."""
    return {
        "workflows": [
            {
                "definition": rule.workflow_definition_id,
                "complete": seconds_of(rule, "complete_age"),
                "terminated": seconds_of(rule, "terminated_age"),
            }
            for rule in of.workflows
        ],
        "processed_events": seconds_of(of, "processed_event_age"),
        "errors": seconds_of(of, "error_age"),
        "overdue_commands": seconds_of(of, "overdue_command_age"),
    }


def _retention_counts(of: RetentionCounts) -> Shape:
    return {
        "workflows": of.workflows,
        "execution_pointers": of.execution_pointers,
        "subscriptions": of.subscriptions,
        "events": of.events,
        "errors": of.errors,
        "commands": of.commands,
        "is_partial": of.is_partial,
    }


def storage(of: GetStorageReportResponse) -> Shape:
    """How much space is taken."""
    return {
        "tables": [
            {
                "name": table.name,
                "rows": table.estimated_rows,
                "dead_rows": table.dead_rows,
                "table_bytes": table.table_bytes,
                "index_bytes": table.index_bytes,
                "bloat_bytes": _optional(table, "bloat_bytes"),
            }
            for table in of.tables
        ],
        "freed": _retention_counts(of.freed),
        "freed_bytes": of.freed_bytes,
    }


def page(name: str, items: Iterable[Any], shape: Callable[[Any], Shape], token: str) -> Shape:
    """A page of a list, and the token of the next; empty: it is the last."""
    return {name: [shape(item) for item in items], "next": token}
