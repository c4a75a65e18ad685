"""The one table from reasons to gRPC statuses, and the error details that go with a status."""

from __future__ import annotations

import math
import typing
from typing import Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe_persistence import metrics
from wfe_persistence.errors import PersistenceError

DOMAIN: Final = "wfe.persistence"
_DETAILS_KEY: Final = "grpc-status-details-bin"

# The status travels in HTTP/2 headers, which peers limit to 8 kB in all: the message with three
# bytes for each byte beyond ASCII, the details in base64. So of many violations, as many as fit.
MAX_MESSAGE_BYTES: Final = 300
MAX_PATH_BYTES: Final = 300
_MAX_VIOLATIONS_BYTES = 3500

_STATUS: Final[dict[grpc.StatusCode, tuple[str, ...]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (
        "INVALID_FIELD",
        "MALFORMED_MESSAGE",
        "INVALID_PAGE_TOKEN",
        "INVALID_NAMESPACE",
    ),
    grpc.StatusCode.NOT_FOUND: (
        "WORKFLOW_NOT_FOUND",
        "EVENT_NOT_FOUND",
        "SUBSCRIPTION_NOT_FOUND",
        "NAMESPACE_NOT_FOUND",
        "POINTER_NOT_FOUND",
        "DATABASE_NOT_FOUND",
        "NAMESPACE_SET_NOT_FOUND",
    ),
    grpc.StatusCode.ALREADY_EXISTS: (
        "WORKFLOW_ALREADY_EXISTS",
        "NAME_TAKEN",
        "EVENT_ALREADY_EXISTS",
        "SUBSCRIPTION_ALREADY_EXISTS",
        "REQUEST_ID_REUSED",
        "RECORD_CONFLICT",
        "NAMESPACE_IN_OTHER_DATABASE",
        "NAMESPACE_SET_EXISTS",
    ),
    grpc.StatusCode.ABORTED: ("REVISION_MISMATCH", "TRANSACTION_CONFLICT", "ROW_LOCKED"),
    grpc.StatusCode.FAILED_PRECONDITION: (
        "TOKEN_MISMATCH",
        "LEASE_LOST",
        "TRUNCATE_NOT_ALLOWED",
        "SCHEMA_OUTDATED",
        "SCHEMA_TOO_NEW",
        "DATABASE_PERMISSION_DENIED",
        "NAMESPACE_NOT_EMPTY",
        "DELETE_NAMESPACE_NOT_ALLOWED",
        "CREATE_NAMESPACE_NOT_ALLOWED",
        "STORE_NOT_OWNED",
        "NAMESPACE_SET_INCOMPLETE",
        "NAMESPACE_IN_SET",
        "MOVE_NOT_POSSIBLE",
        "MOVE_IN_PROGRESS",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        "MESSAGE_TOO_LARGE",
        "ANSWER_TOO_LARGE",
        "POOL_EXHAUSTED",
        "DATABASE_FULL",
        "NAMESPACE_BUSY",
        "TOO_MANY_CALLS",
        "TOO_MANY_NAMESPACES",
        "ADMINISTRATION_BUSY",
        "CALLER_LIMITED",
        "NAMESPACE_FULL",
        "READER_TOO_SLOW",
    ),
    grpc.StatusCode.OUT_OF_RANGE: ("CURSOR_EXPIRED",),
    grpc.StatusCode.DEADLINE_EXCEEDED: ("DEADLINE_EXCEEDED",),
    grpc.StatusCode.UNAVAILABLE: (
        "DATABASE_UNAVAILABLE",
        "COMMIT_OUTCOME_UNKNOWN",
        "SHUTTING_DOWN",
        "KEYS_UNAVAILABLE",
        "DATABASE_NOT_CONFIGURED",
    ),
    grpc.StatusCode.UNAUTHENTICATED: (
        "CREDENTIALS_REQUIRED",
        "CREDENTIALS_INVALID",
        "CREDENTIALS_EXPIRED",
    ),
    grpc.StatusCode.PERMISSION_DENIED: ("ACCESS_DENIED",),
    grpc.StatusCode.INTERNAL: ("INTERNAL",),
}

STATUS_OF: Final = {
    ErrorReason.Value(f"ERROR_REASON_{name}"): code
    for code, names in _STATUS.items()
    for name in names
}


def reason_name(reason: ErrorReason.ValueType) -> str:
    """The name of a reason in ErrorInfo, without the prefix."""
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_")


def violation_name(reason: FieldViolationReason.ValueType) -> str:
    """The name of a field violation's reason in BadRequest, without the prefix."""
    return FieldViolationReason.Name(reason).removeprefix("FIELD_VIOLATION_REASON_")


def shortened(text: str, most_bytes: int) -> str:
    """A text truncated to at most `most_bytes` bytes of UTF-8, without splitting a character."""
    return text.encode()[:most_bytes].decode(errors="ignore")


async def abort(
    context: grpc.aio.ServicerContext[typing.Any, typing.Any], error: PersistenceError
) -> NoReturn:
    """End a call with the status of an error. Raises AbortError, or what `abort` of gRPC raises."""
    metrics.CALL_ERRORS.add((reason_name(error.reason),))
    await context.abort(
        STATUS_OF[error.reason],
        shortened(str(error), MAX_MESSAGE_BYTES),
        trailing_metadata=((_DETAILS_KEY, details(error)),),
    )
    raise AssertionError("abort() raises")


def details(error: PersistenceError) -> bytes:
    """The google.rpc.Status of an error, for the trailing metadata."""
    info = error_details_pb2.ErrorInfo(
        reason=reason_name(error.reason), domain=DOMAIN, metadata=error.metadata
    )
    packed = [_pack(info)]
    if error.violations:
        bad_request = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad_request.field_violations.add(
                field=shortened(violation.field, MAX_PATH_BYTES),
                description=violation.description,
                reason=violation_name(violation.reason),
            )
            if bad_request.ByteSize() > _MAX_VIOLATIONS_BYTES:
                break
        packed.append(_pack(bad_request))
    if error.retry_after is not None:
        nanos, seconds = math.modf(error.retry_after)
        delay = Duration(seconds=int(seconds), nanos=int(nanos * 1e9))
        packed.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    status = status_pb2.Status(
        code=STATUS_OF[error.reason].value[0],
        message=shortened(str(error), MAX_MESSAGE_BYTES),
        details=packed,
    )
    serialized: bytes = status.SerializeToString()
    return serialized


def _pack(
    message: error_details_pb2.ErrorInfo
    | error_details_pb2.BadRequest
    | error_details_pb2.RetryInfo,
) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
