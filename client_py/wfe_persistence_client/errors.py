"""What can go wrong, as exceptions.

Everything the store or the way to it reports is a `PersistenceError`. Which one
is decided by the `google.rpc.ErrorInfo` that the server attaches, never by
message text; where there is none, by the status code alone. Arguments that
cannot be sent at all (a naive datetime, NaN in JSON, a number that does not fit)
raise ValueError or TypeError before anything is sent.
"""

# ruff: noqa: N818 - they bear the names of the statuses and reasons they stand for

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DOMAIN = "wfe.persistence"
_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(slots=True, frozen=True)
class Violation:
    """What is wrong with one field of a request."""

    #: The field's path in the request, for example
    #: `instance.execution_pointers[3].outcome_json`.
    field: str
    #: The name of a `FieldViolationReason` without its prefix, for example `TOO_LONG`.
    reason: str
    #: The same in words, for people.
    description: str


class PersistenceError(Exception):
    """The store refused a call or could not be reached.

    Attributes:
        reason: the name of an `ErrorReason` without its prefix, for example
            `WORKFLOW_NOT_FOUND`; empty if the error does not come from the store
            but from the way to it.
        status: the gRPC status code; None if there was no answer to have one.
        metadata: what ErrorInfo says besides, by name.
        violations: the bad fields, if the request was refused for some.
        retry_after: the wait in seconds that the server asks for before another
            try; None if it says nothing about it.
        maybe_written: true if the call was a write that may have been made
            despite the error, in this or an earlier attempt. False: nothing was
            written.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        status: grpc.StatusCode | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
        maybe_written: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.metadata: Mapping[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.maybe_written = maybe_written

    def __str__(self) -> str:
        """The reason, the server's words, and the bad fields."""
        text = super().__str__()
        label = self.reason or (self.status.name if self.status else "")
        bad = "".join(f"; {v.field}: {v.reason or v.description}" for v in self.violations)
        return f"{label}: {text}{bad}" if label else f"{text}{bad}"


class NotFound(PersistenceError):
    """What was asked for does not exist."""


class WorkflowNotFound(NotFound):
    """No workflow has this id or name."""


class EventNotFound(NotFound):
    """No event has this id."""


class SubscriptionNotFound(NotFound):
    """No subscription has this id."""


class PointerNotFound(NotFound):
    """The workflow has no execution pointer of an id that a patch removes."""

    @property
    def field(self) -> str:
        """The path of that id in the request."""
        return self.metadata.get("field", "")


class NamespaceNotFound(NotFound):
    """The namespace does not exist; none is created by naming it."""


class AlreadyExists(PersistenceError):
    """The id is in use by something with other content, or the name is taken."""


class WorkflowAlreadyExists(AlreadyExists):
    """The id is in use by a workflow that was created with other content."""


class NameTaken(AlreadyExists):
    """Another workflow has this name."""

    @property
    def field(self) -> str:
        """The path of the field that has the name."""
        return self.metadata.get("field", "")


class EventAlreadyExists(AlreadyExists):
    """The id is in use by an event that was created with other content."""


class SubscriptionAlreadyExists(AlreadyExists):
    """The id is in use by a subscription that was created with other content."""


class RequestIdReused(AlreadyExists):
    """This `request_id` named another write to the same workflow."""


class PartialWorkflow(PersistenceError):
    """A part of a workflow cannot be stored as it is; nothing was sent.

    It was loaded with a view, and either its pointers were put into another order, or
    the provider no longer remembers what it loaded. Load it anew.
    """


class RevisionMismatch(PersistenceError):
    """`expected_revision` is not the stored one: load, decide, persist again."""

    @property
    def revision(self) -> int:
        """The stored revision; 0 if the server did not name it."""
        return _integer(self.metadata.get("revision"))


class TransactionConflict(PersistenceError):
    """Other transactions got in the way too often; nothing was written."""


class FailedPrecondition(PersistenceError):
    """The store, the server or the caller is not in the state the call needs."""


class TokenMismatch(FailedPrecondition):
    """The subscription is not held with the given token."""


class LeaseLost(FailedPrecondition):
    """A command is no longer claimed under the given lease."""

    @property
    def lease_tokens(self) -> tuple[str, ...]:
        """The tokens of the lost leases, as far as the server names them."""
        return tuple(filter(None, self.metadata.get("lease_tokens", "").split(",")))


class TruncateNotAllowed(FailedPrecondition):
    """The server was started without the flag that allows `truncate_all`."""


class NamespaceNotEmpty(FailedPrecondition):
    """Something is stored in the namespace that was to be deleted."""


class DeleteNamespaceNotAllowed(FailedPrecondition):
    """The server was started without the flag that allows `delete_namespace`."""


class SchemaOutdated(FailedPrecondition):
    """The store is missing or older than the server needs: `ensure_store_exists`."""


class SchemaTooNew(FailedPrecondition):
    """A newer server migrated the store; this one refuses to touch it."""


class DatabasePermissionDenied(FailedPrecondition):
    """The server's database role may not do this."""


class InvalidArgument(PersistenceError):
    """The request is bad; `violations` names the fields, if it is for fields."""


class ResourceExhausted(PersistenceError):
    """A limit is reached. Nothing was written, unless `maybe_written` says so."""


class TooLarge(ResourceExhausted):
    """The request, or what would have to be read back, is over the message limit."""

    @property
    def limit_bytes(self) -> int:
        """The limit; 0 if the server did not name it."""
        return _integer(self.metadata.get("limit_bytes"))


class PoolExhausted(ResourceExhausted):
    """Every database connection stayed busy; nothing was written."""


class NamespaceBusy(ResourceExhausted):
    """Too many calls of this namespace are waiting already; nothing was written."""


