"""The stored data, as plain dataclasses.

This holds for all of them:

- JSON fields hold Python values (see `JSON`). `None` is JSON `null`. A field that is
  absent is `ABSENT`, which is distinct from `null`.
- Times are timezone-aware datetimes; they come back in UTC. A naive datetime raises
  ValueError when it is sent. The store has microsecond precision and the years 1-9999.
- The types are checked when an object is sent, not when it is constructed.
- Ids are text of at most 512 bytes in UTF-8, compared byte by byte.

The file is long because it is a catalogue: declarations only, in the order of the protos.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final, Literal, TypedDict

from wfe_persistence_client.json_text import JSON


class Absent(Enum):
    """The type of `ABSENT`, the value of a JSON field that is absent."""

    ABSENT = "absent"

    def __bool__(self) -> Literal[False]:
        """False, as for `None`."""
        return False

    def __repr__(self) -> str:
        """The name under which it is imported."""
        return "ABSENT"


#: The value of a JSON field that is absent, as opposed to `null` (`None`). Test with
#: `value is ABSENT`.
ABSENT: Final = Absent.ABSENT


class WorkflowStatus(Enum):
    """The status of a workflow as a whole; the values are those of the protos."""

    #: One that other software has stored and the server does not know; rejected on write.
    UNKNOWN = 0
    #: To be run at `next_execution`.
    RUNNABLE = 1
    #: Suspended until it is resumed.
    SUSPENDED = 2
    #: Completed normally.
    COMPLETE = 3
    #: Ended before completing.
    TERMINATED = 4


class WorkflowView(Enum):
    """How much of a workflow is returned; the values are those of the protos."""

    #: The header and every execution pointer.
    FULL = 1
    #: The header and the execution pointers that can still run: those that are
    #: `active`, and those with status PENDING, RUNNING, SLEEPING, WAITING_FOR_EVENT or
    #: PENDING_PREDECESSOR.
    ACTIVE = 2
    #: The header only.
    HEADER = 3


class ListOrder(Enum):
    """The direction in which a list is sorted; the values are those of the protos."""

    #: Latest time first.
    NEWEST_FIRST = 1
    #: Earliest time first.
    OLDEST_FIRST = 2


class PointerStatus(Enum):
    """The status of one execution pointer; the values are those of the protos."""

    #: One that other software has stored and the server does not know; rejected on write.
    UNKNOWN = 0
    #: Not started yet.
    PENDING = 1
    #: Its step is running.
    RUNNING = 2
    #: Its step completed successfully.
    COMPLETE = 3
    #: Its step was skipped.
    SKIPPED = 4
    #: Sleeping until `sleep_until`.
    SLEEPING = 5
    #: Waiting for an event.
    WAITING_FOR_EVENT = 6
    #: Its step failed.
    FAILED = 7
    #: Its step was compensated.
    COMPENSATED = 8
    #: Its step was cancelled.
    CANCELLED = 9
    #: Waiting for the pointer `predecessor_id`.
    PENDING_PREDECESSOR = 10
    #: No status of its own, only `active`: the default of the workflow-core family.
    LEGACY = 11


class CommandName(Enum):
    """The kind of work that a scheduled command asks for; the values are those of the protos."""

    #: One that other software has stored and the server does not know; rejected on write.
    UNKNOWN = 0
    #: Run the workflow whose id is the command's data.
    PROCESS_WORKFLOW = 1
    #: Process the event whose id is the command's data.
    PROCESS_EVENT = 2


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True, kw_only=True)
class ExecutionPointer:
    """The state of one step of one workflow."""

    #: Unique within its workflow; required.
    id: str
    #: The id of its step in the definition, 0 to 2^31-1.
    step_id: int
    #: Its state.
    status: PointerStatus = PointerStatus.PENDING
    #: Whether the engine still has to process it.
    active: bool = False
    #: When to wake it; None: it is not sleeping.
    sleep_until: datetime | None = None
    #: The step's state between its runs.
    persistence_data: JSON | Absent = ABSENT
    #: When the step started; None: it has not started.
    start_time: datetime | None = None
    #: When the step ended; None: it has not ended.
    end_time: datetime | None = None
    #: The name of the event it waits for.
    event_name: str | None = None
    #: The key of the event it waits for.
    event_key: str | None = None
    #: Whether that event has been delivered.
    event_published: bool = False
    #: The payload of that event.
    event_data: JSON | Absent = ABSENT
    #: The step's name, for people.
    step_name: str | None = None
    #: How often the step was retried, 0 to 2^31-1.
    retry_count: int = 0
    #: The ids of the pointers it started; the order is preserved.
    children: list[str] = field(default_factory=list)
    #: The loop item it works on.
    context_item: JSON | Absent = ABSENT
    #: The id of its predecessor.
    predecessor_id: str | None = None
    #: The step's outcome.
    outcome: JSON | Absent = ABSENT
    #: The ids of the pointers that enclose it; the order is preserved.
    scope: list[str] = field(default_factory=list)
    #: Additional attributes by name.
    extension_attributes: dict[str, JSON] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class WorkflowInstance:
    """A running or ended workflow: its header and its execution pointers."""

    #: Empty on create: the provider generates a UUID. Never changes.
    id: str = ""
    #: Unique among all workflows. Empty on create: the id; on persist: unchanged.
    name: str = ""
    #: The root of the tree that this workflow belongs to; None: it is itself a root.
    root_workflow_id: str | None = None
    #: The id of its definition; required.
    workflow_definition_id: str
    #: The version of its definition, 0 to 2^31-1.
    version: int
    #: A description for people.
    description: str | None = None
    #: The host's own reference, for example an order number; at most 512 bytes.
    reference: str | None = None
    #: The execution pointers; their order is preserved.
    execution_pointers: list[ExecutionPointer] = field(default_factory=list)
    #: When it is to be run next, in milliseconds since 1970-01-01T00:00:00Z, any 64-bit
    #: integer; None: not scheduled.
    next_execution: int | None = None
    #: Its state.
    status: WorkflowStatus = WorkflowStatus.RUNNABLE
    #: The workflow's data; `None` is JSON `null`.
    data: JSON
    #: When it was created; by default, when this object was created.
    create_time: datetime = field(default_factory=_now)
    #: When it ended; None: it has not ended.
    complete_time: datetime | None = None
    #: The number of writes, 1 after create; 0: unknown. Set when a workflow is loaded,
    #: and by the provider when it has written the object. In strict mode it is the
    #: expected revision of a write; otherwise it is ignored on write.
    revision: int = 0
    #: How much of the stored workflow this is. If it is not FULL, it can only be stored
    #: as a patch, never in full.
    view: WorkflowView = WorkflowView.FULL
    #: Additional attributes by name, together at most 4096 bytes as JSON. A write in full
    #: without any keeps the stored ones; a patch removes them.
    extension_attributes: dict[str, JSON] = field(default_factory=dict)


class HeaderChanges(TypedDict, total=False):
    """New values of header fields of a workflow; fields not given stay unchanged."""

    name: str
    root_workflow_id: str | None
    workflow_definition_id: str
    version: int
    description: str | None
    reference: str | None
    next_execution: int | None
    status: WorkflowStatus
    data: JSON
    create_time: datetime
    complete_time: datetime | None
    extension_attributes: dict[str, JSON]


@dataclass(slots=True, kw_only=True)
class WorkflowPatch:
    """A change to a workflow, for `commit_workflow`.

    `persist_workflow` and `step` compute patches themselves, so you rarely need this.
    """

    #: The workflow's id; required.
    id: str
    #: The header fields that change, with their new values. None: becomes absent.
    header: HeaderChanges = field(default_factory=HeaderChanges)
    #: Pointers to update or add, each with all its fields. An existing pointer keeps
    #: its position; new ones are appended in the order given here.
    execution_pointers: list[ExecutionPointer] = field(default_factory=list)
    #: Ids of pointers to remove; each must exist.
    removed_pointer_ids: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True, frozen=True)
class WorkflowFilter:
    """Selects the workflows that match every condition given."""

    #: With one of these statuses; empty: any.
    statuses: Collection[WorkflowStatus] = ()
    #: With this definition; empty: any.
    workflow_definition_id: str = ""
    #: With this version of the definition; None: any.
    version: int | None = None
    #: With this reference; None: any, or none.
    reference: str | None = None
    #: With a name that starts with this; empty: any.
    name_prefix: str = ""
    #: With this root workflow; empty: any.
    root_workflow_id: str = ""
    #: Created at or after this time; None: no lower bound.
    create_time_from: datetime | None = None
    #: Created before this time; None: no upper bound.
    create_time_before: datetime | None = None
    #: Completed at or after this time; None: no lower bound, and not only completed
    #: ones.
    complete_time_from: datetime | None = None
    #: Completed before this time; None: no upper bound, and not only completed ones.
    complete_time_before: datetime | None = None
    #: Last written before this time; None: any. All workflows that match the other
    #: conditions are read: give `statuses` with it.
    written_before: datetime | None = None
    #: With status RUNNABLE and a next_execution before this time (truncated to
    #: milliseconds); None: any.
    due_before: datetime | None = None
    #: With a subscription, open or held, to an event of this name; empty: any.
    waiting_event_name: str = ""
    #: With a subscription to `waiting_event_name` that has this event key; None: any.
    waiting_event_key: str | None = None
    #: With an error logged at or after this time; None: any.
    error_time_from: datetime | None = None


@dataclass(slots=True, kw_only=True)
class Event:
    """An occurrence that workflows may be waiting for."""

    #: Empty on create: the provider generates a UUID.
    id: str = ""
    #: The event name; required.
    event_name: str
    #: The subject of the event; the empty string is a valid key.
    event_key: str
    #: The event's payload; `None` is JSON `null`.
    event_data: JSON
    #: When it occurred; by default, when this object was created.
    event_time: datetime = field(default_factory=_now)
    #: True once the host has delivered the event to its subscriptions.
    is_processed: bool = False


@dataclass(slots=True, kw_only=True)
class EventSubscription:
    """A step of a workflow that waits for an event.

    It is open while no worker holds it, and held by the worker whose token it carries
    until that worker clears the token or the token expires.
    """

    #: Empty on create: the provider generates a UUID.
    id: str = ""
    #: The waiting workflow; required. It need not exist.
    workflow_id: str
    #: The waiting step, 0 to 2^31-1.
    step_id: int
    #: The waiting execution pointer. It need not exist.
    execution_pointer_id: str
    #: The name of the event it waits for; required.
    event_name: str
    #: The key of the event it waits for; the empty string is a valid key.
    event_key: str
    #: Only events at or after this time match.
    subscribe_as_of: datetime
    #: Arbitrary data of the host.
    subscription_data: JSON | Absent = ABSENT
    #: The token of the worker that holds it; None: it is not held.
    external_token: str | None = None
    #: The worker that holds it.
    external_worker_id: str | None = None
    #: When the claim expires, by the database's clock; None: not until cleared.
    external_token_expiry: datetime | None = None
    #: The fencing token of the claim, while it is held: every claim in a store has a
    #: higher epoch than all claims before it. 0: never claimed. Set by the store,
    #: ignored on write.
    external_token_epoch: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class SubscriptionClaim:
    """The claim of one worker on a subscription; `claim_subscription` returns one.

    Later claims have a higher `epoch`, so this claim, once lost, is rejected
    everywhere, even if a later claim uses the same token.
    """

    #: The subscription that is held.
    subscription_id: str
    #: The token it is held with.
    token: str
    #: The fencing token, higher than that of every claim before; None: only the token
    #: is compared.
    epoch: int | None = None
    #: When the claim expires, by the database's clock; None: not until cleared.
    expiry: datetime | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class ScheduledCommand:
    """Work to be done later; there is at most one for each (command_name, data)."""

    #: What to do.
    command_name: CommandName
    #: The id of the workflow or event to process; at most 2048 bytes.
    data: str
    #: When it is due, in milliseconds since 1970-01-01T00:00:00Z; any 64-bit integer.
    execute_time: int


@dataclass(slots=True, kw_only=True, frozen=True)
class ClaimedCommand:
    """A due command that one worker holds under a lease."""

    #: The command at the time of the claim.
    command: ScheduledCommand
    #: Proof of the claim, for `complete_commands`, `release_commands`, `renew_commands`.
    lease_token: str
    #: When the lease expires, by the database's clock.
    lease_expiry: datetime
    #: The fencing token: every claim in a store has a higher epoch than all claims
    #: before it. Pass it to other systems so that they can reject earlier holders.
    epoch: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class CommandLease:
    """One worker's hold of a command, without its token, which proves it."""

    #: The worker that claimed the command, as it called itself.
    worker_id: str = ""
    #: When the lease expires, by the database's clock.
    expiry: datetime
    #: The fencing token of the claim; see `ClaimedCommand.epoch`.
    epoch: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class ListedCommand:
    """A command in a list."""

    #: The command.
    command: ScheduledCommand
    #: The lease that it is under; None: none, or an expired one.
    lease: CommandLease | None = None


