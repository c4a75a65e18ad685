"""The exceptions that the client raises.

Every error of the store or of the connection to it is a `PersistenceError`. The class
is determined by the `google.rpc.ErrorInfo` that the server attaches, never by the
message text. A call that gRPC itself or a proxy ends has none; `transport` names its
reason. Arguments that cannot be sent at
all (a naive datetime, NaN in JSON, a number that does not fit) raise ValueError or
TypeError before anything is sent.

(Longer than 450 lines, as it is a catalogue: a class for each reason.)
"""

# ruff: noqa: N818 - named after the statuses and reasons that they represent

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe.persistence.v1.item_error_pb2 import ItemError
from wfe_persistence_client import transport

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
    #: A description for people.
    description: str


class PersistenceError(Exception):
    """The store rejected a call or could not be reached.

    Attributes:
        reason: the name of an `ErrorReason` without its prefix, for example
            `WORKFLOW_NOT_FOUND`. The client itself names it if gRPC or a proxy ended the
            call, for example `SERVER_UNREACHABLE`. Empty for what only this client
            refuses (`PartialWorkflow`, `LockHeld`, `MalformedAnswer`), and for statuses that a
            server other than this one made.
        status: the gRPC status code; None if there was no response.
        metadata: the metadata of ErrorInfo.
        violations: the invalid fields, if that is why the request was rejected.
        retry_after: the delay in seconds that the server requests before a retry; None
            if it does not request one.
        maybe_written: True if the call was a write that may have been applied despite
            the error, in this or an earlier attempt. False: nothing was written.
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
        """The reason, the message and the invalid fields."""
        text = super().__str__()
        label = self.reason or (self.status.name if self.status else "")
        bad = "".join(f"; {v.field}: {v.reason or v.description}" for v in self.violations)
        return f"{label}: {text}{bad}" if label else f"{text}{bad}"


class NotFound(PersistenceError):
    """Something that the call refers to does not exist."""


class WorkflowNotFound(NotFound):
    """No workflow has this id or name."""


class EventNotFound(NotFound):
    """No event has this id."""


class SubscriptionNotFound(NotFound):
    """No subscription has this id."""


class PointerNotFound(NotFound):
    """A patch removes an execution pointer that the workflow does not have."""

    @property
    def field(self) -> str:
        """The path of that id in the request."""
        return self.metadata.get("field", "")


class NamespaceNotFound(NotFound):
    """The namespace does not exist; namespaces are never created implicitly."""


class DatabaseNotFound(NotFound):
    """The service has no database with this name and these labels."""


class NamespaceSetNotFound(NotFound):
    """There is no namespace set of this name."""


class AlreadyExists(PersistenceError):
    """The id is in use with different content, or the name is taken."""


class WorkflowAlreadyExists(AlreadyExists):
    """The id is in use by a workflow created with different content."""


class NamespaceSetExists(AlreadyExists):
    """The namespace set exists with another number of members, which never changes."""


class NameTaken(AlreadyExists):
    """Another workflow has this name."""

    @property
    def field(self) -> str:
        """The path of the field that has the name."""
        return self.metadata.get("field", "")


class EventAlreadyExists(AlreadyExists):
    """The id is in use by an event created with different content."""


class SubscriptionAlreadyExists(AlreadyExists):
    """The id is in use by a subscription created with different content."""


class RequestIdReused(AlreadyExists):
    """This `request_id` was used for a different write to the same workflow."""


class NamespaceInOtherDatabase(AlreadyExists):
    """The namespace exists, in another database than the one asked for."""

    @property
    def database(self) -> str:
        """The name of that database."""
        return self.metadata.get("database", "")


class RecordConflict(AlreadyExists):
    """The store has another record in the place of one that was to be imported."""

    @property
    def field(self) -> str:
        """The first such record of its request: `records[3]`."""
        return self.metadata.get("field", "")


class PartialWorkflow(PersistenceError):
    """A partially loaded workflow cannot be stored; nothing was sent.

    It was loaded with a view, and either its pointers were reordered, or the provider
    no longer remembers what it loaded. Load it again.
    """


class RevisionMismatch(PersistenceError):
    """`expected_revision` is not the stored revision.

    Load the workflow again, reapply the change, and persist again.
    """

    @property
    def revision(self) -> int:
        """The stored revision; 0 if the server did not report it."""
        return _integer(self.metadata.get("revision"))


class TransactionConflict(PersistenceError):
    """Conflicts with other transactions, or their locks, persisted; nothing was written."""


class FailedPrecondition(PersistenceError):
    """The store, the server or the caller is not in the state the call needs."""


class TokenMismatch(FailedPrecondition):
    """The subscription is not held with the given token."""


class LeaseLost(FailedPrecondition):
    """A command is no longer claimed, or a lock no longer held, under the given lease."""

    @property
    def lease_tokens(self) -> tuple[str, ...]:
        """The tokens of the lost leases, as far as the server lists them."""
        return tuple(filter(None, self.metadata.get("lease_tokens", "").split(",")))


class LockHeld(PersistenceError):
    """Somebody else holds the lock, and did so for as long as the call waited."""

    @property
    def owner(self) -> str:
        """Who holds it, as they called themselves."""
        return self.metadata.get("owner", "")


class TruncateNotAllowed(FailedPrecondition):
    """The server was started without the flag that allows `truncate_all`."""


class NamespaceNotEmpty(FailedPrecondition):
    """The namespace to delete is not empty."""


class NamespaceSetIncomplete(FailedPrecondition):
    """The creation or deletion of the namespace set has not been finished."""


class NamespaceInSet(FailedPrecondition):
    """The namespace is a member of a set, which can only be deleted as a whole."""


class MembersDiffer(FailedPrecondition):
    """A write concerns things on different members of a namespace set: it can't be one transaction.

    Nothing was sent. Write what is on other members with calls of their own.
    """


class DeleteNamespaceNotAllowed(FailedPrecondition):
    """The server was started without the flag that allows `delete_namespace`."""


class MoveNotPossible(FailedPrecondition):
    """The namespace can't be moved to that database, or not in that way; the message says why."""


