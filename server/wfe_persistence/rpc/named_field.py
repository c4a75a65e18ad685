"""Errors of values that only the database refused."""

from __future__ import annotations

import logging

from google.protobuf.message import Message

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe_persistence.errors import PersistenceError, invalid_field
from wfe_persistence.recurring import RecurringWarnings

log = logging.getLogger(__name__)
refusals = RecurringWarnings(log)


def naming_a_field(error: PersistenceError, request: Message) -> PersistenceError:
    """The error of a request. That of a value which only the database refused names a field,
    although the checks have a rule for every value of which that is known: the first one of the
    request, which has the rest in it."""
    if error.reason != ErrorReason.ERROR_REASON_INVALID_FIELD or error.violations:
        return error
    name = request.DESCRIPTOR.full_name
    refusals.warn(name, f"{name}: {error.__cause__}")
    for field, _ in request.ListFields():
        if field.name != "request_id":
            named = invalid_field(
                field.name, FieldViolationReason.FIELD_VIOLATION_REASON_FORMAT, str(error)
            )
            named.__cause__ = error
            return named
    return error


class NamingAField:
    """Have the errors of a request name a field; see `naming_a_field`. (Not a generator: ten
    thousand calls may be inside.)"""

    __slots__ = ("_request",)

    def __init__(self, request: Message) -> None:
        self._request = request

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if isinstance(exc, PersistenceError):
            named = naming_a_field(exc, self._request)
            if named is not exc:
                raise named from exc
