"""Lossless JSON text: integers and decimals keep every digit.

The standard library can read JSON exactly, but cannot write `decimal.Decimal`, coerces
keys that are not strings, and rejects integers of more than 4300 digits. So reading
uses its decoder, and writing is implemented here.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from enum import Enum
from json.encoder import encode_basestring
from typing import Final, NoReturn, TypeAlias, cast

from wfe_persistence_client.misfit import FieldTypeError, FieldValueError, Misfit, check_text

#: A JSON value in Python. Reading produces only dict, list, str, int, `Decimal` (for
#: every number with a fraction or an exponent), bool and None. Writing also accepts
#: floats, which are read back as `Decimal`, and tuples, which are read back as lists.
JSON: TypeAlias = (
    bool | int | float | Decimal | str | Sequence["JSON"] | Mapping[str, "JSON"] | None
)


class LeftOut(Enum):
    """The type of `LEFT_OUT`, the value of a JSON field that the store left out of a list."""

    LEFT_OUT = "left out"

    def __repr__(self) -> str:
        """The name under which it is imported."""
        return "LEFT_OUT"


#: The value of a JSON field in a list whose item is too large for one message, as only
#: other software can have stored it. Test with `value is LEFT_OUT`. Storing it raises
#: TypeError.
LEFT_OUT: Final[JSON] = cast(JSON, LeftOut.LEFT_OUT)

# Python limits conversions between int and decimal text (4300 digits unless the
# program says otherwise, and never less than 640); Decimal has no such limit.
_SHORT_DIGITS = 600
_SHORT_BITS = 1900

# The store rejects smaller exponents, and such a number would be long when written out.
_LEAST_EXPONENT = -1000

# Bounds of the path in an error.
_LONGEST_KEY: Final = 40
_DEEPEST_PLACE: Final = 100


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
    strings. The error says where in the document it is.
    """
    parts: list[str] = []
    try:
        _write(value, parts)
        text = "".join(parts)
        text.encode()
    except (Misfit, RecursionError, UnicodeEncodeError) as exc:
        _locate(value)
        raise FieldValueError("", "the value is nested too deeply") from exc
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
                raise FieldTypeError(
                    "", f"keys of a JSON object must be strings, not {type(key).__name__}"
                )
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
            raise _not_finite(value)
        parts.append(float.__repr__(value))
    elif isinstance(value, Decimal):
        if not value.is_finite():
            raise _not_finite(value)
        parts.append(_decimal(value))
    else:
        raise FieldTypeError("", f"JSON has no type for {type(value).__name__}")


def _not_finite(value: float | Decimal) -> FieldValueError:
    return FieldValueError("", f"JSON cannot represent NaN or Infinity ({value!r})")


def _decimal(value: Decimal) -> str:
    # The text of a Decimal, including its exponent form, is always a valid JSON number.
    text = Decimal.__str__(value)
    if "E-" in text and value.adjusted() >= _LEAST_EXPONENT:
        # As PostgreSQL writes it.
        return format(value, "f")
    return text


def _locate(document: JSON) -> None:
    """Raises for the first part of a document that cannot be written, with its path.

    Not recursive: the document may be nested too deeply for that. Slow, so only for
    errors.
    """
    trail: list[str] = []
    # The ids of the containers on the trail.
    open_: dict[int, None] = {}
    pending = [iter([("", document)])]
    while pending:
        for place, value in pending[-1]:
            trail.append(place)
            try:
                if not isinstance(value, (Mapping, list, tuple)):
                    parts: list[str] = []
                    _write(value, parts)
                    check_text("", "".join(parts))
                elif id(value) in open_:
                    raise FieldValueError("", "the value contains itself")
                else:
                    pending.append(_parts(value))
                    open_[id(value)] = None
                    break
            except Misfit as exc:
                exc.path = _path(trail)
                raise
            trail.pop()
        else:
            pending.pop()
            if open_:
                open_.popitem()
                trail.pop()


def _parts(value: Mapping[str, JSON] | Sequence[JSON]) -> Iterator[tuple[str, JSON]]:
    """The values in a container, each with its place; checks the keys."""
    if not isinstance(value, Mapping):
        return ((f"[{index}]", item) for index, item in enumerate(value))
    for key in value:
        if not isinstance(key, str):
            _write({key: None}, [])
        check_text("", key)
    return ((key_place(key), member) for key, member in value.items())


def key_place(key: str) -> str:
    """A member of an object, as the part of a path."""
    if key.isidentifier() and len(key) <= _LONGEST_KEY:
        return f".{key}"
    more = "…" if len(key) > _LONGEST_KEY else ""
    return f"[{key[:_LONGEST_KEY]!r}{more}]"


def _path(trail: Sequence[str]) -> str:
    more = "…" if len(trail) > _DEEPEST_PLACE else ""
    return ("".join(trail[:_DEEPEST_PLACE]) + more).removeprefix(".")
