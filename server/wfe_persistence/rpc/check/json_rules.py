"""JSON that PostgreSQL can store and return, and its size once stored.

The time is proportional to the length of the document, whatever is in it: no values are built, and
numbers are not calculated with. Long documents are read piece by piece, because a single call of a
C function holds the GIL, and so the event loop, until it returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

import msgspec

from wfe.persistence.v1.error_reason_pb2 import FieldViolationReason
from wfe_persistence.rpc.check.bounds import MAX_JSON_DEPTH, MAX_JSON_DIGITS, MAX_JSON_EXPONENT

R = FieldViolationReason

# In characters. No step on a piece takes longer than about a millisecond.
_PIECE: Final = 32_768


class BadJsonError(ValueError):
    """A document that can't be stored; the message says why."""

    def __init__(self, reason: R.ValueType, description: str) -> None:
        super().__init__(description)
        self.reason = reason


# Skips the document, and thereby validates it, at about 1 ns per byte: 4 MB in one call.
_skip = msgspec.json.Decoder(msgspec.Raw).decode

# A number with an exponent, or with so many digits that there may be too many. It only begins where
# a number begins and never backtracks, so that its time is linear.
_UNUSUAL_NUMBER: Final = re.compile(
    rf"(?<![0-9.])(?:[0-9.]++[eE][-+0-9]++|[0-9.]{{{MAX_JSON_DIGITS},}}+)"
)
# What tells quickly that there is none: no exponent, and among the characters at this distance no
# three in a row that may belong to one number.
_EXPONENT: Final = re.compile("[0-9][eE]")
_SAMPLING: Final = MAX_JSON_DIGITS // 4
_SAMPLES_OF_A_NUMBER: Final = re.compile("[0-9.]{3}")
_NUMBER_CHARACTERS: Final = "-+.0123456789eE"

# The rest is for text in which each backslash begins an escape sequence.
_UNICODE_ESCAPE: Final = re.compile(r"\\u(....)")
_HIGH: Final = "[dD][89abAB]"
_LOW: Final = "[dD][c-fC-F]"
_UNSTORABLE: Final = re.compile(
    rf"\\u(?:0000|{_HIGH}(?!..\\u{_LOW})|(?<!\\u{_HIGH}..\\u){_LOW})", re.DOTALL
)
_SURROGATE_ESCAPES: Final = tuple(rf"\u{d}{second}" for d in "dD" for second in "89abcdefABCDEF")

_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = [{"[": 1, "{": 1, "]": -1, "}": -1}.get(chr(byte), 0) for byte in range(256)]


def check_json(text: str) -> int | None:
    """Check a document; returns its size in bytes as PostgreSQL returns it, if that was a part of
    the check. None: it is at most twice the size of `text`; `stored_bytes` tells.

    Raises BadJsonError.
    """
    _validate(text)
    if len(text) <= _PIECE and not (
        "\\u" in text
        or text.count("[") + text.count("{") > MAX_JSON_DEPTH
        or _may_have_unusual_number(text)
    ):
        return None
    return stored_bytes(text)


def _may_have_unusual_number(text: str) -> bool:
    return bool(_EXPONENT.search(text) or _SAMPLES_OF_A_NUMBER.search(text[::_SAMPLING]))


def _validate(text: str) -> None:
    try:
        _skip(text)
    except RecursionError as exc:
        raise _too_deep() from exc
    except msgspec.DecodeError as exc:
        if "\\u" in text and _is_valid_but_for_surrogates(text):
            raise _unstorable_character() from exc
        raise BadJsonError(
            R.FIELD_VIOLATION_REASON_JSON_INVALID, "is not valid JSON (RFC 8259)"
        ) from exc


def _is_valid_but_for_surrogates(text: str) -> bool:
    for escape in _SURROGATE_ESCAPES:
        text = text.replace(escape, r"\u00")
    try:
        _skip(text)
    except (RecursionError, msgspec.DecodeError):
        return False
    return True


def _too_deep() -> BadJsonError:
    return BadJsonError(
        R.FIELD_VIOLATION_REASON_JSON_TOO_DEEP, f"is nested more than {MAX_JSON_DEPTH} levels deep"
    )


def _unstorable_character() -> BadJsonError:
    return BadJsonError(
        R.FIELD_VIOLATION_REASON_JSON_CHARACTER,
        "contains U+0000 or a lone surrogate, which PostgreSQL can't store",
    )


