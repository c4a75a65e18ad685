"""What a setting is, whichever it is: its names, its type, its bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import isfinite
from pathlib import Path
from types import NoneType
from typing import Any, Final, get_args, get_origin, get_type_hints

ENV_PREFIX: Final = "WFE_PERSISTENCE_"


@dataclass(frozen=True, slots=True)
class About:
    """What the declaration of a setting says beside its name, type and default.

    `minimum` and `maximum` are inclusive, `above` is exclusive. `default_help` describes a default
    that depends on the environment or that is empty. The value of a `secret` is never shown. A path
    is that of a file unless it is a `directory`. A sequence has any number of strings: its option
    is repeated, its variable has them separated by spaces, and the TOML file has an array.
    """

    help: str
    metavar: str | None = None
    default_help: str | None = None
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    above: float | None = None
    secret: bool = False
    directory: bool = False
    flag: str | None = None
    """The option, if it is not the name: that of a setting of several values names one of them."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of `Settings`, and the names it has elsewhere."""

    name: str
    type: type
    default: Any
    """The default value, or a function that returns it; None: it depends on other settings."""
    about: About
    group: str
    """The heading of its group, a key of `GROUPS`."""

    @property
    def key(self) -> str:
        """The key in the TOML file, and its name in messages: `pool-size`."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        """The command-line option: `--pool-size`; a bool has two: `--prepare/--no-prepare`."""
        if self.about.flag:
            return self.about.flag
        return f"--{self.key}/--no-{self.key}" if self.type is bool else f"--{self.key}"

    @property
    def env(self) -> str:
        """The environment variable: `WFE_PERSISTENCE_POOL_SIZE`."""
        return ENV_PREFIX + self.name.upper()

    def validate(self, value: Any) -> None:
        """Raise ValueError, naming the setting, unless `value` is of its type and in bounds."""
        about = self.about
        if value is None and self.default is None:
            return
        if self.type is list:
            if not isinstance(value, list | tuple) or not all(isinstance(x, str) for x in value):
                raise ValueError(f"{self.key}: must be {_KINDS[self.type]}")
            return
        accepted: Any = (int, float) if self.type is float else self.type
        # bool is a subclass of int.
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.type is not bool):
            raise ValueError(f"{self.key}: must be {_KINDS[self.type]}")
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{self.key}: must be a finite number")
        if about.choices and value not in about.choices:
            raise ValueError(f"{self.key}: must be one of {', '.join(about.choices)}")
        if about.minimum is not None and value < about.minimum:
            raise ValueError(f"{self.key}: must be at least {about.minimum}")
        if about.maximum is not None and value > about.maximum:
            raise ValueError(f"{self.key}: must be at most {about.maximum}")
        if about.above is not None and value <= about.above:
            raise ValueError(f"{self.key}: must be more than {about.above:g}")


_KINDS: Final[dict[type, str]] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a path",
    tuple: "a table",
    list: "a list of strings",
}


def declared(groups: Mapping[str, type[Any]]) -> dict[str, Setting]:
    """The settings that these dataclasses declare, by name. The keys are the groups' headings."""
    settings = {}
    for heading, group in groups.items():
        hints = get_type_hints(group, include_extras=True)
        for item in fields(group):
            type_, about = get_args(hints[item.name])
            if NoneType in get_args(type_):
                type_ = next(t for t in get_args(type_) if t is not NoneType)
            type_ = get_origin(type_) or type_
            if type_ is Sequence:
                type_ = list
            default = item.default_factory if item.default is MISSING else item.default
            settings[item.name] = Setting(item.name, type_, default, about, heading)
    return settings