class MoveWay(Enum):
    """How a namespace gets to another database."""

    #: By PostgreSQL's logical replication: writes are held for about a second.
    LOGICAL_REPLICATION = 1
    #: By a copy of the tables, during which writes are held.
    COPY = 2


class MovePhase(Enum):
    """How far a move of a namespace is."""

    #: It has not begun: this is what it will be like.
    PLANNED = 1
    #: The new database gets the rows, and what is written meanwhile.
    COPYING = 2
    #: Writes are held, until the new database has everything and is in use.
    SWITCHING = 3
    #: It is in use in its new database; what the move needed is taken away.
    CLEANING = 4
    #: Nothing is left to be done.
    MOVED = 5


class RecordKind(Enum):
    """A kind of records, in an export."""

    #: Workflows, with their execution pointers.
    WORKFLOW = 1
    #: Subscriptions, with the claims on them.
    SUBSCRIPTION = 2
    #: Events.
    EVENT = 3
    #: Logged errors.
    ERROR = 4
    #: Scheduled commands.
    COMMAND = 5
    #: Configured queues.
    QUEUE = 6
    #: Items of queues.
    QUEUE_ITEM = 7
    #: Sequences of definitions.
    DEFINITION_SEQUENCE = 8
    #: The retention policy.
    RETENTION_POLICY = 9
    #: The workflows that have names, in a member of a namespace set.
    NAME_HOLDER = 10


