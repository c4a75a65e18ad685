"""Messages as lines of JSON, and back: the JSON form of protobuf, for a message always the same.

It is what any protobuf library reads, with the names of fields as they are in the protos, the keys
of maps in order and times to the microsecond. (`google.protobuf.json_format` takes much longer.)
"""
# ruff: noqa: TRY004 — what is wrong with a line is always a ValueError

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from functools import cache
from json.encoder import encode_basestring
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 — UTC; without a time zone it is faster

Write = Callable[[Any], str]
Read = Callable[[Any], Any]

_LONG: Final = (
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_SINT64,
    FieldDescriptor.TYPE_FIXED64,
    FieldDescriptor.TYPE_SFIXED64,
)


class LineError(ValueError):
    """What is wrong with a line, and in which field."""


def to_line(message: Message) -> str:
    """A message as JSON on one line, without the line break."""
    return _writer(message.DESCRIPTOR)(message)


def from_line(line: str | bytes, message: Message) -> None:
    """Fill a message. Raises LineError."""
    try:
        value = json.loads(line)
    except ValueError as exc:
        raise LineError(f"is not JSON: {exc}") from None
    _fill(message, value, "")


@cache
def _writer(descriptor: Descriptor) -> Write:
    fields = {field: (f'"{field.name}":', _field_writer(field)) for field in descriptor.fields}

    def write(message: Any) -> str:
        members = []
        for field, value in message.ListFields():
            name, write_value = fields[field]
            members.append(name + write_value(value))
        return f"{{{','.join(members)}}}"

    return write


def _field_writer(field: FieldDescriptor) -> Write:
    if _is_map(field):
        one = _value_writer(_value_field(field))

        def write_map(values: Mapping[str, Any]) -> str:
            members = (f"{encode_basestring(key)}:{one(values[key])}" for key in sorted(values))
            return f"{{{','.join(members)}}}"

        return write_map
    one = _value_writer(field)
    if field.is_repeated:
        return lambda values: f"[{','.join(map(one, values))}]"
    return one


def _value_writer(field: FieldDescriptor) -> Write:
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return encode_basestring
    if kind == FieldDescriptor.TYPE_BYTES:
        return lambda value: f'"{base64.b64encode(value).decode()}"'
    if kind == FieldDescriptor.TYPE_BOOL:
        return lambda value: "true" if value else "false"
    if kind == FieldDescriptor.TYPE_ENUM:
        names = {value.number: f'"{value.name}"' for value in _enum(field).values}
        return lambda value: names.get(value) or str(value)
    if kind == FieldDescriptor.TYPE_MESSAGE:
        if field.message_type is Timestamp.DESCRIPTOR:
            return _write_time
        if field.message_type is Duration.DESCRIPTOR:
            return lambda value: f'"{value.ToJsonString()}"'
        # (No message has itself in it.)
        return _writer(field.message_type)
    if kind in _LONG:
        return lambda value: f'"{value}"'
    return str


