"""What commands write for programs: JSON and YAML.

The members are those of the classes of `wfe_persistence_client`, which are those of the protos:
enums by their names, times as text in UTC, durations in seconds, the host's JSON as JSON, with
every digit. What is absent is `null`; a JSON document that is absent, or was left out by the server
because it is too large, is not there, because `null` is a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final

from wfe_persistence_cli.text import harmless_json, harmless_yaml
from wfe_persistence_client.json_text import LEFT_OUT, write_json
from wfe_persistence_client.model import ABSENT

_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
# What YAML, of one version or another, takes for something else.
_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null"})


def plain(value: Any) -> Any:
    """A value of the client as what JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        members = ((field.name, getattr(value, field.name)) for field in fields(value))
        return {name: plain(each) for name, each in members if not _is_left_out(each)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, timedelta):
        whole = value.microseconds == 0
        return int(value.total_seconds()) if whole else Decimal(str(value.total_seconds()))
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items() if not _is_left_out(each)}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return value


def _is_left_out(value: Any) -> bool:
    return value is ABSENT or value is LEFT_OUT


def one_line(value: Any) -> str:
    """JSON on one line."""
    return harmless_json(write_json(value))


def json_lines(value: Any) -> Iterator[str]:
    """JSON on as many lines as it is easy to read."""
    for text in _pieces(value, 0):
        yield harmless_json(text)


def _pieces(value: Any, depth: int) -> Iterator[str]:
    inner = "  " * (depth + 1)
    if isinstance(value, dict) and value:
        brackets, members = "{}", [(f"{write_json(name)}: ", each) for name, each in value.items()]
    elif isinstance(value, list) and value:
        brackets, members = "[]", [("", each) for each in value]
    else:
        yield write_json(value)
        return
    yield brackets[0]
    for i, (name, each) in enumerate(members):
        lines = list(_pieces(each, depth + 1))
        lines[0] = f"{inner}{name}{lines[0]}"
        if i < len(members) - 1:
            lines[-1] += ","
        yield from lines
    yield "  " * depth + brackets[1]


def yaml_lines(value: Any) -> Iterator[str]:
    """YAML in block style; texts that could be mistaken for something else are in quotes."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _yaml_member(f"{_yaml_text(name)}:", each)
    elif isinstance(value, list) and value:
        for each in value:
            yield from yaml_item(each)
    else:
        yield _yaml_scalar(value)


def yaml_item(value: Any) -> Iterator[str]:
    """A member of a list in YAML."""
    for i, line in enumerate(yaml_lines(value)):
        yield ("  " if i else "- ") + line


def _yaml_member(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict | list) and value:
        yield name
        for line in yaml_lines(value):
            yield "  " + line
    else:
        yield f"{name} {_yaml_scalar(value)}"


def _yaml_scalar(value: Any) -> str:
    return _yaml_text(value) if isinstance(value, str) else one_line(value)


def _yaml_text(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return harmless_yaml(write_json(text))
