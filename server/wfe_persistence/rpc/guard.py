"""Who makes a call, and whether they may: decided before its request is received."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

import grpc

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.access.access import Access
from wfe_persistence.access.policy import ALL_RIGHTS, Rights
from wfe_persistence.access.role import Role
from wfe_persistence.errors import PersistenceError
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.rpc.status import reason_name
from wfe_persistence.store.schema import DEFAULT_NAMESPACE

log = logging.getLogger(__name__)
refusals = RecurringWarnings(log)

NAMESPACE_KEY: Final = "wfe-namespace"
AUTHORIZATION_KEY: Final = "authorization"

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call, what they may do, and the namespace that the call is for."""

    principal: str
    """Empty on a server without authentication."""
    rights: Rights
    namespace: str

    def may(self, role: Role, namespace: str) -> bool:
        """Whether the caller may do in a namespace what takes this role."""
        return self.rights.allow(role, namespace)


def namespace_of(context: Context) -> str:
    """The namespace that a call is for: the first one that its metadata names, or the default."""
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_KEY:
            return value if isinstance(value, str) else value.decode()
    return DEFAULT_NAMESPACE


def _only_namespace(context: Context) -> str:
    named: str | bytes | None = None
    for key, value in context.invocation_metadata() or ():
        if key == NAMESPACE_KEY:
            if named is not None and value != named:
                raise PersistenceError(
                    ErrorReason.ERROR_REASON_INVALID_NAMESPACE,
                    f"the metadata has different values of {NAMESPACE_KEY}",
                )
            named = value
    if named is None:
        return DEFAULT_NAMESPACE
    return named if isinstance(named, str) else named.decode()


def _anybody(namespace: str) -> Caller:
    """Whoever makes a call on a server without authentication."""
    return Caller("", ALL_RIGHTS, namespace)


_ANYBODY: Final = _anybody(DEFAULT_NAMESPACE)


class Guard:
    """Decides whether a call is served. Without an `access`, everybody may do everything."""

    def __init__(self, access: Access | None) -> None:
        self._access = access

    async def identify(self, context: Context) -> Caller:
        """Who makes a call. Raises PersistenceError for credentials that are missing or bad, and
        for several namespaces: a proxy in between may have vouched for another one."""
        if self._access is None:
            namespace = _only_namespace(context)
            return _ANYBODY if namespace == DEFAULT_NAMESPACE else _anybody(namespace)
        authorization = [
            value for key, value in context.invocation_metadata() or () if key == AUTHORIZATION_KEY
        ]
        try:
            principal = await self._access.identify(authorization, context.auth_context())
        except PersistenceError as exc:
            name = reason_name(exc.reason)
            refusals.warn(name, f"calls are refused with {name}: {exc} (from {context.peer()})")
            raise
        return Caller(principal, self._access.rights(principal), _only_namespace(context))

    def require(self, caller: Caller, role: Role, namespace: str | None, what: str) -> None:
        """Raise ACCESS_DENIED unless the caller may do `what` takes this role in the namespace.

        None: in any. Nothing has been asked of the database, so neither the answer nor its time
        tells whether the namespace exists.
        """
        require(caller, role, namespace, what)


def require(caller: Caller, role: Role, namespace: str | None, what: str) -> None:
    """See `Guard.require`."""
    if caller.rights is ALL_RIGHTS:
        return
    if namespace is None:
        allowed, where = caller.rights.allow_somewhere(role), "any namespace"
    else:
        allowed, where = caller.rights.allow(role, namespace), "the namespace"
    if allowed:
        return
    refusals.warn_each(
        "ACCESS_DENIED",
        caller.principal,
        f"calls are refused with ACCESS_DENIED: {caller.principal} does not have the role "
        f"{role.label} in {'any namespace' if namespace is None else repr(namespace[:40])} "
        f"for {what}",
    )
    raise PersistenceError(
        ErrorReason.ERROR_REASON_ACCESS_DENIED,
        f"{what} requires the role {role.label} in {where}, which {caller.principal} does not have",
        metadata={"principal": caller.principal, "role": role.label},
    )