class QueueKind(Enum):
    """What the items of a queue stand for."""

    #: Anything: only the worker knows whether it is done.
    PLAIN = 1
    #: The workflow with the item's id is to be run.
    WORKFLOW = 2
    #: The event with the item's id is to be processed.
    EVENT = 3


class QueueItemState(Enum):
    """What becomes of an item next."""

    #: It is visible: handed out to the next who asks.
    WAITING = 1
    #: It is not visible yet.
    DELAYED = 2
    #: It is being handled.
    LEASED = 3
    #: It failed too often, and is not handed out again.
    DEAD = 4


@dataclass(slots=True, kw_only=True)
class QueueItem:
    """Work to be handled by one worker; at most one per queue and id."""

    #: The queue's name, `[a-z][a-z0-9_.-]{0,63}`.
    queue: str
    #: What is to be handled, for example the id of a workflow; required. With the write
    #: of a workflow or event, empty stands for its id.
    id: str
    #: Anything that the worker needs besides, up to 64 kB.
    payload: JSON | Absent = ABSENT
    #: When it may be handed out; None: now, by the database's clock.
    visible_time: datetime | None = None
    #: Resources of locks, at most 8: withheld while somebody holds one of them.
    blocked_by: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True, frozen=True)
class DequeuedItem:
    """An item that one worker holds under a lease."""

    #: The item at the time of the claim.
    item: QueueItem
    #: Proof of the claim, for `acknowledge`, `return_items` and `renew_items`.
    receipt: str
    #: When the lease expires, by the database's clock.
    lease_expiry: datetime
    #: The fencing token: every claim in a store has a higher epoch than all claims
    #: before it. Pass it to other systems so that they can reject earlier holders.
    epoch: int = 0
    #: How often it has been handed out since it was enqueued, from 1.
    attempt: int = 1
    #: The workflow with the item's id; None: not asked for, none, or left out.
    workflow: WorkflowInstance | None = None
    #: It was left out, because it did not fit in the message: load it by itself.
    workflow_omitted: bool = False


