"""Names that are no settings: the nearest one that is, and what Kubernetes puts beside them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Final

from wfe_persistence.settings.setting import ENV_PREFIX

# For every Service of a namespace Kubernetes gives each pod such variables, unless it says
# `enableServiceLinks: false`. Those of a Service named `wfe-persistence`, or `wfe-persistence-…`,
# begin as ours do.
_OF_A_SERVICE: Final = re.compile(
    ENV_PREFIX + r"(?:[A-Z0-9_]+_)?"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?"
    r"|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_PORT_OF_A_SERVICE: Final = re.compile(ENV_PREFIX + r"(?:[A-Z0-9_]+_)?PORT")
_URL_OF_A_SERVICE: Final = re.compile(r"(?:tcp|udp|sctp)://")

# What others call a setting, where another one is nearer by its letters.
_USUAL: Final = {"database-url": "db-url"}


def is_of_a_service(name: str, value: str) -> bool:
    """Whether Kubernetes made this variable for a Service; it is not meant for the server then."""
    return bool(
        _OF_A_SERVICE.fullmatch(name)
        or (_PORT_OF_A_SERVICE.fullmatch(name) and _URL_OF_A_SERVICE.match(value))
    )


def unknown_variables(environment: Mapping[str, str], known: Collection[str]) -> list[str]:
    """A message for each variable that begins like a setting's and is none; without its value."""
    ours = {name.removeprefix(ENV_PREFIX) for name in known}
    return [
        f"unknown environment variable {name}"
        + did_you_mean(_without_prefix(name), ours, ENV_PREFIX)
        for name, value in sorted(environment.items())
        if name.startswith(ENV_PREFIX) and name not in known and not is_of_a_service(name, value)
    ]


def did_you_mean(name: str, known: Collection[str], prefix: str = "") -> str:
    """The end of a message about an unknown name: the nearest known one, if one is near."""
    usual = _USUAL.get(name.lower().replace("_", "-"))
    nearest = [each for each in known if each.lower().replace("_", "-") == usual]
    nearest = nearest or get_close_matches(name, sorted(known), n=1)
    if not nearest:
        return "; `wfe-persistence serve --help` lists all"
    return f"; did you mean {prefix}{nearest[0]}?"


def _without_prefix(name: str) -> str:
    return name.removeprefix(ENV_PREFIX).upper()
