"""The errors of the API, identified by the `ErrorReason` of the protos.

The store and the checks raise them; only `rpc.status` knows the gRPC status of each reason. A
message may be shown to any caller: it contains no SQL, no connection string and no values of the
caller.
"""

from __future__ import annotations

from dataclasses import dataclass

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason


@dataclass(frozen=True, slots=True)
class Violation:
    """An invalid field: its path in the request, the reason, and a description of it."""

    field: str
    reason: FieldViolationReason.ValueType
    description: str


class PersistenceError(Exception):
    """A call failed for a reason that the caller can act on.

    `metadata` goes into `google.rpc.ErrorInfo`, `violations` into `google.rpc.BadRequest`, and
    `retry_after` (seconds; None: do not retry) into `google.rpc.RetryInfo`. `detail` is for the
    operator only: what the database said, without secrets.
    """

    def __init__(
        self,
        reason: ErrorReason.ValueType,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        violations: tuple[Violation, ...] = (),
        retry_after: float | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = metadata or {}
        self.violations = violations
        self.retry_after = retry_after
        self.detail = detail

    def copy(self) -> PersistenceError:
        """The same error, to be raised elsewhere."""
        twin = PersistenceError(
            self.reason,
            str(self),
            metadata=dict(self.metadata),
            violations=self.violations,
            retry_after=self.retry_after,
            detail=self.detail,
        )
        twin.__cause__ = self.__cause__
        return twin

    @property
    def in_full(self) -> str:
        """The message with the detail: for logs and for the command line."""
        return f"{self}: {self.detail}" if self.detail else str(self)


class CannotServeError(Exception):
    """The server can't run as it was started; the message says why."""


def shutting_down() -> PersistenceError:
    """The error of a call that a server does not begin, or ends, because it stops."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_SHUTTING_DOWN, "the server is shutting down", retry_after=0.5
    )


def invalid_field(
    field: str, reason: FieldViolationReason.ValueType, description: str
) -> PersistenceError:
    """The error of a request with one invalid field."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_INVALID_FIELD,
        f"{field}: {description}",
        violations=(Violation(field, reason, description),),
    )


def too_large(reason: ErrorReason.ValueType, what: str, size: int, limit: int) -> PersistenceError:
    """The error of a message that has more bytes than the limit; `what` it is."""
    return PersistenceError(
        reason,
        f"the {what} has {size} bytes, the maximum is {limit}",
        metadata={"limit_bytes": str(limit)},
    )


def unreadable(limit: int) -> PersistenceError:
    """The error of a write of what would not fit in one message when it is read back."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_ANSWER_TOO_LARGE,
        f"what would be stored could not be read back in one message of {limit} bytes",
        metadata={"limit_bytes": str(limit)},
    )


def field_error(field: str, reason: ErrorReason.ValueType, message: str) -> PersistenceError:
    """The error of a valid request for which a field's value is the reason; `field`: its path."""
    return PersistenceError(reason, message, metadata={"field": field})


def namespace_not_found(name: str) -> PersistenceError:
    """The error of a namespace that does not exist, or belongs to other servers."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND,
        "the namespace does not exist",
        metadata={"namespace": name},
    )


def workflow_not_found(field: str) -> PersistenceError:
    """The error of a workflow that does not exist; `field`: the request's field."""
    return field_error(field, ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND, "no such workflow")


def revision_mismatch(stored: int, expected: int) -> PersistenceError:
    """The error of an `expected_revision` that is not the stored one."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_REVISION_MISMATCH,
        f"the stored revision is {stored}, not {expected}",
        metadata={"revision": str(stored), "field": "expected_revision"},
    )
