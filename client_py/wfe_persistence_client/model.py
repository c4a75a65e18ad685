"""What the store keeps, as plain dataclasses.

Three things hold for all of them:

- JSON fields hold Python values (see `JSON`). `None` is JSON `null`. A field that
  may be absent is `ABSENT` then, which is kept apart from `null`.
- Times are timezone-aware datetimes; they come back in UTC. A naive datetime is
  refused with ValueError when it is sent. The store keeps microseconds and the
  years 1-9999.
- Ids are text of at most 512 bytes in UTF-8, compared byte by byte.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final, Literal, TypedDict

from wfe_persistence_client.json_text import JSON


class Absent(Enum):
    """The type of `ABSENT`, the one value that says a JSON field is not there."""

    ABSENT = "absent"

    def __bool__(self) -> Literal[False]:
        """False, as for `None`."""
        return False

    def __repr__(self) -> str:
        """The name to write it by."""
        return "ABSENT"


#: A JSON field that is not there, as opposed to one that is `null` (`None`).
#: Ask with `value is ABSENT`.
ABSENT: Final = Absent.ABSENT


class WorkflowStatus(Enum):
    """The state of a workflow as a whole; the values are those of the protos."""

    #: To be run when `next_execution` comes.
    RUNNABLE = 1
    #: Put aside until somebody resumes it.
    SUSPENDED = 2
    #: Ran to its end.
    COMPLETE = 3
    #: Ended before its end.
    TERMINATED = 4


class WorkflowView(Enum):
    """How much of a workflow is answered; the values are those of the protos."""

    #: The header and every execution pointer.
    FULL = 1
    #: The header and the execution pointers that can still run: those that are
    #: `active`, and those with status PENDING, RUNNING, SLEEPING, WAITING_FOR_EVENT or
    #: PENDING_PREDECESSOR.
    ACTIVE = 2
    #: The header only.
    HEADER = 3


class ListOrder(Enum):
    """At which end a list begins; the values are those of the protos."""

    #: The latest time first.
    NEWEST_FIRST = 1
    #: The earliest time first.
    OLDEST_FIRST = 2


class PointerStatus(Enum):
    """The state of one execution pointer; the values are those of the protos."""

    #: Not started yet.
    PENDING = 1
    #: Its step runs.
    RUNNING = 2
    #: Its step has ended well.
    COMPLETE = 3
    #: Its step was passed over.
    SKIPPED = 4
    #: Waits for `sleep_until`.
    SLEEPING = 5
    #: Waits for an event.
    WAITING_FOR_EVENT = 6
    #: Its step has failed.
    FAILED = 7
    #: Its step was undone.
    COMPENSATED = 8
    #: Its step was called off.
    CANCELLED = 9
    #: Waits for the pointer `predecessor_id`.
    PENDING_PREDECESSOR = 10


class CommandName(Enum):
    """What a scheduled command asks the engine to do; the values are the protos'."""

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
    #: The step of the definition, 0 to 2^31-1.
    step_id: int
    #: Its state.
    status: PointerStatus = PointerStatus.PENDING
    #: Whether the engine still has to look at it.
    active: bool = False
    #: When to wake it; None: it does not sleep.
    sleep_until: datetime | None = None
    #: What the step remembers between its runs.
    persistence_data: JSON | Absent = ABSENT
    #: When the step started; None: it has not.
    start_time: datetime | None = None
    #: When the step ended; None: it has not.
    end_time: datetime | None = None
    #: The kind of event it waits for.
    event_name: str | None = None
    #: The event key it waits for.
    event_key: str | None = None
    #: Whether that event has come.
    event_published: bool = False
    #: The content of that event.
    event_data: JSON | Absent = ABSENT
    #: The step's name, for people.
    step_name: str | None = None
    #: How often the step was tried again, 0 to 2^31-1.
    retry_count: int = 0
    #: The ids of the pointers it started; the order is kept.
    children: list[str] = field(default_factory=list)
    #: The item of a loop it works on.
    context_item: JSON | Absent = ABSENT
    #: The pointer before it.
    predecessor_id: str | None = None
    #: What the step came to.
    outcome: JSON | Absent = ABSENT
    #: The ids of the pointers it runs inside of; the order is kept.
    scope: list[str] = field(default_factory=list)
    #: Anything else, by name.
    extension_attributes: dict[str, JSON] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class WorkflowInstance:
    """A running or ended workflow: its header and its execution pointers."""

    #: Empty on create: the provider chooses a UUID. Never changes.
    id: str = ""
    #: Unique over all instances. Empty on create: the id; on persist: unchanged.
    name: str = ""
    #: The workflow at the top of the tree this one belongs to; None: itself.
    root_workflow_id: str | None = None
    #: Which definition it runs; required.
    workflow_definition_id: str
    #: Which version of the definition, 0 to 2^31-1.
    version: int
    #: What it is for, in words.
    description: str | None = None
    #: The host's own reference, for example an order number.
    reference: str | None = None
    #: The execution pointers; their order is kept exactly.
    execution_pointers: list[ExecutionPointer] = field(default_factory=list)
    #: When it is to be run next, in milliseconds since 1970-01-01T00:00:00Z, any
    #: 64-bit integer; None: not until something happens.
    next_execution: int | None = None
    #: Its state.
    status: WorkflowStatus = WorkflowStatus.RUNNABLE
    #: The workflow's data; always there, `None` is JSON `null`.
    data: JSON
    #: When it was created; unless given, when this object was made.
    create_time: datetime = field(default_factory=_now)
    #: When it ended; None: it has not.
    complete_time: datetime | None = None
    #: Counts the writes, from 1; 0: not known. Set by the store: on what is loaded, and
    #: on the object that a provider has written. In strict mode it is the revision that
    #: this object may replace; otherwise it is ignored on write.
    revision: int = 0
    #: How much of the stored workflow this is. What is not FULL can be stored as a
    #: change only, never as a whole.
    view: WorkflowView = WorkflowView.FULL


