"""The columns of a table, declared once: the SQL that lists them and the codec both follow from it.

A message goes to PostgreSQL as a JSON document, which the statement takes apart with
`jsonb_to_record`, and comes back as a row of binary columns. `Columns` is the ordered list of its
columns; the record, the insert list, the assignments of an update, the selection, the function that
writes the document and the function that reads the row are all made from this one list, so that
none of them can be out of step with another. They are made at import: a row is read by a loop over
a tuple of closures, a document is written from the fields that are set.

In a document absent fields are left out. A JSON field is wrapped in a list of one (`[value]`,
unwrapped by `-> 0`), because JSON `null` itself would arrive as SQL NULL and be absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from json import JSONDecoder, dumps, loads
from typing import Any, Final, Generic, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from wfe_persistence.store import wire
from wfe_persistence.store.rows import (
    Found,
    GetValue,
    iso,
    quote,
    read_bool,
    read_int4,
    read_int8,
    read_json,
    read_time,
    read_uint,
)

M = TypeVar("M", bound=Message)

Write = Callable[[Any], str]
"""A field's value as `"name":value`, a member of the document."""
Read = Callable[[Any, bytes], None]
"""Puts a column's binary value, which is not NULL, into a message."""

EMPTY_OBJECT: Final = "'{}'"
EMPTY_ARRAY: Final = "'[]'"
EMPTY_TEXT_ARRAY: Final = "'{}'::text[]"
_EMPTY_LIST: Final = b"\x01[]"
_LINE_LENGTH: Final = 98
_INDENT: Final = 8


@dataclass(frozen=True, slots=True)
class Codec:
    """How one kind of column is written and read."""

    sql_type: str
    """Its type in the document's record."""
    writer: Callable[[str], Write]
    """Makes the function that writes it, from its name in the document."""
    reader: Callable[[str], Read]
    """Makes the function that reads it, from the name of the message's field."""
    encoder: Callable[[FieldDescriptor], wire.Encode]
    """Makes the function that does the same for many rows, see wire.py."""
    field_suffix: str = ""
    """What the message's field has behind the column's name."""
    unwrapped: Callable[[str], str] = lambda column: column
    """From a column of the record to the value that is stored."""
    selected: Callable[[str], str] = lambda column: column
    """From a column of the table to the value that is read."""
    compared: Callable[[str], str] = lambda column: column
    """From a column to a value that is equal only if it reads back the same."""


def _as_text(column: str) -> str:
    """jsonb itself holds 1.0 and 1.00 for equal."""
    return f"{column}::text"


def _setter(decode: Callable[[bytes], object]) -> Callable[[str], Read]:
    def reader(field: str) -> Read:
        def read(message: Any, value: bytes) -> None:
            setattr(message, field, decode(value))

        return read

    return reader


def _write_text(name: str) -> Write:
    head = f'"{name}":'
    return lambda value: head + quote(value)


def _write_number(name: str) -> Write:
    return lambda value: f'"{name}":{value}'


def _write_bool(name: str) -> Write:
    return lambda value: f'"{name}":true' if value else f'"{name}":false'


def _write_time(name: str) -> Write:
    return lambda value: f'"{name}":"{iso(value)}"'


def _read_time(field: str) -> Read:
    return lambda message, value: read_time(value, getattr(message, field))


def _write_json(name: str) -> Write:
    return lambda value: f'"{name}":[{value}]'


def strings(values: Iterable[str]) -> str:
    """Strings as a JSON array."""
    return f"[{','.join(map(quote, values))}]"


def _write_strings(name: str) -> Write:
    return lambda values: f'"{name}":{strings(values)}'


# Without Python's own limit on digits.
_decode_json = JSONDecoder(parse_int=str, parse_float=str).decode


def _as_strings(text: str) -> list[str]:
    """A JSON document as a list of strings, whatever other software has stored there: elements that
    are no strings are their JSON text, and what is no list has no elements."""
    try:
        value = _decode_json(text)
    except RecursionError:
        return []
    if not isinstance(value, list):
        return []
    return [item if isinstance(item, str) else dumps(item, ensure_ascii=False) for item in value]


def decode_strings(value: bytes) -> list[str]:
    """The strings of a column of them, as it is selected."""
    return [] if value == _EMPTY_LIST else _as_strings(read_json(value))


def _read_strings(field: str) -> Read:
    return lambda message, value: getattr(message, field).extend(decode_strings(value))