@dataclass(slots=True, kw_only=True, frozen=True)
class Dequeued:
    """What `dequeue` returns."""

    #: The items handed out.
    items: list[DequeuedItem]
    #: The receipts of acknowledgements that were not confirmed: these items come back.
    returned_receipts: list[str]


@dataclass(slots=True, kw_only=True, frozen=True)
class Acknowledgement:
    """Says that an item has been handled."""

    #: The item's receipt.
    receipt: str
    #: Whether it goes only if the store says that its work is done.
    confirmed: bool = False


@dataclass(slots=True, kw_only=True, frozen=True)
class ReturnedItem:
    """An item to be given back unhandled."""

    #: The item's receipt.
    receipt: str
    #: How long it is withheld, 1 ms to 24 h; None: not at all.
    delay: timedelta | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class QueueItemLease:
    """One worker's hold of an item, without its receipt, which proves it."""

    #: The worker that holds it, as it called itself.
    worker_id: str = ""
    #: When the lease expires, by the database's clock.
    expiry: datetime
    #: The fencing token of the claim; see `DequeuedItem.epoch`.
    epoch: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class ListedQueueItem:
    """An item in a list."""

    #: The item.
    item: QueueItem
    #: Its state at the time of the list.
    state: QueueItemState
    #: How often it has been handed out since it was enqueued.
    attempt: int = 0
    #: The lease that it is under; None: none, or an expired one.
    lease: QueueItemLease | None = None
    #: Enqueued while it was handled: when it will be visible once more; None: it was not.
    again_time: datetime | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class QueueStats:
    """What a queue has and how it works."""

    #: Its name.
    queue: str
    #: What its items stand for.
    kind: QueueKind
    #: How often an item is handed out before it is dead; 0: without end.
    max_attempts: int
    #: How many items are waiting.
    waiting: int
    #: How many items are delayed.
    delayed: int
    #: How many items are under a lease.
    leased: int
    #: How many items are dead.
    dead: int
    #: How long the first waiting item has been visible; None: none is waiting.
    oldest_waiting_age: timedelta | None


