"""Contexts: servers by a name of one's own, in a file of the user.

The file is TOML: `current` names the context that is used where nothing else is said, and each
table `contexts.NAME` has options by their names without the dashes. `wfe-persistence context`
writes it, and keeps no comments.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

FILE_VARIABLE: Final = "WFE_PERSISTENCE_CONTEXT_FILE"
"""The environment variable with the path of the file."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

PATHS: Final = ("bearer-token-file", "tls-ca", "tls-client-cert", "tls-client-key")
KEYS: Final = ("target", "namespace", "namespace-set", "tls", "tls-server-name", *PATHS)
"""What a context may have."""


class ContextError(Exception):
    """The file can't be used, or has no such context; the message says which and why."""


@dataclass(slots=True)
class Contexts:
    """The contexts of a file."""

    path: Path
    current: str | None = None
    all: dict[str, dict[str, str | bool]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Contexts:
        """Those of the user's file; none if there is no file. Raises ContextError."""
        path = default_path()
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return cls(path)
        except OSError as exc:
            raise ContextError(f"{path}: {exc.strerror}") from None
        except ValueError as exc:
            raise ContextError(f"{path}: is not valid TOML: {exc}") from None
        tables = values.get("contexts", {})
        current = values.get("current")
        if not isinstance(tables, dict) or not isinstance(current, str | None):
            raise ContextError(f"{path}: `contexts` must be a table, `current` a string")
        for name, table in tables.items():
            check_name(name)
            _check(path, name, table)
        return cls(path, current, tables)

    def get(self, name: str) -> Mapping[str, str | bool]:
        """The context with this name. Raises ContextError."""
        if name not in self.all:
            known = ", ".join(sorted(self.all)) or "none"
            raise ContextError(f"there is no context {name!r} in {self.path}; there are: {known}")
        return self.all[name]

    def write(self) -> None:
        """Replace the file, at once. Raises ContextError."""
        lines = [] if self.current is None else [f"current = {_quoted(self.current)}", ""]
        for name in sorted(self.all):
            lines.append(f"[contexts.{_quoted(name)}]")
            lines += [f"{key} = {_quoted(value)}" for key, value in self.all[name].items()]
            lines.append("")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # (Made with mode 0600.)
            descriptor, part = tempfile.mkstemp(dir=self.path.parent, prefix=".contexts-")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write("\n".join(lines))
            Path(part).replace(self.path)
        except OSError as exc:
            raise ContextError(f"{self.path}: {exc.strerror}") from None


def default_path() -> Path:
    """The user's file."""
    if named := os.environ.get(FILE_VARIABLE):
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME")
    try:
        base = Path(home) if home else Path.home() / ".config"
    except RuntimeError:  # a user without a home
        base = Path("/nonexistent")
    return base / "wfe-persistence" / "contexts.toml"


def check_name(name: str) -> None:
    """Raise ContextError unless a context may have this name."""
    if not _NAME.fullmatch(name):
        raise ContextError(f"a context's name must match {_NAME.pattern}")


def _check(path: Path, name: str, table: Any) -> None:
    if not isinstance(table, dict):
        raise ContextError(f"{path}: contexts.{name} must be a table")
    for key, value in table.items():
        if key not in KEYS:
            raise ContextError(
                f"{path}: contexts.{name}: unknown key {key!r}; there are: {', '.join(KEYS)}"
            )
        if not isinstance(value, bool if key == "tls" else str):
            kind = "true or false" if key == "tls" else "a string"
            raise ContextError(f"{path}: contexts.{name}.{key}: must be {kind}")


def _quoted(value: str | bool) -> str:
    # (TOML's basic strings have the escapes of JSON, but want DEL escaped, too.)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