def _write_time(time: Timestamp) -> str:
    at = _EPOCH + timedelta(0, time.seconds, time.nanos // 1000)
    return f'"{at.isoformat()}Z"'


@cache
def _readers(descriptor: Descriptor) -> dict[str, tuple[str, Callable[[Any, Any, str], None]]]:
    """How to put a value into a message, by the names that a field may have."""
    found = {}
    for field in descriptor.fields:
        found[field.name] = found[field.json_name] = (field.name, _field_reader(field))
    return found


def _fill(message: Any, value: Any, path: str) -> None:
    if not isinstance(value, dict):
        raise LineError(f"{path or 'the line'}: is not an object")
    readers = _readers(message.DESCRIPTOR)
    for key, member in value.items():
        found = readers.get(key)
        if found is None:
            raise LineError(f"{_at(path, key)}: there is no such field")
        name, read = found
        if member is not None:
            try:
                read(message, member, f"{path}.{name}" if path else name)
            except LineError:
                raise
            except (ValueError, TypeError, OverflowError) as exc:
                raise LineError(f"{_at(path, name)}: {exc}") from None


def _at(path: str, key: str) -> str:
    return f"{path}.{key[:100]}" if path else key[:100]


def _field_reader(field: FieldDescriptor) -> Callable[[Any, Any, str], None]:
    name = field.name
    if _is_map(field):
        one = _value_reader(_value_field(field))

        def put_map(message: Any, value: Any, path: str) -> None:
            if not isinstance(value, dict):
                raise LineError(f"{path}: is not an object")
            target = getattr(message, name)
            for key, item in value.items():
                target[key] = _checked(one, item, path)

        return put_map
    if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type not in (
        Timestamp.DESCRIPTOR, Duration.DESCRIPTOR,
    ):  # fmt: skip
        if field.is_repeated:
            return lambda message, value, path: _fill_list(getattr(message, name), value, path)

        def put_message(message: Any, value: Any, path: str) -> None:
            target = getattr(message, name)
            target.SetInParent()
            _fill(target, value, path)

        return put_message
    one = _value_reader(field)
    if field.is_repeated:

        def put_list(message: Any, value: Any, path: str) -> None:
            if not isinstance(value, list):
                raise LineError(f"{path}: is not a list")
            getattr(message, name).extend(_checked(one, item, path) for item in value)

        return put_list
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return lambda message, value, path: getattr(message, name).CopyFrom(
            _checked(one, value, path)
        )
    return lambda message, value, path: setattr(message, name, _checked(one, value, path))


def _fill_list(target: Any, value: Any, path: str) -> None:
    if not isinstance(value, list):
        raise LineError(f"{path}: is not a list")
    for i, item in enumerate(value):
        _fill(target.add(), item, f"{path}[{i}]")


def _checked(read: Read, value: Any, path: str) -> Any:
    try:
        return read(value)
    except ValueError as exc:
        raise LineError(f"{path}: {exc}") from None


def _value_reader(field: FieldDescriptor) -> Read:
    kind = field.type
    if kind == FieldDescriptor.TYPE_STRING:
        return _text
    if kind == FieldDescriptor.TYPE_BYTES:
        return lambda value: base64.b64decode(_text(value), validate=True)
    if kind == FieldDescriptor.TYPE_BOOL:
        return _bool
    if kind == FieldDescriptor.TYPE_ENUM:
        return _enum_reader(_enum(field))
    if kind == FieldDescriptor.TYPE_MESSAGE:
        return _time if field.message_type is Timestamp.DESCRIPTOR else _duration
    return _whole


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is not a string")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("has a lone surrogate") from None
    return value


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("is not true or false")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("is not a whole number")
    return int(value)


def _enum_reader(enum: EnumDescriptor) -> Read:
    numbers = {value.name: value.number for value in enum.values}

    def read(value: Any) -> int:
        if isinstance(value, str) and value in numbers:
            return numbers[value]
        raise ValueError(f"is not the name of a {enum.name}")

    return read


def _time(value: Any) -> Timestamp:
    time = Timestamp()
    time.FromJsonString(_text(value))
    return time


def _duration(value: Any) -> Duration:
    duration = Duration()
    duration.FromJsonString(_text(value))
    return duration


def _value_field(field: FieldDescriptor) -> FieldDescriptor:
    """The values of a map."""
    assert field.message_type is not None
    return field.message_type.fields_by_name["value"]


def _enum(field: FieldDescriptor) -> EnumDescriptor:
    assert field.enum_type is not None
    return field.enum_type


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def lines(file: Any) -> Iterator[bytes]:
    """The lines of a file, which is read as bytes; empty ones too, but none that is not ended only
    because the file is cut off."""
    for line in file:
        if not line.endswith(b"\n"):
            raise LineError("the last line is cut off: it has no line break")
        yield line[:-1]
