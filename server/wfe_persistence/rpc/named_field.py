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
