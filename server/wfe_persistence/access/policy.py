"""The policy file: which principals have which role on which namespaces. The rest is denied.

    [[grant]]
    principals = ["token:billing", "jwt:system:serviceaccount:prod:*"]
    role = "host"
    namespaces = ["prod", "prod_*"]

Names are compared as they are. A `*` at the end stands for any rest; it has no meaning elsewhere.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from wfe_persistence.access.principal import KINDS
from wfe_persistence.access.role import ROLES, Role
from wfe_persistence.store.schema import is_namespace

# Of how many principals the rights are remembered.
_MAX_REMEMBERED: Final = 10_000

_KEYS: Final = {"principals", "role", "namespaces"}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A name, or the beginning of names."""

    text: str
    is_prefix: bool

    def matches(self, name: str) -> bool:
        """Whether it stands for this name."""
        return name.startswith(self.text) if self.is_prefix else name == self.text


class Rights:
    """The roles of one principal."""

    def __init__(self, grants: Iterable[tuple[Role, Pattern]]) -> None:
        # The highest role first, so that the first match is the answer.
        self._grants = sorted(grants, key=lambda grant: -grant[0])

    def role(self, namespace: str) -> Role | None:
        """The role in a namespace, whether that exists or not."""
        for role, pattern in self._grants:
            if pattern.matches(namespace):
                return role
        return None

    def allow(self, role: Role, namespace: str) -> bool:
        """Whether the principal may do in a namespace what takes this role."""
        return (self.role(namespace) or 0) >= role

    def allow_somewhere(self, role: Role) -> bool:
        """Whether it has this role in any namespace that there might be."""
        return bool(self._grants) and self._grants[0][0] >= role


ALL_RIGHTS: Final = Rights([(Role.ADMIN, Pattern("", is_prefix=True))])
"""Those of everybody on a server without authentication."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One entry of the file: everyone in it has the role in every namespace in it."""

    principals: tuple[Pattern, ...]
    role: Role
    namespaces: tuple[Pattern, ...]


class Policy:
    """The grants of one file."""

    def __init__(self, grants: Iterable[Grant]) -> None:
        self.grants = tuple(grants)
        self._rights: dict[str, Rights] = {}

    def rights(self, principal: str) -> Rights:
        """What a principal may do."""
        rights = self._rights.get(principal)
        if rights is None:
            rights = Rights(
                (grant.role, namespace)
                for grant in self.grants
                if any(pattern.matches(principal) for pattern in grant.principals)
                for namespace in grant.namespaces
            )
            if len(self._rights) >= _MAX_REMEMBERED:
                self._rights.clear()
            self._rights[principal] = rights
        return rights


def parse_policy(data: bytes) -> Policy:
    """The policy of a file. Raises ValueError with all that is wrong, naming the entries."""
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"is not valid TOML: {exc}") from None
    problems = [f"unknown key {key!r}" for key in document if key != "grant"]
    entries = document.get("grant", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("grant: must be written as [[grant]]")
    grants = [_grant(entry, number, problems) for number, entry in enumerate(entries, 1)]
    if problems:
        raise ValueError("; ".join(problems))
    return Policy(grant for grant in grants if grant)


def _grant(entry: dict[str, Any], number: int, problems: list[str]) -> Grant | None:
    """One entry; None: something is wrong with it, which is added to the problems."""
    found = [f"unknown key {key!r}" for key in sorted(entry.keys() - _KEYS)]
    found += [f"{key} is missing" for key in sorted(_KEYS - entry.keys())]
    role = entry.get("role", Role.READER.label)
    if not isinstance(role, str) or role not in ROLES:
        found.append(f"role: {role!r} is none of {', '.join(ROLES)}")
    principals = _patterns(entry, "principals", _principal_problem, found)
    namespaces = _patterns(entry, "namespaces", _namespace_problem, found)
    if found:
        problems += [f"grant {number}: {problem}" for problem in found]
        return None
    return Grant(principals, ROLES[role], namespaces)


def _patterns(
    entry: dict[str, Any], key: str, problem_of: Callable[[str], str], found: list[str]
) -> tuple[Pattern, ...]:
    """The patterns of a key; what is wrong with them is added to what was found."""
    if key not in entry:
        return ()
    texts = entry[key]
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        found.append(f"{key}: must be a list of at least one string")
        return ()
    for text in texts:
        problem = "has a * that is not at its end" if "*" in text[:-1] else problem_of(text)
        if problem:
            found.append(f"{key}: {text!r} {problem}")
    return tuple(Pattern(text.removesuffix("*"), text.endswith("*")) for text in texts)


def _principal_problem(text: str) -> str:
    # Not even a pattern may leave open how a principal is proved.
    if not any(text.startswith(kind) and text != kind for kind in KINDS):
        return f"must begin with {', '.join(KINDS[:-1])} or {KINDS[-1]}, and go on"
    return "" if text.isprintable() else "must be printable text"


def _namespace_problem(text: str) -> str:
    if text == "*" or is_namespace(text.removesuffix("*")):
        return ""
    return "is neither a namespace ([a-z][a-z0-9_]{0,39}) nor the beginning of one with a * behind"