def _write_json_map(name: str) -> Write:
    def write(values: Mapping[str, str]) -> str:
        members = ",".join(f"{quote(key)}:{value}" for key, value in values.items())
        return f'"{name}":{{{members}}}'

    return write


def _select_json_map(column: str) -> str:
    """Each value as JSON text, in a string; NULL for an empty map, and for what other software
    stored and is no map."""
    return f"""CASE WHEN {column} <> {EMPTY_OBJECT} AND jsonb_typeof({column}) = 'object' THEN
            (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each({column})) END"""


def _decode_json_map(value: bytes) -> dict[str, str]:
    decoded: dict[str, str] = loads(read_json(value))
    return decoded


def _read_json_map(field: str) -> Read:
    return lambda message, value: getattr(message, field).update(_decode_json_map(value))


TEXT: Final = Codec("text", _write_text, _setter(bytes.decode), wire.texts)
INT4: Final = Codec("int", _write_number, _setter(read_int4), wire.int4s)
INT8: Final = Codec("bigint", _write_number, _setter(read_int8), wire.int8s)
UINT4: Final = Codec("int", _write_number, _setter(read_uint), wire.uints)
"""An unsigned 32-bit field in an int column."""
BOOL: Final = Codec("boolean", _write_bool, _setter(read_bool), wire.booleans)
TIME: Final = Codec("timestamptz", _write_time, _read_time, wire.times)
JSON: Final = Codec(
    "jsonb",
    _write_json,
    _setter(read_json),
    wire.json,
    field_suffix="_json",
    unwrapped=lambda column: f"{column} -> 0",
    compared=_as_text,
)
"""A JSON document, in a string field."""
STRINGS: Final = Codec(
    "jsonb",
    _write_strings,
    _read_strings,
    wire.strings(decode_strings),
    selected=lambda column: f"nullif({column}, {EMPTY_ARRAY})",
)
"""A repeated string field, as a JSON array."""
TEXT_ARRAY: Final = Codec(
    "text[]",
    _write_strings,
    _read_strings,
    wire.strings(decode_strings),
    selected=lambda column: f"CASE WHEN {column} <> '{{}}' THEN to_jsonb({column}) END",
)
"""A repeated string field, as an array."""
JSON_MAP: Final = Codec(
    "jsonb",
    _write_json_map,
    _read_json_map,
    wire.maps(_decode_json_map),
    field_suffix="_json",
    selected=_select_json_map,
    compared=_as_text,
)
"""A map from names to JSON documents, as a JSON object."""


def enum(names: Mapping[Any, str]) -> Codec:
    """An enum as its name; a name that this server does not know is read as 0 (UNSPECIFIED)."""
    values = {name.encode(): value for value, name in names.items()}

    def writer(column: str) -> Write:
        members = {value: f'"{column}":"{name}"' for value, name in names.items()}
        return members.__getitem__

    return Codec("text", writer, _setter(lambda value: values.get(value, 0)), wire.enum(values))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table and the field of a message that it holds."""

    name: str
    """In the table, the document and the record alike."""
    codec: Codec
    field: str = ""
    """The message's field; empty: the column's name with the codec's suffix."""
    nullable: bool = False
    """Whether the field may be absent, and the column NULL."""
    default: str | None = None
    """The SQL of the value of a zero or empty field, which the document leaves out."""
    key: bool = False
    """Whether it is part of the key, which no update changes."""
    written: bool = True
    """False: the store sets the value; the field is ignored on write."""
    large: bool = False
    """Whether a selection may leave it out where a row only repeats it; see `selection`."""

    @property
    def field_name(self) -> str:
        """The message's field."""
        return self.field or self.name + self.codec.field_suffix

    def value(self, record: str) -> str:
        """The value to store, out of a record of the document."""
        value = self.codec.unwrapped(f"{record}.{self.name}")
        return value if self.default is None else f"coalesce({value}, {self.default})"


