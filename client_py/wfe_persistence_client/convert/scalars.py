"""Times, durations, enums and JSON."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from wfe_persistence_client import model
from wfe_persistence_client.errors import MalformedAnswer
from wfe_persistence_client.json_text import JSON, LEFT_OUT, key_place, read_json, write_json
from wfe_persistence_client.misfit import FieldValueError, Misfit

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime.min.replace(tzinfo=UTC) - _EPOCH
_LAST = datetime.max.replace(tzinfo=UTC) - _EPOCH
_MICROSECOND = timedelta(microseconds=1)

_EnumT = TypeVar("_EnumT", bound=Enum)


def timestamp(name: str, value: datetime) -> Timestamp:
    """Converts a time; `name` is the field's name, for the error."""
    if value.tzinfo is not UTC and value.utcoffset() is None:
        raise FieldValueError(
            name,
            "a naive datetime does not identify an instant: use an aware one, for example "
            "datetime.now(UTC)",
        )
    since_epoch = value - _EPOCH
    if value.tzinfo is not UTC and not _FIRST <= since_epoch <= _LAST:
        raise FieldValueError(name, "the time is outside the years 1-9999 in UTC")
    return Timestamp(
        seconds=since_epoch.days * 86400 + since_epoch.seconds,
        nanos=since_epoch.microseconds * 1000,
    )


def optional_timestamp(name: str, value: datetime | None) -> Timestamp | None:
    """Converts a time that may be absent."""
    return None if value is None else timestamp(name, value)


def duration(value: timedelta) -> Duration:
    """Converts a duration."""
    microseconds = value // _MICROSECOND
    # Truncated towards zero: protobuf requires seconds and nanos of the same sign.
    seconds, rest = divmod(abs(microseconds), 1_000_000)
    sign = -1 if microseconds < 0 else 1
    return Duration(seconds=sign * seconds, nanos=sign * rest * 1000)


def optional_duration(value: timedelta | None) -> Duration | None:
    """Converts a duration that may be absent."""
    return None if value is None else duration(value)


def timedelta_from_proto(value: Duration) -> timedelta:
    """Reads a duration, truncated to microseconds."""
    try:
        return timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    except OverflowError as exc:
        raise MalformedAnswer("a duration is too long") from exc


def time_from_proto(value: Timestamp) -> datetime:
    """Reads a time, truncated to microseconds."""
    try:
        return _EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    except OverflowError as exc:
        raise MalformedAnswer("a time is outside the years 1-9999") from exc


def write_json_field(name: str, value: JSON) -> str:
    """Writes a JSON field; errors name the field."""
    try:
        return write_json(value)
    except Misfit as exc:
        exc.enter(name)
        raise


def write_optional_json_field(name: str, value: JSON | model.Absent) -> str | None:
    """Writes a JSON field that may be absent; None: it is absent."""
    return None if value is model.ABSENT else write_json_field(name, value)


def write_json_members(name: str, values: Mapping[str, JSON]) -> dict[str, str]:
    """Writes a field that maps names to JSON; errors name the field and the member."""
    written: dict[str, str] = {}
    key = ""
    try:
        for key, value in values.items():
            written[key] = write_json(value)
    except Misfit as exc:
        exc.enter(name + key_place(key))
        raise
    return written


def read_json_field(name: str, text: str) -> JSON:
    """Reads a JSON field. The store leaves a document out of a list as an empty text."""
    if not text:
        return LEFT_OUT
    try:
        return read_json(text)
    except ValueError as exc:
        raise MalformedAnswer(f"{name} is not JSON that this client can read") from exc


def enum_from_proto(kind: type[_EnumT], value: int) -> _EnumT:
    """Reads an enum value."""
    try:
        return kind(value)
    except ValueError as exc:
        raise MalformedAnswer(
            f"{kind.__name__} {value} is unknown: it was stored by newer software"
        ) from exc
