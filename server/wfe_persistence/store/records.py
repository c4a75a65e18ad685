"""What is stored of each kind of message: the columns of the tables, and the names of enum values.

A new column is a line here, one in the `.proto` and one in a migration; every list in every
statement, the document and the reading of rows follow from it.
"""

from __future__ import annotations

from typing import Final

from wfe.persistence.v1.command_pb2 import CommandName, ScheduledCommand
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.lifecycle_pb2 import LifecycleEvent, LifecycleEventType
from wfe.persistence.v1.lock_pb2 import Lock
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.queue_pb2 import QueueKind
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.transfer_pb2 import DefinitionSequenceRecord, NameHolderRecord, QueueRecord
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    PointerStatus,
    WorkflowInstance,
    WorkflowStatus,
)
from wfe_persistence.store.columns import (
    BOOL,
    EMPTY_ARRAY,
    EMPTY_OBJECT,
    EMPTY_TEXT_ARRAY,
    INT4,
    INT8,
    JSON,
    JSON_MAP,
    STRINGS,
    TEXT,
    TEXT_ARRAY,
    TIME,
    UINT4,
    Column,
    Columns,
    enum,
)

WORKFLOW_STATUS: Final[dict[WorkflowStatus.ValueType, str]] = {
    WorkflowStatus.WORKFLOW_STATUS_RUNNABLE: "Runnable",
    WorkflowStatus.WORKFLOW_STATUS_SUSPENDED: "Suspended",
    WorkflowStatus.WORKFLOW_STATUS_COMPLETE: "Complete",
    WorkflowStatus.WORKFLOW_STATUS_TERMINATED: "Terminated",
}
POINTER_STATUS: Final[dict[PointerStatus.ValueType, str]] = {
    PointerStatus.POINTER_STATUS_PENDING: "Pending",
    PointerStatus.POINTER_STATUS_RUNNING: "Running",
    PointerStatus.POINTER_STATUS_COMPLETE: "Complete",
    PointerStatus.POINTER_STATUS_SKIPPED: "Skipped",
    PointerStatus.POINTER_STATUS_SLEEPING: "Sleeping",
    PointerStatus.POINTER_STATUS_WAITING_FOR_EVENT: "WaitingForEvent",
    PointerStatus.POINTER_STATUS_FAILED: "Failed",
    PointerStatus.POINTER_STATUS_COMPENSATED: "Compensated",
    PointerStatus.POINTER_STATUS_CANCELLED: "Cancelled",
    PointerStatus.POINTER_STATUS_PENDING_PREDECESSOR: "PendingPredecessor",
    PointerStatus.POINTER_STATUS_LEGACY: "Legacy",
}
COMMAND_NAME: Final[dict[CommandName.ValueType, str]] = {
    CommandName.COMMAND_NAME_PROCESS_WORKFLOW: "ProcessWorkflow",
    CommandName.COMMAND_NAME_PROCESS_EVENT: "ProcessEvent",
}
QUEUE_KIND: Final[dict[QueueKind.ValueType, str]] = {
    QueueKind.QUEUE_KIND_PLAIN: "Plain",
    QueueKind.QUEUE_KIND_WORKFLOW: "Workflow",
    QueueKind.QUEUE_KIND_EVENT: "Event",
}
LIFECYCLE_EVENT_TYPE: Final[dict[LifecycleEventType.ValueType, str]] = {
    LifecycleEventType.LIFECYCLE_EVENT_TYPE_STARTED: "Started",
    LifecycleEventType.LIFECYCLE_EVENT_TYPE_RESUMED: "Resumed",
    LifecycleEventType.LIFECYCLE_EVENT_TYPE_SUSPENDED: "Suspended",
    LifecycleEventType.LIFECYCLE_EVENT_TYPE_COMPLETED: "Completed",
    LifecycleEventType.LIFECYCLE_EVENT_TYPE_TERMINATED: "Terminated",
    LifecycleEventType.LIFECYCLE_EVENT_TYPE_ERROR: "Error",
    LifecycleEventType.LIFECYCLE_EVENT_TYPE_STEP_STARTED: "StepStarted",
    LifecycleEventType.LIFECYCLE_EVENT_TYPE_STEP_COMPLETED: "StepCompleted",
}

# wfc.workflows, without the workflow's pointers.
WORKFLOW: Final = Columns(
    WorkflowInstance,
    Column("id", TEXT, key=True),
    Column("name", TEXT),
    Column("root_workflow_id", TEXT, nullable=True),
    Column("definition_id", TEXT, field="workflow_definition_id"),
    Column("version", UINT4),
    Column("description", TEXT, nullable=True, large=True),
    Column("reference", TEXT, nullable=True, large=True),
    Column("status", enum(WORKFLOW_STATUS)),
    Column("data", JSON, large=True),
    Column("next_execution", INT8, nullable=True),
    Column("create_time", TIME),
    Column("complete_time", TIME, nullable=True),
    Column("revision", INT8, written=False),
    Column("extension_attributes", JSON_MAP, default=EMPTY_OBJECT, large=True),
)

