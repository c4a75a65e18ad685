"""The databases of a service besides its home: what `[databases]` in the TOML file says of each.

```toml
[databases]
west = "postgresql://wfe@west.example/wfe"

[databases.east]
url-file = "/run/secrets/east-url"
pool-size = 20
labels = {region = "east"}
```

The table `[databases.home]` adds to what `db-url` names: it has no connection string.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Self

from wfe_persistence.store.schema import HOME, is_database, is_label

_MAX_LABELS: Final = 64


@dataclass(frozen=True, kw_only=True)
class NamedDatabase:
    """One database. Raises ValueError, naming it, for what can't be."""

    name: str
    """`[a-z][a-z0-9_-]{0,39}`. It is written into the stores there, so it is for good."""
    url: str = field(default="", repr=False)
    url_file: Path | None = None
    password_file: Path | None = None
    password_command: str = field(default="", repr=False)
    pool_size: int | None = None
    """Most connections to it; None: as `pool-size` says."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What CreateNamespace may ask for."""
    accepts_new: bool = True
    """Whether namespaces are created there that name no database."""
    read_urls: tuple[str, ...] = field(default=(), repr=False)
    """The connection strings of its read replicas."""
    read_url_files: tuple[Path, ...] = ()
    """Files that have one each."""

    def __post_init__(self) -> None:
        if not is_database(self.name):
            raise ValueError(
                f"databases: {self.name!r} is no name of a database: [a-z][a-z0-9_-]{{0,39}}"
            )
        key = f"databases.{self.name}"
        _check_types(key, self)
        if self.name == HOME:
            if self.url or self.url_file or self.password_file or self.password_command:
                raise ValueError(f"{key}: its connection string is that of db-url")
            if self.pool_size is not None:
                raise ValueError(f"{key}: the number of its connections is pool-size")
        elif bool(self.url) == bool(self.url_file):
            raise ValueError(f"{key}: needs url or url-file, and not both")
        if self.password_file and self.password_command:
            raise ValueError(f"{key}: password-file and password-command can't be set together")
        if self.pool_size is not None and self.pool_size < 1:
            raise ValueError(f"{key}: pool-size must be at least 1")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """What `--database NAME=URL` names. Raises ValueError, which does not show the URL."""
        name, equals, url = text.partition("=")
        if not (equals and url and is_database(name)):
            raise ValueError("must be NAME=URL, the name as [a-z][a-z0-9_-]{0,39}")
        return cls(name=name, url=url)

    @classmethod
    def from_toml(cls, name: str, value: object) -> Self:
        """What `[databases]` says under a name: a connection string, or a table. Raises
        ValueError."""
        if isinstance(value, str):
            return cls(name=name, url=value)
        if not isinstance(value, dict):
            raise ValueError(f"databases.{name}: must be a connection string or a table")  # noqa: TRY004 — a value of the user's
        known = {each.name for each in fields(cls)} - {"name"}
        given: dict[str, Any] = {}
        for key, setting in value.items():
            plain = key.replace("-", "_")
            if plain not in known:
                names = ", ".join(sorted(each.replace("_", "-") for each in known))
                raise ValueError(f"databases.{name}: unknown key {key!r}; there is {names}")
            given[plain] = setting
        return cls(name=name, **_converted(given))

    def to_json(self) -> dict[str, Any]:
        """Itself for JSON, secrets included; `from_json` reads it."""
        return {
            each.name: _text(value)
            for each in fields(self)
            if (value := getattr(self, each.name)) is not None
        }

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """What `to_json` has made."""
        return cls(**_converted(given))

    def shown(self, hidden: str) -> dict[str, Any]:
        """What may be shown of it, for JSON; `hidden` in place of secrets."""
        shown: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "name" or value == each.default or value in (None, "", (), {}):
                continue
            key = each.name.replace("_", "-")
            if each.name in ("url", "password_command"):
                shown[key] = hidden
            elif each.name == "read_urls":
                shown[key] = [hidden] * len(value)
            elif isinstance(value, Mapping):
                shown[key] = dict(value)
            else:
                shown[key] = _text(value)
        return shown


Databases = tuple[NamedDatabase, ...]


def from_toml(value: object) -> Databases:
    """The databases of `[databases]`. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("databases: must be a table: NAME = URL, or a table for each")  # noqa: TRY004 — a value of the user's
    return tuple(NamedDatabase.from_toml(name, each) for name, each in value.items())


def check(databases: Databases) -> None:
    """Raise ValueError if two have the same name."""
    seen: set[str] = set()
    for each in databases:
        if each.name in seen:
            raise ValueError(f"databases: {each.name} is there twice")
        seen.add(each.name)


def _converted(given: Mapping[str, Any]) -> dict[str, Any]:
    """With the types that the fields have; what does not fit is left to be refused."""
    converted = dict(given)
    for name in ("url_file", "password_file"):
        if isinstance(converted.get(name), str):
            converted[name] = Path(converted[name])
    if isinstance(converted.get("read_urls"), list):
        converted["read_urls"] = tuple(converted["read_urls"])
    if isinstance(files := converted.get("read_url_files"), list):
        converted["read_url_files"] = tuple(
            Path(each) if isinstance(each, str) else each for each in files
        )
    return converted


def _text(value: Any) -> Any:
    """A path, or several, as text; anything else as it is."""
    if isinstance(value, tuple):
        return [_text(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _check_types(key: str, given: NamedDatabase) -> None:
    def require(condition: bool, name: str, what: str) -> None:
        if not condition:
            raise ValueError(f"{key}: {name} must be {what}")

    require(isinstance(given.url, str), "url", "a string")
    require(given.url_file is None or isinstance(given.url_file, Path), "url-file", "a path")
    require(
        given.password_file is None or isinstance(given.password_file, Path),
        "password-file", "a path",
    )  # fmt: skip
    require(isinstance(given.password_command, str), "password-command", "a string")
    size = given.pool_size
    require(
        size is None or (isinstance(size, int) and not isinstance(size, bool)),
        "pool-size", "an integer",
    )  # fmt: skip
    require(isinstance(given.accepts_new, bool), "accepts-new", "true or false")
    require(
        isinstance(given.labels, Mapping)
        and len(given.labels) <= _MAX_LABELS
        and all(
            isinstance(value, str) and is_label(f"{key_}={value}") and key_ != "name"
            for key_, value in given.labels.items()
        ),
        "labels", f"a table of at most {_MAX_LABELS} texts of 1 to 63 of A-Za-z0-9_./-, not `name`",
    )  # fmt: skip
    require(
        isinstance(given.read_urls, tuple)
        and all(isinstance(url, str) and url for url in given.read_urls),
        "read-urls", "a list of connection strings",
    )  # fmt: skip
    require(
        isinstance(given.read_url_files, tuple)
        and all(isinstance(path, Path) for path in given.read_url_files),
        "read-url-files", "a list of paths",
    )  # fmt: skip