class Columns(Generic[M]):
    """The columns of a table that hold one kind of message, in the order of every list of them.

    The lists are SQL text to put into a statement; those of what is written leave out the columns
    that the store fills in itself. `indent`: of the lines after the first.
    """

    def __init__(self, message: type[M], *columns: Column) -> None:
        self.message = message
        self.columns = columns
        self.written = tuple(column for column in columns if column.written)
        self._writes = {
            column.field_name: column.codec.writer(column.name) for column in self.written
        }
        self.members = self._members()

    def __len__(self) -> int:
        """How many columns a selection has."""
        return len(self.columns)

    def at(self, name: str) -> int:
        """Where a column stands in a selection."""
        return [column.name for column in self.columns].index(name)

    def record(self, *, indent: int = _INDENT) -> str:
        """The names and types of the document's record, `id text, …`."""
        return sql_list(
            (f"{column.name} {column.codec.sql_type}" for column in self.written), indent
        )

    def names(self) -> str:
        """The columns of an INSERT."""
        return sql_list(column.name for column in self.written)

    def values(self, record: str) -> str:
        """The values of an INSERT, out of a record of the document."""
        return sql_list(column.value(record) for column in self.written)

    def compared(self, *, indent: int = _INDENT) -> str:
        """Values that tell whether two rows would be read as the same message."""
        return sql_list((column.codec.compared(column.name) for column in self.written), indent)

    def assignments(self, value: Callable[[Column], str], *, but: Iterable[str] = ()) -> str:
        """The SET list of an UPDATE, without the key and the columns `but`."""
        return ",\n        ".join(
            f"{column.name} = {value(column)}"
            for column in self.written
            if not column.key and column.name not in but
        )

    def selection(self, table: str = "", *, large_if: str = "") -> str:
        """What a SELECT must start with, or have at `first`, for `reader(first)`.

        `table`: its alias, if it has one. `large_if`: an SQL condition; where it does not hold, the
        large columns are read as absent.
        """

        def selected(column: Column) -> str:
            value = column.codec.selected(f"{table}.{column.name}" if table else column.name)
            return f"CASE WHEN {large_if} THEN {value} END" if large_if and column.large else value

        return sql_list(map(selected, self.columns))

    def reader(self, first: int = 0) -> Callable[[GetValue, int, M], None]:
        """The function that puts a row's columns into a message. `first`: where they begin."""
        reads = tuple(
            (at, column.codec.reader(column.field_name))
            for at, column in enumerate(self.columns, first)
        )

        def read(get: GetValue, row: int, message: M) -> None:
            for at, put in reads:
                if (value := get(row, at)) is not None:
                    put(message, value)

        return read

    def encoder(self) -> Callable[[Sequence[wire.Cells]], Iterable[bytes]]:
        """The function that makes encoded messages of many rows, from the values of each column;
        for `selection()`."""
        fields: Mapping[str, Any] = self.message.DESCRIPTOR.fields_by_name
        return wire.message_encoder(
            column.codec.encoder(fields[column.field_name]) for column in self.columns
        )

    def decoder(self) -> Callable[[Found], M]:
        """The function that makes a message of a result's first row; for `selection()`."""
        read, message = self.reader(), self.message

        def decode(row: Found) -> M:
            decoded = message()
            read(row.get_value, 0, decoded)
            return decoded

        return decode

    def _members(self) -> Callable[[M], list[str]]:
        """The function that writes a message as the members of its document."""
        fields = self.message.DESCRIPTOR.fields_by_name
        writes = {fields[name]: write for name, write in self._writes.items()}
        # ListFields() leaves out zeros where the proto does not tell them from absent fields.
        zeros = tuple(
            (field.name, writes[field](field.default_value))
            for column in self.written
            for field in (fields[column.field_name],)
            if not column.nullable and column.default is None
            if not field.has_presence and field.enum_type is None
        )

        def members(message: M) -> list[str]:
            found = [
                writes[field](value) for field, value in message.ListFields() if field in writes
            ]
            for name, zero in zeros:
                if not getattr(message, name):
                    found.append(zero)
            return found

        return members

    def member(self, column: Column, message: M) -> str:
        """One column of a message's document, `null` if the field is absent."""
        field = column.field_name
        if column.nullable and not message.HasField(field):
            return f'"{column.name}":null'
        return self._writes[field](getattr(message, field))


def sql_list(items: Iterable[str], indent: int = _INDENT) -> str:
    """Items separated by commas, broken into lines of which all but the first are indented."""
    lines = [""]
    for item in items:
        if len(lines[-1]) + len(item) > _LINE_LENGTH - indent:
            lines.append("")
        lines[-1] += f"{item}, "
    return f"\n{' ' * indent}".join(line.rstrip() for line in lines).removesuffix(",")
