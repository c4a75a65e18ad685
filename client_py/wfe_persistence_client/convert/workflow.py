"""Workflows, execution pointers, patches, filters and purges.

In protobuf, None as an argument leaves an optional field absent.
"""

from collections.abc import Iterable
from typing import Any, Final

from wfe.persistence.v1 import list_order_pb2, workflow_pb2
from wfe_persistence_client import model
from wfe_persistence_client.convert.scalars import (
    enum_from_proto,
    optional_timestamp,
    read_json_field,
    time_from_proto,
    timestamp,
    write_json_field,
    write_json_members,
    write_optional_json_field,
)
from wfe_persistence_client.hints import Fields, rule_of
from wfe_persistence_client.misfit import FieldValueError, Misfit, build, each

_WORKFLOW: Final = Fields(model.WorkflowInstance)
_POINTER: Final = Fields(model.ExecutionPointer)
_PATCH: Final = Fields(model.WorkflowPatch)
_FILTER: Final = Fields(model.WorkflowFilter)
_HEADER: Final = {name: rule_of(hint) for name, hint in model.HeaderChanges.__annotations__.items()}


def workflow_to_proto(value: model.WorkflowInstance) -> workflow_pb2.WorkflowInstance:
    """A workflow with its pointers as a message."""
    _WORKFLOW.check(value)
    return build(
        workflow_pb2.WorkflowInstance,
        id=value.id,
        name=value.name,
        root_workflow_id=value.root_workflow_id,
        workflow_definition_id=value.workflow_definition_id,
        version=value.version,
        description=value.description,
        reference=value.reference,
        execution_pointers=each("execution_pointers", value.execution_pointers, _pointer_to_proto),
        next_execution=value.next_execution,
        status=workflow_pb2.WorkflowStatus.ValueType(value.status.value),
        data_json=write_json_field("data", value.data),
        create_time=timestamp("create_time", value.create_time),
        complete_time=optional_timestamp("complete_time", value.complete_time),
        revision=value.revision,
        view=view(value.view),
        extension_attributes_json=write_json_members(
            "extension_attributes", value.extension_attributes
        ),
    )


def view(value: model.WorkflowView) -> workflow_pb2.WorkflowView.ValueType:
    """A view in a request for one workflow, or on a workflow: FULL is the zero value."""
    return workflow_pb2.WorkflowView.ValueType(
        0 if value is model.WorkflowView.FULL else value.value
    )


def workflow_from_proto(message: workflow_pb2.WorkflowInstance) -> model.WorkflowInstance:
    """A workflow with its pointers from a message."""
    return model.WorkflowInstance(
        id=message.id,
        name=message.name,
        root_workflow_id=message.root_workflow_id if message.HasField("root_workflow_id") else None,
        workflow_definition_id=message.workflow_definition_id,
        version=message.version,
        description=message.description if message.HasField("description") else None,
        reference=message.reference if message.HasField("reference") else None,
        execution_pointers=each(
            "execution_pointers", message.execution_pointers, pointer_from_proto
        ),
        next_execution=message.next_execution if message.HasField("next_execution") else None,
        status=enum_from_proto(model.WorkflowStatus, message.status),
        data=read_json_field("data", message.data_json),
        create_time=time_from_proto(message.create_time),
        complete_time=time_from_proto(message.complete_time)
        if message.HasField("complete_time")
        else None,
        revision=message.revision,
        view=enum_from_proto(model.WorkflowView, message.view or model.WorkflowView.FULL.value),
        extension_attributes={
            name: read_json_field("extension_attributes", text)
            for name, text in message.extension_attributes_json.items()
        },
    )


def _pointer_to_proto(value: model.ExecutionPointer) -> workflow_pb2.ExecutionPointer:
    _POINTER.check(value)
    return build(
        workflow_pb2.ExecutionPointer,
        id=value.id,
        step_id=value.step_id,
        active=value.active,
        status=workflow_pb2.PointerStatus.ValueType(value.status.value),
        sleep_until=optional_timestamp("sleep_until", value.sleep_until),
        persistence_data_json=write_optional_json_field("persistence_data", value.persistence_data),
        start_time=optional_timestamp("start_time", value.start_time),
        end_time=optional_timestamp("end_time", value.end_time),
        event_name=value.event_name,
        event_key=value.event_key,
        event_published=value.event_published,
        event_data_json=write_optional_json_field("event_data", value.event_data),
        step_name=value.step_name,
        retry_count=value.retry_count,
        children=value.children,
        context_item_json=write_optional_json_field("context_item", value.context_item),
        predecessor_id=value.predecessor_id,
        outcome_json=write_optional_json_field("outcome", value.outcome),
        scope=value.scope,
        extension_attributes_json=write_json_members(
            "extension_attributes", value.extension_attributes
        ),
    )


