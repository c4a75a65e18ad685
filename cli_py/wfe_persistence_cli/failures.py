"""What is said when a call fails, and the exit status then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from wfe_persistence_cli import status
from wfe_persistence_client.errors import (
    AlreadyExists,
    DeadlineExceeded,
    LeaseLost,
    NamespaceNotEmpty,
    NamespaceNotFound,
    NamespaceSetNotFound,
    NotFound,
    PermissionDenied,
    PersistenceError,
    RevisionMismatch,
    TokenMismatch,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    from_rpc_error,
)

if TYPE_CHECKING:
    from wfe_persistence_cli.target import Target

_STATUSES: Final[tuple[tuple[type[PersistenceError], int], ...]] = (
    (NotFound, status.NOT_FOUND),
    (Unavailable, status.UNREACHABLE),
    (DeadlineExceeded, status.UNREACHABLE),
    (Unauthenticated, status.DENIED),
    (PermissionDenied, status.DENIED),
    (AlreadyExists, status.CONFLICT),
    (RevisionMismatch, status.CONFLICT),
    (TokenMismatch, status.CONFLICT),
    (LeaseLost, status.CONFLICT),
    (NamespaceNotEmpty, status.CONFLICT),
)


def status_of(error: PersistenceError) -> int:
    """The exit status of a command that ends with this error."""
    return next((number for kind, number in _STATUSES if isinstance(error, kind)), status.FAILURE)


def as_error(rpc_error: Any) -> PersistenceError:
    """The error of the client that an error of a stub stands for."""
    return from_rpc_error(rpc_error)


def lines_of(error: PersistenceError, target: Target) -> Iterator[str]:
    """What is said about an error: what it is, and what to do about it."""
    label = error.status.name if error.status is not None else ""
    text = str(error)
    # The status is what people know, the reason what docs/errors.md has.
    yield f"{label}: {text}" if label and not text.startswith(label) else text
    if isinstance(error, NamespaceNotFound | NamespaceSetNotFound):
        yield (
            f"The {target.store} is from {target.namespace_origin}; "
            "`wfe-persistence namespace list` shows which namespaces there are."
        )
    elif isinstance(error, Unavailable | DeadlineExceeded):
        yield f"The server is {target.address}, from {target.origin}."
        if error.reason == "SERVER_UNREACHABLE" and not target.uses_tls:
            yield "It was called without TLS; --tls or --tls-ca turn it on."
    elif isinstance(error, Unauthenticated):
        yield (
            f"The token is from {target.token_origin}."
            if target.token_origin
            else "No token was sent; --bearer-token-file or a context name one."
        )
    elif isinstance(error, PermissionDenied) and error.role:
        yield f"It takes the role {error.role} in the {target.store}."
    elif isinstance(error, Unimplemented):
        yield f"The server at {target.address} is older than this command, or not this server."
