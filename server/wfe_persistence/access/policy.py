"""The policy file: which principals have which role on which namespaces, the rest being denied; and
how much each principal and namespace may use, the rest being unlimited.

    [[grant]]
    principals = ["token:billing", "jwt:system:serviceaccount:prod:*"]
    role = "host"
    namespaces = ["prod", "prod_*"]

    [[limit]]
    principals = ["token:*"]
    max_calls = 100
    calls_per_second = 500

    [[limit]]
    namespaces = ["prod_*"]
    max_rows = 1_000_000
    max_mb = 2048

A limit holds for each principal, each namespace, or each principal in each namespace apart. Of the
limits of one of these three kinds, the first that matches counts.

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

# Of how many principals the rights, and of how many callers the limits are remembered.
_MAX_REMEMBERED: Final = 10_000

_KEYS: Final = {"principals", "role", "namespaces"}
_WHOLE_AMOUNTS: Final = ("max_calls", "burst", "max_rows", "max_mb")
_STORED: Final = {"max_rows", "max_mb"}
_LIMIT_KEYS: Final = {"principals", "namespaces", "calls_per_second", *_WHOLE_AMOUNTS}
_MAX_AMOUNT: Final = 10**15


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

    def allow_everywhere(self, role: Role) -> bool:
        """Whether it has this role in all namespaces, by a grant of `*`."""
        return any(
            granted >= role and pattern.is_prefix and not pattern.text
            for granted, pattern in self._grants
        )


ALL_RIGHTS: Final = Rights([(Role.ADMIN, Pattern("", is_prefix=True))])
"""Those of everybody on a server without authentication."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One entry of the file: everyone in it has the role in every namespace in it."""

    principals: tuple[Pattern, ...]
    role: Role
    namespaces: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One entry of the file. None: no limit of this kind."""

    principals: tuple[Pattern, ...]
    """Empty: all together."""
    namespaces: tuple[Pattern, ...]
    """Empty: all together."""
    max_calls: int | None
    """Calls in progress."""
    calls_per_second: float | None
    burst: float
    """How many calls more than that may come at once, after a time without any: at least 1."""
    max_rows: int | None
    max_mb: int | None

    def matches(self, principal: str, namespace: str) -> bool:
        """Whether it holds for this caller in this namespace."""
        return _any(self.principals, principal) and _any(self.namespaces, namespace)

    def __str__(self) -> str:
        rate = self.calls_per_second
        amounts = {
            "max_calls": self.max_calls,
            "calls_per_second": rate,
            "burst": self.burst if rate else None,
            "max_rows": self.max_rows,
            "max_mb": self.max_mb,
        }
        return ", ".join(f"{key} = {value}" for key, value in amounts.items() if value)


def _any(patterns: tuple[Pattern, ...], name: str) -> bool:
    return not patterns or any(pattern.matches(name) for pattern in patterns)


class Limits:
    """The limits of one principal in one namespace. None: there is none of this kind."""

    __slots__ = ("of_both", "of_namespace", "of_principal")

    def __init__(self, limits: Iterable[Limit]) -> None:
        self.of_principal: Limit | None = None
        """What it may use in all namespaces together."""
        self.of_namespace: Limit | None = None
        """What all principals together may use."""
        self.of_both: Limit | None = None
        for limit in limits:
            if not limit.namespaces:
                self.of_principal = self.of_principal or limit
            elif not limit.principals:
                self.of_namespace = self.of_namespace or limit
            else:
                self.of_both = self.of_both or limit


NO_LIMITS: Final = Limits(())


class Policy:
    """The grants and limits of one file."""

    def __init__(self, grants: Iterable[Grant], limits: Iterable[Limit] = ()) -> None:
        self.grants = tuple(grants)
        self.limit_entries = tuple(limits)
        self._rights: dict[str, Rights] = {}
        self._limits: dict[tuple[str, str], Limits] = {}

    @property
    def names_principals(self) -> bool:
        """Whether it has an entry that only means something if callers must authenticate."""
        return bool(self.grants) or any(limit.principals for limit in self.limit_entries)

    def limits(self, principal: str, namespace: str) -> Limits:
        """How much a principal may use in a namespace. An empty one: the call is for none."""
        if not self.limit_entries:
            return NO_LIMITS
        key = (principal, namespace)
        limits = self._limits.get(key)
        if limits is None:
            limits = Limits(
                limit
                for limit in self.limit_entries
                if (namespace or not limit.namespaces) and limit.matches(principal, namespace)
            )
            if len(self._limits) >= _MAX_REMEMBERED:
                self._limits.clear()
            self._limits[key] = limits
        return limits

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
    problems = [f"unknown key {key!r}" for key in document if key not in ("grant", "limit")]
    grants = [_grant(*entry, problems) for entry in _entries(document, "grant")]
    limits = [_limit(*entry, problems) for entry in _entries(document, "limit")]
    if problems:
        raise ValueError("; ".join(problems))
    return Policy(filter(None, grants), filter(None, limits))


def parse_anonymous_policy(data: bytes) -> Policy:
    """The same for a server without authentication, where nobody has a principal."""
    policy = parse_policy(data)
    if policy.names_principals:
        raise ValueError(
            "grants, and limits with principals, have no effect without authentication "
            "(token-file, jwt-issuer or tls-client-ca)"
        )
    return policy


def _entries(document: dict[str, Any], key: str) -> list[tuple[dict[str, Any], int]]:
    """The entries under a key, with their numbers."""
    entries = document.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{key}: must be written as [[{key}]]")
    return [(entry, number) for number, entry in enumerate(entries, 1)]


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


def _limit(entry: dict[str, Any], number: int, problems: list[str]) -> Limit | None:
    """One entry; None: something is wrong with it, which is added to the problems."""
    found = [f"unknown key {key!r}" for key in sorted(entry.keys() - _LIMIT_KEYS)]
    principals = _patterns(entry, "principals", _principal_problem, found)
    namespaces = _patterns(entry, "namespaces", _namespace_problem, found)
    if not entry.keys() & {"principals", "namespaces"}:
        found.append("principals and namespaces are missing; it needs either or both")
    for key in _WHOLE_AMOUNTS:
        value = entry.get(key, 1)
        if type(value) is not int or not 1 <= value <= _MAX_AMOUNT:
            found.append(f"{key}: must be an integer from 1 to 10^15")
    rate = entry.get("calls_per_second", 1)
    if type(rate) not in (int, float) or not 0.001 <= rate <= _MAX_AMOUNT:
        found.append("calls_per_second: must be a number from 0.001 to 10^15")
    if "burst" in entry and "calls_per_second" not in entry:
        found.append("burst: needs calls_per_second")
    if not entry.keys() & {"max_calls", "calls_per_second", *_STORED}:
        found.append("limits nothing: it needs max_calls, calls_per_second, max_rows or max_mb")
    if "principals" in entry and entry.keys() & _STORED:
        found.append("max_rows and max_mb are of namespaces: it can't have principals")
    if found:
        problems += [f"limit {number}: {problem}" for problem in found]
        return None
    return Limit(
        principals=principals,
        namespaces=namespaces,
        max_calls=entry.get("max_calls"),
        calls_per_second=entry.get("calls_per_second"),
        burst=entry.get("burst", max(rate, 1)),
        max_rows=entry.get("max_rows"),
        max_mb=entry.get("max_mb"),
    )


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
