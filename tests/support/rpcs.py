"""Every RPC as the descriptors have it: path, messages, and a valid request of all fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api
from tests.support.bulk import raise_first_error
from wfe.persistence.v1 import (
    command_pb2,
    event_pb2,
    lifecycle_pb2,
    lock_pb2,
    queue_item_pb2,
    queue_pb2,
    store_pb2,
    subscription_pb2,
    transfer_pb2,
    workflow_pb2,
)
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    SubscriptionClaim,
    WatchedWorkflows,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
    WorkflowView,
)

FILES: Final = (
    workflow_pb2.DESCRIPTOR,
    event_pb2.DESCRIPTOR,
    subscription_pb2.DESCRIPTOR,
    command_pb2.DESCRIPTOR,
    lock_pb2.DESCRIPTOR,
    queue_pb2.DESCRIPTOR,
    lifecycle_pb2.DESCRIPTOR,
    store_pb2.DESCRIPTOR,
    transfer_pb2.DESCRIPTOR,
)

BULK: Final = {"CreateWorkflows", "CreateEvents"}
"""Streams whose items are answered one by one."""

LASTS: Final = {"Watch", "WatchWorkflows"}
"""Streams that only the client ends."""


@dataclass(frozen=True)
class Rpc:
    """One method of one service, and one of the ways to ask for it."""

    name: str
    path: str
    request: type[Message]
    response: type[Message]
    streams: bool
    """Whether the answer is a stream."""
    variant: str = ""
    """Which of the fields that rule each other out a valid request of it has; see VARIANTS."""

    def __str__(self) -> str:
        return f"{self.name}-{self.variant}" if self.variant else self.name

    async def call(self, api: Api, request: Message | bytes, **options: Any) -> list[Any]:
        """Call it, with a message or with any bytes; all the messages of the answer. It fails as
        the first item that is refused."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        if not self.streams:
            unary: Any = api.channel.unary_unary(self.path)
            return [self.response.FromString(await unary(data, **options))]
        stream: Any = api.channel.unary_stream(self.path)
        if self.name in LASTS:
            # It would go on for ever: the first message says that it has begun.
            call = stream(data, **options)
            try:
                return [self.response.FromString(await anext(aiter(call)))]
            finally:
                call.cancel()
        answers = [self.response.FromString(answer) async for answer in stream(data, **options)]
        for answer in answers if self.name in BULK else ():
            raise_first_error(self.request(), answer)
        return answers


def _rpc(method: MethodDescriptor) -> Rpc:
    return Rpc(
        method.name,
        f"/{method.containing_service.full_name}/{method.name}",
        GetMessageClass(method.input_type),
        GetMessageClass(method.output_type),
        method.server_streaming,
    )


_METHODS: Final = [
    _rpc(method)
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
]

VARIANTS: Final = {
    "ClaimCommands": ("wait",),
    "RequeueItems": ("break_epoch",),
    "CommitWorkflow": ("patch",),
    "SetSubscriptionToken": ("duration",),
    "ImportRecords": (
        "execution_pointers",
        "subscription",
        "event",
        "error",
        "command",
        "queue",
        "queue_item",
        "definition_sequence",
        "retention_policy",
        "name_holder",
        "fence",
    ),
}
"""Methods with fields of which a request has one or the other, and those that more entries in RPCS
have: `CommitWorkflow` is with an instance, `CommitWorkflow-patch` with a patch."""

RPCS: Final[dict[str, Rpc]] = {
    str(rpc): rpc
    for method in _METHODS
    for rpc in (
        method,
        *(replace(method, variant=variant) for variant in VARIANTS.get(method.name, ())),
    )
}

# TruncateAll empties a store that is not the tests' alone: it is called only where it can't work.
HARMLESS: Final = [rpc for rpc in RPCS.values() if rpc.name != "TruncateAll"]


def _instance() -> WorkflowInstance:
    """A workflow with every field set, that is never due."""
    pointers = [*(make.pointer(id_) for id_ in "abc"), make.full_pointer()]
    return make.full_instance(
        execution_pointers=pointers,
        status=WorkflowStatus.WORKFLOW_STATUS_SUSPENDED,
        revision=1,
        view=WorkflowView.WORKFLOW_VIEW_FULL,
    )


