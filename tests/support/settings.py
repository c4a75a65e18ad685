"""Values for settings, by their declaration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wfe_persistence.settings import NamedDatabase, Setting

_TEXTS = {
    "admin_listen": "[::1]:1",
    "listen": "unix:other",
    "socket_mode": "0660",
    "workers": "2",
}


def other_value(setting: Setting) -> Any:
    """A valid value that is not the default."""
    if setting.about.choices:
        return next(choice for choice in setting.about.choices if choice != setting.default)
    if setting.type is bool:
        return not setting.default
    if setting.type in (int, float):
        return (setting.default or 0) + 1
    if setting.type is list:
        return ("postgresql://other/x",)
    if setting.type is tuple:
        return (NamedDatabase(name="other", url="postgresql://h/x"),)
    return Path("/other") if setting.type is Path else _TEXTS.get(setting.name, "other")


def as_text(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        [one] = value
        return one if isinstance(one, str) else f"{one.name}={one.url}"
    return str(value)


def as_toml(value: Any) -> str:
    """A value as it is written in a file."""
    if isinstance(value, tuple) and isinstance(value[0], NamedDatabase):
        return f'{{{value[0].name} = "{value[0].url}"}}'
    return json.dumps(str(value) if isinstance(value, Path) else value)
