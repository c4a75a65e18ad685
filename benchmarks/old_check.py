"""How documents were checked first, for comparison: with values built and numbers calculated."""

from __future__ import annotations

import re
from decimal import Decimal
from json import JSONDecoder
from typing import Any, NoReturn


def _reject_constant(_: str) -> NoReturn:
    raise ValueError


_decode = JSONDecoder(parse_float=str, parse_int=str, parse_constant=_reject_constant).decode
_UNUSUAL_NUMBER = re.compile(r"[0-9][eE]|(?<![0-9.])[0-9.]{2000}")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def check_json(text: str) -> int:
    """Return by how many bytes the numbers grow; raises ValueError."""
    try:
        value = _decode(text)
    except RecursionError as exc:
        raise ValueError from exc
    if text.count("[") + text.count("{") > 100 and _depth(text) > 100:
        raise ValueError
    if "\\u" in text and _has_unstorable(value):
        raise ValueError
    if _UNUSUAL_NUMBER.search(text) is None:
        return 0
    growth = 0

    def grows(literal: str) -> None:
        nonlocal growth
        written = format(Decimal(literal), "f")
        if sum(map(str.isdigit, written)) > 2000:
            raise ValueError
        growth += max(len(written) - len(literal), 0)

    JSONDecoder(parse_float=grows, parse_int=grows).decode(text)
    return growth


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in _STRING.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _has_unstorable(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value or any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return isinstance(value, list) and any(map(_has_unstorable, value))
