"""The collector of bad fields, and the rules for single values.

(Longer than 450 lines, as it is a catalogue: a rule for each kind of value.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.workflow_pb2 import WorkflowPatch, WorkflowView
from wfe_persistence.errors import PersistenceError, Violation
from wfe_persistence.rpc.check.bounds import (
    DEFAULT_LEASE_MS,
    DEFAULT_PAGE_SIZE,
    DEFAULT_PURGED_ROWS,
    FIRST_SECOND,
    LAST_SECOND,
    MAX_ATTRIBUTES,
    MAX_ID_BYTES,
    MAX_INT4,
    MAX_ITEMS,
    MAX_LABELS,
    MAX_LEASE_SECONDS,
    MAX_LIST_ITEMS,
    MAX_PAGE_SIZE,
    MAX_PURGED_ROWS,
    MAX_RETENTION_SECONDS,
    MAX_REVISION,
    MAX_WAIT_SECONDS,
    MIN_RETENTION_SECONDS,
)
from wfe_persistence.rpc.check.json_rules import BadJsonError, check_json, stored_bytes
from wfe_persistence.rpc.check.read_back import (
    HEADER_BYTES,
    require_readable,
    require_sendable,
)
from wfe_persistence.store.documents import HeaderRoom
from wfe_persistence.store.schema import (
    DEFAULT_NAMESPACE,
    MAX_MEMBERS,
    is_database,
    is_label,
    is_namespace,
    is_namespace_set,
)

_MOST_VIOLATIONS: Final = 100

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

R = FieldViolationReason

Item = TypeVar("Item")


# More than a response has beside what was in the request: a name, a revision, a page token, or the
# largest header.
_RESPONSE_MARGIN: Final = max(4096, HEADER_BYTES)


class Scalars:
    """Collects the violations of one request and checks single values.

    `request_bytes` is the size of the encoded request; what it stores must be readable in messages
    of `max_message_bytes`.
    """

    __slots__ = (
        "_attributes_left",
        "_json_growth",
        "_max_message_bytes",
        "_request_bytes",
        "_stored",
        "_violations",
        "has_zero_byte",
    )

    def __init__(self, request_bytes: int, max_message_bytes: int) -> None:
        self._request_bytes = request_bytes
        self._max_message_bytes = max_message_bytes
        self._violations: dict[str, Violation] = {}
        # The sizes of JSON documents when they are read back, as far as the check has told them,
        # and by how many bytes these documents grow.
        self._stored: dict[str, int] = {}
        self._json_growth = 0
        self._attributes_left = MAX_ATTRIBUTES
        self.has_zero_byte = False
        """Whether the encoded request has one, so that U+0000 may be in a text."""

    def done(self) -> None:
        """Raise PersistenceError with all violations, if there are any."""
        if self._violations:
            first, *others = self._violations.values()
            raise PersistenceError(
                ErrorReason.ERROR_REASON_INVALID_FIELD,
                f"{first.field}: {first.description}"
                + (f" (and {len(others)} more)" if others else ""),
                violations=(first, *others),
            )

    def fits(self, responses: Iterable[Message]) -> None:
        """Refuse to store what could not be read back in one message.

        `responses` are those of `read_back`, in which it would be read. They are only built and
        measured for requests near the limit. Raises PersistenceError, with ANSWER_TOO_LARGE.
        """
        # jsonb puts a space behind each comma and colon and writes numbers out, and lengths need
        # more bytes then. It can't be more than this, for all but very large requests.
        most = self._request_bytes * 2 + self._json_growth + _RESPONSE_MARGIN
        if most > self._max_message_bytes:
            require_readable(responses, self._max_message_bytes, self._stored_bytes)

    def _stored_bytes(self, text: str) -> int:
        size = self._stored.get(text)
        return stored_bytes(text) if size is None else size

    def header_room(self, patch: WorkflowPatch) -> HeaderRoom | None:
        """How large the description may be beside the data that a patch sets, or the other way
        round. None: both are set or none is, or the description becomes empty, so `fits` is enough.
        """
        sets_data = "data_json" in patch.header_mask.paths
        if sets_data == ("description" in patch.header_mask.paths):
            return None
        if sets_data:
            data = patch.header.data_json
            # Measuring a short document takes longer than all else here.
            most = self._stored.get(data, 2 * len(data.encode()))
        elif not (most := len(patch.header.description.encode())):
            return None
        together = self._max_message_bytes - HEADER_BYTES
        return HeaderRoom(together, together - most, self._max_message_bytes)

    def answer_fits(self, answer: Message) -> None:
        """Refuse to write if the answer, whose size depends on the request, could not be sent.

        Raises PersistenceError, with ANSWER_TOO_LARGE.
        """
        require_sendable(answer.ByteSize(), self._max_message_bytes)

    def bytes_fit(self, answer_bytes: int) -> None:
        """The same, for an answer of so many bytes."""
        require_sendable(answer_bytes, self._max_message_bytes)

    def add(self, path: str, field: str, reason: R.ValueType, description: str) -> None:
        """Add a violation. Only the first one of a field is kept.

        The 100th ends the check: raises PersistenceError like `done()`.
        """
        full = f"{path}.{field}" if path else field
        if full not in self._violations:
            self._violations[full] = Violation(full, reason, description)
            if len(self._violations) == _MOST_VIOLATIONS:
                self.done()

    def present(self, message: Message, field: str, path: str = "") -> bool:
        """A message field that must be set; returns whether it is."""
        if message.HasField(field):
            return True
        self.add(path, field, R.FIELD_VIOLATION_REASON_REQUIRED, "is required")
        return False

    def required(self, message: Message, field: str, rule: Callable[[Any, str], None]) -> None:
        """A message field that must be set and follow a rule for its message."""
        if self.present(message, field):
            rule(getattr(message, field), field)

    def each(self, field: str, values: Iterable[Item], rule: Callable[[Item, str], None]) -> None:
        """A list whose items must follow a rule for their message."""
        for i, value in enumerate(values):
            rule(value, f"{field}[{i}]")

    def id(self, path: str, field: str, value: str, *, required: bool = True) -> None:
        """An id, name or key: at most 512 bytes, and not blank where it is required."""
        if len(value) > 128 and len(value.encode()) > MAX_ID_BYTES:
            self.add(
                path,
                field,
                R.FIELD_VIOLATION_REASON_TOO_LONG,
                f"must be at most {MAX_ID_BYTES} bytes",
            )
        elif (value and value.isspace()) or (required and not value):
            # Empty may mean "none"; blank is always a mistake.
            self.add(path, field, R.FIELD_VIOLATION_REASON_REQUIRED, "must not be empty or blank")

    def ids(self, path: str, field: str, values: Sequence[str]) -> None:
        """A list of ids, none of them empty, with at most as many items as any list."""
        if self.at_most(path, field, values, MAX_ITEMS):
            for i, value in enumerate(values):
                if not 0 < len(value) <= 128 or value.isspace():
                    self.id(path, f"{field}[{i}]", value)

    def key(self, path: str, field: str, value: str) -> None:
        """A lookup key: at most 512 bytes, with any content."""
        if len(value) > 128 and len(value.encode()) > MAX_ID_BYTES:
            self.add(
                path,
                field,
                R.FIELD_VIOLATION_REASON_TOO_LONG,
                f"must be at most {MAX_ID_BYTES} bytes",
            )

    def time(self, path: str, field: str, value: Timestamp) -> None:
        """A time in the years 1 to 9999."""
        if not (FIRST_SECOND <= value.seconds <= LAST_SECOND and 0 <= value.nanos < 10**9):
            self.add(
                path,
                field,
                R.FIELD_VIOLATION_REASON_TIME_RANGE,
                "must be in the years 1 to 9999, with nanos from 0 to 999999999",
            )

    def required_time(self, path: str, field: str, message: Message) -> None:
        """A time that must be set."""
        if self.present(message, field, path):
            self.time(path, field, getattr(message, field))

    def number(
        self, path: str, field: str, value: int, least: int = 0, most: int = MAX_INT4
    ) -> None:
        """A number within bounds."""
        if not least <= value <= most:
            self.add(
                path,
                field,
                R.FIELD_VIOLATION_REASON_NUMBER_RANGE,
                f"must be from {least} to {most}",
            )

    def enum(self, path: str, field: str, value: int, known: dict[Any, str]) -> None:
        """An enum value that is known and not UNSPECIFIED."""
        if value not in known:
            self.add(
                path,
                field,
                R.FIELD_VIOLATION_REASON_ENUM_VALUE,
                "must be a known value other than UNSPECIFIED",
            )

    def json(self, path: str, field: str, text: str, *, required: bool = False) -> None:
        """A JSON document that PostgreSQL can store and return."""
        if required and not text:
            self.add(path, field, R.FIELD_VIOLATION_REASON_REQUIRED, "must be a JSON document")
            return
        try:
            size = check_json(text)
        except BadJsonError as exc:
            self.add(path, field, exc.reason, str(exc))
            return
        if size is not None:
            self._stored[text] = size
            self._json_growth += max(size - len(text), 0)

    def distinct(self, path: str, list_field: str, field: str, values: Sequence[str]) -> None:
        """A list without duplicates, not counting empty values."""
        if len(set(values)) == len(values):
            return
        seen: set[str] = set()
        for i, value in enumerate(values):
            if value and value in seen:
                at = f"{list_field}[{i}]"
                self.add(
                    path,
                    f"{at}.{field}" if field else at,
                    R.FIELD_VIOLATION_REASON_DUPLICATE,
                    "is duplicated in the list",
                )
            seen.add(value)

    def page_size(self, value: int, field: str = "page_size") -> int:
        """A page size: 0 means the default; larger than the maximum means the maximum."""
        if value < 0:
            self.add("", field, R.FIELD_VIOLATION_REASON_NUMBER_RANGE, "must not be negative")
        return min(value, MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE

    def purged_rows(self, value: int) -> int:
        """A purge's row budget: 0 means the default; above the maximum means the maximum."""
        if value < 0:
            self.add("", "max_rows", R.FIELD_VIOLATION_REASON_NUMBER_RANGE, "must not be negative")
        return min(value, MAX_PURGED_ROWS) or DEFAULT_PURGED_ROWS

    def revision(self, request: Any, field: str = "expected_revision") -> int | None:
        """A revision or a fencing token, at least 1; None if it is not set."""
        if not request.HasField(field):
            return None
        value: int = getattr(request, field)
        self.number("", field, value, 1, MAX_REVISION)
        return value

    def request_id(self, value: str) -> None:
        """An idempotency key: a UUID, or empty."""
        if value and not _UUID.fullmatch(value):
            self.add("", "request_id", R.FIELD_VIOLATION_REASON_FORMAT, "must be a UUID")

    def view(
        self,
        value: WorkflowView.ValueType,
        default: WorkflowView.ValueType = WorkflowView.WORKFLOW_VIEW_FULL,
    ) -> WorkflowView.ValueType:
        """A view; UNSPECIFIED means the default."""
        if value not in WorkflowView.values():
            self.add("", "view", R.FIELD_VIOLATION_REASON_ENUM_VALUE, "must be a known value")
        return value or default

    def order(self, value: ListOrder.ValueType) -> ListOrder.ValueType:
        """A list's order; UNSPECIFIED means newest first."""
        if value not in ListOrder.values():
            self.add("", "order", R.FIELD_VIOLATION_REASON_ENUM_VALUE, "must be a known value")
        return value or ListOrder.LIST_ORDER_NEWEST_FIRST

    def times(self, message: Message, path: str, *fields: str) -> None:
        """Optional times."""
        for field in fields:
            if message.HasField(field):
                self.time(path, field, getattr(message, field))

    def at_most(self, path: str, field: str, values: Sized, most: int = MAX_LIST_ITEMS) -> bool:
        """A list of at most `most` items; returns whether its items are worth checking."""
        if len(values) <= most:
            return True
        self.add(
            path, field, R.FIELD_VIOLATION_REASON_NUMBER_RANGE, f"must have at most {most} items"
        )
        return False

    def count(self, field: str, value: int, default: int) -> int:
        """A number of rows to change: 0 means the default; above the maximum means the maximum."""
        if value < 0:
            self.add("", field, R.FIELD_VIOLATION_REASON_NUMBER_RANGE, "must not be negative")
        return min(value, MAX_LIST_ITEMS) or default

    def lease_tokens(self, field: str, values: Sequence[str]) -> None:
        """A list of lease tokens, without duplicates."""
        if self.at_most("", field, values):
            self.ids("", field, values)
            self.distinct("", field, "", values)

    def lease_ms(
        self, message: Message, field: str, default: int = DEFAULT_LEASE_MS, path: str = ""
    ) -> int:
        """A lease's duration in milliseconds, of a message's field."""
        if not message.HasField(field):  # (To look at it would make one.)
            return default
        value: Duration = getattr(message, field)
        ms = value.seconds * 1000 + value.nanos // 1_000_000
        if not (0 <= value.nanos < 10**9 and 1 <= ms <= MAX_LEASE_SECONDS * 1000):
            self.add(path, field, R.FIELD_VIOLATION_REASON_TIME_RANGE, "must be from 1 ms to 24 h")
        return ms

    def wait_seconds(self, request: Message) -> float:
        """How long a call may wait for what others do, in seconds."""
        if not request.HasField("wait"):
            return 0.0
        value: Duration = getattr(request, "wait")  # noqa: B009
        seconds = value.seconds + value.nanos / 1e9
        if not (0 <= value.nanos < 10**9 and 0 <= seconds <= MAX_WAIT_SECONDS):
            self.add("", "wait", R.FIELD_VIOLATION_REASON_TIME_RANGE, "must be from 0 to 60 s")
        return seconds

    def ages(self, message: Message, path: str, *fields: str) -> None:
        """Optional times for which something is kept."""
        for field in fields:
            if not message.HasField(field):
                continue
            age: Duration = getattr(message, field)
            if not (
                0 <= age.nanos < 10**9
                and MIN_RETENTION_SECONDS <= age.seconds <= MAX_RETENTION_SECONDS
                and (age.seconds < MAX_RETENTION_SECONDS or not age.nanos)
            ):
                self.add(
                    path,
                    field,
                    R.FIELD_VIOLATION_REASON_TIME_RANGE,
                    "must be from 1 minute to 1000000 days",
                )

    def no_nul(self, message: Message) -> None:
        """No U+0000 in any text. It visits every field: call it only if there is a zero byte."""
        for path in _fields_with_nul(message, ""):
            self.add(
                "",
                path,
                R.FIELD_VIOLATION_REASON_TEXT_HAS_NUL,
                "contains U+0000, which PostgreSQL can't store",
            )

    def namespace(self, field: str, value: str) -> None:
        """The name of a namespace to create or delete."""
        if not value:
            self.add("", field, R.FIELD_VIOLATION_REASON_REQUIRED, "must not be empty or blank")
        elif value == DEFAULT_NAMESPACE or not is_namespace(value):
            self.add(
                "",
                field,
                R.FIELD_VIOLATION_REASON_FORMAT,
                "must match [a-z][a-z0-9_]{0,39} and not be 'default'",
            )

    def database(self, field: str, value: str, *, required: bool = False) -> None:
        """The name of a database; empty: any, unless it is required."""
        if required and not value:
            self.add("", field, R.FIELD_VIOLATION_REASON_REQUIRED, "must not be empty or blank")
        elif value and not is_database(value):
            self.add(
                "",
                field,
                R.FIELD_VIOLATION_REASON_FORMAT,
                "must match [a-z][a-z0-9_-]{0,39}",
            )

    def labels(self, field: str, values: Sequence[str]) -> dict[str, str]:
        """Labels of a database, as KEY=VALUE."""
        labels: dict[str, str] = {}
        if not self.at_most("", field, values, MAX_LABELS):
            return labels
        for i, value in enumerate(values):
            if is_label(value):
                key, _, of_key = value.partition("=")
                labels[key] = of_key
            else:
                self.add(
                    "",
                    f"{field}[{i}]",
                    R.FIELD_VIOLATION_REASON_FORMAT,
                    "must be KEY=VALUE, each of 1 to 63 of A-Z a-z 0-9 _ . / -",
                )
        return labels

    def namespace_set(self, field: str, value: str) -> None:
        """The name of a namespace set."""
        if not value:
            self.add("", field, R.FIELD_VIOLATION_REASON_REQUIRED, "must not be empty or blank")
        elif not is_namespace_set(value):
            self.add(
                "",
                field,
                R.FIELD_VIOLATION_REASON_FORMAT,
                "must match [a-z][a-z0-9_]{0,35} and not be 'default'",
            )

    def members(self, field: str, value: int) -> None:
        """The number of members of a namespace set."""
        if not 1 <= value <= MAX_MEMBERS:
            self.add(
                "",
                field,
                R.FIELD_VIOLATION_REASON_NUMBER_RANGE,
                f"must be from 1 to {MAX_MEMBERS}",
            )


def _fields_with_nul(message: Message, path: str) -> Iterator[str]:
    for field, value in message.ListFields():
        name = f"{path}.{field.name}" if path else field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, item in value.items():
                if "\0" in key:
                    yield name  # without the key, because that contains the NUL
                elif isinstance(item, str) and "\0" in item:
                    yield f'{name}["{key}"]'
        elif field.type not in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING):
            continue
        else:
            items = enumerate(value) if field.is_repeated else ((None, value),)
            for i, item in items:
                at = name if i is None else f"{name}[{i}]"
                if isinstance(item, Message):
                    yield from _fields_with_nul(item, at)
                elif "\0" in item:
                    yield at