@dataclass(slots=True, kw_only=True)
class ExecutionError:
    """A failure of a step, recorded in the error log."""

    #: When it occurred; by default, when this object was created.
    error_time: datetime = field(default_factory=_now)
    #: The workflow in which it occurred; required. It need not exist.
    workflow_id: str
    #: The execution pointer at which it occurred; may be empty.
    execution_pointer_id: str = ""
    #: The error message; may be empty.
    message: str = ""


@dataclass(slots=True, kw_only=True, frozen=True)
class PersistedWorkflow:
    """The result of `persist_workflow_with_subscriptions`."""

    #: The workflow's revision after the write.
    revision: int
    #: The ids of the subscriptions, in the order they were given.
    subscription_ids: list[str]
    #: The receipts of acknowledged items that were not confirmed: these items come back.
    returned_receipts: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True, frozen=True)
class CommittedWorkflow:
    """The result of `commit_workflow`."""

    #: The workflow's revision after the write.
    revision: int
    #: The ids of the created subscriptions, in the order they were given.
    subscription_ids: list[str]
    #: The ids of the created events, in the order they were given.
    event_ids: list[str]
    #: The receipts of acknowledged items that were not confirmed: these items come back.
    returned_receipts: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True, frozen=True)
class PurgedWorkflows:
    """How many rows a purge of workflows deleted, or would delete."""

    #: Workflows.
    workflows: int = 0
    #: Their execution pointers.
    execution_pointers: int = 0
    #: Their subscriptions.
    subscriptions: int = 0
    #: Their logged errors.
    errors: int = 0
    #: Their processed completion events.
    events: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class MigratedStore:
    """The result of `ensure_store_exists` and `create_namespace`."""

    #: The store's schema version after the call.
    schema_version: int
    #: The migrations that the call applied, in order; empty: it was up to date.
    applied_migrations: list[str]
    #: Of `create_namespace`, the name of the database in which the namespace lives; empty from
    #: a server that knows only one.
    database: str = ""


class LifecycleEventType(Enum):
    """What happened to a workflow."""

    #: Of watched events only: a type that this client is too old to know.
    UNKNOWN = 0
    STARTED = 1
    #: It goes on after it was suspended.
    RESUMED = 2
    SUSPENDED = 3
    #: It has ended by itself.
    COMPLETED = 4
    #: It was ended from outside.
    TERMINATED = 5
    #: It, or one of its steps, failed; `message` says how.
    ERROR = 6
    STEP_STARTED = 7
    STEP_COMPLETED = 8


@dataclass(slots=True, kw_only=True)
class LifecycleEvent:
    """Something that happened to a workflow, for whoever watches."""

    #: What happened.
    type: LifecycleEventType
    #: The workflow; required. It need not exist.
    workflow_id: str
    #: The id of its definition; required.
    workflow_definition_id: str
    #: The version of its definition, 0 to 2^31-1.
    version: int = 0
    #: The workflow's reference.
    reference: str | None = None
    #: When it happened; by default, when this object was created. It has nothing to do
    #: with the order of events.
    event_time: datetime = field(default_factory=_now)
    #: The step, 0 to 2^31-1; None: it is not about a step.
    step_id: int | None = None
    #: The step's name.
    step_name: str | None = None
    #: For people, such as the text of an error; at most 65536 bytes.
    message: str | None = None
    #: Of a watched event: to resume behind it. Ignored when it is published.
    cursor: str = field(default="", compare=False)


