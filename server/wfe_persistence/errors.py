"""What can go wrong, told apart by the `ErrorReason` of the protos.

The store and the checks raise these; `rpc.status` alone knows which gRPC status each
one becomes. A message may be shown to any caller: it holds no SQL, no connection string and
none of the caller's values.
"""

from __future__ import annotations

from dataclasses import dataclass

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason


@dataclass(frozen=True, slots=True)
class Violation:
    """One bad field: its path in the request, what is wrong, and that in words."""

    field: str
    reason: FieldViolationReason.ValueType
    description: str


class PersistenceError(Exception):
    """A call failed for a reason that its caller can act on.

    `metadata` goes into `google.rpc.ErrorInfo`, `violations` into `google.rpc.BadRequest`, and
    `retry_after` (seconds; None: do not try again) into `google.rpc.RetryInfo`.
    """

    def __init__(
        self,
        reason: ErrorReason.ValueType,
        message: str,
        *,
        metadata: dict[str, str] | None = None,
        violations: tuple[Violation, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.metadata = metadata or {}
        self.violations = violations
        self.retry_after = retry_after


def invalid_field(
    field: str, reason: FieldViolationReason.ValueType, description: str
) -> PersistenceError:
    """The error of a request with one bad field."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_INVALID_FIELD,
        f"{field}: {description}",
        violations=(Violation(field, reason, description),),
    )


def workflow_not_found(asked_by: str) -> PersistenceError:
    """The error of a workflow that is not stored; `asked_by` is the request's field."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_WORKFLOW_NOT_FOUND,
        "no such workflow",
        metadata={"field": asked_by},
    )


def revision_mismatch(stored: int, expected: int) -> PersistenceError:
    """The error of an `expected_revision` that is not the stored one."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_REVISION_MISMATCH,
        f"the stored revision is {stored}, not {expected}",
        metadata={"revision": str(stored), "field": "expected_revision"},
    )
