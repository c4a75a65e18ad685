"""Lifecycle events."""

from collections.abc import Iterable
from typing import Final

from wfe.persistence.v1 import lifecycle_pb2
from wfe_persistence_client import model
from wfe_persistence_client.convert.scalars import time_from_proto, timestamp
from wfe_persistence_client.hints import Fields
from wfe_persistence_client.misfit import build, each

_TYPES: Final = {type_.value: type_ for type_ in model.LifecycleEventType}
_LIFECYCLE_EVENT: Final = Fields(model.LifecycleEvent)


def lifecycle_event_type_to_proto(
    value: model.LifecycleEventType,
) -> lifecycle_pb2.LifecycleEventType.ValueType:
    """A type as the enum of the messages."""
    return lifecycle_pb2.LifecycleEventType.ValueType(value.value)


def lifecycle_events_to_proto(
    place: str, values: Iterable[model.LifecycleEvent]
) -> list[lifecycle_pb2.LifecycleEvent]:
    """Events as messages; `place` is the argument's name, for errors."""
    return each(place, list(values), lifecycle_event_to_proto)


def lifecycle_event_to_proto(value: model.LifecycleEvent) -> lifecycle_pb2.LifecycleEvent:
    """An event as a message."""
    _LIFECYCLE_EVENT.check(value)
    return build(
        lifecycle_pb2.LifecycleEvent,
        type=lifecycle_event_type_to_proto(value.type),
        workflow_id=value.workflow_id,
        workflow_definition_id=value.workflow_definition_id,
        version=value.version,
        reference=value.reference,
        event_time=timestamp("event_time", value.event_time),
        step_id=value.step_id,
        step_name=value.step_name,
        message=value.message,
    )


def watched_event_from_proto(message: lifecycle_pb2.WatchedEvent) -> model.LifecycleEvent:
    """An event with its cursor."""
    event = message.event
    return model.LifecycleEvent(
        type=_TYPES.get(event.type, model.LifecycleEventType.UNKNOWN),
        workflow_id=event.workflow_id,
        workflow_definition_id=event.workflow_definition_id,
        version=event.version,
        reference=event.reference if event.HasField("reference") else None,
        event_time=time_from_proto(event.event_time),
        step_id=event.step_id if event.HasField("step_id") else None,
        step_name=event.step_name if event.HasField("step_name") else None,
        message=event.message if event.HasField("message") else None,
        cursor=message.cursor,
    )
