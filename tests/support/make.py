"""Messages to send: complete and valid, each argument replaces one field."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1.command_pb2 import CommandName, ScheduledCommand
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.lifecycle_pb2 import LifecycleEvent, LifecycleEventType
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    PointerStatus,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
)

_numbers: random.Random = random.SystemRandom()


def seed(text: str) -> None:
    """From now on make the same ids, in the same order, as after any other call with this text."""
    global _numbers
    _numbers = random.Random(text)
    random.seed(text)


def new_id(kind: str = "id") -> str:
    """An id that no other test uses, so that tests can share a store."""
    return f"{kind}-{uuid.UUID(int=_numbers.getrandbits(128), version=4)}"


def queue() -> str:
    """The name of a queue that no other test uses."""
    return new_id("queue")


def item(queue_name: str, **fields: Any) -> QueueItem:
    """An item of a queue, with a new id."""
    return QueueItem(**({"queue": queue_name, "id": new_id("item")} | fields))


_namespaces: list[str] = []


def new_namespace() -> str:
    """The name of a namespace that no other test uses. A longer one may start with it."""
    name = new_id("n").replace("-", "_")
    _namespaces.append(name)
    return name


def new_namespace_set() -> str:
    """The name of a namespace set that no other test uses."""
    # Its members are namespaces, so theirs start with it.
    name = new_namespace()[:36]
    _namespaces.append(name)
    return name


def is_new_namespace(name: str) -> bool:
    """Whether a name was made here, or starts with one that was."""
    return name.startswith(tuple(_namespaces))


def time(seconds: float = 0.0) -> Timestamp:
    """2026-01-01T12:00:00.123456Z, plus so many seconds."""
    stamp = Timestamp()
    stamp.FromDatetime(
        datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC) + timedelta(seconds=seconds)
    )
    return stamp


def from_now(seconds: float) -> Timestamp:
    """The time in so many seconds, by this machine's clock."""
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return stamp


ALIKE = [
    ("a", "A"),
    ("a", "a "),
    ("a", " a"),
    ("\u00e9", "e\u0301"),
    ("\u212b", "\u00c5"),
    ("ss", "\u00df"),
    ("i", "\u0131"),
    ("1", "01"),
    ("a", "a\u200b"),
    ("a\\b", "a\\\\b"),
    ("a%", "a_"),
]
"""Pairs of texts that are easily taken for each other."""


def alike(first: str, second: str) -> tuple[str, str]:
    """Two new ids that differ as these texts do, at both ends."""
    middle = new_id()
    return first + middle + first, second + middle + second


FIRST_TIME = Timestamp(seconds=-62_135_596_800)
LONGEST_AGE = Duration(seconds=1_000_000 * 86_400)
"""Of a retention policy: what is older was before the year 1."""
LAST_TIME = Timestamp(seconds=253_402_300_799, nanos=999_999_000)
"""The first and the last time that can be stored."""


def long_ago() -> Timestamp:
    """A time of no other test, at a whole millisecond between the years 2 and 1900: what is due by
    then is not much beside what the test itself has stored."""
    return Timestamp(
        seconds=random.randint(-62_000_000_000, -2_200_000_000),
        nanos=random.randrange(1000) * 1_000_000,
    )


