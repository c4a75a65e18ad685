"""What PostgreSQL's errors mean: the one table from SQLSTATE to domain error and retry."""

from __future__ import annotations

import logging
from collections.abc import Collection
from enum import Enum, auto
from typing import Final, NamedTuple, NoReturn

from psycopg import pq

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.redaction import redacted

refusals = RecurringWarnings(logging.getLogger(__name__))

DEADLOCK: Final = "40P01"
_UNIQUE_VIOLATION: Final = "23505"
_CANCELED: Final = "57014"
_TRANSACTION_TIMEOUT: Final = "25P04"
_IDLE_SESSION_TIMEOUT: Final = "57P05"


class UnexpectedDatabaseError(Exception):
    """PostgreSQL refused a statement for a reason that only a bug explains."""


class UniqueViolation(UnexpectedDatabaseError):  # noqa: N818 — PostgreSQL's name for it
    """A statement violated a unique constraint whose owner explains it.

    `constraint` is its name in the database, with any prefix.
    """

    def __init__(self, message: str, constraint: str) -> None:
        super().__init__(message)
        self.constraint = constraint


class Retry(Enum):
    """Whether the same statement may succeed if it is run again."""

    NO = auto()
    SAME_CONNECTION = auto()
    OTHER_CONNECTION = auto()
    """Not on this one: its session is not in the state that we believe it to be in."""


class _Meaning(NamedTuple):
    retry: Retry
    reason: ErrorReason.ValueType | None = None
    """What it is if it is not retried, or to no avail; None: only a bug explains it."""
    message: str = ""
    retry_after: float | None = None
    """When the client may try again, in seconds; None: it should not."""


_CONFLICT: Final = ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT
_INVALID: Final = ErrorReason.ERROR_REASON_INVALID_FIELD
_OUTDATED: Final = ErrorReason.ERROR_REASON_SCHEMA_OUTDATED
_DENIED: Final = ErrorReason.ERROR_REASON_DATABASE_PERMISSION_DENIED
_FULL: Final = ErrorReason.ERROR_REASON_DATABASE_FULL
_UNAVAILABLE: Final = ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE
_LOCKED: Final = ErrorReason.ERROR_REASON_ROW_LOCKED
_STAYED_LOCKED: Final = "a row or a table stayed locked"
_COLLIDED: Final = "the transaction kept colliding with others"

# By SQLSTATE, or by its class (the first two characters).
_MEANINGS: Final = {
    # A prepared statement that is not on the connection, or is on it already (a PgBouncer in
    # between), or that no longer fits the tables (a migration).
    "26000": _Meaning(Retry.OTHER_CONNECTION),
    "42P05": _Meaning(Retry.OTHER_CONNECTION),
    "0A000": _Meaning(Retry.OTHER_CONNECTION),
    # Somebody else created the same id at the same moment: the next snapshot shows it.
    _UNIQUE_VIOLATION: _Meaning(Retry.SAME_CONNECTION, _CONFLICT, _COLLIDED, 0.1),
    # A row was written while the one that it refers to was being deleted: the next snapshot shows
    # it.
    "23503": _Meaning(Retry.SAME_CONNECTION, _CONFLICT, _COLLIDED, 0.1),
    "40001": _Meaning(Retry.SAME_CONNECTION, _CONFLICT, _COLLIDED, 0.1),
    DEADLOCK: _Meaning(Retry.SAME_CONNECTION, _CONFLICT, _COLLIDED, 0.1),
    # A cancel request that was meant for the call before on the same connection. If it happens
    # again and again, an administrator or a limit of the database did it.
    _CANCELED: _Meaning(
        Retry.SAME_CONNECTION, _UNAVAILABLE, "the database kept cancelling the statement", 1.0
    ),
    _TRANSACTION_TIMEOUT: _Meaning(
        Retry.NO, _UNAVAILABLE, "the database's transaction_timeout ended the statement", 1.0
    ),
    "40": _Meaning(Retry.NO, _CONFLICT, _COLLIDED, 0.1),
    "55P03": _Meaning(Retry.NO, _LOCKED, _STAYED_LOCKED, 1.0),
    "22": _Meaning(Retry.NO, _INVALID, "the database can't store a value"),
    "54": _Meaning(Retry.NO, _INVALID, "a value is too large to be stored"),
    "3F000": _Meaning(Retry.NO, _OUTDATED, "the store does not exist"),
    "42P01": _Meaning(Retry.NO, _OUTDATED, "the store is missing tables"),
    "42703": _Meaning(Retry.NO, _OUTDATED, "the store is missing columns"),
    "42501": _Meaning(Retry.NO, _DENIED, "the server's database role may not do this"),
    "53": _Meaning(Retry.NO, _FULL, "the database is out of resources", 5.0),
    "08": _Meaning(Retry.NO, _UNAVAILABLE, "the database can't be reached", 1.0),
    "57": _Meaning(Retry.NO, _UNAVAILABLE, "the database is shutting down", 1.0),
    "58": _Meaning(Retry.NO, _UNAVAILABLE, "the database has a system error", 5.0),
    "25006": _Meaning(Retry.NO, _UNAVAILABLE, "the database is read-only", 1.0),
}
_ONLY_A_BUG: Final = _Meaning(Retry.NO)

