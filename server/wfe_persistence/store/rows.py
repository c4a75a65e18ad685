"""The codecs of single values: parameters are sent as text, results are received in binary."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from json import dumps
from json.encoder import encode_basestring
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from wfe_persistence.store.postgres.pipeline import Param as Param
from wfe_persistence.store.postgres.pipeline import PGresult as PGresult

GetValue = Callable[[int, int], bytes | None]
"""`PGresult.get_value`: the value at a row and a column, None for NULL."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = _EPOCH.replace(tzinfo=None)
# PostgreSQL counts microseconds from 2000-01-01.
_PG_EPOCH_MICROS: Final = 946_684_800_000_000
# The range of a Timestamp: years 1 to 9999. PostgreSQL also has ±infinity and other years, which
# another host that shares the database may have written; they are clamped.
_FIRST_MICROS: Final = -62_135_596_800_000_000
_LAST_MICROS: Final = 253_402_300_799_999_999

_INT4 = struct.Struct("!i").unpack
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
    return f"{(_NAIVE_EPOCH + since_epoch).isoformat()}+00:00"


def timestamp(time: Timestamp) -> bytes:
    """A time parameter, truncated to microseconds."""
    return iso(time).encode()


def epoch_ms(time: Timestamp) -> int:
    """A time in milliseconds since 1970, truncated towards the past."""
    return time.seconds * 1000 + time.nanos // 1_000_000


def epoch_micros(time: Timestamp) -> int:
    """A time in microseconds since 1970, truncated towards the past."""
    return time.seconds * 1_000_000 + time.nanos // 1000


def text_list(values: Iterable[str]) -> bytes:
    """A list of texts as one JSON parameter."""
    return dumps(list(values), ensure_ascii=False).encode()


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


def read_micros(value: bytes | None) -> int:
    """A timestamptz column that is not NULL, in microseconds since 1970."""
    return min(max(read_int8(value) + _PG_EPOCH_MICROS, _FIRST_MICROS), _LAST_MICROS)


def read_time(value: bytes | None, into: Timestamp) -> None:
    """Put a timestamptz column into a Timestamp; the Timestamp is set even at the epoch."""
    assert value is not None
    micros: int = _INT8(value)[0] + _PG_EPOCH_MICROS
    if not _FIRST_MICROS <= micros <= _LAST_MICROS:
        micros = read_micros(value)
    seconds, micros = divmod(micros, 1_000_000)
    into.seconds = seconds
    into.nanos = micros * 1000
    into.SetInParent()


def micros_param(micros: int) -> bytes:
    """Microseconds since 1970 as a time parameter; outside the years 1-9999: ±infinity."""
    if micros < _FIRST_MICROS:
        return b"-infinity"
    if micros > _LAST_MICROS:
        return b"infinity"
    return (_EPOCH + timedelta(microseconds=micros)).isoformat().encode()