class MoveInProgress(FailedPrecondition):
    """The namespace is being moved somewhere else, or its move can't be aborted any more."""


class CreateNamespaceNotAllowed(FailedPrecondition):
    """The server was started without the flag that allows `create_namespace`."""


class StoreNotOwned(FailedPrecondition):
    """The schema contains a store of other servers, or one that no server has claimed."""


class SchemaOutdated(FailedPrecondition):
    """The store is missing or too old for the server; call `ensure_store_exists`."""


class SchemaTooNew(FailedPrecondition):
    """A newer server migrated the store; this one refuses to use it."""


class DatabasePermissionDenied(FailedPrecondition):
    """The server's database role lacks the required privilege."""


class InvalidArgument(PersistenceError):
    """The request is invalid; `violations` lists the invalid fields, if any."""


class CursorExpired(PersistenceError):
    """Events after the cursor are no longer there, or it is from before a restore.

    Start from `oldest_cursor`, and expect events that were handled before.
    """

    @property
    def oldest_cursor(self) -> str:
        """The cursor in front of the oldest event that is left."""
        return self.metadata.get("oldest_cursor", "")


class ResourceExhausted(PersistenceError):
    """A limit was reached. Nothing was written, unless `maybe_written` is set."""


class TooLarge(ResourceExhausted):
    """The request, or the state to be read back, exceeds the message limit."""

    @property
    def limit_bytes(self) -> int:
        """The limit; 0 if the server did not report it."""
        return _integer(self.metadata.get("limit_bytes"))


class PoolExhausted(ResourceExhausted):
    """No database connection became available in time; nothing was written."""


class NamespaceBusy(ResourceExhausted):
    """Too many calls of this namespace are waiting for a connection; nothing was written."""


class TooManyCalls(ResourceExhausted):
    """The server or this connection has too many calls in progress; nothing was written."""


class AdministrationBusy(ResourceExhausted):
    """Too many administrative calls are waiting for their turn; nothing was written."""


class CallerLimited(ResourceExhausted):
    """The caller or the namespace has reached its limit of calls; nothing was written."""


class NamespaceFull(ResourceExhausted):
    """The namespace stores as much as it may: nothing was written. Delete or purge first."""


class ReaderTooSlow(ResourceExhausted):
    """The stream was not read for too long."""

    @property
    def cursor(self) -> str:
        """The cursor to resume from."""
        return self.metadata.get("cursor", "")


