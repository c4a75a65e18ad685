"""Values of columns in protobuf's wire format, so that messages are made of many rows without one
setter call per value.

To set the fields of an execution pointer takes Python 9 µs. Most values come from PostgreSQL in the
very bytes that protobuf has behind a tag and a length. So they are encoded column by column, for
many rows at once, put together row by row and parsed by protobuf itself, in C: 2 µs.

What the function of a column makes of a value is what its reader in columns.py puts into the
message, and nothing for NULL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from google.protobuf.descriptor import FieldDescriptor

from wfe_persistence.store.rows import epoch_micros, read_int4, read_int8, read_uint

Cells = Sequence[bytes | None]
"""The values of one column, row by row; None: NULL."""
Encode = Callable[[Cells], list[bytes]]
"""A column's values as a field of each message, with its tag; empty where there is none."""

_VARINT: Final = 0
_DELIMITED: Final = 2
_UNSIGNED: Final = (1 << 64) - 1
_MORE: Final = 0x80
_BITS: Final = 0x7F
_KEPT: Final = 1024
_FOUR_BYTES: Final = 1 << 21


def varint(number: int) -> bytes:
    """A number as protobuf has it; a negative one as 64 bits."""
    number &= _UNSIGNED
    encoded = bytearray()
    while number > _BITS:
        encoded.append(number & _BITS | _MORE)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


class Heads(dict[int, bytes]):
    """What a field with a length has before its value, by the length. (A dictionary that fills as
    lengths occur: looking up is all that is done for each value.)"""

    def __init__(self, field: FieldDescriptor, *, shift: int = 0, none_if_empty: bool = False):
        """`shift`: by how much the lengths it is asked for are too high; `none_if_empty`: leave
        out a field without a value."""
        self._tag = _tag(field, _DELIMITED)
        self._shift = shift
        if none_if_empty:
            self[shift] = b""

    def __missing__(self, length: int) -> bytes:
        head = self._tag + varint(length - self._shift)
        if len(self) < _KEPT:
            self[length] = head
        return head


class _Values(dict[bytes | None, bytes]):
    """A field by its column's value; it keeps the first that occur, which are often all."""

    def __init__(self, encode: Callable[[bytes], bytes]) -> None:
        super().__init__({None: b""})
        self._encode = encode

    def __missing__(self, value: bytes) -> bytes:
        field = self._encode(value)
        if len(self) < _KEPT:
            self[value] = field
        return field


def _tag(field: FieldDescriptor, kind: int) -> bytes:
    return varint(field.number << 3 | kind)


def texts(field: FieldDescriptor) -> Encode:
    """A text column, in a string field."""
    heads = Heads(field, none_if_empty=not field.has_presence)
    return lambda cells: [b"" if v is None else heads[len(v)] + v for v in cells]


def json(field: FieldDescriptor) -> Encode:
    """A jsonb column, in a string field: a version byte and the text."""
    heads = Heads(field, shift=1)
    return lambda cells: [b"" if v is None else heads[len(v)] + v[1:] for v in cells]


def _by_value(encode: Callable[[bytes], bytes]) -> Encode:
    at = _Values(encode).__getitem__
    return lambda cells: list(map(at, cells))


def _number(field: FieldDescriptor, decode: Callable[[bytes], int]) -> Encode:
    tag, has_presence = _tag(field, _VARINT), field.has_presence

    def encode(value: bytes) -> bytes:
        number = decode(value)
        return tag + varint(number) if number or has_presence else b""

    return _by_value(encode)


def int4s(field: FieldDescriptor) -> Encode:
    """An int column."""
    return _number(field, read_int4)


def int8s(field: FieldDescriptor) -> Encode:
    """A bigint column."""
    return _number(field, read_int8)


def uints(field: FieldDescriptor) -> Encode:
    """An int column that holds an unsigned 32-bit number."""
    return _number(field, read_uint)


def booleans(field: FieldDescriptor) -> Encode:
    """A boolean column."""
    return _number(field, lambda value: value == b"\x01")


def enum(values: Mapping[bytes, int]) -> Callable[[FieldDescriptor], Encode]:
    """A column with the names of an enum's values; others are 0."""
    return lambda field: _number(field, lambda value: values.get(value, 0))


def times(field: FieldDescriptor) -> Encode:
    """A timestamptz column, in a Timestamp."""
    heads, seconds = Heads(field), _Seconds()

    def encode(cells: Cells) -> list[bytes]:
        fields = []
        for value in cells:
            if value is None:
                fields.append(b"")
                continue
            second, micros = divmod(epoch_micros(value), 1_000_000)
            time = seconds[second]
            if micros:
                n = micros * 1000
                time += (
                    _LOW[n >> 3 & 0x7FF] + _MIDDLE[n >> 14 & _BITS] + _HIGH[n >> 21]
                    if n >= _FOUR_BYTES
                    else b"\x10" + varint(n)
                )
            fields.append(heads[len(time)] + time)
        return fields

    return encode


# Nanoseconds of whole microseconds from 2^21 on, in three parts: the first 14 bits, of which the
# lowest three are zero, with the tag before; seven bits; and the rest.
_LOW: Final = [bytes((0x10, n & _BITS | _MORE, n >> 7 | _MORE)) for n in range(0, 1 << 14, 8)]
_MIDDLE: Final = [bytes((n | _MORE,)) for n in range(1 << 7)]
_HIGH: Final = [varint(n) for n in range((10**9 >> 21) + 1)]


class _Seconds(dict[int, bytes]):
    """The first field of a Timestamp. Those of one workflow are often the same."""

    def __missing__(self, seconds: int) -> bytes:
        field = b"\x08" + varint(seconds) if seconds else b""
        if len(self) >= _KEPT:
            self.clear()
        self[seconds] = field
        return field


def strings(decode: Callable[[bytes], Iterable[str]]) -> Callable[[FieldDescriptor], Encode]:
    """A column of several strings, in a repeated field."""

    def made(field: FieldDescriptor) -> Encode:
        heads = Heads(field)

        def encode(value: bytes) -> bytes:
            encoded = map(str.encode, decode(value))
            return b"".join([heads[len(item)] + item for item in encoded])

        return lambda cells: [b"" if v is None else encode(v) for v in cells]

    return made


def maps(
    decode: Callable[[bytes], Mapping[str, str]],
) -> Callable[[FieldDescriptor], Encode]:
    """A column of strings by name, in a map."""

    def made(field: FieldDescriptor) -> Encode:
        heads = Heads(field)
        assert field.message_type is not None
        keys, values = (Heads(part) for part in field.message_type.fields)

        def entry(name: str, text: str) -> bytes:
            key, value = name.encode(), text.encode()
            encoded = keys[len(key)] + key + values[len(value)] + value
            return heads[len(encoded)] + encoded

        def encode(value: bytes) -> bytes:
            return b"".join([entry(*item) for item in decode(value).items()])

        return lambda cells: [b"" if v is None else encode(v) for v in cells]

    return made


def message_encoder(fields: Iterable[Encode]) -> Callable[[Sequence[Cells]], Iterable[bytes]]:
    """The function that puts messages together, from the values of each of their fields' columns,
    all for the same rows."""
    encoders = tuple(fields)

    def encode(columns: Sequence[Cells]) -> Iterable[bytes]:
        absent = [None] * len(columns[0])
        parts = [
            encode(cells)
            for encode, cells in zip(encoders, columns, strict=True)
            if cells != absent
        ]
        return map(b"".join, zip(*parts, strict=True)) if parts else (b"" for _ in absent)

    return encode