class HeaderChanges(TypedDict, total=False):
    """New values of header fields of a workflow; what is not named stays as it is."""

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


@dataclass(slots=True, kw_only=True)
class WorkflowPatch:
    """What changes in a workflow, for `commit_workflow`.

    `persist_workflow` and `step` make their own; nobody has to write one by hand.
    """

    #: The workflow's id; required.
    id: str
    #: The header fields that change, with their new values. None: becomes absent.
    header: HeaderChanges = field(default_factory=HeaderChanges)
    #: Pointers to change or to add, each with all its fields. One that exists keeps its
    #: place in the order; new ones come behind the last, in the order given here.
    execution_pointers: list[ExecutionPointer] = field(default_factory=list)
    #: Pointers to remove, by id; each must exist.
    removed_pointer_ids: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True, frozen=True)
class WorkflowFilter:
    """Picks workflows: those for which all that is given holds."""

    #: With one of these; empty: with any.
    statuses: Collection[WorkflowStatus] = ()
    #: Of this definition; empty: of any.
    workflow_definition_id: str = ""
    #: Of this version of the definition; None: of any.
    version: int | None = None
    #: With this reference; None: with any, or none.
    reference: str | None = None
    #: With a name that begins so; empty: with any.
    name_prefix: str = ""
    #: Below this workflow in its tree; empty: anywhere.
    root_workflow_id: str = ""
    #: Created at this time or later; None: at any.
    create_time_from: datetime | None = None
    #: Created before this time; None: at any.
    create_time_before: datetime | None = None
    #: Completed at this time or later; None: at any, or not at all.
    complete_time_from: datetime | None = None
    #: Completed before this time; None: at any, or not at all.
    complete_time_before: datetime | None = None


@dataclass(slots=True, kw_only=True)
class Event:
    """Something that happened and that workflows may be waiting for."""

    #: Empty on create: the provider chooses a UUID.
    id: str = ""
    #: The kind of event; required.
    event_name: str
    #: What the event is about; empty is a key like any other.
    event_key: str
    #: The event's content; always there, `None` is JSON `null`.
    event_data: JSON
    #: When it happened; unless given, when this object was made.
    event_time: datetime = field(default_factory=_now)
    #: True once the host has given the event to its subscriptions.
    is_processed: bool = False


@dataclass(slots=True, kw_only=True)
class EventSubscription:
    """A step of a workflow that waits for an event.

    It is open while nobody holds it, and held by the worker whose token it
    carries until that worker clears the token or its expiry passes.
    """

    #: Empty on create: the provider chooses a UUID.
    id: str = ""
    #: The waiting workflow; required. It need not exist.
    workflow_id: str
    #: The waiting step, 0 to 2^31-1.
    step_id: int
    #: The waiting execution pointer. It need not exist.
    execution_pointer_id: str
    #: The kind of event waited for; required.
    event_name: str
    #: The event key waited for; empty is a key like any other.
    event_key: str
    #: Events from this time on count.
    subscribe_as_of: datetime
    #: Anything the host wants to keep with it.
    subscription_data: JSON | Absent = ABSENT
    #: The token of the worker that holds it; None: nobody does.
    external_token: str | None = None
    #: The worker that holds it.
    external_worker_id: str | None = None
    #: When the hold ends by itself, by the database's clock; None: not until cleared.
    external_token_expiry: datetime | None = None
    #: Which claim this is, while it is held: each claim of a store has a higher number
    #: than all before it. 0: never claimed. Set by the store, ignored on write.
    external_token_epoch: int = 0