def pointer_from_proto(message: workflow_pb2.ExecutionPointer) -> model.ExecutionPointer:
    """An execution pointer from a message."""
    has = message.HasField
    return model.ExecutionPointer(
        id=message.id,
        step_id=message.step_id,
        active=message.active,
        status=enum_from_proto(model.PointerStatus, message.status),
        sleep_until=time_from_proto(message.sleep_until) if has("sleep_until") else None,
        persistence_data=(
            read_json_field("persistence_data", message.persistence_data_json)
            if has("persistence_data_json")
            else model.ABSENT
        ),
        start_time=time_from_proto(message.start_time) if has("start_time") else None,
        end_time=time_from_proto(message.end_time) if has("end_time") else None,
        event_name=message.event_name if has("event_name") else None,
        event_key=message.event_key if has("event_key") else None,
        event_published=message.event_published,
        event_data=(
            read_json_field("event_data", message.event_data_json)
            if has("event_data_json")
            else model.ABSENT
        ),
        step_name=message.step_name if has("step_name") else None,
        retry_count=message.retry_count,
        children=list(message.children),
        context_item=(
            read_json_field("context_item", message.context_item_json)
            if has("context_item_json")
            else model.ABSENT
        ),
        predecessor_id=message.predecessor_id if has("predecessor_id") else None,
        outcome=read_json_field("outcome", message.outcome_json)
        if has("outcome_json")
        else model.ABSENT,
        scope=list(message.scope),
        extension_attributes={
            name: read_json_field("extension_attributes", text)
            for name, text in message.extension_attributes_json.items()
        },
    )


def patch_to_proto(value: model.WorkflowPatch) -> workflow_pb2.WorkflowPatch:
    """A patch as a message."""
    _PATCH.check(value)
    message = build(
        workflow_pb2.WorkflowPatch,
        id=value.id,
        execution_pointers=each("execution_pointers", value.execution_pointers, _pointer_to_proto),
        removed_pointer_ids=value.removed_pointer_ids,
    )
    try:
        for name, new in value.header.items():
            message.header_mask.paths.append(_set_header(message.header, name, new))
    except Misfit as exc:
        exc.enter("header")
        raise
    return message


def _set_header(header: workflow_pb2.WorkflowInstance, name: str, new: Any) -> str:
    """Sets one header field, and returns its name in the protos."""
    if name not in _HEADER:
        raise FieldValueError(name, "not a header field that can change")
    if name == "data":
        header.data_json = write_json_field("data", new)
        return "data_json"
    rule = _HEADER[name]
    if rule is not None:
        rule.fit(name, new)
    if name == "extension_attributes":
        attributes = write_json_members("extension_attributes", new)
        header.extension_attributes_json.update(attributes)
        return "extension_attributes_json"
    if new is None:
        return name
    fields: dict[str, Any] = {name: new}
    if name in {"create_time", "complete_time"}:
        fields[name] = timestamp(name, new)
    elif name == "status":
        fields[name] = new.value
    header.MergeFrom(build(workflow_pb2.WorkflowInstance, **fields))
    return name


def filter_to_proto(value: model.WorkflowFilter) -> workflow_pb2.WorkflowFilter:
    """A filter of workflows as a message."""
    _FILTER.check(value)
    return build(
        workflow_pb2.WorkflowFilter,
        statuses=statuses_to_proto(value.statuses),
        workflow_definition_id=value.workflow_definition_id,
        version=value.version,
        reference=value.reference,
        name_prefix=value.name_prefix,
        root_workflow_id=value.root_workflow_id,
        create_time_from=optional_timestamp("create_time_from", value.create_time_from),
        create_time_before=optional_timestamp("create_time_before", value.create_time_before),
        complete_time_from=optional_timestamp("complete_time_from", value.complete_time_from),
        complete_time_before=optional_timestamp("complete_time_before", value.complete_time_before),
        written_before=optional_timestamp("written_before", value.written_before),
        due_before=optional_timestamp("due_before", value.due_before),
        waiting_event_name=value.waiting_event_name,
        waiting_event_key=value.waiting_event_key,
        error_time_from=optional_timestamp("error_time_from", value.error_time_from),
    )


def statuses_to_proto(
    values: Iterable[model.WorkflowStatus],
) -> list[workflow_pb2.WorkflowStatus.ValueType]:
    """Statuses as the numbers in a message."""
    return [workflow_pb2.WorkflowStatus.ValueType(value.value) for value in values]


def order_to_proto(value: model.ListOrder) -> list_order_pb2.ListOrder.ValueType:
    """The order of a list as in a message."""
    return list_order_pb2.ListOrder.ValueType(value.value)


def change_from_proto(message: workflow_pb2.WorkflowChange) -> model.WorkflowChange:
    """A workflow that was written or deleted."""
    return model.WorkflowChange(
        instance=workflow_from_proto(message.instance),
        deleted=message.deleted,
        passes=message.passes,
        cursor=message.cursor,
    )


def counts_from_proto(
    message: workflow_pb2.CountWorkflowsResponse,
) -> dict[model.WorkflowStatus, int]:
    """How many workflows have each status."""
    return {
        enum_from_proto(model.WorkflowStatus, count.status): count.count for count in message.counts
    }


def purged_from_proto(message: workflow_pb2.PurgeWorkflowsResponse) -> model.PurgedWorkflows:
    """The counts of one call of a purge."""
    return model.PurgedWorkflows(
        workflows=message.workflows,
        execution_pointers=message.execution_pointers,
        subscriptions=message.subscriptions,
        errors=message.errors,
        events=message.events,
    )