def stored_bytes(text: str) -> int:
    """The size in bytes of a valid document as PostgreSQL returns it. It is never smaller in fact,
    and larger only by what jsonb drops: members that a later one of the same name replaces.

    Raises BadJsonError for what is valid JSON, but can't be stored.
    """
    size = len(text.encode())
    may_be_too_deep = text.count("[") + text.count("{") > MAX_JSON_DEPTH
    depth, in_string, number = 0, False, ""
    for piece in _pieces(text):
        if "\\" in piece:
            # The same length, but what remains of backslashes and quotes has its own meaning.
            piece = piece.replace(r"\\", "__").replace(r"\"", "__")
            size -= _shrinkage(piece)
        parts = piece.split('"')
        outside = "".join(parts[in_string::2])
        in_string ^= len(parts) % 2 == 0
        if may_be_too_deep:
            brackets = outside.encode().translate(None, _NOT_BRACKETS)
            depths = list(accumulate(map(_STEPS.__getitem__, brackets), initial=depth))
            if max(depths) > MAX_JSON_DEPTH:
                raise _too_deep()
            depth = depths[-1]
        # jsonb has no whitespace but one space behind each comma and colon.
        size += outside.count(",") + outside.count(":")
        size -= sum(map(outside.count, " \n\r\t"))
        # A number may go on in the next piece.
        outside = number + outside
        whole = outside if in_string else outside.rstrip(_NUMBER_CHARACTERS)
        number = outside[len(whole) :]
        if len(number) > 2 * MAX_JSON_DIGITS:
            raise _unstorable_number()
        if _may_have_unusual_number(whole):
            size += sum(map(_number_growth, _UNUSUAL_NUMBER.findall(whole)))
    return size + sum(map(_number_growth, _UNUSUAL_NUMBER.findall(number)))


def _pieces(text: str) -> Iterator[str]:
    """A valid document in pieces which split no escape sequence and no pair of surrogates."""
    begin = 0
    while begin < len(text):
        end = begin + _PIECE
        # The last backslash, if an escape sequence or a pair that begins there may reach the end.
        last = text.rfind("\\", max(begin, end - 12), end)
        if last >= 0 and end < len(text):
            until = text[begin : last + 1]
            run = len(until) - len(until.rstrip("\\"))
            if run % 2:  # otherwise it is itself escaped
                end = max(end, _escape_end(text, last))
        yield text[begin:end]
        begin = end


def _escape_end(text: str, at: int) -> int:
    if text[at + 1] != "u":
        return at + 2
    is_high_surrogate = text[at + 2] in "dD" and text[at + 3] in "89abAB"
    return at + (12 if is_high_surrogate else 6)


def _shrinkage(piece: str) -> int:
    r"""By how many bytes escape sequences shrink: jsonb only escapes what it must.

    `\\` and `\"`, which stay as they are, must have been replaced. Raises BadJsonError.
    """
    shrinkage = piece.count(r"\/")
    if r"\u" in piece:
        if _UNSTORABLE.search(piece):
            raise _unstorable_character()
        shrinkage += sum([_SHRINKAGE[int(digits, 16)] for digits in _UNICODE_ESCAPE.findall(piece)])
    return shrinkage


def _shrinkages() -> bytes:
    """By how much each escape shrinks: from six bytes to those of its character in UTF-8."""
    shrinkages = bytearray(b"\5" * 0x80 + b"\4" * 0x780 + b"\3" * 0xF800)
    shrinkages[:0x20] = bytes(0x20)  # as it is
    for character in b'"\\\b\f\n\r\t':
        shrinkages[character] = 4  # a backslash and a character
    shrinkages[0xD800:0xE000] = b"\4" * 0x800  # one of two that become four bytes
    return bytes(shrinkages)


_SHRINKAGE: Final = _shrinkages()


def _number_growth(literal: str) -> int:
    """By how many bytes a number without its sign grows (negative: shrinks) when it is written out
    without an exponent.

    Raises BadJsonError if it would have too many digits then, so that whatever was read can be
    stored again.
    """
    mantissa, _, exponent = literal.replace("E", "e").partition("e")
    if len(mantissa) > MAX_JSON_DIGITS + 1 or len(exponent) > 10:
        raise _unstorable_number()
    shift = int(exponent or "0")
    if abs(shift) > MAX_JSON_EXPONENT:
        raise _unstorable_number()
    whole, _, fraction = mantissa.partition(".")
    # The position of the point among the digits, without leading zeros; a zero stays one digit.
    digits = (whole + fraction).lstrip("0")
    before = len(digits) - len(fraction) + shift if digits else 1
    before, behind = max(before, 1), max(len(fraction) - shift, 0)
    if before + behind > MAX_JSON_DIGITS:
        raise _unstorable_number()
    return before + (behind and behind + 1) - len(literal)


def _unstorable_number() -> BadJsonError:
    return BadJsonError(
        R.FIELD_VIOLATION_REASON_JSON_NUMBER,
        f"contains a number with an exponent beyond {MAX_JSON_EXPONENT}, or with more than "
        f"{MAX_JSON_DIGITS} digits when written out",
    )
