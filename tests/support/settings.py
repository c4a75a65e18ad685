"""Values for settings, by their declaration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wfe_persistence.settings import Setting

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
    return Path("/other") if setting.type is Path else _TEXTS.get(setting.name, "other")