class TooManyNamespaces(ResourceExhausted):
    """There are as many namespaces as the server allows."""


class DatabaseFull(ResourceExhausted):
    """The database is out of disk space, memory or connections; nothing was written."""


class DeadlineExceeded(PersistenceError):
    """The deadline passed. `maybe_written` says whether the write may have been applied."""


class Unavailable(PersistenceError):
    """The server or its database is unreachable.

    Nothing was written, unless `maybe_written` is set.
    """


class CommitOutcomeUnknown(Unavailable):
    """The connection was lost during a write, which may or may not have been applied.

    The provider has retried where that is safe. Check the stored state before repeating
    a call that is not idempotent.
    """


class Unauthenticated(PersistenceError):
    """The token or certificate is missing or invalid; nothing was written.

    With the reason `CREDENTIALS_EXPIRED`, get a new token and repeat the call. A provider with
    a token file or function has done that already, if it had another token by then.
    """


class PermissionDenied(PersistenceError):
    """The caller may not make this call in this namespace; nothing was written."""

    @property
    def principal(self) -> str:
        """Who the caller is to the server; empty if it did not report it."""
        return self.metadata.get("principal", "")

    @property
    def role(self) -> str:
        """The role that the call requires; empty if the server did not report it."""
        return self.metadata.get("role", "")


class Unimplemented(PersistenceError):
    """The server does not implement this RPC: it is too old, or a different server."""


class NotOverASet(Unimplemented):
    """A namespace set does not offer this: call it in its members (`with_namespace`)."""


class ServerError(PersistenceError):
    """A bug in the server; the message has the id under which the server logged it."""


class MalformedAnswer(PersistenceError):
    """The response contains something that this client cannot read."""


_BY_REASON: Mapping[str, type[PersistenceError]] = {
    "WORKFLOW_NOT_FOUND": WorkflowNotFound,
    "EVENT_NOT_FOUND": EventNotFound,
    "SUBSCRIPTION_NOT_FOUND": SubscriptionNotFound,
    "NAMESPACE_NOT_FOUND": NamespaceNotFound,
    "POINTER_NOT_FOUND": PointerNotFound,
    "DATABASE_NOT_FOUND": DatabaseNotFound,
    "WORKFLOW_ALREADY_EXISTS": WorkflowAlreadyExists,
    "NAME_TAKEN": NameTaken,
    "EVENT_ALREADY_EXISTS": EventAlreadyExists,
    "SUBSCRIPTION_ALREADY_EXISTS": SubscriptionAlreadyExists,
    "REQUEST_ID_REUSED": RequestIdReused,
    "RECORD_CONFLICT": RecordConflict,
    "NAMESPACE_IN_OTHER_DATABASE": NamespaceInOtherDatabase,
    "REVISION_MISMATCH": RevisionMismatch,
    "TRANSACTION_CONFLICT": TransactionConflict,
    "ROW_LOCKED": TransactionConflict,
    "TOKEN_MISMATCH": TokenMismatch,
    "LEASE_LOST": LeaseLost,
    "TRUNCATE_NOT_ALLOWED": TruncateNotAllowed,
    "NAMESPACE_NOT_EMPTY": NamespaceNotEmpty,
    "DELETE_NAMESPACE_NOT_ALLOWED": DeleteNamespaceNotAllowed,
    "CREATE_NAMESPACE_NOT_ALLOWED": CreateNamespaceNotAllowed,
    "STORE_NOT_OWNED": StoreNotOwned,
    "NAMESPACE_SET_NOT_FOUND": NamespaceSetNotFound,
    "NAMESPACE_SET_EXISTS": NamespaceSetExists,
    "NAMESPACE_SET_INCOMPLETE": NamespaceSetIncomplete,
    "NAMESPACE_IN_SET": NamespaceInSet,
    "MEMBERS_DIFFER": MembersDiffer,
    "NOT_OVER_A_SET": NotOverASet,
    "MOVE_NOT_POSSIBLE": MoveNotPossible,
    "MOVE_IN_PROGRESS": MoveInProgress,
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
    "TOO_MANY_CALLS": TooManyCalls,
    "ADMINISTRATION_BUSY": AdministrationBusy,
    "TOO_MANY_NAMESPACES": TooManyNamespaces,
    "CALLER_LIMITED": CallerLimited,
    "NAMESPACE_FULL": NamespaceFull,
    "DATABASE_FULL": DatabaseFull,
    "CURSOR_EXPIRED": CursorExpired,
    "READER_TOO_SLOW": ReaderTooSlow,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "DATABASE_UNAVAILABLE": Unavailable,
    "COMMIT_OUTCOME_UNKNOWN": CommitOutcomeUnknown,
    "SHUTTING_DOWN": Unavailable,
    "INTERNAL": ServerError,
    "KEYS_UNAVAILABLE": Unavailable,
    "DATABASE_NOT_CONFIGURED": Unavailable,
    "CREDENTIALS_REQUIRED": Unauthenticated,
    "CREDENTIALS_INVALID": Unauthenticated,
    "CREDENTIALS_EXPIRED": Unauthenticated,
    "ACCESS_DENIED": PermissionDenied,
    "SERVER_UNREACHABLE": Unavailable,
    "TRANSPORT_LIMIT": ResourceExhausted,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "UNIMPLEMENTED": Unimplemented,
}