def later(than: Timestamp, *, ms: int = 0, us: int = 0, ns: int = 0) -> Timestamp:
    """The time so much later (or earlier, if negative)."""
    total = than.seconds * 10**9 + than.nanos + ms * 10**6 + us * 1000 + ns
    return Timestamp(seconds=total // 10**9, nanos=total % 10**9)


def epoch_ms(at: Timestamp) -> int:
    """A time in whole milliseconds since 1970."""
    return at.seconds * 1000 + at.nanos // 10**6


def pointer(id_: str = "1", **fields: Any) -> ExecutionPointer:
    """A running pointer with few fields."""
    given: dict[str, Any] = {
        "id": id_,
        "step_id": 1,
        "active": True,
        "status": PointerStatus.POINTER_STATUS_RUNNING,
    }
    return ExecutionPointer(**(given | fields))


def full_pointer(id_: str = "full", **fields: Any) -> ExecutionPointer:
    """A pointer with every field set to something that is not its default."""
    given: dict[str, Any] = {
        "id": id_,
        "step_id": 2**31 - 1,
        "active": True,
        "status": PointerStatus.POINTER_STATUS_WAITING_FOR_EVENT,
        "sleep_until": time(1),
        "persistence_data_json": '{"cursor": 7}',
        "start_time": time(2),
        "end_time": time(3),
        "event_name": "order.paid",
        "event_key": "42",
        "event_published": True,
        "event_data_json": "[1, 2]",
        "step_name": "wait for the money",
        "retry_count": 3,
        "children": ["b", "a", "b"],
        "context_item_json": '"item"',
        "predecessor_id": "before",
        "outcome_json": "true",
        "scope": ["outer", "inner"],
        "extension_attributes_json": {"owner": '"alice"', "n": "9007199254740993", "null": "null"},
    }
    return ExecutionPointer(**(given | fields))


def instance(**fields: Any) -> WorkflowInstance:
    """A runnable workflow of a new id, due at some time long past."""
    given: dict[str, Any] = {
        "id": new_id("workflow"),
        "workflow_definition_id": "order",
        "version": 1,
        "status": WorkflowStatus.WORKFLOW_STATUS_RUNNABLE,
        "data_json": '{"total": 12.50}',
        "create_time": time(),
        "next_execution": 0,
    }
    return WorkflowInstance(**(given | fields))


def full_instance(**fields: Any) -> WorkflowInstance:
    """A workflow with every field set that a host can set."""
    given: dict[str, Any] = {
        "name": new_id("name"),
        "root_workflow_id": "root",
        "version": 2**31 - 1,
        "description": "buys things",
        "reference": "order 42",
        "execution_pointers": [full_pointer("z"), pointer("a"), pointer("m")],
        "next_execution": 2**63 - 1,
        "complete_time": time(60),
        "extension_attributes_json": {"owner": '"bob"', "n": "9007199254740993", "null": "null"},
    }
    return instance(**(given | fields))


def patch(id_: str, **fields: Any) -> WorkflowPatch:
    """A patch of a workflow that changes these header fields, `execution_pointers` and
    `removed_pointer_ids`; a header field of None becomes absent."""
    given = WorkflowPatch(
        id=id_,
        execution_pointers=fields.pop("execution_pointers", ()),
        removed_pointer_ids=fields.pop("removed_pointer_ids", ()),
    )
    given.header.MergeFrom(WorkflowInstance(**fields))
    given.header_mask.paths[:] = fields
    return given


def request_id() -> str:
    """A new UUID for a write."""
    return str(uuid.uuid4())


def event(**fields: Any) -> Event:
    """An unprocessed event of a new id and key."""
    given: dict[str, Any] = {
        "id": new_id("event"),
        "event_name": "order.paid",
        "event_key": new_id("key"),
        "event_data_json": '{"amount": 12.50}',
        "event_time": time(),
    }
    return Event(**(given | fields))


def subscription(**fields: Any) -> EventSubscription:
    """An open subscription of a new id and key."""
    given: dict[str, Any] = {
        "id": new_id("subscription"),
        "workflow_id": new_id("workflow"),
        "step_id": 1,
        "execution_pointer_id": "1",
        "event_name": "order.paid",
        "event_key": new_id("key"),
        "subscribe_as_of": time(),
    }
    return EventSubscription(**(given | fields))


def command(**fields: Any) -> ScheduledCommand:
    """A command with new data, due at some time long past."""
    given: dict[str, Any] = {
        "command_name": CommandName.COMMAND_NAME_PROCESS_WORKFLOW,
        "data": new_id("workflow"),
        "execute_time": 0,
    }
    return ScheduledCommand(**(given | fields))


def error(**fields: Any) -> ExecutionError:
    """An error of a new workflow."""
    given: dict[str, Any] = {
        "error_time": time(),
        "workflow_id": new_id("workflow"),
        "execution_pointer_id": "1",
        "message": "it broke",
    }
    return ExecutionError(**(given | fields))


def lifecycle_event(**fields: Any) -> LifecycleEvent:
    """What happened to a new workflow, every field set."""
    given: dict[str, Any] = {
        "type": LifecycleEventType.LIFECYCLE_EVENT_TYPE_STEP_STARTED,
        "workflow_id": new_id("workflow"),
        "workflow_definition_id": new_id("definition"),
        "version": 3,
        "reference": "order 12",
        "event_time": time(),
        "step_id": 2,
        "step_name": "ship",
        "message": "it begins",
    }
    return LifecycleEvent(**(given | fields))


M = TypeVar("M", bound=Message)


def fields_of(message: type[Message], *, but: tuple[str, ...] = ()) -> list[str]:
    """The names of a message's fields."""
    return [field.name for field in message.DESCRIPTOR.fields if field.name not in but]


def times_of(message: type[Message]) -> list[str]:
    """The names of a message's fields that are times."""
    return [
        field.name
        for field in message.DESCRIPTOR.fields
        if field.message_type is Timestamp.DESCRIPTOR
    ]


def changed(message: M, field: str) -> M:
    """A copy, still valid, in which this one field differs."""
    copy = type(message)()
    copy.CopyFrom(message)
    value = getattr(copy, field)
    if isinstance(value, Timestamp):
        value.CopyFrom(later(value, us=1))
    elif isinstance(value, bool):
        setattr(copy, field, not value)
    elif copy.DESCRIPTOR.fields_by_name[field].enum_type:
        setattr(copy, field, 2 if value == 1 else 1)
    elif isinstance(value, int):
        setattr(copy, field, value - 1 if value else 1)
    elif isinstance(value, str):
        setattr(copy, field, '{"changed": true}' if field.endswith("_json") else new_id("changed"))
    elif hasattr(value, "add"):
        value.add().CopyFrom(pointer(new_id("added")))
    elif hasattr(value, "append"):
        value.append("added")
    else:
        value["added"] = "1"
    return copy