@dataclass(slots=True, kw_only=True, frozen=True)
class SubscriptionClaim:
    """The hold of one worker on a subscription; `claim_subscription` makes one.

    Whoever took the subscription later has a higher `epoch`, so this hold, once lost, is
    refused everywhere, even if the later one was made with the same token.
    """

    #: The subscription that is held.
    subscription_id: str
    #: The token it is held with.
    token: str
    #: The number of the claim, higher than that of every claim before it; None: the
    #: token alone counts.
    epoch: int | None = None
    #: When the hold ends by itself, by the database's clock; None: not until cleared.
    expiry: datetime | None = None


@dataclass(slots=True, kw_only=True, frozen=True)
class ScheduledCommand:
    """Work for later; there is at most one for each (command_name, data)."""

    #: What to do.
    command_name: CommandName
    #: What to do it with, a workflow's or an event's id; at most 2048 bytes.
    data: str
    #: When it is due, in milliseconds since 1970-01-01T00:00:00Z; any 64-bit integer.
    execute_time: int


@dataclass(slots=True, kw_only=True, frozen=True)
class ClaimedCommand:
    """A due command that one claimer holds under a lease."""

    #: The command as it was when it was claimed.
    command: ScheduledCommand
    #: Proof of the claim, for `complete_commands`, `release_commands`, `renew_commands`.
    lease_token: str
    #: When the lease ends by itself, by the database's clock.
    lease_expiry: datetime
    #: The number of the claim: each claim of a store has a higher one than all before
    #: it. To fence off, in other systems, those who held the command earlier.
    epoch: int = 0


@dataclass(slots=True, kw_only=True)
class ExecutionError:
    """A failure of a step that a host wants on record."""

    #: When it happened; unless given, when this object was made.
    error_time: datetime = field(default_factory=_now)
    #: The workflow it happened in; required. It need not exist.
    workflow_id: str
    #: The execution pointer it happened at; may be empty.
    execution_pointer_id: str = ""
    #: What went wrong, in words; may be empty.
    message: str = ""


@dataclass(slots=True, kw_only=True, frozen=True)
class PersistedWorkflow:
    """What `persist_workflow_with_subscriptions` answers."""

    #: The workflow's revision after the write.
    revision: int
    #: The ids of the subscriptions, in the order they were given.
    subscription_ids: list[str]


@dataclass(slots=True, kw_only=True, frozen=True)
class CommittedWorkflow:
    """What `commit_workflow` answers."""

    #: The workflow's revision after the write.
    revision: int
    #: The ids of the created subscriptions, in the order they were given.
    subscription_ids: list[str]
    #: The ids of the created events, in the order they were given.
    event_ids: list[str]


@dataclass(slots=True, kw_only=True, frozen=True)
class PurgedWorkflows:
    """How much a purge of workflows deleted, or would delete."""

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
    """What `ensure_store_exists` answers."""

    #: The store's schema version after the call.
    schema_version: int
    #: The migrations the call applied, in order; empty: it was up to date.
    applied_migrations: list[str]


@dataclass(slots=True, kw_only=True, frozen=True)
class Capabilities:
    """Which optional parts of the engine's persistence trait a store has."""

    #: Scheduled commands.
    scheduled_commands: bool
    #: The server was started with the flag that allows `truncate_all`.
    truncate_all: bool
    #: The server was started with the flag that allows `delete_namespace`.
    delete_namespace: bool


@dataclass(slots=True, kw_only=True, frozen=True)
class Namespace:
    """A whole store of its own, picked by `connect(..., namespace=...)`."""

    #: Its name; the one without a name in `connect` is `default`.
    name: str
    #: The PostgreSQL schema it lives in.
    schema: str
    #: The schema version it is at.
    schema_version: int
    #: How many rows it has in all, as PostgreSQL estimates it.
    estimated_rows: int


@dataclass(slots=True, kw_only=True, frozen=True)
class StoreInfo:
    """What a server and its store are and can do."""

    #: The server's version, for example `0.1.0`.
    server_version: str
    #: The PostgreSQL server's version, for example `18.4`.
    postgres_version: str
    #: The namespace the call went to.
    namespace: str
    #: The PostgreSQL schema that namespace lives in.
    schema: str
    #: The schema version of the store; 0: not created yet.
    schema_version: int
    #: The schema version this server works with.
    latest_schema_version: int
    #: What the store can do.
    capabilities: Capabilities
    #: The largest request, and the largest stored aggregate, in bytes.
    max_message_bytes: int
    #: How long the server remembers a `request_id` at least; 0: it knows none.
    request_retention: timedelta = timedelta(0)
