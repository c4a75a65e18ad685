"""Errors of values that only the database refused."""

from __future__ import annotations

import logging

from google.protobuf.message import Message

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe_persistence.errors import PersistenceError, invalid_field
from wfe_persistence.recurring import RecurringWarnings

log = logging.getLogger(__name__)
refusals = RecurringWarnings(log)


class NamingAField:
    """Have the errors of a request name a field, as a context manager. (Not a generator: ten
    thousand calls may be inside.)

    That of a value which only the database refused names none, although the checks have a rule for
    every value of which that is known: it names the first one of the request, which has the rest in
    it.
    """

    __slots__ = ("_field", "_name", "_request")

    def __init__(self, request: Message) -> None:
        self._request: Message | None = request
        self._name = ""
        self._field: str | None = None

    def let_go(self) -> None:
        """Know what to name without the request, of which nothing is kept."""
        if (request := self._request) is not None:
            self._name = request.DESCRIPTOR.full_name
            names = (field.name for field, _ in request.ListFields())
            self._field = next((name for name in names if name != "request_id"), None)
            self._request = None

    def named(self, error: PersistenceError) -> PersistenceError:
        """The error of the request."""
        if error.reason != ErrorReason.ERROR_REASON_INVALID_FIELD or error.violations:
            return error
        self.let_go()
        refusals.warn(self._name, f"{self._name}: {error.__cause__}")
        if self._field is None:
            return error
        named = invalid_field(
            self._field, FieldViolationReason.FIELD_VIOLATION_REASON_FORMAT, str(error)
        )
        named.__cause__ = error
        return named

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if isinstance(exc, PersistenceError) and (named := self.named(exc)) is not exc:
            raise named from exc