# wfc.execution_pointers, without the workflow's id and the pointer's place in it (`ordinal`).
POINTER: Final = Columns(
    ExecutionPointer,
    Column("id", TEXT, key=True),
    Column("step_id", INT4),
    Column("active", BOOL, default="FALSE"),
    Column("status", enum(POINTER_STATUS)),
    Column("sleep_until", TIME, nullable=True),
    Column("persistence_data", JSON, nullable=True),
    Column("start_time", TIME, nullable=True),
    Column("end_time", TIME, nullable=True),
    Column("event_name", TEXT, nullable=True),
    Column("event_key", TEXT, nullable=True),
    Column("event_published", BOOL, default="FALSE"),
    Column("event_data", JSON, nullable=True),
    Column("step_name", TEXT, nullable=True),
    Column("retry_count", UINT4, default="0"),
    Column("children", STRINGS, default=EMPTY_ARRAY),
    Column("context_item", JSON, nullable=True),
    Column("predecessor_id", TEXT, nullable=True),
    Column("outcome", JSON, nullable=True),
    Column("scope", STRINGS, default=EMPTY_ARRAY),
    Column("extension_attributes", JSON_MAP, default=EMPTY_OBJECT),
)

# wfc.events
EVENT: Final = Columns(
    Event,
    Column("id", TEXT, key=True),
    Column("event_name", TEXT),
    Column("event_key", TEXT),
    Column("event_data", JSON),
    Column("event_time", TIME),
    Column("is_processed", BOOL),
)

# wfc.event_subscriptions
SUBSCRIPTION: Final = Columns(
    EventSubscription,
    Column("id", TEXT, key=True),
    Column("workflow_id", TEXT),
    Column("step_id", INT4),
    Column("execution_pointer_id", TEXT),
    Column("event_name", TEXT),
    Column("event_key", TEXT),
    Column("subscribe_as_of", TIME),
    Column("subscription_data", JSON, nullable=True),
    Column("external_token", TEXT, nullable=True),
    Column("external_worker_id", TEXT, nullable=True),
    Column("external_token_expiry", TIME, nullable=True),
    Column("external_token_epoch", INT8, written=False),
)

# wfc.execution_errors, without their number.
ERROR: Final = Columns(
    ExecutionError,
    Column("error_time", TIME),
    Column("workflow_id", TEXT),
    Column("execution_pointer_id", TEXT),
    Column("message", TEXT),
)

# wfc.scheduled_commands, without their leases.
COMMAND: Final = Columns(
    ScheduledCommand,
    Column("command_name", enum(COMMAND_NAME)),
    Column("data", TEXT),
    Column("execute_time", INT8),
)

# wfc.locks, without the tokens that prove them. (It is only read by these lists.)
LOCK: Final = Columns(
    Lock,
    Column("resource", TEXT, key=True),
    Column("owner", TEXT),
    Column("epoch", INT8),
    Column("expiry", TIME),
    Column("acquire_time", TIME),
)

# wfc.queue_items, without their numbers, states and leases.
QUEUE_ITEM: Final = Columns(
    QueueItem,
    Column("queue", TEXT, key=True),
    Column("id", TEXT, key=True),
    Column("payload", JSON, nullable=True),
    Column("visible_time", TIME, default="now()"),
    Column("blocked_by", TEXT_ARRAY, default=EMPTY_TEXT_ARRAY),
)

# wfc.queues. (Only exports and imports use these lists.)
QUEUE: Final = Columns(
    QueueRecord,
    Column("name", TEXT, key=True),
    Column("kind", enum(QUEUE_KIND)),
    Column("max_attempts", INT4, nullable=True),
)

# wfc.definition_sequences. (Only exports and imports use these lists.)
DEFINITION_SEQUENCE: Final = Columns(
    DefinitionSequenceRecord,
    Column("definition_id", TEXT, key=True),
    Column("next_num", INT8, field="last_number"),
)

# wfc.name_holders. (Only exports and imports use these lists.)
NAME_HOLDER: Final = Columns(
    NameHolderRecord,
    Column("name", TEXT, key=True),
    Column("workflow_id", TEXT),
    Column("claim_id", TEXT),
)

# wfc.lifecycle_events, without their place in the order.
LIFECYCLE_EVENT: Final = Columns(
    LifecycleEvent,
    Column("type", enum(LIFECYCLE_EVENT_TYPE)),
    Column("workflow_id", TEXT),
    Column("definition_id", TEXT, field="workflow_definition_id"),
    Column("version", UINT4),
    Column("reference", TEXT, nullable=True),
    Column("event_time", TIME),
    Column("step_id", INT4, nullable=True),
    Column("step_name", TEXT, nullable=True),
    Column("message", TEXT, nullable=True),
)

# wfc.workflow_changes, without their place in the order: what a workflow was before a change. (It
# is only read by these lists.)
WORKFLOW_BEFORE: Final = Columns(
    WorkflowInstance,
    Column("workflow_id", TEXT, field="id"),
    Column("name", TEXT, nullable=True),
    Column("root_workflow_id", TEXT, nullable=True),
    Column("definition_id", TEXT, field="workflow_definition_id", nullable=True),
    Column("version", UINT4, nullable=True),
    Column("reference", TEXT, nullable=True),
    Column("status", enum(WORKFLOW_STATUS), nullable=True),
    Column("create_time", TIME, nullable=True),
    Column("complete_time", TIME, nullable=True),
    Column("revision", INT8, nullable=True),
)