@dataclass(slots=True, kw_only=True, frozen=True)
class WorkflowChange:
    """A workflow that was written or deleted."""

    #: Its header, with view HEADER. If it was deleted, what was known of it before: its
    #: ids, name, definition, version, reference, status, times and revision; the data is
    #: LEFT_OUT.
    instance: WorkflowInstance
    #: Whether it was deleted. (If it was created anew since, it was not.)
    deleted: bool
    #: Whether it passes the filter. False: it did before the change, or it was deleted.
    passes: bool
    #: To resume behind this change.
    cursor: str


@dataclass(slots=True, kw_only=True, frozen=True)
class AcquiredLock:
    """A lock on a resource, as its holder knows it."""

    #: What is locked.
    resource: str
    #: Proof of the hold, for `renew_locks`, `release_lock` and `held_lock_tokens`.
    token: str
    #: The fencing token: every claim in a store has a higher epoch than all claims
    #: before it. Pass it to other systems so that they can reject earlier holders.
    epoch: int
    #: When it expires unless it is renewed, by the database's clock.
    expiry: datetime


@dataclass(slots=True, kw_only=True, frozen=True)
class Lock:
    """A lock on a resource, as others see it: without its token, which proves it."""

    #: What is locked.
    resource: str
    #: Who holds it, as they called themselves.
    owner: str = ""
    #: The fencing token; see `AcquiredLock.epoch`.
    epoch: int
    #: When it expires unless it is renewed, by the database's clock.
    expiry: datetime
    #: When it was acquired, by the database's clock.
    acquire_time: datetime


@dataclass(slots=True, kw_only=True, frozen=True)
class Capabilities:
    """The optional parts of the engine's persistence trait that a store supports."""

    #: Scheduled commands.
    scheduled_commands: bool
    #: The server was started with the flag that allows `truncate_all`.
    truncate_all: bool
    #: The server was started with the flag that allows `delete_namespace`.
    delete_namespace: bool
    #: The server allows `create_namespace`. (Servers before 0.2 do, and don't say so.)
    create_namespace: bool = False
    #: Locks.
    locks: bool = False
    #: Queues.
    queues: bool = False
    #: Lifecycle events.
    lifecycle: bool = False
    #: Watching the changes of workflows.
    watch_workflows: bool = False
    #: Retention policies, and the storage report.
    retention: bool = False


@dataclass(slots=True, kw_only=True, frozen=True)
class Namespace:
    """A separate store, selected by `connect(..., namespace=...)`."""

    #: Its name; without a namespace in `connect` it is `default`.
    name: str
    #: The PostgreSQL schema that contains it.
    schema: str
    #: Its schema version.
    schema_version: int
    #: The total number of rows in it, as estimated by PostgreSQL.
    estimated_rows: int
    #: The name of the database in which it lives; empty from a server that knows only one.
    database: str = ""
    #: That database can't be reached at present: the version and the rows are 0.
    unavailable: bool = False


@dataclass(slots=True, kw_only=True, frozen=True)
class NamespaceSet:
    """A store that is spread over namespaces, selected by `connect(..., namespace_set=...)`."""

    #: Its name.
    name: str
    #: The namespaces that it consists of, in the order of their indexes, from 0.
    members: list[str]


@dataclass(slots=True, kw_only=True, frozen=True)
class NameHolder:
    """Which workflow of a namespace set has a name."""

    #: The workflow; empty: none.
    workflow_id: str
    #: The claim under which it has it; empty: none, or the name is the workflow's id.
    claim_id: str


@dataclass(slots=True, kw_only=True, frozen=True)
class Database:
    """One of the PostgreSQL databases in which the namespaces of a service live."""

    #: Its name; `home` is the one that has the namespace `default`.
    name: str
    #: Its labels; `name` is among them.
    labels: dict[str, str]
    #: Namespaces are created there that do not ask for a database.
    accepts_new: bool
    #: The server can use it at present. If not, what follows is 0 or empty.
    reachable: bool
    #: Its size on disk, with all that is in it.
    size_bytes: int
    #: The PostgreSQL server's version, for example `18.4`.
    postgres_version: str