HEADER_FIELDS: Final = (
    "name", "root_workflow_id", "workflow_definition_id", "version", "description", "reference",
    "next_execution", "status", "data_json", "create_time", "complete_time",
)  # fmt: skip
"""The fields of a workflow that a patch's header_mask can name."""


def _patch() -> WorkflowPatch:
    """A patch of every field that there is, for a workflow with pointers "x" and "y"."""
    header = _instance()
    pointers = [*(make.pointer(id_) for id_ in "abc"), make.full_pointer()]
    return WorkflowPatch(
        id=make.new_id("workflow"),
        header=header,
        header_mask=FieldMask(paths=HEADER_FIELDS),
        execution_pointers=pointers,
        removed_pointer_ids=["x", "y"],
    )


def _commit(**state: WorkflowInstance | WorkflowPatch) -> dict[str, Any]:
    """The fields of a commit, two items in each list."""
    return {
        **state,
        "expected_revision": 1,
        "held_subscriptions": [
            SubscriptionClaim(
                subscription_id=make.new_id("subscription"), token=make.new_id("token"), epoch=1
            )
            for _ in range(2)
        ],
        "held_lease_tokens": ["1.1.00", "1.1.01"],
        "create_subscriptions": [make.subscription(), _subscription()],
        "terminate_subscription_ids": [make.new_id("subscription") for _ in range(2)],
        "create_events": [make.event(is_processed=True), make.event(is_processed=True)],
        "processed_event_ids": [make.new_id("event") for _ in range(2)],
        "errors": [make.error(), make.error()],
        "schedule_commands": [_command(), _command()],
        "complete_lease_tokens": ["1.1.02", "1.1.03"],
        **_around(),
        "request_id": make.request_id(),
    }


def _around() -> dict[str, Any]:
    """What every write of a workflow may come with, two items in each list."""
    return {
        "held_lock_tokens": _lock_tokens(),
        "enqueue": [_item(), _item()],
        "acknowledge": _acknowledgements(),
        "publish": [make.lifecycle_event(), make.lifecycle_event()],
    }


def _acknowledgements() -> list[queue_item_pb2.Acknowledgement]:
    """Of two items, which are nobody's yet."""
    return [
        queue_item_pb2.Acknowledgement(receipt=receipt, confirmed=True)
        for receipt in ("1.00", "1.01")
    ]


def _filter() -> WorkflowFilter:
    """A filter of every field, which no workflow passes."""
    return WorkflowFilter(
        statuses=[
            WorkflowStatus.WORKFLOW_STATUS_COMPLETE,
            WorkflowStatus.WORKFLOW_STATUS_TERMINATED,
        ],
        workflow_definition_id=make.new_id("definition"),
        version=1,
        reference="reference",
        name_prefix="name",
        root_workflow_id=make.new_id("root"),
        create_time_from=make.time(),
        create_time_before=make.time(1),
        complete_time_from=make.time(),
        complete_time_before=make.time(1),
        written_before=make.time(1),
        due_before=make.time(1),
        waiting_event_name=make.new_id("name"),
        waiting_event_key="key",
        error_time_from=make.time(),
    )


def _subscription() -> EventSubscription:
    """A subscription with every field set."""
    return make.subscription(
        subscription_data_json='{"why": "waits"}',
        external_token=make.new_id("token"),
        external_worker_id="worker",
        external_token_expiry=make.time(3600),
    )


def _command() -> command_pb2.ScheduledCommand:
    """A command that was due before any time that others claim for."""
    return make.command(execute_time=-(2**62))


def _item() -> queue_item_pb2.QueueItem:
    """An item with every field set, of a queue of its own."""
    return make.item(
        make.queue(),
        payload_json='{"why": "work"}',
        visible_time=make.time(),
        blocked_by=[make.new_id("lock"), make.new_id("lock")],
    )


def _lock_tokens() -> list[str]:
    """Tokens of two locks."""
    return [f"{n}.{'0' * 32}" for n in (1, 2)]


def _import(record: transfer_pb2.Record, *before: transfer_pb2.Record) -> dict[str, Any]:
    """Records to import, where there are no others."""
    return {
        "records": [*before, record],
        "on_conflict": transfer_pb2.CONFLICT_POLICY_SKIP,
    }


