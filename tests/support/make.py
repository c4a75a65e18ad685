"""Messages to send: complete and valid, each argument replaces one field."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from wfe.persistence.v1.command_pb2 import CommandName, ScheduledCommand
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    PointerStatus,
    WorkflowInstance,
    WorkflowStatus,
)


def new_id(kind: str = "id") -> str:
    """An id that no other test uses, so that tests can share a store."""
    return f"{kind}-{uuid.uuid4()}"


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
    }
    return instance(**(given | fields))


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