class DatabaseFull(ResourceExhausted):
    """The database has no disk, memory or connections left; nothing was written."""


class DeadlineExceeded(PersistenceError):
    """The call's time ran out. `maybe_written` says whether it may have been made."""


class Unavailable(PersistenceError):
    """The server or its database cannot be reached now; nothing was written."""


class CommitOutcomeUnknown(Unavailable):
    """The connection broke around a write, so it may or may not have been made.

    The provider has tried again where that is safe. Look at what is stored
    before deciding to call again a method that is not safe to repeat.
    """


class Unauthenticated(PersistenceError):
    """The server wants another token or certificate."""


class PermissionDenied(PersistenceError):
    """The caller may not make this call."""


class Unimplemented(PersistenceError):
    """The server does not know this call; it is older, or not ours."""


class ServerError(PersistenceError):
    """A bug in the server; the message has the number under which it logged it."""


class MalformedAnswer(PersistenceError):
    """The server's answer has something this client cannot read."""


_BY_REASON: Mapping[str, type[PersistenceError]] = {
    "WORKFLOW_NOT_FOUND": WorkflowNotFound,
    "EVENT_NOT_FOUND": EventNotFound,
    "SUBSCRIPTION_NOT_FOUND": SubscriptionNotFound,
    "NAMESPACE_NOT_FOUND": NamespaceNotFound,
    "POINTER_NOT_FOUND": PointerNotFound,
    "WORKFLOW_ALREADY_EXISTS": WorkflowAlreadyExists,
    "NAME_TAKEN": NameTaken,
    "EVENT_ALREADY_EXISTS": EventAlreadyExists,
    "SUBSCRIPTION_ALREADY_EXISTS": SubscriptionAlreadyExists,
    "REQUEST_ID_REUSED": RequestIdReused,
    "REVISION_MISMATCH": RevisionMismatch,
    "TRANSACTION_CONFLICT": TransactionConflict,
    "TOKEN_MISMATCH": TokenMismatch,
    "LEASE_LOST": LeaseLost,
    "TRUNCATE_NOT_ALLOWED": TruncateNotAllowed,
    "NAMESPACE_NOT_EMPTY": NamespaceNotEmpty,
    "DELETE_NAMESPACE_NOT_ALLOWED": DeleteNamespaceNotAllowed,
    "SCHEMA_OUTDATED": SchemaOutdated,
    "SCHEMA_TOO_NEW": SchemaTooNew,
    "DATABASE_PERMISSION_DENIED": DatabasePermissionDenied,
    "INVALID_FIELD": InvalidArgument,
    "MALFORMED_MESSAGE": InvalidArgument,
    "INVALID_PAGE_TOKEN": InvalidArgument,
    "INVALID_NAMESPACE": InvalidArgument,
    "MESSAGE_TOO_LARGE": TooLarge,
    "ANSWER_TOO_LARGE": TooLarge,
    "POOL_EXHAUSTED": PoolExhausted,
    "NAMESPACE_BUSY": NamespaceBusy,
    "DATABASE_FULL": DatabaseFull,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "DATABASE_UNAVAILABLE": Unavailable,
    "COMMIT_OUTCOME_UNKNOWN": CommitOutcomeUnknown,
    "SHUTTING_DOWN": Unavailable,
    "INTERNAL": ServerError,
}

# For what comes without a reason: from gRPC itself, from a proxy on the way, or
# with a reason newer than this client.
_BY_STATUS: Mapping[grpc.StatusCode, type[PersistenceError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.ABORTED: TransactionConflict,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    # The server or a proxy gave up; our own cancellations never come as a status.
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.DATA_LOSS: ServerError,
}

# The reasons under which a write may have been made; under all others of the
# store's own reasons nothing was written.
_MAYBE_WRITTEN_REASONS = frozenset({"COMMIT_OUTCOME_UNKNOWN", "INTERNAL"})

# The codes that, even without a reason, come from before the call was served.
_NEVER_SERVED = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


def from_rpc_error(rpc_error: grpc.aio.AioRpcError) -> PersistenceError:
    """The exception for a status that is not OK, with that as its cause.

    `maybe_written` is set as for a write; for a read it means nothing.
    """
    status = rpc_error.code()
    reason = ""
    metadata: dict[str, str] = {}
    violations: list[Violation] = []
    retry_after: float | None = None
    for detail in _details(rpc_error):
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        retry_info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            if info.domain == _DOMAIN:
                reason = info.reason
                metadata = dict(info.metadata)
        elif detail.Unpack(bad_request):
            violations.extend(
                Violation(violation.field, violation.reason, violation.description)
                for violation in bad_request.field_violations
            )
        elif detail.Unpack(retry_info):
            delay = retry_info.retry_delay
            retry_after = max(0.0, delay.seconds + delay.nanos / 1e9)
    known = _BY_REASON.get(reason)
    error_class = known or _BY_STATUS.get(status, PersistenceError)
    maybe_written = (
        reason in _MAYBE_WRITTEN_REASONS if known is not None else status not in _NEVER_SERVED
    )
    error = error_class(
        rpc_error.details() or "the call failed without saying why",
        reason=reason,
        status=status,
        metadata=metadata,
        violations=violations,
        retry_after=retry_after,
        maybe_written=maybe_written,
    )
    error.__cause__ = rpc_error
    return error


def _details(rpc_error: grpc.aio.AioRpcError) -> Sequence[Any]:
    """The details of the `google.rpc.Status` in the trailing metadata, if any."""
    for key, value in rpc_error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                details: Sequence[Any] = status_pb2.Status.FromString(value).details
            except DecodeError:
                # Not ours then; the code still says something.
                return ()
            return details
    return ()


def _integer(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0
