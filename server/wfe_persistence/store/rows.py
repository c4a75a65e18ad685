"""The codecs of single values: parameters are sent as text, results are received in binary."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from json import dumps
from json.encoder import encode_basestring
from typing import ClassVar, Final, Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from psycopg import pq
from psycopg.abc import Transformer as AnyTransformer
from psycopg.adapt import Transformer

from wfe_persistence.store.postgres.pipeline import Param as Param
from wfe_persistence.store.postgres.pipeline import PGresult as PGresult


class Found(Protocol):
    """What a statement has returned, or one row of it."""

    @property
    def ntuples(self) -> int:
        """How many rows there are."""

    @property
    def nfields(self) -> int:
        """How many columns each has."""

    def get_value(self, row: int, column: int, /) -> bytes | None:
        """The value at a row and a column, None for NULL."""


class Row:
    """One row of a result, as if it were a result of its own."""

    __slots__ = ("_at", "_result")

    ntuples = 1

    def __init__(self, result: PGresult, at: int) -> None:
        self._result = result
        self._at = at

    @property
    def nfields(self) -> int:
        """How many columns it has."""
        return self._result.nfields

    def get_value(self, _: int, column: int, /) -> bytes | None:
        """The value of a column, None for NULL."""
        return self._result.get_value(self._at, column)


GetValue = Callable[[int, int], bytes | None]
"""`PGresult.get_value`: the value at a row and a column, None for NULL."""

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 — UTC; without a time zone it is faster
# PostgreSQL counts microseconds from 2000-01-01.
_PG_EPOCH = datetime(2000, 1, 1)  # noqa: DTZ001
_PG_EPOCH_MICROS: Final = 946_684_800_000_000
# The range of a Timestamp: years 1 to 9999. PostgreSQL also has ±infinity and other years, which
# another host that shares the database may have written; they are clamped.
_FIRST_MICROS: Final = -62_135_596_800_000_000
_LAST_MICROS: Final = 253_402_300_799_999_999
# The range of a timestamptz, 4714-11-24 BC to 294276-12-31, in µs since 2000; beyond is ±infinity.
_FIRST_PG_MICROS: Final = -211_813_488_000_000_000
_LAST_PG_MICROS: Final = 9_223_371_331_199_999_999
_DAY_MICROS: Final = 86_400_000_000
# The Gregorian calendar repeats after 400 years, which are so many days.
_CYCLE_YEARS: Final = 400
_CYCLE_DAYS: Final = 146_097

_BYTEA: Final = 17
"""The number of the type whose values are taken as they are."""

_INT4 = struct.Struct("!i").unpack
_LENGTH = struct.Struct("!4xi").unpack_from
_INT8 = struct.Struct("!q").unpack

quote = encode_basestring
"""A string as a JSON string literal."""


def text(value: str) -> bytes:
    """A text parameter."""
    return value.encode()


def integer(value: int) -> bytes:
    """A number parameter."""
    return b"%d" % value


def boolean(value: bool) -> bytes:
    """A boolean parameter."""
    return b"t" if value else b"f"


def iso(time: Timestamp) -> str:
    """A time in ISO 8601, truncated to microseconds."""
    since_epoch = timedelta(0, time.seconds, time.nanos // 1000)
    # Without a time zone, and with positional arguments, it takes two thirds of the time.
    return f"{(_EPOCH + since_epoch).isoformat()}+00:00"


def timestamp(time: Timestamp) -> bytes:
    """A time parameter, truncated to microseconds."""
    return iso(time).encode()


def pg_micros(time: Timestamp) -> int:
    """A time in µs since 2000, as a timestamptz holds it (`read_int8`), truncated."""
    return time.seconds * 1_000_000 + time.nanos // 1000 - _PG_EPOCH_MICROS


def epoch_ms(time: Timestamp) -> int:
    """A time in milliseconds since 1970, truncated towards the past."""
    return time.seconds * 1000 + time.nanos // 1_000_000


def text_list(values: Iterable[str]) -> bytes:
    """A list of texts as one JSON parameter."""
    return dumps(list(values), ensure_ascii=False).encode()


def text_array(values: Iterable[str]) -> bytes:
    """A text[] parameter, whose values the planner knows, unlike those of a `text_list`."""
    escaped = (value.replace("\\", r"\\").replace('"', r"\"") for value in values)
    return "{{{}}}".format(",".join(f'"{value}"' for value in escaped)).encode()


def array_of(values: Iterable[Param]) -> bytes:
    """An array parameter of what would be a parameter each."""
    return b"{%s}" % b",".join(
        b"NULL" if value is None else b'"%s"' % value.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
        for value in values
    )


def list_of(documents: Iterable[Param]) -> bytes:
    """JSON documents as one that lists them."""
    return b"[%s]" % b",".join(document or b"null" for document in documents)


def read_text(value: bytes | None) -> str:
    """A text column that is not NULL."""
    assert value is not None
    return value.decode()


def read_int4(value: bytes | None) -> int:
    """An int column that is not NULL."""
    assert value is not None
    number: int = _INT4(value)[0]
    return number


def read_int8(value: bytes | None) -> int:
    """A bigint column that is not NULL."""
    assert value is not None
    number: int = _INT8(value)[0]
    return number


def read_uint(value: bytes | None) -> int:
    """An int column that holds an unsigned 32-bit number, as the original crate casts it."""
    return read_int4(value) & 0xFFFF_FFFF


def read_bool(value: bytes | None) -> bool:
    """A boolean column."""
    return value == b"\x01"


def read_json(value: bytes | None) -> str:
    """A jsonb column that is not NULL, as JSON text. (Binary jsonb is a version byte and text.)"""
    assert value is not None
    return value[1:].decode()


def epoch_micros(value: bytes) -> int:
    """A timestamptz column in µs since 1970, within what a Timestamp can express."""
    micros: int = _INT8(value)[0] + _PG_EPOCH_MICROS
    if _FIRST_MICROS <= micros <= _LAST_MICROS:
        return micros
    return min(max(micros, _FIRST_MICROS), _LAST_MICROS)


def read_record(value: bytes) -> list[bytes | None]:
    """The values of a record: behind their number, each with its type and its length."""
    values: list[bytes | None] = []
    at, end = 4, len(value)
    while at < end:
        [length] = _LENGTH(value, at)
        at += 8
        if length < 0:
            values.append(None)
        else:
            values.append(value[at : at + length])
            at += length
    return values


class Rows:
    """The values of many rows, which psycopg takes out of a result in C: a quarter of what
    `get_value` costs for each. (For the event loop only.)"""

    _transformers: ClassVar[dict[int, AnyTransformer]] = {}
    """By the number of columns."""

    def __init__(self, result: PGresult) -> None:
        self._result = result
        width = result.nfields
        transformer = self._transformers.get(width)
        if transformer is None:
            transformer = self._transformers[width] = Transformer()
            transformer.set_loader_types([_BYTEA] * width, pq.Format.BINARY)
        self._transformer = transformer

    def columns(self, first: int, end: int) -> list[tuple[bytes | None, ...]]:
        """The values of each column, of the rows from `first` to before `end`."""
        transformer = self._transformer
        transformer.set_pgresult(self._result, set_loaders=False)
        rows = transformer.load_rows(first, end, tuple)
        transformer.set_pgresult(None, set_loaders=False)
        return list(zip(*rows, strict=True))


def read_time(value: bytes | None, into: Timestamp) -> None:
    """Put a timestamptz column into a Timestamp; the Timestamp is set even at the epoch."""
    assert value is not None
    seconds, micros = divmod(epoch_micros(value), 1_000_000)
    into.seconds = seconds
    into.nanos = micros * 1000
    into.SetInParent()


def pg_micros_param(micros: int) -> bytes:
    """A time as a timestamptz holds it, in µs since 2000 (`read_int8`), as a parameter.

    It is exact for every time that PostgreSQL has, so that a cursor can stand at each of them.
    """
    if micros < _FIRST_PG_MICROS:
        return b"-infinity"
    if micros > _LAST_PG_MICROS:
        return b"infinity"
    days, micros = divmod(micros, _DAY_MICROS)
    cycles, days = divmod(days, _CYCLE_DAYS)
    time = _PG_EPOCH + timedelta(days, 0, micros)
    year = time.year + cycles * _CYCLE_YEARS
    era = "" if year > 0 else " BC"
    return f"{year if year > 0 else 1 - year:04}-{time:%m-%d %H:%M:%S.%f}+00{era}".encode()


def floor_param(micros: int | None) -> bytes:
    """The same; None: earlier than every other."""
    return b"-infinity" if micros is None else pg_micros_param(micros)


def floor_array(times: Iterable[int | None]) -> bytes:
    """A timestamptz[] parameter of such times."""
    return b'{"%s"}' % b'","'.join(map(floor_param, times))