def _imported_workflow(*, is_continued: bool) -> transfer_pb2.Record:
    instance = _instance()
    instance.view = WorkflowView.WORKFLOW_VIEW_UNSPECIFIED
    workflow = transfer_pb2.WorkflowRecord(
        instance=instance, first_revision=1, is_continued=is_continued
    )
    return transfer_pb2.Record(workflow=workflow, creation_hash=bytes(32))


def _more_pointers() -> dict[str, Any]:
    before = _imported_workflow(is_continued=True)
    more = transfer_pb2.ExecutionPointersRecord(
        workflow_id=before.workflow.instance.id,
        execution_pointers=[make.pointer("more"), make.full_pointer("most")],
    )
    return _import(transfer_pb2.Record(execution_pointers=more), before)


def _retention_policy() -> store_pb2.RetentionPolicy:
    """It must let nothing of anybody else go: of definitions that there are not, and of ages beyond
    the first year."""
    return store_pb2.RetentionPolicy(
        workflows=[
            store_pb2.WorkflowRetention(
                workflow_definition_id=make.new_id("definition"),
                complete_age=make.LONGEST_AGE,
                terminated_age=make.LONGEST_AGE,
            )
            for _ in range(2)
        ],
        processed_event_age=make.LONGEST_AGE,
        error_age=make.LONGEST_AGE,
        overdue_command_age=make.LONGEST_AGE,
    )


_RECORDS: Final[dict[str, Callable[[], Message]]] = {
    "subscription": _subscription,
    "event": lambda: make.event(is_processed=True),
    "error": lambda: transfer_pb2.ErrorRecord(error=make.error(), copy=0),
    "command": _command,
    "queue": lambda: transfer_pb2.QueueRecord(
        name=make.queue(), kind=queue_pb2.QUEUE_KIND_EVENT, max_attempts=3
    ),
    "queue_item": lambda: transfer_pb2.QueueItemRecord(item=_item(), is_dead=True, attempt=3),
    "definition_sequence": lambda: transfer_pb2.DefinitionSequenceRecord(
        definition_id=make.new_id("definition"), last_number=3
    ),
    "retention_policy": _retention_policy,
    "name_holder": lambda: transfer_pb2.NameHolderRecord(
        name=make.new_id("name"), workflow_id=make.new_id("workflow"), claim_id=make.new_id()
    ),
    "fence": lambda: transfer_pb2.Fence(epoch=1, revision=1),
}


def _import_one(kind: str) -> dict[str, Any]:
    given: Any = {kind: _RECORDS[kind]()}
    return _import(transfer_pb2.Record(**given))


def _claim() -> dict[str, Any]:
    """A claim of a subscription."""
    return {"id": make.new_id("subscription"), "token": make.new_id("token"), "epoch": 1}


_ACTIVE: Final = WorkflowView.WORKFLOW_VIEW_ACTIVE
_OLDEST_FIRST: Final = ListOrder.LIST_ORDER_OLDEST_FIRST