@dataclass(slots=True, kw_only=True, frozen=True)
class NamespaceMove:
    """How far a move of a namespace is."""

    #: How far it is.
    phase: MovePhase
    #: How it is moved; None: it was there already.
    way: MoveWay | None
    #: With PLANNED: why it can't be by logical replication; empty: it can.
    obstacles: list[str]
    #: With PLANNED: for how long writes will be held, as reckoned; from CLEANING on: for
    #: how long they were held. None: that is not known.
    pause: timedelta | None
    #: The size of its tables in the old database when the move began, without indexes.
    total_bytes: int
    #: How much the new database has, about.
    copied_bytes: int
    #: How much write-ahead log the new database is behind.
    lag_bytes: int


@dataclass(slots=True, kw_only=True, frozen=True)
class StoreInfo:
    """The versions, limits and capabilities of a server and its store."""

    #: The server's version, for example `0.1.0`.
    server_version: str
    #: The PostgreSQL server's version, for example `18.4`.
    postgres_version: str
    #: The namespace of the call.
    namespace: str
    #: The PostgreSQL schema that contains the namespace.
    schema: str
    #: The schema version of the store; 0: not created yet.
    schema_version: int
    #: The schema version that this server requires.
    latest_schema_version: int
    #: The optional features that the store supports.
    capabilities: Capabilities
    #: The maximum size of a request, and of a stored workflow, event or subscription,
    #: in bytes.
    max_message_bytes: int
    #: The minimum time for which the server remembers a `request_id`; 0: not supported.
    request_retention: timedelta = timedelta(0)
    #: The name of the database in which the namespace lives; empty from a server that knows
    #: only one.
    database: str = ""


@dataclass(slots=True, kw_only=True, frozen=True)
class WorkflowRetention:
    """For how long ended workflows are kept."""

    #: Those of this definition; empty: of every definition without a rule of its own.
    workflow_definition_id: str = ""
    #: How long after its end a COMPLETE workflow may be deleted; None: never.
    complete_age: timedelta | None = None
    #: The same of a TERMINATED workflow.
    terminated_age: timedelta | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class RetentionPolicy:
    """What the servers delete by themselves in a namespace: nothing by default.

    Each age is from 1 minute to 1,000,000 days; None: never.
    """

    #: Which workflows; at most one rule for each definition.
    workflows: list[WorkflowRetention] = field(default_factory=list)
    #: How long after its `event_time` a processed event may be deleted.
    processed_event_age: timedelta | None = None
    #: How long after its `error_time` a logged error may be deleted.
    error_age: timedelta | None = None
    #: How long after its `execute_time` a command that nobody holds may be deleted.
    overdue_command_age: timedelta | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class RetentionState:
    """A retention policy, and what it has done."""

    #: The policy; without rules: none is set.
    policy: RetentionPolicy
    #: When it was set; None: none is set.
    set_time: datetime | None = None
    #: How many rows it has deleted since.
    deleted_rows: int = 0
    #: When everything that it lets go had been deleted last; None: not yet.
    complete_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportCounts:
    """What became of the records of an import."""

    #: Stored.
    stored: int = 0
    #: There already, the same.
    unchanged: int = 0
    #: Left out, because the store has another record in their place.
    skipped: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class RetentionCounts:
    """Numbers of rows that a retention policy lets go."""

    #: Workflows.
    workflows: int = 0
    #: Their execution pointers.
    execution_pointers: int = 0
    #: Their subscriptions.
    subscriptions: int = 0
    #: Events: processed ones, and those of the completion of such workflows.
    events: int = 0
    #: Errors, by their age or with their workflow.
    errors: int = 0
    #: Commands.
    commands: int = 0
    #: There are more: as many as were asked for have been counted.
    is_partial: bool = False


@dataclass(slots=True, kw_only=True, frozen=True)
class TableStorage:
    """How much space a table takes, as PostgreSQL estimates it."""

    #: Its name, without the prefix of the store.
    name: str
    #: Its live rows.
    estimated_rows: int
    #: Its rows that wait for a vacuum.
    dead_rows: int
    #: Its size on disk without indexes.
    table_bytes: int
    #: The size of its indexes.
    index_bytes: int
    #: How much of `table_bytes` is dead rows and space for new ones; None: not known,
    #: because the table has not been analyzed yet.
    bloat_bytes: int | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class StorageReport:
    """How much space a namespace takes."""

    #: Its tables, the largest first.
    tables: list[TableStorage]
    #: What its retention policy would delete now.
    freed: RetentionCounts
    #: About how many bytes that would free for new rows.
    freed_bytes: int
