"""Messages as the JSON documents that the writing statements take apart.

A whole aggregate goes to PostgreSQL as one JSON parameter (`jsonb_to_record`): about twice as fast
as a list parameter per column once there are some dozen rows, and since hosts send their JSON as
text already, making it is only joining strings. Absent fields are left out. A JSON field is wrapped
into a list of one (`[value]`, unwrapped by `-> 0`), because JSON `null` itself would arrive as NULL
and be absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from wfe.persistence.v1.command_pb2 import CommandName, ScheduledCommand
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    ExecutionPointer,
    PointerStatus,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
)
from wfe_persistence.store.rows import iso, quote

WORKFLOW_STATUS: Final[dict[WorkflowStatus.ValueType, str]] = {
    WorkflowStatus.WORKFLOW_STATUS_RUNNABLE: "Runnable",
    WorkflowStatus.WORKFLOW_STATUS_SUSPENDED: "Suspended",
    WorkflowStatus.WORKFLOW_STATUS_COMPLETE: "Complete",
    WorkflowStatus.WORKFLOW_STATUS_TERMINATED: "Terminated",
}
POINTER_STATUS: Final[dict[PointerStatus.ValueType, str]] = {
    PointerStatus.POINTER_STATUS_PENDING: "Pending",
    PointerStatus.POINTER_STATUS_RUNNING: "Running",
    PointerStatus.POINTER_STATUS_COMPLETE: "Complete",
    PointerStatus.POINTER_STATUS_SKIPPED: "Skipped",
    PointerStatus.POINTER_STATUS_SLEEPING: "Sleeping",
    PointerStatus.POINTER_STATUS_WAITING_FOR_EVENT: "WaitingForEvent",
    PointerStatus.POINTER_STATUS_FAILED: "Failed",
    PointerStatus.POINTER_STATUS_COMPENSATED: "Compensated",
    PointerStatus.POINTER_STATUS_CANCELLED: "Cancelled",
    PointerStatus.POINTER_STATUS_PENDING_PREDECESSOR: "PendingPredecessor",
}
COMMAND_NAME: Final[dict[CommandName.ValueType, str]] = {
    CommandName.COMMAND_NAME_PROCESS_WORKFLOW: "ProcessWorkflow",
    CommandName.COMMAND_NAME_PROCESS_EVENT: "ProcessEvent",
}


def _strings(values: Iterable[str]) -> str:
    return f"[{','.join(map(quote, values))}]"


def array(documents: Iterable[str]) -> bytes:
    """Documents as one JSON array parameter."""
    return f"[{','.join(documents)}]".encode()


def workflow_document(w: WorkflowInstance) -> bytes:
    """A workflow with its pointers."""
    head = (
        f'{{"id":{quote(w.id)},"name":{quote(w.name)},'
        f'"definition_id":{quote(w.workflow_definition_id)},"version":{w.version},'
        f'"status":"{WORKFLOW_STATUS[w.status]}","data":[{w.data_json}],'
        f'"create_time":"{iso(w.create_time)}"'
    )
    parts = [head]
    if w.HasField("root_workflow_id"):
        parts.append(f'"root_workflow_id":{quote(w.root_workflow_id)}')
    if w.HasField("description"):
        parts.append(f'"description":{quote(w.description)}')
    if w.HasField("reference"):
        parts.append(f'"reference":{quote(w.reference)}')
    if w.HasField("next_execution"):
        parts.append(f'"next_execution":{w.next_execution}')
    if w.HasField("complete_time"):
        parts.append(f'"complete_time":"{iso(w.complete_time)}"')
    pointers = ",".join(
        map(_pointer_document, range(len(w.execution_pointers)), w.execution_pointers)
    )
    parts.append(f'"execution_pointers":[{pointers}]}}')
    return ",".join(parts).encode()


def _pointer_document(ordinal: int, p: ExecutionPointer) -> str:
    head = (
        f'{{"ordinal":{ordinal},"id":{quote(p.id)},"step_id":{p.step_id},'
        f'"status":"{POINTER_STATUS[p.status]}"'
    )
    parts = [head]
    if p.active:
        parts.append('"active":true')
    if p.event_published:
        parts.append('"event_published":true')
    if p.retry_count:
        parts.append(f'"retry_count":{p.retry_count}')
    if p.HasField("sleep_until"):
        parts.append(f'"sleep_until":"{iso(p.sleep_until)}"')
    if p.HasField("start_time"):
        parts.append(f'"start_time":"{iso(p.start_time)}"')
    if p.HasField("end_time"):
        parts.append(f'"end_time":"{iso(p.end_time)}"')
    if p.HasField("event_name"):
        parts.append(f'"event_name":{quote(p.event_name)}')
    if p.HasField("event_key"):
        parts.append(f'"event_key":{quote(p.event_key)}')
    if p.HasField("step_name"):
        parts.append(f'"step_name":{quote(p.step_name)}')
    if p.HasField("predecessor_id"):
        parts.append(f'"predecessor_id":{quote(p.predecessor_id)}')
    if p.HasField("persistence_data_json"):
        parts.append(f'"persistence_data":[{p.persistence_data_json}]')
    if p.HasField("event_data_json"):
        parts.append(f'"event_data":[{p.event_data_json}]')
    if p.HasField("context_item_json"):
        parts.append(f'"context_item":[{p.context_item_json}]')
    if p.HasField("outcome_json"):
        parts.append(f'"outcome":[{p.outcome_json}]')
    if p.children:
        parts.append(f'"children":{_strings(p.children)}')
    if p.scope:
        parts.append(f'"scope":{_strings(p.scope)}')
    if p.extension_attributes_json:
        attributes = ",".join(f"{quote(k)}:{v}" for k, v in p.extension_attributes_json.items())
        parts.append(f'"extension_attributes":{{{attributes}}}')
    return ",".join(parts) + "}"


# The header fields that a patch can name, and how each gets into its document.
HEADER_FIELDS: Final[dict[str, Callable[[WorkflowInstance], str]]] = {
    "name": lambda w: f'"name":{quote(w.name)}',
    "root_workflow_id": lambda w: f'"root_workflow_id":{_text_or_null(w, "root_workflow_id")}',
    "workflow_definition_id": lambda w: f'"definition_id":{quote(w.workflow_definition_id)}',
    "version": lambda w: f'"version":{w.version}',
    "description": lambda w: f'"description":{_text_or_null(w, "description")}',
    "reference": lambda w: f'"reference":{_text_or_null(w, "reference")}',
    "next_execution": lambda w: (
        f'"next_execution":{w.next_execution if w.HasField("next_execution") else "null"}'
    ),
    "status": lambda w: f'"status":"{WORKFLOW_STATUS[w.status]}"',
    "data_json": lambda w: f'"data":[{w.data_json}]',
    "create_time": lambda w: f'"create_time":"{iso(w.create_time)}"',
    "complete_time": lambda w: (
        f'"complete_time":"{iso(w.complete_time)}"'
        if w.HasField("complete_time")
        else '"complete_time":null'
    ),
}


def _text_or_null(w: WorkflowInstance, field: Any) -> str:
    return quote(getattr(w, field)) if w.HasField(field) else "null"


def patch_document(patch: WorkflowPatch) -> bytes:
    """A patch: only the header fields to change, `null` for those that become absent."""
    parts = [HEADER_FIELDS[name](patch.header) for name in patch.header_mask.paths]
    pointers = ",".join(
        map(_pointer_document, range(len(patch.execution_pointers)), patch.execution_pointers)
    )
    parts.append(f'"execution_pointers":[{pointers}]')
    parts.append(f'"removed":{_strings(patch.removed_pointer_ids)}')
    return f"{{{','.join(parts)}}}".encode()


def effects_document(request: CommitWorkflowRequest, leases: Iterable[str]) -> bytes:
    """What a commit does beside the workflow's own state. `leases`: documents of lease tokens."""
    claims = ",".join(
        f'{{"n":{n},"id":{quote(claim.subscription_id)},"token":{quote(claim.token)}'
        + (f',"epoch":{claim.epoch}}}' if claim.HasField("epoch") else "}")
        for n, claim in enumerate(request.held_subscriptions)
    )
    return (
        f'{{"claims":[{claims}],"leases":[{",".join(leases)}],'
        f'"terminated":{_strings(request.terminate_subscription_ids)},'
        f'"events":[{",".join(map(_event_document, request.create_events))}],'
        f'"processed":{_strings(request.processed_event_ids)},'
        f'"errors":[{",".join(map(error_document, request.errors))}],'
        f'"commands":[{",".join(map(_command_document, request.schedule_commands))}]}}'
    ).encode()


