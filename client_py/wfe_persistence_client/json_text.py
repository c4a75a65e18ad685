"""Lossless JSON text: integers and decimals keep every digit.

The standard library can read JSON exactly, but cannot write `decimal.Decimal`, coerces
keys that are not strings, and rejects integers of more than 4300 digits. So reading
uses its decoder, and writing is implemented here.
"""

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from json.encoder import encode_basestring
from typing import NoReturn, TypeAlias

#: A JSON value in Python. Reading produces only dict, list, str, int, `Decimal` (for
#: every number with a fraction or an exponent), bool and None. Writing also accepts
#: floats, which are read back as `Decimal`, and tuples, which are read back as lists.
JSON: TypeAlias = (
    bool | int | float | Decimal | str | Sequence["JSON"] | Mapping[str, "JSON"] | None
)

# Python limits conversions between int and decimal text (4300 digits unless the
# program says otherwise, and never less than 640); Decimal has no such limit.
_SHORT_DIGITS = 600
_SHORT_BITS = 1900

# The store rejects smaller exponents, and such a number would be long when written out.
_LEAST_EXPONENT = -1000


def _read_int(text: str) -> int:
    return int(text) if len(text) <= _SHORT_DIGITS else int(Decimal(text))


def _reject_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not valid JSON")


_DECODER = json.JSONDecoder(
    parse_int=_read_int, parse_float=Decimal, parse_constant=_reject_constant
)


def read_json(text: str) -> JSON:
    """Reads a JSON document. Raises ValueError if the text is not valid JSON."""
    try:
        value: JSON = _DECODER.decode(text)
    except RecursionError as exc:
        raise ValueError("the JSON document is nested too deeply") from exc
    return value


def write_json(value: JSON) -> str:
    """Writes a JSON document with the same whitespace as PostgreSQL.

    So a document that the store returned, once read and written again, is the same text
    unless it was changed; `patches` detects changes that way.

    Raises ValueError for what JSON cannot express (NaN, Infinity, lone surrogates, a
    structure that contains itself), TypeError for other types and for keys that are not
    strings.
    """
    parts: list[str] = []
    try:
        _write(value, parts)
    except RecursionError as exc:
        raise ValueError("the value is nested too deeply, or contains itself") from exc
    text = "".join(parts)
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError("the value contains a lone surrogate") from exc
    return text


def _write(value: JSON, parts: list[str]) -> None:
    # bool before int, of which it is a subclass. int, float and str are written by
    # their base class, so that enums and other subclasses are written as plain values.
    if isinstance(value, str):
        parts.append(encode_basestring(value))
    elif value is None:
        parts.append("null")
    elif value is True:
        parts.append("true")
    elif value is False:
        parts.append("false")
    elif isinstance(value, int):
        short = value.bit_length() <= _SHORT_BITS
        parts.append(int.__repr__(value) if short else format(Decimal(value), "f"))
    elif isinstance(value, Mapping):
        opening = "{"
        for key, member in value.items():
            if not isinstance(key, str):
                raise TypeError(f"keys of a JSON object must be strings, not {type(key).__name__}")
            parts.append(opening)
            parts.append(encode_basestring(key))
            parts.append(": ")
            _write(member, parts)
            opening = ", "
        parts.append("{}" if opening == "{" else "}")
    elif isinstance(value, (list, tuple)):
        opening = "["
        for item in value:
            parts.append(opening)
            _write(item, parts)
            opening = ", "
        parts.append("[]" if opening == "[" else "]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("JSON cannot represent NaN or Infinity")
        parts.append(float.__repr__(value))
    elif isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError("JSON cannot represent NaN or Infinity")
        parts.append(_decimal(value))
    else:
        raise TypeError(f"JSON has no type for {type(value).__name__}")


def _decimal(value: Decimal) -> str:
    # The text of a Decimal, including its exponent form, is always a valid JSON number.
    text = Decimal.__str__(value)
    if "E-" in text and value.adjusted() >= _LEAST_EXPONENT:
        # As PostgreSQL writes it.
        return format(value, "f")
    return text
