"""What must be known of a request before it is decoded.

Decoding holds the GIL until it is finished, and an empty message takes two bytes on the wire but
hundreds in memory.
"""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from wfe.persistence.v1.error_reason_pb2 import FieldViolationReason
from wfe_persistence.errors import invalid_field
from wfe_persistence.rpc.check.bounds import MAX_ITEMS

_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}
_SMALLEST_ITEM = 2  # bytes

_Fields = dict[int, tuple[str, Descriptor | None, bool]]


def require_few_items(data: bytes, message: Descriptor) -> None:
    """Raise INVALID_FIELD if a list of messages in an encoded request has too many items.

    It looks at the lists of the request itself and of the messages in it, those that are listed
    taken together. (Lists of texts are decoded fast.)
    """
    if len(data) > MAX_ITEMS * _SMALLEST_ITEM:
        try:
            _count(data, 0, len(data), message, "", {})
        except IndexError:
            return  # not a message, as decoding will find as well


def _count(
    data: bytes, at: int, end: int, message: Descriptor, path: str, counts: dict[str, int]
) -> None:
    fields = _fields(message)
    while at < end:
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == _LENGTH_DELIMITED:
            length, at = _varint(data, at)
            if (field := fields.get(tag)) is not None:
                name, inner, is_list = field
                full = path + name
                if inner is not None:
                    _count(data, at, min(at + length, end), inner, f"{full}.", counts)
                if is_list:
                    counts[full] = counts.get(full, 0) + 1
                    if counts[full] > MAX_ITEMS:
                        raise invalid_field(
                            full,
                            FieldViolationReason.FIELD_VIOLATION_REASON_NUMBER_RANGE,
                            f"must have at most {MAX_ITEMS} items",
                        )
            at += length
        elif wire_type == 0:
            _, at = _varint(data, at)
        else:  # the rest begin or end a group of fields, which nothing here has
            at += _FIXED_BYTES.get(wire_type, 0)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it."""
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError


@cache
def _fields(message: Descriptor) -> _Fields:
    """By their tags: the lists of messages, and the messages that have any, listed or not (None: it
    has none)."""
    found: _Fields = {}
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            tag = field.number << 3 | _LENGTH_DELIMITED
            inner = field.message_type if _fields(field.message_type) else None
            if field.is_repeated or inner is not None:
                found[tag] = field.name, inner, field.is_repeated
    return found
