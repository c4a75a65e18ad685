"""What the admin port answers: `/livez`, `/readyz`, `/version`, and the pages that are added.

Probes are for everybody, because a kubelet has no credentials: they say whether, but why only to
those who may see it. All else takes a role in all namespaces (`*`), if callers have to
authenticate: `monitor` unless the page takes another one.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.access.access import Access
from wfe_persistence.access.role import Role
from wfe_persistence.errors import PersistenceError
from wfe_persistence.http.server import Handler, Request, Response
from wfe_persistence.recurring import RecurringWarnings

log = logging.getLogger(__name__)
refusals = RecurringWarnings(log)

_UNAUTHENTICATED: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_CREDENTIALS_REQUIRED,
        ErrorReason.ERROR_REASON_CREDENTIALS_INVALID,
        ErrorReason.ERROR_REASON_CREDENTIALS_EXPIRED,
    }
)

_SPIFFE: Final = re.compile(rb"spiffe://[^/?#@:]{1,255}/[^?#]+")
_MAX_SPIFFE_BYTES: Final = 2048


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One of the things that must be so for the server to be ready."""

    name: str
    failure: str
    """Why it is not so; empty: it is."""
    is_needed: bool = True
    """Without one that is not, the server is ready all the same: for a part of what it serves."""


class Admin:
    """Answers the requests of the admin port. Without an `access`, everybody may see everything."""

    def __init__(
        self,
        access: Access | None,
        checks: Callable[[], Sequence[CheckResult]],
        versions: Callable[[], Mapping[str, str]],
        alive: Callable[[], Sequence[CheckResult]] = lambda: [CheckResult("ping", "")],
    ) -> None:
        self._access = access
        self._checks = checks
        self._versions = versions
        self._alive = alive
        self._pages: dict[str, tuple[Role, Handler]] = {}
        self._below: dict[str, Handler] = {}
        self.add("/version", Role.MONITOR, self._version)

    def add(self, path: str, role: Role, page: Handler) -> None:
        """Answer requests for a path, too, of those who have this role in all namespaces."""
        self._pages[path] = role, page

    def mount(self, start: str, pages: Handler) -> None:
        """Answer requests for all paths that start so, of everybody: who may see what is decided
        there."""
        self._below[start] = pages

    async def answer(self, request: Request) -> Response:
        """The response to a request."""
        if request.path == "/livez":
            # That this is answered is what it says above all: the event loop runs.
            return _probe(request, self._alive(), why=False)
        if request.path == "/readyz":
            return await self._readyz(request)
        for start, pages in self._below.items():
            if request.path.startswith(start):
                return await pages(request)
        role, page = self._pages.get(request.path, (Role.MONITOR, None))
        try:
            await self._require(role, request)
        except PersistenceError as exc:
            return self._refuse(request, exc)
        if page is None:
            known = " ".join(sorted(("/livez", "/readyz", *self._pages, *self._below)))
            return Response.text(HTTPStatus.NOT_FOUND, f"not found; there is {known}")
        return await page(request)

    async def _readyz(self, request: Request) -> Response:
        why = self._access is None
        if not why and "verbose" in request.query:
            try:
                await self._require(Role.MONITOR, request)
                why = True
            except PersistenceError:
                pass  # a probe without credentials
        return _probe(request, self._checks(), why=why)

    async def _version(self, _: Request) -> Response:
        return json_response(self._versions())

    async def _require(self, role: Role, request: Request) -> None:
        if self._access is None:
            return
        authorization = request.headers.get("authorization", [])
        properties = certificate_properties(request.certificate)
        principal = await self._access.identify(authorization, properties)
        if not self._access.rights(principal).allow_everywhere(role):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_ACCESS_DENIED,
                f"requires the role {role.label} in all namespaces (*), which {principal} "
                "does not have",
            )

    def _refuse(self, request: Request, error: PersistenceError) -> Response:
        reason = ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_")
        refusals.warn(
            reason,
            f"requests to the admin port are refused with {reason}: {error} (from {request.peer})",
        )
        if error.reason in _UNAUTHENTICATED:
            return Response.text(
                HTTPStatus.UNAUTHORIZED, str(error), **{"www-authenticate": "Bearer"}
            )
        if error.reason == ErrorReason.ERROR_REASON_ACCESS_DENIED:
            return Response.text(HTTPStatus.FORBIDDEN, str(error))
        return Response.text(HTTPStatus.SERVICE_UNAVAILABLE, str(error))


def json_response(value: Mapping[str, object]) -> Response:
    """A response that is one JSON object."""
    body = json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
    return Response(HTTPStatus.OK, body, "application/json")


def _probe(request: Request, checks: Iterable[CheckResult], *, why: bool) -> Response:
    """The outcome of checks, in the form of those of Kubernetes and etcd."""
    excluded = set(request.query.get("exclude", ()))
    lines = []
    healthy = True
    for check in checks:
        if check.name in excluded:
            lines.append(f"[+]{check.name} excluded: ok")
        elif check.failure:
            healthy = healthy and not check.is_needed
            lines.append(f"[-]{check.name} failed: {check.failure if why else 'reason withheld'}")
        else:
            lines.append(f"[+]{check.name} ok")
    name = request.path.removeprefix("/")
    if healthy and "verbose" not in request.query:
        return Response.text(HTTPStatus.OK, "ok")
    lines.append(f"{name} check {'passed' if healthy else 'failed'}")
    status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
    return Response.text(status, "\n".join(lines))


def certificate_properties(certificate: Mapping[str, object] | None) -> dict[str, list[bytes]]:
    """A certificate that `ssl` has decoded, as gRPC describes one (`access/certificate.py`)."""
    properties: dict[str, list[bytes]] = {}
    if certificate is None:
        return properties
    names: object = certificate.get("subjectAltName", ())
    subject: object = certificate.get("subject", ())
    assert isinstance(names, tuple)
    assert isinstance(subject, tuple)
    uris = [value.encode() for kind, value in names if kind == "URI"]
    if uris:
        properties["peer_uri"] = uris
    # As gRPC does it: a SPIFFE ID counts only if it is the only URI, and well-formed.
    if len(uris) == 1 and _SPIFFE.fullmatch(uris[0]) and len(uris[0]) <= _MAX_SPIFFE_BYTES:
        properties["peer_spiffe_id"] = uris
    for attributes in subject:
        for kind, value in attributes:
            if kind == "commonName":
                properties["x509_common_name"] = [value.encode()]
    return properties