# The same SQLSTATE as that of a cancel request, so only the text tells (in English; in another
# language it is tried again, like a cancel request).
_STATEMENT_TIMEOUT: Final = _Meaning(
    Retry.NO, _UNAVAILABLE, "the database's statement_timeout ended the statement", 1.0
)
_TIMED_OUT: Final = "statement timeout"


def sqlstate(error: pq.abc.PGresult) -> str:
    """The SQLSTATE of a failed statement; empty: the error is libpq's own."""
    return _field(error, pq.DiagnosticField.SQLSTATE)


def was_cancelled(error: pq.abc.PGresult) -> bool:
    """Whether a statement failed because it was cancelled, by us or by others."""
    return sqlstate(error) == _CANCELED


def violated_constraint(error: pq.abc.PGresult) -> str:
    """The name of the unique constraint that a statement violated; empty: it did not."""
    if sqlstate(error) != _UNIQUE_VIOLATION:
        return ""
    return _field(error, pq.DiagnosticField.CONSTRAINT_NAME)


def retry(error: pq.abc.PGresult) -> Retry:
    """Whether a failed statement may succeed if it is run again."""
    return _meaning(error).retry


def hit_limit(error: pq.abc.PGresult) -> bool:
    """Whether PostgreSQL ended the session because the statement exceeded a limit, as it would
    again on another connection."""
    return sqlstate(error) == _TRANSACTION_TIMEOUT


def ends_session(error: pq.abc.PGresult) -> bool:
    """Whether PostgreSQL closes the connection after this error."""
    return _field(error, pq.DiagnosticField.SEVERITY_NONLOCALIZED) in ("FATAL", "PANIC")


def was_idle(error: pq.abc.PGresult) -> bool:
    """Whether PostgreSQL had ended the session because of its `idle_session_timeout`."""
    return sqlstate(error) == _IDLE_SESSION_TIMEOUT


def raise_error(
    error: pq.abc.PGresult,
    final_constraints: Collection[str] = (),
    expected: Collection[ErrorReason.ValueType] = (),
) -> NoReturn:
    """Raise a failed statement's error: PersistenceError; UniqueViolation for a constraint in
    `final_constraints`; or for what only a bug explains UnexpectedDatabaseError. Reasons that are
    `expected` are not logged."""
    message = f"SQLSTATE {sqlstate(error)}: {error.error_message.decode()}"
    if (constraint := violated_constraint(error)) in final_constraints:
        raise UniqueViolation(message, constraint)
    cause = UnexpectedDatabaseError(message)
    meaning = _meaning(error)
    if meaning.reason is None:
        raise cause
    if meaning.reason not in (_CONFLICT, _INVALID, _LOCKED, *expected):
        refusals.warn(sqlstate(error), f"the database refused a statement: {cause}")
    raise PersistenceError(
        meaning.reason,
        meaning.message,
        retry_after=meaning.retry_after,
        detail=redacted(_message(error)),
    ) from cause


def row_locked() -> PersistenceError:
    """The error of a statement that was called off because it waited for a lock."""
    return PersistenceError(_LOCKED, _STAYED_LOCKED, retry_after=1.0)


def refusal(state: str, message: str) -> PersistenceError | None:
    """The error of a statement of administration that PostgreSQL refused, given its SQLSTATE and
    its message without secrets; None: the statement itself, or what it met, is the reason."""
    meaning = _meaning_of(state, message)
    if meaning.reason not in (
        _CONFLICT, _DENIED, _FULL, _UNAVAILABLE, ErrorReason.ERROR_REASON_ROW_LOCKED
    ):  # fmt: skip
        return None
    return PersistenceError(
        meaning.reason, meaning.message, retry_after=meaning.retry_after, detail=message
    )


def _meaning(error: pq.abc.PGresult) -> _Meaning:
    return _meaning_of(sqlstate(error), _message(error))


def _message(error: pq.abc.PGresult) -> str:
    return _field(error, pq.DiagnosticField.MESSAGE_PRIMARY)


def _meaning_of(state: str, message: str) -> _Meaning:
    if state == _CANCELED and _TIMED_OUT in message:
        return _STATEMENT_TIMEOUT
    return _MEANINGS.get(state) or _MEANINGS.get(state[:2]) or _ONLY_A_BUG


def _field(error: pq.abc.PGresult, field: pq.DiagnosticField) -> str:
    return (error.error_field(field) or b"").decode(errors="replace")
