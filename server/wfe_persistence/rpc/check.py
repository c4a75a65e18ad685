"""What a request must look like: one collector of bad fields, one function per message.

A request is checked whole before anything is done, so that a caller learns of all its bad fields at
once and nothing is half written. Paths of fields are put together only for the bad ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from json import JSONDecoder, dumps, loads
from typing import Any, Final, NoReturn

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1.command_pb2 import ScheduledCommand
from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    ExecutionPointer,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowView,
)
from wfe_persistence.errors import PersistenceError, Violation
from wfe_persistence.store.documents import HEADER_FIELDS
from wfe_persistence.store.records import (
    COMMAND_NAME,
    POINTER_STATUS,
    WORKFLOW_STATUS,
)
from wfe_persistence.store.schema import DEFAULT_NAMESPACE, is_namespace

MAX_ID_BYTES: Final = 512
MAX_COMMAND_DATA_BYTES: Final = 2048
MAX_INT4: Final = 2**31 - 1
MAX_JSON_DEPTH: Final = 100
MAX_JSON_EXPONENT: Final = 1000
MAX_JSON_DIGITS: Final = 2000
MAX_PAGE_SIZE: Final = 1000
DEFAULT_PAGE_SIZE: Final = 100
MAX_LEASE_SECONDS: Final = 24 * 3600
DEFAULT_LEASE_MS: Final = 30_000
MAX_LIST_ITEMS: Final = 1000
MAX_REVISION: Final = 2**63 - 1
MAX_PURGED_ROWS: Final = 100_000
DEFAULT_PURGED_ROWS: Final = 10_000

_FIRST_SECOND: Final = -62_135_596_800  # 0001-01-01T00:00:00Z
_LAST_SECOND: Final = 253_402_300_799  # 9999-12-31T23:59:59Z

# More than an answer has beside what was in the request: a name, a revision, a page token.
_ANSWER_MARGIN: Final = 4096

_MOST_VIOLATIONS: Final = 100

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

R = FieldViolationReason


class Check:
    """Collects what is wrong with a request; `done()` raises it."""

    __slots__ = ("_number_growth", "_violations")

    def __init__(self) -> None:
        self._violations: dict[str, Violation] = {}
        self._number_growth = 0

    def done(self) -> None:
        """Raise all that was found; nothing if all is well."""
        if self._violations:
            first, *others = self._violations.values()
            raise PersistenceError(
                ErrorReason.ERROR_REASON_INVALID_FIELD,
                f"{first.field}: {first.description}"
                + (f" (and {len(others)} more)" if others else ""),
                violations=(first, *others),
            )

    def fits(self, size: int, limit: int, answers: Callable[[], Iterable[Message]]) -> None:
        """Refuse to store what could not be read back in messages of `limit` bytes.

        `size` is that of the request; `answers` makes the messages in which it would be read.
        """
        # jsonb puts a space behind each comma and colon and writes numbers out, and lengths need
        # more bytes then. It can't be more than this, for all but very large requests.
        if size * 2 + self._number_growth + _ANSWER_MARGIN <= limit:
            return
        for answer in answers():
            _put_stored_json(answer)
            if answer.ByteSize() > limit:
                raise PersistenceError(
                    ErrorReason.ERROR_REASON_ANSWER_TOO_LARGE,
                    f"what would be stored could not be read back in one message of {limit} bytes",
                    metadata={"limit_bytes": str(limit)},
                )

    def add(self, path: str, field: str, reason: R.ValueType, description: str) -> None:
        """Note a bad field. The first thing said of a field stands; a hundred fields are enough."""
        full = f"{path}.{field}" if path else field
        if len(self._violations) < _MOST_VIOLATIONS and full not in self._violations:
            self._violations[full] = Violation(full, reason, description)

    def present(self, message: Message, field: str, path: str = "") -> bool:
        """A message field must be there."""
        if message.HasField(field):
            return True
        self.add(path, field, R.FIELD_VIOLATION_REASON_REQUIRED, "is required")
        return False

    def id(self, path: str, field: str, value: str, *, required: bool = True) -> None:
        """An id, name or key: at most 512 bytes, and not blank where it is required."""
        if len(value) > 128 and len(value.encode()) > MAX_ID_BYTES:
            self.add(
                path, field, R.FIELD_VIOLATION_REASON_TOO_LONG, f"more than {MAX_ID_BYTES} bytes"
            )
        elif (value and value.isspace()) or (required and not value):
            # An empty one may mean "none", a blank one is always a mistake.
            self.add(path, field, R.FIELD_VIOLATION_REASON_REQUIRED, "must not be empty or blank")

    def ids(self, path: str, field: str, values: Sequence[str]) -> None:
        """A list of ids, none of them empty."""
        for i, value in enumerate(values):
            self.id(path, f"{field}[{i}]", value)

    def key(self, path: str, field: str, value: str) -> None:
        """A text that is looked up by: at most 512 bytes, anything else goes."""
        if len(value) > 128 and len(value.encode()) > MAX_ID_BYTES:
            self.add(
                path, field, R.FIELD_VIOLATION_REASON_TOO_LONG, f"more than {MAX_ID_BYTES} bytes"
            )

    def time(self, path: str, field: str, value: Timestamp) -> None:
        """A time in the years 1 to 9999."""
        if not (_FIRST_SECOND <= value.seconds <= _LAST_SECOND and 0 <= value.nanos < 10**9):
            self.add(
                path,
                field,
                R.FIELD_VIOLATION_REASON_TIME_RANGE,
                "must be in the years 1 to 9999, with nanos from 0 to 999999999",
            )

    def required_time(self, path: str, field: str, message: Message) -> None:
        """A time that must be given."""
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
        """A JSON document that PostgreSQL can store and give back."""
        if required and not text:
            self.add(path, field, R.FIELD_VIOLATION_REASON_REQUIRED, "must be a JSON document")
            return
        try:
            self._number_growth += check_json(text)
        except _BadJsonError as exc:
            self.add(path, field, exc.reason, str(exc))

    def distinct(self, path: str, list_field: str, field: str, values: Sequence[str]) -> None:
        """No value twice in a list; empty ones don't count."""
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
                    "stands in the list twice",
                )
            seen.add(value)

    def page_size(self, value: int, field: str = "page_size") -> int:
        """A page size: 0 is the default, too large the maximum."""
        if value < 0:
            self.add("", field, R.FIELD_VIOLATION_REASON_NUMBER_RANGE, "must not be negative")
        return min(value, MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE

    def purged_rows(self, value: int) -> int:
        """A purge's budget: 0 is the default, too large the maximum."""
        if value < 0:
            self.add("", "max_rows", R.FIELD_VIOLATION_REASON_NUMBER_RANGE, "must not be negative")
        return min(value, MAX_PURGED_ROWS) or DEFAULT_PURGED_ROWS

    def revision(self, request: Any, field: str = "expected_revision") -> int | None:
        """A revision or an epoch, from 1 on; None: it was not given."""
        if not request.HasField(field):
            return None
        value: int = getattr(request, field)
        self.number("", field, value, 1, MAX_REVISION)
        return value

    def request_id(self, value: str) -> None:
        """A UUID, or nothing."""
        if value and not _UUID.fullmatch(value):
            self.add("", "request_id", R.FIELD_VIOLATION_REASON_FORMAT, "must be a UUID")

    def view(
        self,
        value: WorkflowView.ValueType,
        default: WorkflowView.ValueType = WorkflowView.WORKFLOW_VIEW_FULL,
    ) -> WorkflowView.ValueType:
        """A view; UNSPECIFIED is the default."""
        if value not in WorkflowView.values():
            self.add("", "view", R.FIELD_VIOLATION_REASON_ENUM_VALUE, "must be a known value")
        return value or default

    def order(self, value: ListOrder.ValueType) -> ListOrder.ValueType:
        """A list's order; UNSPECIFIED is the newest first."""
        if value not in ListOrder.values():
            self.add("", "order", R.FIELD_VIOLATION_REASON_ENUM_VALUE, "must be a known value")
        return value or ListOrder.LIST_ORDER_NEWEST_FIRST

    def times(self, message: Message, path: str, *fields: str) -> None:
        """Times that may be given."""
        for field in fields:
            if message.HasField(field):
                self.time(path, field, getattr(message, field))

    def at_most(self, field: str, values: Sequence[object], most: int = MAX_LIST_ITEMS) -> bool:
        """A list that is not too long to be looked at."""
        if len(values) <= most:
            return True
        self.add("", field, R.FIELD_VIOLATION_REASON_NUMBER_RANGE, f"must be at most {most}")
        return False

    def lease_tokens(self, field: str, values: Sequence[str]) -> None:
        """Lease tokens, none of them twice."""
        if self.at_most(field, values):
            self.ids("", field, values)
            self.distinct("", field, "", values)

    def lease_ms(
        self, field: str, value: Duration, default: int = DEFAULT_LEASE_MS, *, given: bool
    ) -> int:
        """A lease's duration in milliseconds."""
        if not given:
            return default
        ms = value.seconds * 1000 + value.nanos // 1_000_000
        if not (0 <= value.nanos < 10**9 and 1 <= ms <= MAX_LEASE_SECONDS * 1000):
            self.add("", field, R.FIELD_VIOLATION_REASON_TIME_RANGE, "must be from 1 ms to 24 h")
        return ms

    def no_nul(self, message: Message) -> None:
        """No U+0000 in any text. Only for messages with a zero byte in them: it looks at all."""
        for path in _fields_with_nul(message, ""):
            self.add(
                "",
                path,
                R.FIELD_VIOLATION_REASON_TEXT_HAS_NUL,
                "contains U+0000, which PostgreSQL can't store",
            )

    def namespace(self, field: str, value: str) -> None:
        """The name of a namespace to be made or deleted."""
        if not value:
            self.add("", field, R.FIELD_VIOLATION_REASON_REQUIRED, "must not be empty or blank")
        elif value == DEFAULT_NAMESPACE or not is_namespace(value):
            self.add(
                "",
                field,
                R.FIELD_VIOLATION_REASON_FORMAT,
                "must match [a-z][a-z0-9_]{0,39} and not be 'default'",
            )

    # One function per message.

    def instance(self, w: WorkflowInstance, path: str, *, new: bool) -> None:
        """A workflow to be written; a new one may leave its id to the store."""
        self.id(path, "id", w.id, required=not new)
        self.id(path, "name", w.name, required=False)
        if w.HasField("root_workflow_id"):
            self.key(path, "root_workflow_id", w.root_workflow_id)
        self.id(path, "workflow_definition_id", w.workflow_definition_id)
        self.number(path, "version", w.version)
        self.enum(path, "status", w.status, WORKFLOW_STATUS)
        self.json(path, "data_json", w.data_json, required=True)
        self.required_time(path, "create_time", w)
        if w.HasField("complete_time"):
            self.time(path, "complete_time", w.complete_time)
        if w.view not in (
            WorkflowView.WORKFLOW_VIEW_UNSPECIFIED,
            WorkflowView.WORKFLOW_VIEW_FULL,
        ):
            self.add(
                path,
                "view",
                R.FIELD_VIOLATION_REASON_ENUM_VALUE,
                "is a part of a workflow only: to store it would remove the rest; send a patch",
            )
        self._pointers(w.execution_pointers, path)

    def _pointers(self, pointers: Sequence[ExecutionPointer], path: str) -> None:
        for i, p in enumerate(pointers):
            self._pointer(p, f"{path}.execution_pointers[{i}]")
        self.distinct(path, "execution_pointers", "id", [p.id for p in pointers])

    def patch(self, patch: WorkflowPatch) -> None:
        """What changes in a workflow."""
        path = "patch"
        self.id(path, "id", patch.id)
        mask, w = patch.header_mask.paths, patch.header
        for i, name in enumerate(mask):
            if name not in HEADER_FIELDS:
                self.add(
                    path,
                    f"header_mask.paths[{i}]",
                    R.FIELD_VIOLATION_REASON_FORMAT,
                    "is no field of the header that can change",
                )
        self.distinct(path, "header_mask.paths", "", mask)
        head = f"{path}.header"
        if "name" in mask:
            self.id(head, "name", w.name, required=False)
        if "root_workflow_id" in mask:
            self.key(head, "root_workflow_id", w.root_workflow_id)
        if "workflow_definition_id" in mask:
            self.id(head, "workflow_definition_id", w.workflow_definition_id)
        if "version" in mask:
            self.number(head, "version", w.version)
        if "status" in mask:
            self.enum(head, "status", w.status, WORKFLOW_STATUS)
        if "data_json" in mask:
            self.json(head, "data_json", w.data_json, required=True)
        if "create_time" in mask:
            self.required_time(head, "create_time", w)
        if "complete_time" in mask:
            self.times(w, head, "complete_time")
        self._pointers(patch.execution_pointers, path)
        self.ids(path, "removed_pointer_ids", patch.removed_pointer_ids)
        self.distinct(path, "removed_pointer_ids", "", patch.removed_pointer_ids)
        given = {p.id for p in patch.execution_pointers}
        for i, id_ in enumerate(patch.removed_pointer_ids):
            if id_ in given:
                self.add(
                    path,
                    f"removed_pointer_ids[{i}]",
                    R.FIELD_VIOLATION_REASON_DUPLICATE,
                    "stands in execution_pointers too",
                )

    def commit(self, request: CommitWorkflowRequest) -> None:
        """One step of an engine."""
        if request.HasField("instance"):
            self.instance(request.instance, "instance", new=False)
        elif request.HasField("patch"):
            self.patch(request.patch)
            if not request.HasField("expected_revision"):
                self.add(
                    "",
                    "expected_revision",
                    R.FIELD_VIOLATION_REASON_REQUIRED,
                    "is required with a patch",
                )
        else:
            self.add(
                "", "state", R.FIELD_VIOLATION_REASON_REQUIRED, "instance or patch is required"
            )
        self.revision(request)
        self.request_id(request.request_id)
        if self.at_most("held_subscriptions", request.held_subscriptions):
            for i, claim in enumerate(request.held_subscriptions):
                path = f"held_subscriptions[{i}]"
                self.id(path, "subscription_id", claim.subscription_id)
                self.id(path, "token", claim.token)
                if claim.HasField("epoch"):
                    self.number(path, "epoch", claim.epoch, 1, MAX_REVISION)
        self.lease_tokens("held_lease_tokens", request.held_lease_tokens)
        self.lease_tokens("complete_lease_tokens", request.complete_lease_tokens)
        if self.at_most("create_subscriptions", request.create_subscriptions):
            for i, s in enumerate(request.create_subscriptions):
                self.subscription(s, f"create_subscriptions[{i}]")
            ids = [s.id for s in request.create_subscriptions]
            self.distinct("", "create_subscriptions", "id", ids)
        if self.at_most("terminate_subscription_ids", request.terminate_subscription_ids):
            self.ids("", "terminate_subscription_ids", request.terminate_subscription_ids)
            created = {s.id for s in request.create_subscriptions}
            for i, id_ in enumerate(request.terminate_subscription_ids):
                if id_ in created:
                    self.add(
                        "",
                        f"terminate_subscription_ids[{i}]",
                        R.FIELD_VIOLATION_REASON_DUPLICATE,
                        "stands in create_subscriptions too",
                    )
            self.distinct("", "terminate_subscription_ids", "", request.terminate_subscription_ids)
        if self.at_most("create_events", request.create_events):
            for i, e in enumerate(request.create_events):
                self.event(e, f"create_events[{i}]")
            self.distinct("", "create_events", "id", [e.id for e in request.create_events])
        if self.at_most("processed_event_ids", request.processed_event_ids):
            self.ids("", "processed_event_ids", request.processed_event_ids)
            self.distinct("", "processed_event_ids", "", request.processed_event_ids)
        if self.at_most("errors", request.errors):
            for i, error in enumerate(request.errors):
                self.error(error, f"errors[{i}]")
        if self.at_most("schedule_commands", request.schedule_commands):
            for i, c in enumerate(request.schedule_commands):
                self.command(c, f"schedule_commands[{i}]")
            names = [f"{c.command_name} {c.data}" for c in request.schedule_commands]
            self.distinct("", "schedule_commands", "", names)

    def filter(self, f: WorkflowFilter, path: str = "filter") -> None:
        """Which workflows."""
        for i, status in enumerate(f.statuses):
            self.enum(path, f"statuses[{i}]", status, WORKFLOW_STATUS)
        self.key(path, "workflow_definition_id", f.workflow_definition_id)
        if f.HasField("version"):
            self.number(path, "version", f.version)
        self.key(path, "name_prefix", f.name_prefix)
        self.key(path, "root_workflow_id", f.root_workflow_id)
        self.times(
            f,
            path,
            "create_time_from",
            "create_time_before",
            "complete_time_from",
            "complete_time_before",
        )

    def _pointer(self, p: ExecutionPointer, path: str) -> None:
        self.id(path, "id", p.id)
        self.number(path, "step_id", p.step_id)
        self.enum(path, "status", p.status, POINTER_STATUS)
        self.number(path, "retry_count", p.retry_count)
        for field in ("sleep_until", "start_time", "end_time"):
            if p.HasField(field):
                self.time(path, field, getattr(p, field))
        if p.HasField("event_name"):
            self.key(path, "event_name", p.event_name)
        if p.HasField("event_key"):
            self.key(path, "event_key", p.event_key)
        if p.HasField("predecessor_id"):
            self.key(path, "predecessor_id", p.predecessor_id)
        if p.HasField("persistence_data_json"):
            self.json(path, "persistence_data_json", p.persistence_data_json)
        if p.HasField("event_data_json"):
            self.json(path, "event_data_json", p.event_data_json)
        if p.HasField("context_item_json"):
            self.json(path, "context_item_json", p.context_item_json)
        if p.HasField("outcome_json"):
            self.json(path, "outcome_json", p.outcome_json)
        if p.children:
            self.ids(path, "children", p.children)
        if p.scope:
            self.ids(path, "scope", p.scope)
        for name, text in p.extension_attributes_json.items():
            self.json(path, f'extension_attributes_json["{name}"]', text)

    def event(self, e: Event, path: str) -> None:
        """An event to be written."""
        self.id(path, "id", e.id, required=False)
        self.id(path, "event_name", e.event_name)
        self.key(path, "event_key", e.event_key)
        self.json(path, "event_data_json", e.event_data_json, required=True)
        self.required_time(path, "event_time", e)

    def subscription(self, s: EventSubscription, path: str) -> None:
        """A subscription to be written."""
        self.id(path, "id", s.id, required=False)
        self.id(path, "workflow_id", s.workflow_id)
        self.number(path, "step_id", s.step_id)
        self.key(path, "execution_pointer_id", s.execution_pointer_id)
        self.id(path, "event_name", s.event_name)
        self.key(path, "event_key", s.event_key)
        self.required_time(path, "subscribe_as_of", s)
        if s.HasField("subscription_data_json"):
            self.json(path, "subscription_data_json", s.subscription_data_json)
        if s.HasField("external_token"):
            self.id(path, "external_token", s.external_token)
        if s.HasField("external_worker_id"):
            self.key(path, "external_worker_id", s.external_worker_id)
        if s.HasField("external_token_expiry"):
            self.time(path, "external_token_expiry", s.external_token_expiry)

    def command(self, c: ScheduledCommand, path: str) -> None:
        """A command to be scheduled."""
        self.enum(path, "command_name", c.command_name, COMMAND_NAME)
        if len(c.data.encode()) > MAX_COMMAND_DATA_BYTES:
            self.add(
                path,
                "data",
                R.FIELD_VIOLATION_REASON_TOO_LONG,
                f"more than {MAX_COMMAND_DATA_BYTES} bytes",
            )

    def error(self, e: ExecutionError, path: str) -> None:
        """An error to be logged."""
        self.required_time(path, "error_time", e)
        self.id(path, "workflow_id", e.workflow_id)
        self.key(path, "execution_pointer_id", e.execution_pointer_id)


class _BadJsonError(ValueError):
    def __init__(self, reason: R.ValueType, description: str) -> None:
        super().__init__(description)
        self.reason = reason


def _no_json_constant(_: str) -> NoReturn:
    raise ValueError


# Numbers are left as text: quick, and free of Python's own limits.
_decode = JSONDecoder(
    parse_float=str,
    parse_int=str,
    parse_constant=_no_json_constant,
).decode
# What a quick look must find before numbers are looked at one by one: an exponent, or many digits.
_UNUSUAL_NUMBER = re.compile(rf"[0-9][eE]|(?<![0-9.])[0-9.]{{{MAX_JSON_DIGITS}}}")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def check_json(text: str) -> int:
    """Check a document; answer by how many bytes its numbers grow when they are read back.

    Raises _BadJsonError.
    """
    try:
        value = _decode(text)
    except RecursionError as exc:
        raise _too_deep() from exc
    except ValueError as exc:
        raise _BadJsonError(
            R.FIELD_VIOLATION_REASON_JSON_INVALID, "is no JSON document (RFC 8259)"
        ) from exc
    # Only now, because patterns for strings take very long on what is no JSON.
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _depth(text) > MAX_JSON_DEPTH:
        raise _too_deep()
    if "\\u" in text and any(map(_is_unstorable, _strings(value))):
        raise _BadJsonError(
            R.FIELD_VIOLATION_REASON_JSON_CHARACTER,
            "contains U+0000 or a lone surrogate, which PostgreSQL can't store",
        )
    if _UNUSUAL_NUMBER.search(text) is None:
        return 0
    growth = 0

    def grows(literal: str) -> None:
        nonlocal growth
        growth += _number_growth(literal)

    JSONDecoder(parse_float=grows, parse_int=grows).decode(text)
    return growth


def _too_deep() -> _BadJsonError:
    return _BadJsonError(
        R.FIELD_VIOLATION_REASON_JSON_TOO_DEEP, f"nested more than {MAX_JSON_DEPTH} levels deep"
    )


def _number_growth(literal: str) -> int:
    """By how many bytes a number grows when it is written out, as it is when it is read back.

    Refused is what would then have too many digits, so that what was read can always be written.
    """
    mantissa, _, exponent = literal.lower().partition("e")
    if len(mantissa) <= MAX_JSON_DIGITS + 2 and (
        len(exponent) <= 10 and abs(int(exponent or 0)) <= MAX_JSON_EXPONENT
    ):
        written = format(Decimal(literal), "f")
        if sum(map(str.isdigit, written)) <= MAX_JSON_DIGITS:
            return max(len(written) - len(literal), 0)
    raise _BadJsonError(
        R.FIELD_VIOLATION_REASON_JSON_NUMBER,
        f"a number has an exponent beyond {MAX_JSON_EXPONENT} or more than {MAX_JSON_DIGITS} "
        "digits, written out",
    )


def _put_stored_json(message: Message) -> None:
    """Put in place of each JSON document of a message as many bytes as it has when stored."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, text in value.items():
                value[key] = "x" * _stored_size(text)
        elif field.message_type is not None:
            for item in value if field.is_repeated else (value,):
                _put_stored_json(item)
        elif field.name.endswith("_json"):
            setattr(message, field.name, "x" * _stored_size(value))


def _stored_size(text: str) -> int:
    """How many bytes a document has as PostgreSQL writes it out."""
    size = len(text.encode()) + check_json(text)
    if "\\" in text:
        for literal in _STRING.findall(text):
            if "\\" in literal:
                stored = dumps(loads(literal), ensure_ascii=False)
                size += len(stored.encode()) - len(literal.encode())
    outside = _STRING.sub("", text)
    spaces = len(outside) - len("".join(outside.split()))
    return size - spaces + outside.count(",") + outside.count(":")


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in _STRING.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)


def _is_unstorable(text: str) -> bool:
    return "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)


def _fields_with_nul(message: Message, path: str) -> Iterator[str]:
    for field, value in message.ListFields():
        name = f"{path}.{field.name}" if path else field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, item in value.items():
                if "\0" in key:
                    yield name  # the key is no part of the path: it has the NUL in it
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
