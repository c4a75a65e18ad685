"""Between the dataclasses and the protobuf messages.

What cannot be sent raises ValueError or TypeError that names the field; what
cannot be read raises `MalformedAnswer`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1 import (
    command_pb2,
    event_pb2,
    list_order_pb2,
    store_pb2,
    subscription_pb2,
    workflow_pb2,
)
from wfe_persistence_client import model
from wfe_persistence_client.errors import MalformedAnswer
from wfe_persistence_client.json_text import JSON, read_json, write_json

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime.min.replace(tzinfo=UTC) - _EPOCH
_LAST = datetime.max.replace(tzinfo=UTC) - _EPOCH
_MICROSECOND = timedelta(microseconds=1)

_EnumT = TypeVar("_EnumT", bound=Enum)


# Scalars


def timestamp(name: str, value: datetime) -> Timestamp:
    """A time as a message; `name` is the field's, for the error."""
    if value.utcoffset() is None:
        raise ValueError(
            f"{name} is a naive datetime, which names no instant: give it a timezone, "
            "for example datetime.now(UTC)"
        )
    since_epoch = value - _EPOCH
    if not _FIRST <= since_epoch <= _LAST:
        raise ValueError(f"{name} is outside the years 1-9999 in UTC")
    return Timestamp(
        seconds=since_epoch.days * 86400 + since_epoch.seconds,
        nanos=since_epoch.microseconds * 1000,
    )


def optional_timestamp(name: str, value: datetime | None) -> Timestamp | None:
    """The same for a time that may be absent."""
    return None if value is None else timestamp(name, value)


def duration(value: timedelta) -> Duration:
    """A duration as a message."""
    microseconds = value // _MICROSECOND
    # Truncated towards zero: protobuf wants seconds and nanos of one sign.
    seconds, rest = divmod(abs(microseconds), 1_000_000)
    sign = -1 if microseconds < 0 else 1
    return Duration(seconds=sign * seconds, nanos=sign * rest * 1000)


def optional_duration(value: timedelta | None) -> Duration | None:
    """The same for a duration that may be absent."""
    return None if value is None else duration(value)


def _timedelta(value: Duration) -> timedelta:
    try:
        return timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    except OverflowError as exc:
        raise MalformedAnswer("a duration is too long") from exc


def _time(value: Timestamp) -> datetime:
    try:
        return _EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    except OverflowError as exc:
        raise MalformedAnswer("a time is outside the years 1-9999") from exc


def _write(name: str, value: JSON) -> str:
    try:
        return write_json(value)
    except (ValueError, TypeError) as exc:
        raise type(exc)(f"{name}: {exc}") from exc


def _write_optional(name: str, value: JSON | model.Absent) -> str | None:
    return None if value is model.ABSENT else _write(name, value)


def _read(name: str, text: str) -> JSON:
    try:
        return read_json(text)
    except ValueError as exc:
        raise MalformedAnswer(f"{name} is no JSON that this client can read") from exc


