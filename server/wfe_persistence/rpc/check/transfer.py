"""The rules for exports and imports: those of the writes of each kind, and for what only the store
sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from google.protobuf.message import Message

from wfe.persistence.v1 import transfer_pb2 as pb
from wfe_persistence.rpc.check import read_back
from wfe_persistence.rpc.check.bounds import (
    MAX_INT4,
    MAX_ITEMS,
    MAX_REVISION,
    MAX_SNAPSHOT_SECONDS,
)
from wfe_persistence.rpc.check.messages import Check
from wfe_persistence.rpc.check.scalars import R
from wfe_persistence.store.records import QUEUE_KIND

_HASH_BYTES: Final = 32
_CREATED: Final = ("workflow", "subscription", "event")


def check_export(request: pb.ExportRecordsRequest, check: Check) -> float:
    """The rules for an export; returns for how long to hold its snapshot, in seconds."""
    if check.at_most("", "kinds", request.kinds):
        for i, kind in enumerate(request.kinds):
            if kind == pb.RECORD_KIND_UNSPECIFIED or kind not in pb.RecordKind.values():
                check.add(
                    "",
                    f"kinds[{i}]",
                    R.FIELD_VIOLATION_REASON_ENUM_VALUE,
                    "must be a known value other than UNSPECIFIED",
                )
        check.distinct("", "kinds", "", [str(kind) for kind in request.kinds])
    selection, path = request.workflows, "workflows"
    for field in ("ids", "workflow_definition_ids"):
        if check.at_most(path, field, getattr(selection, field)):
            check.ids(path, field, getattr(selection, field))
    check.statuses(path, selection.statuses)
    check.times(selection, path, "create_time_from", "create_time_before")
    hold = request.hold
    seconds = hold.seconds + hold.nanos / 1e9
    if not (0 <= hold.nanos < 10**9 and 0 <= seconds <= MAX_SNAPSHOT_SECONDS):
        check.add("", "hold", R.FIELD_VIOLATION_REASON_TIME_RANGE, "must be from 0 to 10 minutes")
    return seconds


def check_import(request: pb.ImportRecordsRequest, check: Check) -> None:
    """The rules for a request of an import. Raises PersistenceError."""
    if request.on_conflict not in pb.ConflictPolicy.values():
        check.add("", "on_conflict", R.FIELD_VIOLATION_REASON_ENUM_VALUE, "must be a known value")
    if check.at_most("", "records", request.records):
        keys: dict[str, int] = {}
        for i, record in enumerate(request.records):
            path = f"records[{i}]"
            kind = record.WhichOneof("record")
            if kind is None:
                check.add(path, "record", R.FIELD_VIOLATION_REASON_REQUIRED, "is required")
                continue
            given = getattr(record, kind)
            _RULES[kind](check, given, f"{path}.{kind}")
            if record.creation_hash and (
                kind not in _CREATED or len(record.creation_hash) != _HASH_BYTES
            ):
                check.add(
                    path,
                    "creation_hash",
                    R.FIELD_VIOLATION_REASON_FORMAT,
                    "must have 32 bytes, and be of a workflow, subscription or event",
                )
            key, field = _key(kind, given)
            if key and keys.setdefault(f"{kind} {key}", i) != i:
                check.add(
                    f"{path}.{kind}",
                    field,
                    R.FIELD_VIOLATION_REASON_DUPLICATE,
                    f"is the key of records[{keys[f'{kind} {key}']}], too",
                )
    check.done()
    check.fits(_read_back(request))


def _key(kind: str, given: Any) -> tuple[str, str]:
    """What no two records of a kind have in common, and the field that has it; empty: nothing."""
    if kind == "workflow":
        return given.instance.id, "instance.id"
    if kind in ("subscription", "event"):
        return given.id, "id"
    if kind == "command":
        return f"{given.command_name} {given.data}", "data"
    if kind in ("queue", "name_holder"):
        return given.name, "name"
    if kind == "queue_item":
        return f"{given.item.queue} {given.item.id}", "item.id"
    if kind == "definition_sequence":
        return given.definition_id, "definition_id"
    return "", ""


def _fence(check: Check, fence: pb.Fence, path: str) -> None:
    check.number(path, "epoch", fence.epoch, 0, MAX_REVISION)
    check.number(path, "revision", fence.revision, 0, MAX_REVISION)


def _workflow(check: Check, workflow: pb.WorkflowRecord, path: str) -> None:
    if not check.present(workflow, "instance", path):
        return
    instance = workflow.instance
    check.instance(instance, f"{path}.instance")
    check.id(f"{path}.instance", "name", instance.name)
    check.number(f"{path}.instance", "revision", instance.revision, 1, MAX_REVISION)
    check.number(path, "first_revision", workflow.first_revision, 1, max(instance.revision, 1))


def _pointers(check: Check, more: pb.ExecutionPointersRecord, path: str) -> None:
    check.id(path, "workflow_id", more.workflow_id)
    if not more.execution_pointers:
        check.add(
            path, "execution_pointers", R.FIELD_VIOLATION_REASON_REQUIRED, "must not be empty"
        )
    elif check.at_most(path, "execution_pointers", more.execution_pointers, MAX_ITEMS):
        check.pointers(more.execution_pointers, path)


def _subscription(check: Check, subscription: Any, path: str) -> None:
    check.subscription(subscription, path)
    check.id(path, "id", subscription.id)
    epoch = subscription.external_token_epoch
    check.number(path, "external_token_epoch", epoch, 0, MAX_REVISION)


def _event(check: Check, event: Any, path: str) -> None:
    check.event(event, path)
    check.id(path, "id", event.id)


def _error(check: Check, record: pb.ErrorRecord, path: str) -> None:
    if check.present(record, "error", path):
        check.error(record.error, f"{path}.error")
    check.number(path, "copy", record.copy)


def _queue(check: Check, queue: pb.QueueRecord, path: str) -> None:
    check.queue(path, "name", queue.name)
    check.enum(path, "kind", queue.kind, QUEUE_KIND)
    if queue.HasField("max_attempts"):
        check.number(path, "max_attempts", queue.max_attempts, 1, MAX_INT4)


def _queue_item(check: Check, record: pb.QueueItemRecord, path: str) -> None:
    if check.present(record, "item", path):
        check.queue_item(record.item, f"{path}.item")
        check.required_time(f"{path}.item", "visible_time", record.item)
    check.number(path, "attempt", record.attempt)


def _sequence(check: Check, sequence: pb.DefinitionSequenceRecord, path: str) -> None:
    check.id(path, "definition_id", sequence.definition_id)
    check.number(path, "last_number", sequence.last_number, 0, MAX_REVISION)


def _name_holder(check: Check, holder: pb.NameHolderRecord, path: str) -> None:
    for field in ("name", "workflow_id", "claim_id"):
        check.id(path, field, getattr(holder, field))


_RULES: Final[dict[str, Callable[[Check, Any, str], None]]] = {
    "fence": _fence,
    "workflow": _workflow,
    "execution_pointers": _pointers,
    "subscription": _subscription,
    "event": _event,
    "error": _error,
    "command": lambda check, command, path: check.command(command, path),
    "queue": _queue,
    "queue_item": _queue_item,
    "definition_sequence": _sequence,
    "retention_policy": lambda check, policy, path: check.retention_policy(policy, path),
    "name_holder": _name_holder,
}


def _read_back(request: pb.ImportRecordsRequest) -> Iterator[Message]:
    """The responses in which the records would be read."""
    for record in request.records:
        kind = record.WhichOneof("record")
        if kind == "workflow":
            instance = record.workflow.instance
            yield from read_back.workflow(_header(instance))
            yield from read_back.pointers(instance.execution_pointers)
        elif kind == "execution_pointers":
            yield from read_back.pointers(record.execution_pointers.execution_pointers)
        elif kind == "subscription":
            yield from read_back.subscriptions([record.subscription])
        elif kind == "event":
            yield from read_back.events([record.event])
        elif kind == "error":
            yield from read_back.errors([record.error.error])
        elif kind == "command":
            yield from read_back.commands([record.command])
        elif kind == "queue_item":
            yield from read_back.queue_items([record.queue_item.item])


def _header(instance: Any) -> Any:
    header = type(instance)()
    header.CopyFrom(instance)
    header.ClearField("execution_pointers")
    return header


assert set(_RULES) == {field.name for field in pb.Record.DESCRIPTOR.oneofs_by_name["record"].fields}