_FIELDS: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "CreateNewWorkflow": lambda: {
        "instance": _instance(),
        "enqueue": [_item(), _item()],
        "held_lock_tokens": _lock_tokens(),
    },
    "CreateWorkflows": lambda: {
        "workflows": [
            workflow_pb2.CreateNewWorkflowRequest(**_FIELDS["CreateNewWorkflow"]())
            for _ in range(2)
        ],
        "request_id": make.request_id(),
    },
    "PersistWorkflow": lambda: {
        "instance": _instance(),
        "expected_revision": 1,
        "request_id": make.request_id(),
        **_around(),
    },
    "PersistWorkflowWithSubscriptions": lambda: {
        "instance": _instance(),
        "subscriptions": [make.subscription(), _subscription()],
        "expected_revision": 1,
        "request_id": make.request_id(),
        **_around(),
    },
    "CommitWorkflow": lambda: _commit(instance=_instance()),
    "CommitWorkflow-patch": lambda: _commit(patch=_patch()),
    "GetWorkflowInstance": lambda: {"id": make.new_id("workflow"), "view": _ACTIVE},
    "GetWorkflowInstanceByName": lambda: {"name": make.new_id("workflow"), "view": _ACTIVE},
    "WaitForWorkflow": lambda: {
        "id": make.new_id("workflow"),
        "statuses": [
            WorkflowStatus.WORKFLOW_STATUS_COMPLETE,
            WorkflowStatus.WORKFLOW_STATUS_SUSPENDED,
        ],
        "wait": Duration(nanos=10_000_000),
    },
    "GetWorkflowInstances": lambda: {
        "ids": [make.new_id("workflow") for _ in range(3)],
        "view": _ACTIVE,
    },
    "GetRunnableInstances": lambda: {
        "as_at": make.FIRST_TIME,
        "workflow_definition_ids": [make.new_id("definition") for _ in range(2)],
        "page_size": 10,
        "with_order_keys": True,
    },
    "SetNameHolder": lambda: {
        "name": make.new_id("name"),
        "workflow_id": make.new_id("workflow"),
        "claim_id": make.new_id("claim"),
        "expected_claim_id": make.new_id("claim"),
    },
    "GetNameHolder": lambda: {"name": make.new_id("name")},
    "NextDefinitionSequence": lambda: {"definition_id": make.new_id("definition")},
    "ListExecutionPointers": lambda: {
        "workflow_id": make.new_id("workflow"),
        "active_only": True,
        "expected_revision": 1,
        "page_size": 10,
    },
    "ListWorkflows": lambda: {
        "filter": _filter(),
        "order": _OLDEST_FIRST,
        "view": _ACTIVE,
        "page_size": 10,
    },
    "CountWorkflows": lambda: {"filter": _filter()},
    "DeleteWorkflow": lambda: {"id": make.new_id("workflow"), "expected_revision": 1},
    "PurgeWorkflows": lambda: {
        "ended_before": make.time(),
        "statuses": [
            WorkflowStatus.WORKFLOW_STATUS_COMPLETE,
            WorkflowStatus.WORKFLOW_STATUS_TERMINATED,
        ],
        # A purge must never be one of anybody else's: it always says whose.
        "workflow_definition_id": make.new_id("definition"),
        "dry_run": True,
        "max_rows": 10,
    },
    "WatchWorkflows": lambda: {
        "filter": WatchedWorkflows(
            workflow_id=make.new_id("workflow"),
            statuses=[
                WorkflowStatus.WORKFLOW_STATUS_COMPLETE,
                WorkflowStatus.WORKFLOW_STATUS_TERMINATED,
            ],
            workflow_definition_id=make.new_id("definition"),
            version=1,
            reference="reference",
            name_prefix="name",
            root_workflow_id=make.new_id("root"),
        ),
        "heartbeat": Duration(seconds=10),
    },
    "CreateEvents": lambda: {
        "events": [event_pb2.CreateEventRequest(**_FIELDS["CreateEvent"]()) for _ in range(2)],
        "request_id": make.request_id(),
    },
    "CreateEvent": lambda: {
        "event": make.event(is_processed=True),
        "enqueue": [_item(), _item()],
    },
    "GetEvent": lambda: {"id": make.new_id("event")},
    "GetRunnableEvents": lambda: {
        "as_at": make.FIRST_TIME,
        "page_size": 10,
        "with_order_keys": True,
    },
    "GetEvents": lambda: {
        "event_name": "order.paid",
        "event_key": make.new_id("key"),
        "as_of": make.time(),
        "event_time_from": make.FIRST_TIME,
        "page_size": 10,
        "with_order_keys": True,
    },
    "MarkEventProcessed": lambda: {"id": make.new_id("event")},
    "MarkEventUnprocessed": lambda: {"id": make.new_id("event")},
    "ListEvents": lambda: {
        "event_name": make.new_id("name"),
        "event_key": make.new_id("key"),
        "is_processed": True,
        "event_time_from": make.time(),
        "event_time_before": make.time(1),
        "order": _OLDEST_FIRST,
        "page_size": 10,
    },
    "PurgeEvents": lambda: {
        "event_time_before": make.time(),
        "event_name": make.new_id("name"),
        "include_unprocessed": True,
        "dry_run": True,
        "max_rows": 10,
    },
    "CreateEventSubscription": lambda: {"subscription": _subscription()},
    "GetSubscription": lambda: {"id": make.new_id("subscription")},
    "GetSubscriptions": lambda: {
        "event_name": "order.paid",
        "event_key": make.new_id("key"),
        "as_of": make.time(),
        "page_size": 10,
    },
    "GetFirstOpenSubscription": lambda: {
        "event_name": "order.paid",
        "event_key": make.new_id("key"),
        "as_of": make.time(),
    },
    "TerminateSubscription": lambda: _claim(),
    "SetSubscriptionToken": lambda: _claim() | {"worker_id": "worker", "expiry": make.LAST_TIME},
    "SetSubscriptionToken-duration": lambda: (
        _claim() | {"worker_id": "worker", "duration": Duration(seconds=60)}
    ),
    "ClearSubscriptionToken": lambda: _claim(),
    "RenewSubscriptionToken": lambda: _claim() | {"duration": Duration(seconds=60)},
    "ListSubscriptions": lambda: {
        "workflow_id": make.new_id("workflow"),
        "event_name": "order.paid",
        "event_key": make.new_id("key"),
        "held": True,
        "page_size": 10,
    },
    "ScheduleCommand": lambda: {"command": _command()},
    "ClaimCommands": lambda: {
        "as_of": make.FIRST_TIME,
        "limit": 10,
        "lease_duration": Duration(seconds=60),
        "worker_id": "worker",
        "command_name": command_pb2.COMMAND_NAME_PROCESS_WORKFLOW,
    },
    "ClaimCommands-wait": lambda: {
        "limit": 10,
        "lease_duration": Duration(seconds=60),
        "worker_id": "worker",
        "command_name": command_pb2.COMMAND_NAME_PROCESS_WORKFLOW,
        "wait": Duration(nanos=10_000_000),
    },
    "CompleteCommands": lambda: {"lease_tokens": ["1.1.00", "1.1.01", "1.1.02"]},
    "ReleaseCommands": lambda: {"lease_tokens": ["1.1.00", "1.1.01", "1.1.02"]},
    "RenewCommands": lambda: {
        "lease_tokens": ["1.1.00", "1.1.01", "1.1.02"],
        "lease_duration": Duration(seconds=60),
    },
    "BreakCommandLease": lambda: {
        "command_name": command_pb2.COMMAND_NAME_PROCESS_WORKFLOW,
        "data": make.new_id("workflow"),
        "epoch": 1,
    },
    "ListCommands": lambda: {
        "command_name": command_pb2.COMMAND_NAME_PROCESS_WORKFLOW,
        "data": make.new_id("workflow"),
        "due_before": make.time(),
        "leased": True,
        "worker_id": "worker",
        "page_size": 10,
    },
    "AcquireLock": lambda: {
        "resource": make.new_id("resource"),
        "owner": "owner",
        "ttl": Duration(seconds=60),
        "wait": Duration(seconds=1),
        "request_id": make.request_id(),
    },
    "RenewLocks": lambda: {"tokens": _lock_tokens(), "ttl": Duration(seconds=60)},
    "ReleaseLock": lambda: {"token": f"1.{'0' * 32}"},
    "BreakLock": lambda: {"resource": make.new_id("resource"), "epoch": 1},
    "ListLocks": lambda: {
        "resource_prefix": make.new_id("resource"),
        "owner": "owner",
        "page_size": 10,
    },
    "Enqueue": lambda: {"items": [_item(), _item()]},
    "Dequeue": lambda: {
        "queues": [make.queue(), make.queue()],
        "max_items": 10,
        "lease_duration": Duration(seconds=60),
        "worker_id": "worker",
        "acknowledge": _acknowledgements(),
        "return_items": [
            queue_pb2.ReturnedItem(receipt="1.02", delay=Duration(seconds=60)),
            queue_pb2.ReturnedItem(receipt="1.03", delay=Duration(seconds=60)),
        ],
        "include_workflow": True,
        "view": _ACTIVE,
        "wait": Duration(nanos=10_000_000),
    },
    "Acknowledge": lambda: {"acknowledge": _acknowledgements()},
    "ReturnItems": lambda: {
        "return_items": [
            queue_pb2.ReturnedItem(receipt="1.00", delay=Duration(seconds=60)),
            queue_pb2.ReturnedItem(receipt="1.01", delay=Duration(seconds=60)),
        ]
    },
    "RenewItems": lambda: {
        "receipts": ["1.00", "1.01", "1.02"],
        "lease_duration": Duration(seconds=60),
    },
    "ListQueueItems": lambda: {
        "queue": make.queue(),
        "state": queue_pb2.QUEUE_ITEM_STATE_DEAD,
        "id": make.new_id("item"),
        "page_size": 10,
    },
    "GetQueueStats": lambda: {"queues": [make.queue(), make.queue()], "page_size": 10},
    "RequeueItems": lambda: {
        "queue": make.queue(),
        "ids": [make.new_id("item") for _ in range(3)],
        "max_dead": 10,
        "break_leases": True,
    },
    "RequeueItems-break_epoch": lambda: {
        "queue": make.queue(),
        "ids": [make.new_id("item")],
        "break_epoch": 1,
    },
    "DeleteItems": lambda: {
        "queue": make.queue(),
        "ids": [make.new_id("item") for _ in range(3)],
        "max_dead": 10,
    },
    "ConfigureQueue": lambda: {
        "queue": make.queue(),
        "kind": queue_pb2.QUEUE_KIND_EVENT,
        "max_attempts": 3,
    },
    "Publish": lambda: {"events": [make.lifecycle_event(), make.lifecycle_event()]},
    "Watch": lambda: {
        "workflow_id": make.new_id("workflow"),
        "workflow_definition_id": make.new_id("definition"),
        "types": [
            lifecycle_pb2.LIFECYCLE_EVENT_TYPE_STARTED,
            lifecycle_pb2.LIFECYCLE_EVENT_TYPE_ERROR,
        ],
        "heartbeat": Duration(seconds=10),
    },
    "EnsureStoreExists": dict,
    "PersistErrors": lambda: {"errors": [make.error(), make.error()]},
    "ListErrors": lambda: {
        "workflow_id": make.new_id("workflow"),
        "error_time_from": make.time(),
        "error_time_before": make.time(1),
        "page_size": 10,
    },
    "GetStoreInfo": dict,
    "TruncateAll": dict,
    "CreateNamespace": lambda: {
        "name": make.new_namespace(),
        "database": "home",
        "database_labels": ["name=home"],
    },
    "ListDatabases": dict,
    # It is there already.
    "MoveNamespace": lambda: {"name": make.new_namespace(), "database": "home", "way": 0},
    "AbortMoveNamespace": lambda: {"name": make.new_namespace()},
    "ListNamespaces": lambda: {"page_size": 10},
    "CreateNamespaceSet": lambda: {
        "name": make.new_namespace_set(),
        "members": 1,
        "databases": ["home", "home"],
    },
    "GetNamespaceSet": lambda: {"name": make.new_namespace_set()},
    "DeleteNamespaceSet": lambda: {"name": make.new_namespace_set(), "force": True},
    "DeleteNamespace": lambda: {"name": make.new_namespace(), "force": True},
    "SetRetentionPolicy": lambda: {"policy": _retention_policy()},
    "GetRetentionPolicy": dict,
    "RunRetention": lambda: {"dry_run": True, "max_rows": 10},
    "GetStorageReport": lambda: {"max_rows": 10},
    "ExportRecords": lambda: {
        "kinds": [transfer_pb2.RECORD_KIND_WORKFLOW, transfer_pb2.RECORD_KIND_ERROR],
        "workflows": transfer_pb2.WorkflowSelection(
            ids=[make.new_id("workflow"), make.new_id("workflow")],
            statuses=[
                WorkflowStatus.WORKFLOW_STATUS_COMPLETE,
                WorkflowStatus.WORKFLOW_STATUS_TERMINATED,
            ],
            workflow_definition_ids=[make.new_id("definition"), make.new_id("definition")],
            create_time_from=make.time(),
            create_time_before=make.time(1),
        ),
        "hold": Duration(nanos=1_000_000),
    },
    "ImportRecords": lambda: _import(_imported_workflow(is_continued=False)),
    "ImportRecords-execution_pointers": _more_pointers,
    **{f"ImportRecords-{kind}": partial(_import_one, kind) for kind in _RECORDS},
}