def _enum(kind: type[_EnumT], value: int) -> _EnumT:
    try:
        return kind(value)
    except ValueError as exc:
        raise MalformedAnswer(
            f"{kind.__name__} {value} is unknown: the store has been used by newer software"
        ) from exc


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Says in a note where in the value the error is."""
    try:
        yield
    except (ValueError, TypeError, MalformedAnswer) as exc:
        exc.add_note(f"in {place}")
        raise


# Messages. In protobuf an argument of None leaves an optional field absent.


def workflow_to_proto(value: model.WorkflowInstance) -> workflow_pb2.WorkflowInstance:
    """A workflow with its pointers as a message."""
    pointers = []
    for index, pointer in enumerate(value.execution_pointers):
        with _within(f"execution_pointers[{index}]"):
            pointers.append(_pointer_to_proto(pointer))
    return workflow_pb2.WorkflowInstance(
        id=value.id,
        name=value.name,
        root_workflow_id=value.root_workflow_id,
        workflow_definition_id=value.workflow_definition_id,
        version=value.version,
        description=value.description,
        reference=value.reference,
        execution_pointers=pointers,
        next_execution=value.next_execution,
        status=workflow_pb2.WorkflowStatus.ValueType(value.status.value),
        data_json=_write("data", value.data),
        create_time=timestamp("create_time", value.create_time),
        complete_time=optional_timestamp("complete_time", value.complete_time),
        revision=value.revision,
        view=view(value.view),
    )


def view(value: model.WorkflowView) -> workflow_pb2.WorkflowView.ValueType:
    """A view as in a request for one workflow, or on it: FULL is what needs no saying."""
    return workflow_pb2.WorkflowView.ValueType(
        0 if value is model.WorkflowView.FULL else value.value
    )


def workflow_from_proto(message: workflow_pb2.WorkflowInstance) -> model.WorkflowInstance:
    """A workflow with its pointers from a message."""
    pointers = []
    for index, pointer in enumerate(message.execution_pointers):
        with _within(f"execution_pointers[{index}]"):
            pointers.append(pointer_from_proto(pointer))
    return model.WorkflowInstance(
        id=message.id,
        name=message.name,
        root_workflow_id=message.root_workflow_id if message.HasField("root_workflow_id") else None,
        workflow_definition_id=message.workflow_definition_id,
        version=message.version,
        description=message.description if message.HasField("description") else None,
        reference=message.reference if message.HasField("reference") else None,
        execution_pointers=pointers,
        next_execution=message.next_execution if message.HasField("next_execution") else None,
        status=_enum(model.WorkflowStatus, message.status),
        data=_read("data", message.data_json),
        create_time=_time(message.create_time),
        complete_time=_time(message.complete_time) if message.HasField("complete_time") else None,
        revision=message.revision,
        view=_enum(model.WorkflowView, message.view or model.WorkflowView.FULL.value),
    )


def patch_to_proto(value: model.WorkflowPatch) -> workflow_pb2.WorkflowPatch:
    """A patch as a message."""
    message = workflow_pb2.WorkflowPatch(id=value.id, removed_pointer_ids=value.removed_pointer_ids)
    with _within("header"):
        for name, new in value.header.items():
            message.header_mask.paths.append(_set_header(message.header, name, new))
    for index, pointer in enumerate(value.execution_pointers):
        with _within(f"execution_pointers[{index}]"):
            message.execution_pointers.append(_pointer_to_proto(pointer))
    return message


def _set_header(header: workflow_pb2.WorkflowInstance, name: str, new: Any) -> str:
    """Sets one header field, and answers its name in the protos."""
    if name not in model.HeaderChanges.__annotations__:
        raise ValueError(f"{name} is no field of the header that can change")
    if name == "data":
        header.data_json = _write("data", new)
        return "data_json"
    if name in {"create_time", "complete_time"}:
        if new is not None:
            getattr(header, name).CopyFrom(timestamp(name, new))
    elif name == "status":
        header.status = workflow_pb2.WorkflowStatus.ValueType(new.value)
    elif new is not None:
        setattr(header, name, new)
    return name


def filter_to_proto(value: model.WorkflowFilter) -> workflow_pb2.WorkflowFilter:
    """A filter of workflows as a message."""
    return workflow_pb2.WorkflowFilter(
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
    )


def statuses_to_proto(
    values: Iterable[model.WorkflowStatus],
) -> list[workflow_pb2.WorkflowStatus.ValueType]:
    """Statuses as the numbers in a message."""
    return [workflow_pb2.WorkflowStatus.ValueType(value.value) for value in values]


def order_to_proto(value: model.ListOrder) -> list_order_pb2.ListOrder.ValueType:
    """The order of a list as in a message."""
    return list_order_pb2.ListOrder.ValueType(value.value)


def counts_from_proto(
    message: workflow_pb2.CountWorkflowsResponse,
) -> dict[model.WorkflowStatus, int]:
    """How many workflows have each status."""
    return {_enum(model.WorkflowStatus, count.status): count.count for count in message.counts}


def purged_from_proto(message: workflow_pb2.PurgeWorkflowsResponse) -> model.PurgedWorkflows:
    """What one call of a purge deleted."""
    return model.PurgedWorkflows(
        workflows=message.workflows,
        execution_pointers=message.execution_pointers,
        subscriptions=message.subscriptions,
        errors=message.errors,
        events=message.events,
    )


def _pointer_to_proto(value: model.ExecutionPointer) -> workflow_pb2.ExecutionPointer:
    return workflow_pb2.ExecutionPointer(
        id=value.id,
        step_id=value.step_id,
        active=value.active,
        status=workflow_pb2.PointerStatus.ValueType(value.status.value),
        sleep_until=optional_timestamp("sleep_until", value.sleep_until),
        persistence_data_json=_write_optional("persistence_data", value.persistence_data),
        start_time=optional_timestamp("start_time", value.start_time),
        end_time=optional_timestamp("end_time", value.end_time),
        event_name=value.event_name,
        event_key=value.event_key,
        event_published=value.event_published,
        event_data_json=_write_optional("event_data", value.event_data),
        step_name=value.step_name,
        retry_count=value.retry_count,
        children=value.children,
        context_item_json=_write_optional("context_item", value.context_item),
        predecessor_id=value.predecessor_id,
        outcome_json=_write_optional("outcome", value.outcome),
        scope=value.scope,
        extension_attributes_json={
            name: _write("extension_attributes", attribute)
            for name, attribute in value.extension_attributes.items()
        },
    )


def pointer_from_proto(message: workflow_pb2.ExecutionPointer) -> model.ExecutionPointer:
    """An execution pointer from a message."""
    has = message.HasField
    return model.ExecutionPointer(
        id=message.id,
        step_id=message.step_id,
        active=message.active,
        status=_enum(model.PointerStatus, message.status),
        sleep_until=_time(message.sleep_until) if has("sleep_until") else None,
        persistence_data=(
            _read("persistence_data", message.persistence_data_json)
            if has("persistence_data_json")
            else model.ABSENT
        ),
        start_time=_time(message.start_time) if has("start_time") else None,
        end_time=_time(message.end_time) if has("end_time") else None,
        event_name=message.event_name if has("event_name") else None,
        event_key=message.event_key if has("event_key") else None,
        event_published=message.event_published,
        event_data=(
            _read("event_data", message.event_data_json) if has("event_data_json") else model.ABSENT
        ),
        step_name=message.step_name if has("step_name") else None,
        retry_count=message.retry_count,
        children=list(message.children),
        context_item=(
            _read("context_item", message.context_item_json)
            if has("context_item_json")
            else model.ABSENT
        ),
        predecessor_id=message.predecessor_id if has("predecessor_id") else None,
        outcome=_read("outcome", message.outcome_json) if has("outcome_json") else model.ABSENT,
        scope=list(message.scope),
        extension_attributes={
            name: _read("extension_attributes", text)
            for name, text in message.extension_attributes_json.items()
        },
    )


def events_to_proto(values: Sequence[model.Event]) -> list[event_pb2.Event]:
    """Events as messages."""
    messages = []
    for index, value in enumerate(values):
        with _within(f"events[{index}]"):
            messages.append(event_to_proto(value))
    return messages


def event_to_proto(value: model.Event) -> event_pb2.Event:
    """An event as a message."""
    return event_pb2.Event(
        id=value.id,
        event_name=value.event_name,
        event_key=value.event_key,
        event_data_json=_write("event_data", value.event_data),
        event_time=timestamp("event_time", value.event_time),
        is_processed=value.is_processed,
    )


def event_from_proto(message: event_pb2.Event) -> model.Event:
    """An event from a message."""
    return model.Event(
        id=message.id,
        event_name=message.event_name,
        event_key=message.event_key,
        event_data=_read("event_data", message.event_data_json),
        event_time=_time(message.event_time),
        is_processed=message.is_processed,
    )


def subscription_to_proto(value: model.EventSubscription) -> subscription_pb2.EventSubscription:
    """A subscription as a message."""
    return subscription_pb2.EventSubscription(
        id=value.id,
        workflow_id=value.workflow_id,
        step_id=value.step_id,
        execution_pointer_id=value.execution_pointer_id,
        event_name=value.event_name,
        event_key=value.event_key,
        subscribe_as_of=timestamp("subscribe_as_of", value.subscribe_as_of),
        subscription_data_json=_write_optional("subscription_data", value.subscription_data),
        external_token=value.external_token,
        external_worker_id=value.external_worker_id,
        external_token_expiry=optional_timestamp(
            "external_token_expiry", value.external_token_expiry
        ),
        external_token_epoch=value.external_token_epoch,
    )


def subscription_from_proto(
    message: subscription_pb2.EventSubscription,
) -> model.EventSubscription:
    """A subscription from a message."""
    has = message.HasField
    return model.EventSubscription(
        id=message.id,
        workflow_id=message.workflow_id,
        step_id=message.step_id,
        execution_pointer_id=message.execution_pointer_id,
        event_name=message.event_name,
        event_key=message.event_key,
        subscribe_as_of=_time(message.subscribe_as_of),
        subscription_data=(
            _read("subscription_data", message.subscription_data_json)
            if has("subscription_data_json")
            else model.ABSENT
        ),
        external_token=message.external_token if has("external_token") else None,
        external_worker_id=message.external_worker_id if has("external_worker_id") else None,
        external_token_expiry=(
            _time(message.external_token_expiry) if has("external_token_expiry") else None
        ),
        external_token_epoch=message.external_token_epoch,
    )


def claim_to_proto(value: model.SubscriptionClaim) -> workflow_pb2.SubscriptionClaim:
    """A claim on a subscription as a message."""
    return workflow_pb2.SubscriptionClaim(
        subscription_id=value.subscription_id, token=value.token, epoch=value.epoch
    )


def claim_from_proto(
    subscription_id: str,
    token: str,
    message: subscription_pb2.SetSubscriptionTokenResponse
    | subscription_pb2.RenewSubscriptionTokenResponse,
) -> model.SubscriptionClaim:
    """A claim on a subscription from the answer to it."""
    return model.SubscriptionClaim(
        subscription_id=subscription_id,
        token=token,
        # A server that is older than epochs sends none.
        epoch=message.epoch or None,
        expiry=_time(message.expiry) if message.HasField("expiry") else None,
    )


def subscriptions_to_proto(
    values: Sequence[model.EventSubscription],
) -> list[subscription_pb2.EventSubscription]:
    """Subscriptions as messages."""
    messages = []
    for index, value in enumerate(values):
        with _within(f"subscriptions[{index}]"):
            messages.append(subscription_to_proto(value))
    return messages


def command_to_proto(value: model.ScheduledCommand) -> command_pb2.ScheduledCommand:
    """A scheduled command as a message."""
    return command_pb2.ScheduledCommand(
        command_name=command_pb2.CommandName.ValueType(value.command_name.value),
        data=value.data,
        execute_time=value.execute_time,
    )


def command_from_proto(message: command_pb2.ScheduledCommand) -> model.ScheduledCommand:
    """A scheduled command from a message."""
    return model.ScheduledCommand(
        command_name=_enum(model.CommandName, message.command_name),
        data=message.data,
        execute_time=message.execute_time,
    )


def claimed_command_from_proto(message: command_pb2.ClaimedCommand) -> model.ClaimedCommand:
    """A claimed command from a message."""
    return model.ClaimedCommand(
        command=command_from_proto(message.command),
        lease_token=message.lease_token,
        lease_expiry=_time(message.lease_expiry),
        epoch=message.epoch,
    )


def lease_expiry_from_proto(message: command_pb2.RenewCommandsResponse) -> datetime | None:
    """When renewed leases end."""
    return _time(message.lease_expiry) if message.HasField("lease_expiry") else None


def errors_to_proto(values: Sequence[model.ExecutionError]) -> list[store_pb2.ExecutionError]:
    """Errors for the log as messages."""
    messages = []
    for index, value in enumerate(values):
        with _within(f"errors[{index}]"):
            messages.append(
                store_pb2.ExecutionError(
                    error_time=timestamp("error_time", value.error_time),
                    workflow_id=value.workflow_id,
                    execution_pointer_id=value.execution_pointer_id,
                    message=value.message,
                )
            )
    return messages


def error_from_proto(message: store_pb2.ExecutionError) -> model.ExecutionError:
    """A logged error from a message."""
    return model.ExecutionError(
        error_time=_time(message.error_time),
        workflow_id=message.workflow_id,
        execution_pointer_id=message.execution_pointer_id,
        message=message.message,
    )


def store_info_from_proto(message: store_pb2.GetStoreInfoResponse) -> model.StoreInfo:
    """What a server says about itself, from its message."""
    return model.StoreInfo(
        server_version=message.server_version,
        postgres_version=message.postgres_version,
        namespace=message.namespace,
        schema=message.schema,
        schema_version=message.schema_version,
        latest_schema_version=message.latest_schema_version,
        capabilities=model.Capabilities(
            scheduled_commands=message.capabilities.scheduled_commands,
            truncate_all=message.capabilities.truncate_all,
            delete_namespace=message.capabilities.delete_namespace,
        ),
        max_message_bytes=message.max_message_bytes,
        request_retention=_timedelta(message.request_retention),
    )


def namespace_from_proto(message: store_pb2.Namespace) -> model.Namespace:
    """A namespace, from its message."""
    return model.Namespace(
        name=message.name,
        schema=message.schema,
        schema_version=message.schema_version,
        estimated_rows=message.estimated_rows,
    )
