"""Events."""

from collections.abc import Sequence
from typing import Final

from wfe.persistence.v1 import event_pb2
from wfe_persistence_client import model
from wfe_persistence_client.convert.scalars import (
    read_json_field,
    time_from_proto,
    timestamp,
    write_json_field,
)
from wfe_persistence_client.hints import Fields
from wfe_persistence_client.misfit import build, each

_EVENT: Final = Fields(model.Event)


def events_to_proto(place: str, values: Sequence[model.Event]) -> list[event_pb2.Event]:
    """Events as messages; `place` is the argument's name, for errors."""
    return each(place, values, event_to_proto)


def event_to_proto(value: model.Event) -> event_pb2.Event:
    """An event as a message."""
    _EVENT.check(value)
    return build(
        event_pb2.Event,
        id=value.id,
        event_name=value.event_name,
        event_key=value.event_key,
        event_data_json=write_json_field("event_data", value.event_data),
        event_time=timestamp("event_time", value.event_time),
        is_processed=value.is_processed,
    )


def event_from_proto(message: event_pb2.Event) -> model.Event:
    """An event from a message."""
    return model.Event(
        id=message.id,
        event_name=message.event_name,
        event_key=message.event_key,
        event_data=read_json_field("event_data", message.event_data_json),
        event_time=time_from_proto(message.event_time),
        is_processed=message.is_processed,
    )