def valid_request(rpc: Rpc) -> Any:
    """A request with every field set (but page tokens), of new ids; what it names need not exist.

    Workflows in it are never due and events processed, so that nobody comes across them.
    """
    return rpc.request(**_FIELDS[str(rpc)]())


def is_a(field: FieldDescriptor, *messages: Descriptor) -> bool:
    """Whether a field holds one of these messages."""
    return field.message_type is not None and field.message_type in messages


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def is_time(field: FieldDescriptor) -> bool:
    """Whether a field is a time or a duration: one value, although it is a message."""
    return is_a(field, Timestamp.DESCRIPTOR, Duration.DESCRIPTOR)


def fields(message: Message, path: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    """Every field of a message at any depth, with the path that an error would name it by.

    Of a list it is the last item, of a map the last key, so the message must have such ones. Of
    fields that rule each other out it is the one that is there, of a patch's header only what its
    mask names: nothing else in there counts.
    """
    field: Any
    for field in message.DESCRIPTOR.fields:
        if _has_alternative(field) and not message.HasField(field.name):
            continue
        at = f"{path}.{field.name}" if path else field.name
        value = getattr(message, field.name)
        if is_map(field):
            assert value, f"{at} is empty: valid_request must fill it"
            at += f'["{max(value)}"]'
        elif field.is_repeated:
            assert len(value), f"{at} is empty: valid_request must fill it"
            at += f"[{len(value) - 1}]"
            value = value[-1]
        yield at, field
        if isinstance(value, Message) and not is_time(field) and not is_map(field):
            assert field.is_repeated or message.HasField(field.name), f"{at} is absent"
            for below, each in fields(value, at):
                if name_of(field) != "WorkflowPatch.header" or (
                    below.removeprefix(f"{at}.") in look(message, "header_mask").paths
                ):
                    yield below, each


def _has_alternative(field: FieldDescriptor) -> bool:
    """Whether a request has this field or another one."""
    oneof = field.containing_oneof  # every `optional` field is in one, too, by itself
    return (oneof is not None and len(oneof.fields) > 1) or name_of(field) in (
        "ClaimCommandsRequest.as_of",
        "ClaimCommandsRequest.wait",
        "RequeueItemsRequest.break_epoch",
        "SetSubscriptionTokenRequest.expiry",
        "SetSubscriptionTokenRequest.duration",
    )


def name_of(field: FieldDescriptor) -> str:
    """A field as `Message.field`."""
    assert field.containing_type is not None
    return f"{field.containing_type.name}.{field.name}"


_SEGMENT: Final = re.compile(r'(\w+)(?:\[(?:(\d+)|"(.*?)")\])?(?:\.|$)')


def _descend(message: Any, path: str) -> tuple[Any, str, int | str | None]:
    """The message that has the last field of a path, that field's name, and its index or key."""
    segments = [(m[1], m[3] if m[2] is None else int(m[2])) for m in _SEGMENT.finditer(path)]
    for name, index in segments[:-1]:
        message = getattr(message, name)
        if index is not None:
            message = message[index]
    return message, *segments[-1]


def put(message: Message, path: str, value: Any) -> None:
    """Set the field of a path, as `fields` names it. None: clear it."""
    holder, name, index = _descend(message, path)
    if index is not None and not isinstance(value, Message):
        getattr(holder, name)[index] = value
    elif value is None:
        holder.ClearField(name)
    elif isinstance(value, Message):
        target = getattr(holder, name)
        (target if index is None else target[index]).CopyFrom(value)
    else:
        setattr(holder, name, value)


def look(message: Message, path: str) -> Any:
    """The value of the field of a path."""
    holder, name, index = _descend(message, path)
    value = getattr(holder, name)
    return value if index is None else value[index]


def unknown_field(size: int = 1) -> bytes:
    """A field that nobody knows, with so many bytes in it."""
    number, length_delimited = 20_999, 2
    return _varint(number << 3 | length_delimited) + _varint(size) + bytes(size)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes([number])
    return bytes([number & 0x7F | 0x80]) + _varint(number >> 7)


def of_size(request: Message, size: int) -> bytes:
    """A request that an unknown field makes so many bytes long."""
    data = request.SerializeToString()
    rest = unknown_field(size - len(data))
    return data + unknown_field(size - len(data) - (len(rest) - (size - len(data))))