def _command_document(c: ScheduledCommand) -> str:
    return (
        f'{{"command_name":"{COMMAND_NAME[c.command_name]}","data":{quote(c.data)},'
        f'"execute_time":{c.execute_time}}}'
    )


def event_document(e: Event) -> bytes:
    """An event."""
    return _event_document(e).encode()


def _event_document(e: Event) -> str:
    return (
        f'{{"id":{quote(e.id)},"event_name":{quote(e.event_name)},"event_key":{quote(e.event_key)},'
        f'"event_data":[{e.event_data_json}],"event_time":"{iso(e.event_time)}",'
        f'"is_processed":{"true" if e.is_processed else "false"}}}'
    )


def subscription_document(s: EventSubscription) -> str:
    """A subscription."""
    head = (
        f'{{"id":{quote(s.id)},"workflow_id":{quote(s.workflow_id)},"step_id":{s.step_id},'
        f'"execution_pointer_id":{quote(s.execution_pointer_id)},'
        f'"event_name":{quote(s.event_name)},"event_key":{quote(s.event_key)},'
        f'"subscribe_as_of":"{iso(s.subscribe_as_of)}"'
    )
    parts = [head]
    if s.HasField("subscription_data_json"):
        parts.append(f'"subscription_data":[{s.subscription_data_json}]')
    if s.HasField("external_token"):
        parts.append(f'"external_token":{quote(s.external_token)}')
    if s.HasField("external_worker_id"):
        parts.append(f'"external_worker_id":{quote(s.external_worker_id)}')
    if s.HasField("external_token_expiry"):
        parts.append(f'"external_token_expiry":"{iso(s.external_token_expiry)}"')
    return ",".join(parts) + "}"


def error_document(e: ExecutionError) -> str:
    """A logged error."""
    return (
        f'{{"error_time":"{iso(e.error_time)}","workflow_id":{quote(e.workflow_id)},'
        f'"execution_pointer_id":{quote(e.execution_pointer_id)},"message":{quote(e.message)}}}'
    )
