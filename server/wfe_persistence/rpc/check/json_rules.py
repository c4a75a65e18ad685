"""JSON that PostgreSQL can store and return, and its size once stored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from json import JSONDecoder, dumps, loads
from typing import NoReturn

from wfe.persistence.v1.error_reason_pb2 import FieldViolationReason
from wfe_persistence.rpc.check.bounds import MAX_JSON_DEPTH, MAX_JSON_DIGITS, MAX_JSON_EXPONENT

R = FieldViolationReason


class BadJsonError(ValueError):
    """A document that can't be stored; the message says why."""

    def __init__(self, reason: R.ValueType, description: str) -> None:
        super().__init__(description)
        self.reason = reason


def _reject_constant(_: str) -> NoReturn:
    raise ValueError


# Numbers are left as text: fast, and without Python's own limit on digits.
_decode = JSONDecoder(
    parse_float=str,
    parse_int=str,
    parse_constant=_reject_constant,
).decode
# Numbers are only examined one by one if there is an exponent, or a run of many digits.
_UNUSUAL_NUMBER = re.compile(rf"[0-9][eE]|(?<![0-9.])[0-9.]{{{MAX_JSON_DIGITS}}}")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def check_json(text: str) -> int:
    """Check a document; returns by how many bytes its numbers grow when they are read back.

    Raises BadJsonError.
    """
    try:
        value = _decode(text)
    except RecursionError as exc:
        raise _too_deep() from exc
    except ValueError as exc:
        raise BadJsonError(
            R.FIELD_VIOLATION_REASON_JSON_INVALID, "is not valid JSON (RFC 8259)"
        ) from exc
    # Only now, because the pattern for strings takes very long on invalid JSON.
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(text) > MAX_JSON_DEPTH:
        raise _too_deep()
    if "\\u" in text and any(map(_is_unstorable, _strings(value))):
        raise BadJsonError(
            R.FIELD_VIOLATION_REASON_JSON_CHARACTER,
            "contains U+0000 or a lone surrogate, which PostgreSQL can't store",
        )
    if _UNUSUAL_NUMBER.search(text) is None:
        return 0
    growth = 0

    def grows(literal: str) -> None:
        nonlocal growth
        growth += _number_growth(literal)

    JSONDecoder(parse_float=grows, parse_int=grows).decode(text)
    return growth


def _too_deep() -> BadJsonError:
    return BadJsonError(
        R.FIELD_VIOLATION_REASON_JSON_TOO_DEEP, f"is nested more than {MAX_JSON_DEPTH} levels deep"
    )


def _number_growth(literal: str) -> int:
    """By how many bytes a number grows when it is read back, written out without an exponent.

    Raises BadJsonError if it would have too many digits then, so that whatever was read can be
    stored again.
    """
    mantissa, _, exponent = literal.lower().partition("e")
    if len(mantissa) <= MAX_JSON_DIGITS + 2 and (
        len(exponent) <= 10 and abs(int(exponent or 0)) <= MAX_JSON_EXPONENT
    ):
        written = format(Decimal(literal), "f")
        if sum(map(str.isdigit, written)) <= MAX_JSON_DIGITS:
            return max(len(written) - len(literal), 0)
    raise BadJsonError(
        R.FIELD_VIOLATION_REASON_JSON_NUMBER,
        f"contains a number with an exponent beyond {MAX_JSON_EXPONENT}, or with more than "
        f"{MAX_JSON_DIGITS} digits when written out",
    )


def stored_bytes(text: str) -> int:
    """The size of a valid document in bytes as PostgreSQL returns it."""
    size = len(text.encode()) + check_json(text)
    if "\\" in text:
        for literal in _STRING.findall(text):
            if "\\" in literal:
                stored = dumps(loads(literal), ensure_ascii=False)
                size += len(stored.encode()) - len(literal.encode())
    outside = _STRING.sub("", text)
    spaces = len(outside) - len("".join(outside.split()))
    return size - spaces + outside.count(",") + outside.count(":")


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in _STRING.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)


def _is_unstorable(text: str) -> bool:
    return "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)