# For errors without a known reason: newer than this client, or made by another server.
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
    # From the server or a proxy; our own cancellations never arrive as a status.
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.DATA_LOSS: ServerError,
}

# The reasons after which a write may have been applied; after all other reasons of the
# store, nothing was written.
_MAYBE_WRITTEN_REASONS = frozenset({"COMMIT_OUTCOME_UNKNOWN", "INTERNAL"})

# The codes that, even without a reason, mean that the call was not executed.
_NEVER_SERVED = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


def from_rpc_error(rpc_error: grpc.aio.AioRpcError) -> PersistenceError:
    """The exception for a status that is not OK, with the gRPC error as its cause.

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
    message = rpc_error.details() or ""
    if reason in _BY_REASON:
        maybe_written = reason in _MAYBE_WRITTEN_REASONS
    else:
        maybe_written = status not in _NEVER_SERVED
    if not reason:
        reason, metadata = transport.reason_of(status, message)
        # A request that was too large reached no handler.
        maybe_written = (
            maybe_written
            and reason != "MESSAGE_TOO_LARGE"
            and not transport.is_refused(status, message)
        )
    error_class = _BY_REASON.get(reason) or _BY_STATUS.get(status, PersistenceError)
    error = error_class(
        message or "the call failed without an error message",
        reason=reason,
        status=status,
        metadata=metadata,
        violations=violations,
        retry_after=retry_after,
        maybe_written=maybe_written,
    )
    error.__cause__ = rpc_error
    return error


def from_item_error(item: ItemError) -> PersistenceError:
    """The exception for one of many items that was refused, as for a call for it alone."""
    status = next((code for code in grpc.StatusCode if code.value[0] == item.code), None)
    # (A newer server may have reasons that this client does not know.)
    known = item.reason in ErrorReason.values()
    reason = ErrorReason.Name(item.reason).removeprefix("ERROR_REASON_") if known else ""
    error_class = _BY_REASON.get(reason)
    if error_class is None:
        error_class = (
            PersistenceError if status is None else _BY_STATUS.get(status, PersistenceError)
        )
    delay = item.retry_delay
    return error_class(
        item.message or "the item was refused without an error message",
        reason=reason,
        status=status,
        metadata=dict(item.metadata),
        violations=[
            Violation(
                violation.field,
                FieldViolationReason.Name(violation.reason).removeprefix("FIELD_VIOLATION_REASON_")
                if violation.reason in FieldViolationReason.values()
                else "",
                violation.description,
            )
            for violation in item.field_violations
        ],
        retry_after=max(0.0, delay.seconds + delay.nanos / 1e9)
        if item.HasField("retry_delay")
        else None,
    )


def _details(rpc_error: grpc.aio.AioRpcError) -> Sequence[Any]:
    """The details of the `google.rpc.Status` in the trailing metadata, if any."""
    for key, value in rpc_error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                details: Sequence[Any] = status_pb2.Status.FromString(value).details
            except DecodeError:
                # Not from this server; the status code is still meaningful.
                return ()
            return details
    return ()


def _integer(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0
