"""Bad input: refused with the right status, reason and field, without a trace, on every RPC.

The cases are made from the descriptors and the tables below. A field that is in no table fails
`test_every_field_has_bad_values_or_a_reason_for_none`.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails, failure_of, invalid
from tests.support.rpcs import (
    HARMLESS,
    RPCS,
    Rpc,
    fields,
    is_a,
    is_map,
    look,
    name_of,
    put,
    unknown_field,
    valid_request,
)
from tests.support.scene import Scene, filled, found, in_namespace, never_due, refusal, with_values
from wfe.persistence.v1.command_pb2 import ScheduledCommand
from wfe.persistence.v1.error_reason_pb2 import FieldViolationReason
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.store_pb2 import ExecutionError, PersistErrorsRequest
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    CountWorkflowsRequest,
    ExecutionPointer,
    GetRunnableInstancesRequest,
    PersistWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
    WaitForWorkflowRequest,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
)

CANARY: Final = "canary-2b7e1516"
"""Stands in every bad text, and must never be seen in an answer."""


# The tables: what is bad for a field.


@dataclass(frozen=True)
class Bad:
    """A bad value, and the FieldViolationReason it is refused for."""

    what: str
    value: Any
    reason: str


REQUIRED_IDS: Final = {
    # Neither empty nor blank, at most 512 bytes.
    "WorkflowInstance.workflow_definition_id",
    "ExecutionPointer.id",
    "ExecutionPointer.children",
    "ExecutionPointer.scope",
    "GetWorkflowInstanceRequest.id",
    "GetWorkflowInstanceByNameRequest.name",
    "GetWorkflowInstancesRequest.ids",
    "NextDefinitionSequenceRequest.definition_id",
    "SetNameHolderRequest.name",
    "SetNameHolderRequest.claim_id",
    "GetNameHolderRequest.name",
    "WorkflowPatch.id",
    "WorkflowPatch.removed_pointer_ids",
    "SubscriptionClaim.subscription_id",
    "SubscriptionClaim.token",
    "CommitWorkflowRequest.held_lease_tokens",
    "CommitWorkflowRequest.terminate_subscription_ids",
    "CommitWorkflowRequest.processed_event_ids",
    "CommitWorkflowRequest.complete_lease_tokens",
    "CommitWorkflowRequest.held_lock_tokens",
    "CreateNewWorkflowRequest.held_lock_tokens",
    "PersistWorkflowRequest.held_lock_tokens",
    "PersistWorkflowWithSubscriptionsRequest.held_lock_tokens",
    "ListExecutionPointersRequest.workflow_id",
    "DeleteWorkflowRequest.id",
    "Event.event_name",
    "GetEventRequest.id",
    "GetEventsRequest.event_name",
    "MarkEventProcessedRequest.id",
    "MarkEventUnprocessedRequest.id",
    "EventSubscription.workflow_id",
    "EventSubscription.event_name",
    "EventSubscription.external_token",
    "GetSubscriptionRequest.id",
    "GetSubscriptionsRequest.event_name",
    "GetFirstOpenSubscriptionRequest.event_name",
    "TerminateSubscriptionRequest.id",
    "TerminateSubscriptionRequest.token",
    "RenewSubscriptionTokenRequest.id",
    "RenewSubscriptionTokenRequest.token",
    "SetSubscriptionTokenRequest.id",
    "SetSubscriptionTokenRequest.token",
    "ClearSubscriptionTokenRequest.id",
    "ClearSubscriptionTokenRequest.token",
    "CompleteCommandsRequest.lease_tokens",
    "ReleaseCommandsRequest.lease_tokens",
    "RenewCommandsRequest.lease_tokens",
    "AcquireLockRequest.resource",
    "WaitForWorkflowRequest.id",
    "RenewLocksRequest.tokens",
    "ReleaseLockRequest.token",
    "BreakLockRequest.resource",
    "ExecutionError.workflow_id",
    "QueueItem.id",
    "QueueItem.blocked_by",
    "Acknowledgement.receipt",
    "ReturnedItem.receipt",
    "RenewItemsRequest.receipts",
    "RequeueItemsRequest.ids",
    "DeleteItemsRequest.ids",
    "GetRunnableInstancesRequest.workflow_definition_ids",
    "WorkflowSelection.ids",
    "WorkflowSelection.workflow_definition_ids",
    "ExecutionPointersRecord.workflow_id",
    "DefinitionSequenceRecord.definition_id",
    "NameHolderRecord.name",
    "NameHolderRecord.workflow_id",
    "NameHolderRecord.claim_id",
    "LifecycleEvent.workflow_id",
    "LifecycleEvent.workflow_definition_id",
}
OPTIONAL_IDS: Final = {
    # Empty: the store chooses, or none. Blank is a mistake.
    "WorkflowInstance.id",
    "Event.id",
    "EventSubscription.id",
    "SetNameHolderRequest.workflow_id",
    "SetNameHolderRequest.expected_claim_id",
}
KEYS: Final = {
    # Anything of at most 512 bytes.
    "WorkflowInstance.name",
    "WorkflowInstance.root_workflow_id",
    "WorkflowInstance.reference",
    "ExecutionPointer.event_name",
    "ExecutionPointer.event_key",
    "ExecutionPointer.predecessor_id",
    "Event.event_key",
    "GetEventsRequest.event_key",
    "EventSubscription.execution_pointer_id",
    "EventSubscription.event_key",
    "EventSubscription.external_worker_id",
    "GetSubscriptionsRequest.event_key",
    "GetFirstOpenSubscriptionRequest.event_key",
    "SetSubscriptionTokenRequest.worker_id",
    "ClaimCommandsRequest.worker_id",
    "ExecutionError.execution_pointer_id",
    "ListErrorsRequest.workflow_id",
    "WorkflowFilter.workflow_definition_id",
    "WorkflowFilter.reference",
    "WorkflowFilter.name_prefix",
    "WorkflowFilter.root_workflow_id",
    "PurgeWorkflowsRequest.workflow_definition_id",
    "WorkflowRetention.workflow_definition_id",
    "ListEventsRequest.event_name",
    "ListEventsRequest.event_key",
    "PurgeEventsRequest.event_name",
    "ListSubscriptionsRequest.workflow_id",
    "ListSubscriptionsRequest.event_name",
    "ListSubscriptionsRequest.event_key",
    "ListCommandsRequest.worker_id",
    "AcquireLockRequest.owner",
    "ListLocksRequest.resource_prefix",
    "ListLocksRequest.owner",
    "WorkflowFilter.waiting_event_name",
    "WorkflowFilter.waiting_event_key",
    "DequeueRequest.worker_id",
    "ListQueueItemsRequest.id",
    "LifecycleEvent.reference",
    "LifecycleEvent.step_name",
    "WatchRequest.workflow_id",
    "WatchRequest.workflow_definition_id",
    "WatchedWorkflows.workflow_id",
    "WatchedWorkflows.workflow_definition_id",
    "WatchedWorkflows.reference",
    "WatchedWorkflows.name_prefix",
    "WatchedWorkflows.root_workflow_id",
}
LONG_KEYS: Final = {
    "ScheduledCommand.data": 2048,
    "ListCommandsRequest.data": 2048,
    "BreakCommandLeaseRequest.data": 2048,
    "LifecycleEvent.message": 65_536,
}
CURSORS: Final = {
    # What the server itself has made.
    "WatchRequest.after",
    "WatchWorkflowsRequest.after",
    "ExportRecordsRequest.after",
}
FREE_TEXTS: Final = {
    # Without a bound: only NUL is bad. (Of page tokens more is said in tests of their own.)
    "WorkflowInstance.description",
    "ExecutionPointer.step_name",
    "ExecutionError.message",
    "GetRunnableInstancesRequest.page_token",
    "GetRunnableEventsRequest.page_token",
    "GetEventsRequest.page_token",
    "GetSubscriptionsRequest.page_token",
    "ListErrorsRequest.page_token",
    "ListNamespacesRequest.page_token",
    "ListExecutionPointersRequest.page_token",
    "ListWorkflowsRequest.page_token",
    "PurgeWorkflowsRequest.page_token",
    "ListEventsRequest.page_token",
    "PurgeEventsRequest.page_token",
    "ListSubscriptionsRequest.page_token",
    "ListCommandsRequest.page_token",
    "ListLocksRequest.page_token",
    "ListQueueItemsRequest.page_token",
    "GetQueueStatsRequest.page_token",
}
UUIDS: Final = {
    "CreateWorkflowsRequest.request_id",
    "CreateEventsRequest.request_id",
    "PersistWorkflowRequest.request_id",
    "PersistWorkflowWithSubscriptionsRequest.request_id",
    "CommitWorkflowRequest.request_id",
    "AcquireLockRequest.request_id",
}
MASKS: Final = {
    # Names of header fields.
    "FieldMask.paths",
}
NAMESPACES: Final = {
    # [a-z][a-z0-9_]{0,39}
    "CreateNamespaceRequest.name",
    "DeleteNamespaceRequest.name",
    # [a-z][a-z0-9_]{0,35}
    "CreateNamespaceSetRequest.name",
    "GetNamespaceSetRequest.name",
    "DeleteNamespaceSetRequest.name",
    "MoveNamespaceRequest.name",
    "AbortMoveNamespaceRequest.name",
}
QUEUES: Final = {
    # [a-z][a-z0-9_.-]{0,63}
    "QueueItem.queue",
    "DequeueRequest.queues",
    "ListQueueItemsRequest.queue",
    "GetQueueStatsRequest.queues",
    "RequeueItemsRequest.queue",
    "DeleteItemsRequest.queue",
    "ConfigureQueueRequest.queue",
    "QueueRecord.name",
}
DATABASES: Final = {
    # [a-z][a-z0-9_-]{0,39}
    "CreateNamespaceRequest.database",
    "CreateNamespaceSetRequest.databases",
    "MoveNamespaceRequest.database",
}
LABELS: Final = {
    # KEY=VALUE
    "CreateNamespaceRequest.database_labels",
}
REQUIRED_JSON: Final = {"WorkflowInstance.data_json", "Event.event_data_json"}
JSON: Final = REQUIRED_JSON | {
    "ExecutionPointer.persistence_data_json",
    "ExecutionPointer.event_data_json",
    "ExecutionPointer.context_item_json",
    "ExecutionPointer.outcome_json",
    "ExecutionPointer.extension_attributes_json",
    "WorkflowInstance.extension_attributes_json",
    "EventSubscription.subscription_data_json",
    "QueueItem.payload_json",
}
MOST_JSON: Final = {"QueueItem.payload_json": 65_536}
REQUIRED_TIMES: Final = {
    "WorkflowInstance.create_time",
    "Event.event_time",
    "EventSubscription.subscribe_as_of",
    "ExecutionError.error_time",
    "PurgeWorkflowsRequest.ended_before",
    "PurgeEventsRequest.event_time_before",
    "LifecycleEvent.event_time",
}
OPTIONAL_TIMES: Final = {
    "WorkflowInstance.complete_time",
    "ExecutionPointer.sleep_until",
    "ExecutionPointer.start_time",
    "ExecutionPointer.end_time",
    "GetRunnableInstancesRequest.as_at",
    "GetRunnableEventsRequest.as_at",
    "GetEventsRequest.as_of",
    "GetEventsRequest.event_time_from",
    "EventSubscription.external_token_expiry",
    "GetSubscriptionsRequest.as_of",
    "GetFirstOpenSubscriptionRequest.as_of",
    "SetSubscriptionTokenRequest.expiry",
    "ClaimCommandsRequest.as_of",
    "WorkflowFilter.create_time_from",
    "WorkflowFilter.create_time_before",
    "WorkflowFilter.complete_time_from",
    "WorkflowFilter.complete_time_before",
    "WorkflowFilter.written_before",
    "WorkflowFilter.due_before",
    "WorkflowFilter.error_time_from",
    "ListCommandsRequest.due_before",
    "ListEventsRequest.event_time_from",
    "ListEventsRequest.event_time_before",
    "ListErrorsRequest.error_time_from",
    "ListErrorsRequest.error_time_before",
    "QueueItem.visible_time",
    "WorkflowSelection.create_time_from",
    "WorkflowSelection.create_time_before",
}
ENUMS: Final = {
    # What is bad where it is not 0 and the unknown.
    "WorkflowInstance.view": (2, 3, 99, -1),  # a part of a workflow is no state
    "GetWorkflowInstanceRequest.view": (4, 99, -1),
    "GetWorkflowInstanceByNameRequest.view": (4, 99, -1),
    "GetWorkflowInstancesRequest.view": (4, 99, -1),
    "DequeueRequest.view": (4, 99, -1),
    "ListQueueItemsRequest.state": (5, 99, -1),
    "ListWorkflowsRequest.view": (4, 99, -1),
    "ListWorkflowsRequest.order": (3, 99, -1),
    "ListEventsRequest.order": (3, 99, -1),
    "ClaimCommandsRequest.command_name": (3, 99, -1),
    "BreakCommandLeaseRequest.command_name": (0, 3, 99, -1),
    "ListCommandsRequest.command_name": (0, 3, 99, -1),  # 0 only because it goes with data
    "ImportRecordsRequest.on_conflict": (3, 99, -1),
    "MoveNamespaceRequest.way": (3, 99, -1),
    "PurgeWorkflowsRequest.statuses": (0, 1, 2, 99, -1),  # only what has ended
}
NUMBERS: Final = {
    "WorkflowInstance.version": (2**31, 2**32 - 1),
    "ExecutionPointer.step_id": (-1, -(2**63), 2**31, 2**63 - 1),
    "ExecutionPointer.retry_count": (2**31, 2**32 - 1),
    "EventSubscription.step_id": (-1, -(2**63), 2**31, 2**63 - 1),
    "LifecycleEvent.version": (2**31, 2**32 - 1),
    "LifecycleEvent.step_id": (-1, -(2**63), 2**31, 2**63 - 1),
    "PersistWorkflowRequest.expected_revision": (0, -1, -(2**63)),
    "PersistWorkflowWithSubscriptionsRequest.expected_revision": (0, -1, -(2**63)),
    "GetRunnableInstancesRequest.page_size": (-1, -(2**31)),
    "GetRunnableEventsRequest.page_size": (-1, -(2**31)),
    "GetEventsRequest.page_size": (-1, -(2**31)),
    "GetSubscriptionsRequest.page_size": (-1, -(2**31)),
    "ListErrorsRequest.page_size": (-1, -(2**31)),
    "ListNamespacesRequest.page_size": (-1, -(2**31)),
    "ClaimCommandsRequest.limit": (-1, -(2**31)),
    "CommitWorkflowRequest.expected_revision": (0, -1, -(2**63)),
    "ListExecutionPointersRequest.expected_revision": (0, -1, -(2**63)),
    "DeleteWorkflowRequest.expected_revision": (0, -1, -(2**63)),
    "SubscriptionClaim.epoch": (0, -1, -(2**63)),
    "TerminateSubscriptionRequest.epoch": (0, -1, -(2**63)),
    "SetSubscriptionTokenRequest.epoch": (0, -1, -(2**63)),
    "ClearSubscriptionTokenRequest.epoch": (0, -1, -(2**63)),
    "RenewSubscriptionTokenRequest.epoch": (0, -1, -(2**63)),
    "WorkflowFilter.version": (2**31, 2**32 - 1),
    "WatchedWorkflows.version": (2**31, 2**32 - 1),
    "ListExecutionPointersRequest.page_size": (-1, -(2**31)),
    "ListWorkflowsRequest.page_size": (-1, -(2**31)),
    "ListEventsRequest.page_size": (-1, -(2**31)),
    "ListSubscriptionsRequest.page_size": (-1, -(2**31)),
    "ListCommandsRequest.page_size": (-1, -(2**31)),
    "BreakLockRequest.epoch": (0, -1, -(2**63)),
    "BreakCommandLeaseRequest.epoch": (0, -1, -(2**63)),
    "RequeueItemsRequest.break_epoch": (0, -1, -(2**63)),
    "ListLocksRequest.page_size": (-1, -(2**31)),
    "PurgeWorkflowsRequest.max_rows": (-1, -(2**31)),
    "PurgeEventsRequest.max_rows": (-1, -(2**31)),
    "RunRetentionRequest.max_rows": (-1, -(2**31)),
    "CreateNamespaceSetRequest.members": (-1, -(2**31), 0, 257, 2**31 - 1),
    "GetStorageReportRequest.max_rows": (-1, -(2**31)),
    "DequeueRequest.max_items": (-1, -(2**31)),
    "ListQueueItemsRequest.page_size": (-1, -(2**31)),
    "GetQueueStatsRequest.page_size": (-1, -(2**31)),
    "RequeueItemsRequest.max_dead": (-1, -(2**31)),
    "DeleteItemsRequest.max_dead": (-1, -(2**31)),
    "ConfigureQueueRequest.max_attempts": (-1, -(2**31)),
    "QueueRecord.max_attempts": (0, -1, -(2**31)),
    "QueueItemRecord.attempt": (-1, -(2**31)),
    "ErrorRecord.copy": (-1, -(2**31)),
    "DefinitionSequenceRecord.last_number": (-1, -(2**63)),
    "Fence.epoch": (-1, -(2**63)),
    "Fence.revision": (-1, -(2**63)),
    "WorkflowRecord.first_revision": (0, -1, -(2**63), 2, 2**63 - 1),  # the revision is 1
}
NO_BAD_VALUE: Final = {
    "WorkflowInstance.execution_pointers": "any number of them will do",
    "WorkflowInstance.next_execution": "any int64",
    "WorkflowInstance.revision": "is ignored on write",
    "PersistWorkflowWithSubscriptionsRequest.subscriptions": "any number of them will do",
    "ExecutionPointer.active": "a bool is good either way",
    "ExecutionPointer.event_published": "a bool is good either way",
    "Event.is_processed": "a bool is good either way",
    "ScheduledCommand.execute_time": "any int64",
    "PersistErrorsRequest.errors": "any number of them will do",
    "DeleteNamespaceRequest.force": "a bool is good either way",
    "DeleteNamespaceSetRequest.force": "a bool is good either way",
    "GetRunnableInstancesRequest.with_order_keys": "a bool is good either way",
    "GetRunnableEventsRequest.with_order_keys": "a bool is good either way",
    "GetEventsRequest.with_order_keys": "a bool is good either way",
    "MoveNamespaceRequest.dry_run": "a bool is good either way",
    "CommitWorkflowRequest.instance": "one of the two; see the tests of a commit's state",
    "CommitWorkflowRequest.patch": "one of the two; see the tests of a commit's state",
    "CommitWorkflowRequest.held_subscriptions": "see MOST_ITEMS",
    "CommitWorkflowRequest.create_subscriptions": "see MOST_ITEMS",
    "CommitWorkflowRequest.create_events": "see MOST_ITEMS",
    "CommitWorkflowRequest.errors": "see MOST_ITEMS",
    "CommitWorkflowRequest.schedule_commands": "see MOST_ITEMS",
    "WorkflowPatch.header": "absent: what the mask names becomes absent",
    "WorkflowPatch.header_mask": "absent: the header stays as it is",
    "WorkflowPatch.execution_pointers": "any number of them will do",
    "EventSubscription.external_token_epoch": "is ignored on write",
    "ListExecutionPointersRequest.active_only": "a bool is good either way",
    "ListWorkflowsRequest.filter": "absent: any workflow",
    "CountWorkflowsRequest.filter": "absent: any workflow",
    "WatchWorkflowsRequest.filter": "absent: any workflow",
    "PurgeWorkflowsRequest.dry_run": "a bool is good either way",
    "RequeueItemsRequest.break_leases": "a bool is good either way",
    "ListEventsRequest.is_processed": "a bool is good either way",
    "PurgeEventsRequest.include_unprocessed": "a bool is good either way",
    "PurgeEventsRequest.dry_run": "a bool is good either way",
    "RunRetentionRequest.dry_run": "a bool is good either way",
    "SetRetentionPolicyRequest.policy": "absent: no policy",
    "RetentionPolicy.workflows": "see test_retention.py for how many",
    "ListSubscriptionsRequest.held": "a bool is good either way",
    "ListCommandsRequest.leased": "a bool is good either way",
    "EnqueueRequest.items": "see the tests of too many items",
    "DequeueRequest.acknowledge": "see the tests of too many items",
    "DequeueRequest.return_items": "see the tests of too many items",
    "DequeueRequest.include_workflow": "a bool is good either way",
    "Acknowledgement.confirmed": "a bool is good either way",
    "CommitWorkflowRequest.skip_unawaited_events": "a bool is good either way",
    "AcknowledgeRequest.acknowledge": "see the tests of too many items",
    "ReturnItemsRequest.return_items": "see the tests of too many items",
    **{
        f"{request}.{field}": "see the tests of too many items"
        for request in (
            "PersistWorkflowRequest",
            "PersistWorkflowWithSubscriptionsRequest",
            "CommitWorkflowRequest",
        )
        for field in ("enqueue", "acknowledge", "publish")
    },
    "CreateWorkflowsRequest.workflows": "see test_bulk.py for how many",
    "CreateEventsRequest.events": "see test_bulk.py for how many",
    "CreateNewWorkflowRequest.enqueue": "see the tests of too many items",
    "CreateEventRequest.enqueue": "see the tests of too many items",
    "PublishRequest.events": "see test_lifecycle.py for how many",
    "ExportRecordsRequest.workflows": "absent: any workflow",
    "ImportRecordsRequest.records": "see test_transfer.py for how many",
    "Record.creation_hash": "see test_transfer.py",
    "WorkflowRecord.is_continued": "see test_transfer.py for what must follow",
    "ExecutionPointersRecord.execution_pointers": "see test_transfer.py",
    "ExecutionPointersRecord.is_continued": "see test_transfer.py for what must follow",
    "QueueItemRecord.is_dead": "a bool is good either way",
    **{
        f"Record.{kind}": "one of them; see test_transfer.py for none"
        for kind in (
            "fence",
            "subscription",
            "event",
            "command",
            "queue",
            "queue_item",
            "error",
            "workflow",
            "execution_pointers",
            "definition_sequence",
            "retention_policy",
            "name_holder",
        )
    },
}

TOO_LONG: Final = {
    # What to fill a text up with, so that its characters are few and its bytes one too many.
    "ASCII": "x",
    "2 bytes a character": "é",
    "4 bytes a character": "😀",
}
BAD_JSON: Final = {
    "JSON_INVALID": {
        "a word": CANARY,
        "broken off": f'{{"{CANARY}": [1, 2',
        "a second document": f'"{CANARY}" 1',
        "single quotes": f"'{CANARY}'",
        "a comma too many": f'["{CANARY}",]',
        "NaN": f'["{CANARY}", NaN]',
        "Infinity": f'["{CANARY}", Infinity]',
        "-Infinity": f'["{CANARY}", -Infinity]',
    },
    "JSON_CHARACTER": {
        "escaped NUL": f'"{CANARY}\\u0000"',
        "escaped NUL in a key": f'{{"{CANARY}\\u0000": 1}}',
        "high surrogate": f'"{CANARY}\\ud83d"',
        "low surrogate": f'"{CANARY}\\ude00"',
        "surrogates the wrong way round": f'"{CANARY}\\ude00\\ud83d"',
        "surrogate in a key": f'[{{"{CANARY}\\ud83d!": 1}}]',
    },
    "JSON_TOO_DEEP": {
        "101 lists": "[" * 101 + f'"{CANARY}"' + "]" * 101,
        "101 objects": '{"a":' * 101 + f'"{CANARY}"' + "}" * 101,
        "100000 lists": "[" * 100_000 + f'"{CANARY}"' + "]" * 100_000,
    },
    "JSON_NUMBER": {
        "exponent 1001": f'["{CANARY}", 1e1001]',
        "exponent -1001": f'["{CANARY}", 1E-1001]',
        "exponent 131071": f'["{CANARY}", 1e131071]',
        "exponent of 30 digits": f'["{CANARY}", 1e+{"9" * 30}]',
        "2001 digits": f'["{CANARY}", {"7" * 2001}]',
        "2001 digits with a point": f'["{CANARY}", 0.{"7" * 2000}]',
    },
}
# What else is no JSON; for one field.
BAD_SYNTAX: Final = [
    "", " ", "\n", "\ufeff{}", "{", "}", "[", "]", '"', "{]", "[}", "[1 2]", "[1,,2]", "[,]", "{,}",
    '{"a"}', '{"a":}', '{"a" 1}', "{a:1}", "{1:1}", '{"a":1,}', "01", "-", "+1", "1.", ".5", "1e",
    "1e+", "0x1", "1_000", "\u0661", "True", "nil", "undefined", "tru", "'a'", '"\t"', '"\n"',
    '"\x1f"', '"\\x41"', '"\\u12"', '"\\u12G4"', '"\\', "// a\n1", "/* a */ 1", "1;", "1,", "1 1",
    "{} {}", "[1]]", "\u00a01", "1\u2028", "nan", "-NaN", "infinity", "[Infinity]", '{"a": NaN}',
]  # fmt: skip
BAD_NAMESPACES: Final = [
    f"{CANARY}", "Canary", "1a", "_a", "a-b", "a.b", "a b", "a/b", "x" * 41, "x" * 4000, "", "*",
    'a"; DROP SCHEMA wfc CASCADE; --', "default,default", "DEFAULT",
]  # fmt: skip
BAD_QUEUES: Final = [
    CANARY.upper(), "1a", "_a", "-a", ".a", "a b", "a/b", "a:b", "a*", "x" * 65, "x" * 4000, " ",
    "\u00e9", "a\u0301", "a\n", "*",
]  # fmt: skip
BAD_DATABASES: Final = [
    CANARY.upper(), "1a", "_a", "-a", "a b", "a/b", "a.b", "x" * 41, " ", "\u00e9", "a\n",
]  # fmt: skip
BAD_LABELS: Final = [
    CANARY, "", "=", f"{CANARY}=", f"={CANARY}", f"{CANARY}=a=b", "a b=c", "a=\u00e9", "a=b\n",
    "a" * 64 + "=b", "a=" + "b" * 64, "x" * 10_000,
]  # fmt: skip
BAD_UUIDS: Final = [
    CANARY, "1", " ", "x" * 10_000, "00000000000000000000000000000001",
    "{00000000-0000-0000-0000-000000000001}", "urn:uuid:00000000-0000-0000-0000-000000000001",
    "00000000-0000-0000-0000-00000000000g", "00000000-0000-0000-0000-000000000001\n",
    " 00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-0000000000001",
    "0000000-00000-0000-0000-000000000001", "\u0661" * 8 + "-0000-0000-0000-000000000001",
]  # fmt: skip
BAD_CURSORS: Final = [
    CANARY, "1", " ", "x" * 10_000, "A" * 42, "A" * 44, "A" * 42 + "=", "A" * 22 + "_" * 21,
    "A" * 42 + "+", "A" * 43 + "\n",
]  # fmt: skip
BAD_PATHS: Final = [
    CANARY, "", " ", "id", "execution_pointers", "revision", "view", "header", "header.name",
    "Name", "name ", "dataJson", "data", "definition_id", "*", "name,status", "x" * 10_000,
]  # fmt: skip
BAD_TIMES: Final = {
    "the year 0": Timestamp(seconds=make.FIRST_TIME.seconds - 1, nanos=123_456_789),
    "the year 10000": Timestamp(seconds=make.LAST_TIME.seconds + 1),
    "seconds 2^63-1": Timestamp(seconds=2**63 - 1),
    "seconds -2^63": Timestamp(seconds=-(2**63)),
    "nanos -1": Timestamp(seconds=1, nanos=-1),
    "nanos 10^9": Timestamp(seconds=1, nanos=10**9),
    "nanos 2^31-1": Timestamp(seconds=1, nanos=2**31 - 1),
}
BAD_LEASES: Final = {
    "nothing": Duration(),
    "less than 1 ms": Duration(nanos=999_999),
    "-1 s": Duration(seconds=-1),
    "-1 ns": Duration(nanos=-1),
    "more than 24 h": Duration(seconds=24 * 3600, nanos=1_000_000),
    "seconds 2^63-1": Duration(seconds=2**63 - 1),
    "nanos 10^9": Duration(seconds=1, nanos=10**9),
    "of two signs": Duration(seconds=1, nanos=-1),
}

BAD_WAITS: Final = {
    "-1 s": Duration(seconds=-1),
    "-1 ns": Duration(nanos=-1),
    "more than 60 s": Duration(seconds=60, nanos=1),
    "seconds 2^63-1": Duration(seconds=2**63 - 1),
    "nanos 10^9": Duration(seconds=1, nanos=10**9),
    "of two signs": Duration(seconds=1, nanos=-1),
}
BAD_AGES: Final = {
    "nothing": Duration(),
    "less than a minute": Duration(seconds=59, nanos=999_999_999),
    "-1 s": Duration(seconds=-1),
    "more than a million days": Duration(seconds=1_000_000 * 86_400, nanos=1),
    "seconds 2^63-1": Duration(seconds=2**63 - 1),
    "nanos 10^9": Duration(seconds=60, nanos=10**9),
    "of two signs": Duration(seconds=60, nanos=-1),
}
AGES: Final = {
    "WorkflowRetention.complete_age",
    "WorkflowRetention.terminated_age",
    "RetentionPolicy.processed_event_age",
    "RetentionPolicy.error_age",
    "RetentionPolicy.overdue_command_age",
}
BAD_HOLDS: Final = {
    "-1 s": Duration(seconds=-1),
    "-1 ns": Duration(nanos=-1),
    "more than 10 minutes": Duration(seconds=600, nanos=1),
    "seconds 2^63-1": Duration(seconds=2**63 - 1),
    "nanos 10^9": Duration(seconds=1, nanos=10**9),
    "of two signs": Duration(seconds=1, nanos=-1),
}
HOLDS: Final = {"ExportRecordsRequest.hold"}
WAITS: Final = {
    "AcquireLockRequest.wait",
    "ClaimCommandsRequest.wait",
    "DequeueRequest.wait",
    "WaitForWorkflowRequest.wait",
}


def bad_values(rpc: Rpc, field: FieldDescriptor) -> Iterator[Bad]:
    """What is bad for a field, according to the tables."""
    name = name_of(field)
    if name in NO_BAD_VALUE:
        return
    if field.enum_type is not None:
        for number in ENUMS.get(name, (0, 99, -1)):
            yield Bad(f"{number}", number, "ENUM_VALUE")
    elif is_a(field, Timestamp.DESCRIPTOR) and name in REQUIRED_TIMES | OPTIONAL_TIMES:
        for what, at in BAD_TIMES.items():
            yield Bad(what, at, "TIME_RANGE")
        if name in REQUIRED_TIMES:
            yield Bad("absent", None, "REQUIRED")
    elif is_a(field, Duration.DESCRIPTOR):
        tables = ((WAITS, BAD_WAITS), (AGES, BAD_AGES), (HOLDS, BAD_HOLDS))
        bad = next((bad for names, bad in tables if name in names), BAD_LEASES)
        for what, duration in bad.items():
            yield Bad(what, duration, "TIME_RANGE")
    elif field.type == FieldDescriptor.TYPE_STRING or is_map(field):
        yield from _bad_texts(rpc, name)
    elif field.message_type is not None and not field.is_repeated:
        yield Bad("absent", None, "REQUIRED")
    for number in NUMBERS.get(name, ()):
        yield Bad(f"{number}", number, "NUMBER_RANGE")


def _bad_texts(rpc: Rpc, name: str) -> Iterator[Bad]:
    if name in JSON:
        yield Bad("NUL", f'"{CANARY}\0"', "TEXT_HAS_NUL")
        for reason, documents in BAD_JSON.items():
            for what, document in documents.items():
                if len(document) <= MOST_JSON.get(name, len(document)):
                    yield Bad(what, document, reason)
        if name in MOST_JSON:
            for what, filler in TOO_LONG.items():
                document = filled(f'"{CANARY}', filler, MOST_JSON[name]) + '"'
                yield Bad(f"too long, {what}", document, "TOO_LONG")
        if name in REQUIRED_JSON:
            yield Bad("empty", "", "REQUIRED")
        else:
            yield Bad("empty", "", "JSON_INVALID")
        return
    if name in NAMESPACES:
        yield Bad("empty", "", "REQUIRED")
        yield Bad("NUL", f"{CANARY}\0", "TEXT_HAS_NUL")
        for bad in BAD_NAMESPACES:
            if bad:
                yield Bad(f"{bad[:50]}", bad, "FORMAT")
        return
    if name in QUEUES or name == "MoveNamespaceRequest.database":
        yield Bad("empty", "", "REQUIRED")
    for table, texts in (
        (UUIDS, BAD_UUIDS),
        (MASKS, BAD_PATHS),
        (QUEUES, BAD_QUEUES),
        (DATABASES, BAD_DATABASES),
        (LABELS, BAD_LABELS),
        (CURSORS, BAD_CURSORS),
    ):
        if name in table:
            yield Bad("NUL", f"{CANARY}\0", "TEXT_HAS_NUL")
            for bad in texts:
                yield Bad(f"{bad[:50]!r}", bad, "FORMAT")
    ids = REQUIRED_IDS | OPTIONAL_IDS | KEYS
    if name in ids | LONG_KEYS.keys():
        most = LONG_KEYS.get(name, 512)
        for what, filler in TOO_LONG.items():
            yield Bad(f"too long, {what}", filled(CANARY, filler, most + 1), "TOO_LONG")
        yield Bad("100 kB", "x" * 100_000, "TOO_LONG")
    required = name in REQUIRED_IDS
    if name == "WorkflowInstance.id":
        required = rpc.name not in ("CreateNewWorkflow", "CreateWorkflows")
    if name == "QueueItem.id":
        required = rpc.name == "Enqueue"
    if required:
        yield Bad("empty", "", "REQUIRED")
    if name in REQUIRED_IDS | OPTIONAL_IDS:
        yield Bad("blank", " \t\n\u3000", "REQUIRED")
    if name in ids | LONG_KEYS.keys() | FREE_TEXTS:
        yield Bad("NUL", f"{CANARY}\0{CANARY}", "TEXT_HAS_NUL")
        yield Bad("only NUL", "\0", "TEXT_HAS_NUL")


BAD_FIELDS: Final = [
    pytest.param(rpc, path, bad, id=f"{rpc}-{path}")
    for rpc in RPCS.values()
    for path, field in fields(valid_request(rpc))
    if (bad := list(bad_values(rpc, field)))
]


def test_every_field_has_bad_values_or_a_reason_for_none() -> None:
    covered = {case.id for case in BAD_FIELDS}
    for rpc in RPCS.values():
        for path, field in fields(valid_request(rpc)):
            excused = name_of(field) in NO_BAD_VALUE
            assert (f"{rpc}-{path}" in covered) != excused, f"{rpc}: {path} ({name_of(field)})"


def test_the_tables_name_fields_that_exist() -> None:
    tables = (
        REQUIRED_IDS, OPTIONAL_IDS, KEYS, LONG_KEYS, FREE_TEXTS, NAMESPACES, JSON, REQUIRED_TIMES,
        OPTIONAL_TIMES, ENUMS, NUMBERS, UUIDS, MASKS, QUEUES, DATABASES, LABELS, CURSORS,
        NO_BAD_VALUE,
    )  # fmt: skip
    named = [name for table in tables for name in table]
    known = {name_of(f) for rpc in RPCS.values() for _, f in fields(valid_request(rpc))}
    assert set(named) <= known
    assert len(named) == len(set(named)), "a field is in two tables"


@pytest.mark.parametrize(("rpc", "path", "bad"), BAD_FIELDS)
async def test_bad_values_are_refused(api: Api, rpc: Rpc, path: str, bad: list[Bad]) -> None:
    seen = {}
    async with Scene(api, rpc) as scene:
        before = await scene.state()
        for each in bad:
            request = with_values(scene.request, (path, each.value))
            failure, said = await refusal(rpc.call(api, request))
            assert failure.code is not None
            seen[each.what] = (failure.code.name, failure.reason, failure.violations)
            assert failure.retry_after is None
            assert not leaks(each.value, said), each.what
        assert await scene.state() == before
        await scene.succeed()
    expected = {
        each.what: ("INVALID_ARGUMENT", "INVALID_FIELD", {path: each.reason}) for each in bad
    }
    assert seen == expected


def leaks(value: Any, said: str) -> bool:
    """Whether an error shows a bad value."""
    if isinstance(value, int):  # small ones may be anything
        return abs(value) > 999 and str(value) in said
    if isinstance(value, Timestamp | Duration):
        return leaks(value.seconds, said) or leaks(value.nanos, said)
    return CANARY in said


@pytest.mark.parametrize("document", BAD_SYNTAX, ids=repr)
async def test_what_is_no_json_is_refused(api: Api, document: str) -> None:
    subscription = make.subscription(subscription_data_json=document)
    with invalid("subscription.subscription_data_json", reason="JSON_INVALID"):
        await api.create_event_subscription(subscription)
    assert await found(api.get_subscription(subscription.id)) is None


# What is just within the bounds is good.

GOOD_JSON: Final = {
    "100 levels": "[" * 50 + '{"a":' * 50 + "1" + "}" * 50 + "]" * 50,
    "exponent 1000": "[1e1000, -1.5E-1000, 2e+1000]",
    "1000 digits": f"[{'7' * 1000}, 0.{'7' * 999}, -{'7' * 500}.{'7' * 500}e-1000]",
    "brackets in a string": f'"{"[" * 200}"',
    "numbers in a string": f'"1e1001 {"7" * 1001} NaN"',
    "backslashes before a u": '"\\\\u0000 \\\\ud800"',
    "a surrogate pair": '"\\ud83d\\ude00"',
    "whitespace": " \t\r\n{ }\n",
}
TOKENS: Final = {
    # Their form is the store's own affair.
    "CompleteCommandsRequest.lease_tokens",
    "ReleaseCommandsRequest.lease_tokens",
    "RenewCommandsRequest.lease_tokens",
    "RenewLocksRequest.tokens",
    "CommitWorkflowRequest.held_lease_tokens",
    "CommitWorkflowRequest.complete_lease_tokens",
    "Acknowledgement.receipt",
    "ReturnedItem.receipt",
    "RenewItemsRequest.receipts",
    "CommitWorkflowRequest.held_lock_tokens",
    "CreateNewWorkflowRequest.held_lock_tokens",
    "PersistWorkflowRequest.held_lock_tokens",
    "PersistWorkflowWithSubscriptionsRequest.held_lock_tokens",
    # It must be the workflow before.
    "ExecutionPointersRecord.workflow_id",
}


INCOMPRESSIBLE: Final = "what can't be compressed"


def incompressible(size: int) -> str:
    """A text of so many bytes that takes as many in an index, which has no room for 2,700."""
    return base64.b85encode(random.randbytes(size))[:size].decode()


def good_values(field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
    """What is just within the bounds of a field."""
    name = name_of(field)
    if name in (REQUIRED_IDS | OPTIONAL_IDS | KEYS | LONG_KEYS.keys()) - TOKENS:
        for what, filler in TOO_LONG.items():
            yield what, filled(make.new_id(), filler, LONG_KEYS.get(name, 512))
        yield INCOMPRESSIBLE, incompressible(LONG_KEYS.get(name, 512))
    elif name in FREE_TEXTS and not name.endswith("page_token"):
        yield INCOMPRESSIBLE, incompressible(100_000)
    elif name in JSON:
        yield from GOOD_JSON.items()
        if name in MOST_JSON:
            yield "of the largest size", filled('"', "x", MOST_JSON[name] - 1) + '"'
    elif name in QUEUES:
        yield "64 characters", f"{make.queue()}{'_.-0' * 16}"[:64]
    elif name in NAMESPACES:
        most = 36 if "NamespaceSet" in name else 40
        yield f"{most} characters", f"{make.new_namespace()}_0"[:most]
    elif name in REQUIRED_TIMES | OPTIONAL_TIMES:
        if name != "SetSubscriptionTokenRequest.expiry":  # that one must not have passed
            yield "first", make.FIRST_TIME
        yield "last", Timestamp(seconds=make.LAST_TIME.seconds, nanos=999_999_999)
    elif name in WAITS:
        yield "nothing", Duration()
        yield "60 s", Duration(seconds=60)
    elif name in ("WatchRequest.heartbeat", "WatchWorkflowsRequest.heartbeat"):
        yield "1 s", Duration(seconds=1)
        yield "60 s", Duration(seconds=60)
    elif name in AGES:
        yield "the longest", make.LONGEST_AGE
    elif name in HOLDS:
        yield "nothing", Duration()
        yield "1 ms", Duration(nanos=1_000_000)  # the longest, others would wait for
    elif is_a(field, Duration.DESCRIPTOR):
        yield "1 ms", Duration(nanos=1_000_000)
        yield "24 h", Duration(seconds=24 * 3600)
    elif name in NUMBERS and (-1 in NUMBERS[name] and 0 not in NUMBERS[name]):
        yield "0", 0
    if name == "CreateNamespaceSetRequest.members":
        yield "1", 1  # (256 would take minutes)
    elif name in NUMBERS and name != "WorkflowRecord.first_revision":  # at most the present one
        yield "2^31-1", 2**31 - 1
    if name in UUIDS:
        yield "none", ""
        yield "capitals", make.request_id().upper()
        yield "all zeros", "00000000-0000-0000-0000-000000000000"
    if field.enum_type is not None and 0 not in ENUMS.get(name, (0,)):
        yield "0", 0


# What is in these lists is checked by the same rules wherever they are: for what is good, once is
# enough.
ONCE: Final = {
    ("PersistWorkflow", "enqueue"),
    ("PersistWorkflow", "publish"),
    ("PersistWorkflowWithSubscriptions", "enqueue"),
    ("PersistWorkflowWithSubscriptions", "publish"),
    ("CommitWorkflow", "publish"),
    ("CreateNewWorkflow", "enqueue"),
    ("CreateWorkflows", "workflows"),
    ("CreateEvents", "events"),
}

EDGES: Final = [
    pytest.param(rpc, path, good, id=f"{rpc}-{path}")
    for rpc in HARMLESS
    for path, field in fields(valid_request(rpc))
    # What claims later than all others do would take their commands away.
    if (good := list(good_values(field)))
    and (rpc.name, path) != ("ClaimCommands", "as_of")
    and (str(rpc), path.partition("[")[0]) not in ONCE
]


@pytest.mark.parametrize(("rpc", "path", "good"), EDGES)
async def test_values_just_within_bounds_are_accepted(
    api: Api, rpc: Rpc, path: str, good: list[tuple[str, Any]]
) -> None:
    for what, value in good:
        async with Scene(api, rpc) as scene:
            put(scene.request, path, value)
            if path.endswith(".data"):  # a command
                put(scene.request, path.removesuffix(".data"), scene.own.new(data=value))
            failure = await failure_of(scene.succeed())
            # What is asked for need not be there.
            assert failure is None or failure.reason.endswith(
                ("_NOT_FOUND", "TOKEN_MISMATCH", "REVISION_MISMATCH")
            ), what


STORED: Final = {
    message.DESCRIPTOR
    for message in (
        WorkflowInstance, ExecutionPointer, Event, EventSubscription, ExecutionError,
        ScheduledCommand, QueueItem,
    )
}  # fmt: skip


@pytest.mark.parametrize("rpc", HARMLESS, ids=str)
async def test_texts_of_all_fields_are_stored_at_their_bounds(api: Api, rpc: Rpc) -> None:
    """Together: an index of several columns has to take all of them."""
    async with Scene(api, rpc) as scene:
        request = scene.request
        paths = {}
        for path, field in fields(request):
            name = name_of(field)
            if field.containing_type not in STORED and not path.endswith("worker_id"):
                continue  # it names something that must be there
            if path == "instance.id" and rpc.name != "CreateNewWorkflow":
                continue
            if name in REQUIRED_IDS | OPTIONAL_IDS | KEYS:
                paths[path] = incompressible(512)
            elif name in FREE_TEXTS:
                paths[path] = incompressible(100_000)
            elif name == "WorkflowInstance.extension_attributes_json":
                paths[path] = f'"{incompressible(3000)}"'
            elif name in JSON:
                paths[path] = f'"{incompressible(10_000)}"'
            elif name in LONG_KEYS:
                command = scene.own.new(data=incompressible(LONG_KEYS[name]))
                put(request, path.removesuffix(".data"), command)
        for path, text in paths.items():
            put(request, path, text)
        for state in ("instance", "patch"):
            if state in {field.name for field, _ in request.ListFields()}:
                pointer = look(request, state).execution_pointers[0]
                pointer.extension_attributes_json[incompressible(100_000)] = "1"
        await scene.succeed()


# Several fields, and fields in each other's way.


async def test_all_bad_fields_are_told_at_once(api: Api) -> None:
    request = with_values(
        valid_request(RPCS["PersistWorkflowWithSubscriptions"]),
        ("instance.id", ""),
        ("instance.data_json", "{"),
        ("instance.status", 99),
        ("instance.create_time", None),
        ("instance.execution_pointers[0].status", 0),
        ("instance.execution_pointers[3].step_id", -1),
        ("instance.execution_pointers[3].outcome_json", "[NaN]"),
        ("instance.execution_pointers[3].children[1]", "x" * 513),
        ('instance.execution_pointers[3].extension_attributes_json["n"]', "1e1001"),
        ("subscriptions[0].event_name", ""),
        ("subscriptions[1].subscribe_as_of", BAD_TIMES["the year 0"]),
        ("expected_revision", 0),
    )
    failure, _ = await refusal(RPCS["PersistWorkflowWithSubscriptions"].call(api, request))
    assert failure.reason == "INVALID_FIELD"
    assert failure.violations == {
        "instance.id": "REQUIRED",
        "instance.data_json": "JSON_INVALID",
        "instance.status": "ENUM_VALUE",
        "instance.create_time": "REQUIRED",
        "instance.execution_pointers[0].status": "ENUM_VALUE",
        "instance.execution_pointers[3].step_id": "NUMBER_RANGE",
        "instance.execution_pointers[3].outcome_json": "JSON_INVALID",
        "instance.execution_pointers[3].children[1]": "TOO_LONG",
        'instance.execution_pointers[3].extension_attributes_json["n"]': "JSON_NUMBER",
        "subscriptions[0].event_name": "REQUIRED",
        "subscriptions[1].subscribe_as_of": "TIME_RANGE",
        "expected_revision": "NUMBER_RANGE",
    }


async def test_nul_and_other_bad_fields_are_told_at_once(api: Api) -> None:
    event = make.event(event_key="a\0b", event_data_json="{")
    with invalid("event.event_key", "event.event_data_json"):
        await api.create_event(event)


async def test_nul_in_a_map_key_is_refused(api: Api) -> None:
    attributes = {f"{CANARY}\0": "1"}
    instance = never_due(execution_pointers=[make.pointer(extension_attributes_json=attributes)])
    failure, said = await refusal(api.create_new_workflow(instance))
    path = "instance.execution_pointers[0].extension_attributes_json"
    assert failure.violations == {path: "TEXT_HAS_NUL"}
    assert CANARY not in said
    assert await found(api.get_workflow_instance(instance.id)) is None


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("x" * 500_000, id="500 kB"),
        pytest.param("😀" * 10_000, id="10000 emojis"),
        pytest.param("\n\r\x01", id="control characters"),
        pytest.param('"]', id="quote and bracket"),
        pytest.param("%s%00", id="percent signs"),
        pytest.param("", id="empty"),
    ],
)
async def test_bad_json_under_an_odd_map_key_is_told(api: Api, key: str) -> None:
    attributes = {key: "{"}
    instance = never_due(execution_pointers=[make.pointer(extension_attributes_json=attributes)])
    with fails("INVALID_ARGUMENT", "INVALID_FIELD") as failure:
        await api.create_new_workflow(instance)
    [path] = failure.violations
    assert path.startswith("instance.execution_pointers[0].extension_attributes_json[")


@pytest.mark.parametrize("filler", ["x", "é", "😀"])
async def test_very_many_bad_fields_are_told_of_as_far_as_they_fit(api: Api, filler: str) -> None:
    attributes = {f"{i}{filler * 300}": "{" for i in range(1000)}
    instance = never_due(
        execution_pointers=[
            make.pointer(str(i), extension_attributes_json=attributes) for i in range(3)
        ]
    )
    with fails("INVALID_ARGUMENT", "INVALID_FIELD") as failure:
        await api.create_new_workflow(instance)
    assert set(failure.violations.values()) == {"JSON_INVALID"}
    assert len(failure.violations) > 1


async def test_json_that_is_hard_to_read_does_not_hold_the_server_up(api: Api) -> None:
    documents = {
        "a string that does not end": "[" * 101 + '"' + '\\"' * 8000,
        "numbers of 999 digits": f"[{','.join(['7' * 999] * 300)}]",
        "a long string": "[" * 101 + '"' + "x" * 300_000 + '"' + "]" * 101,
    }
    for document in documents.values():
        failure = await failure_of(api.create_event(make.event(event_data_json=document)))
        assert failure is None or failure.reason == "INVALID_FIELD"


# What must be there once only.


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        *(
            (name, "instance.execution_pointers[0].id", f"instance.execution_pointers[{i}].id")
            for name in (
                "CreateNewWorkflow",
                "PersistWorkflow",
                "PersistWorkflowWithSubscriptions",
                "CommitWorkflow",
            )
            for i in (1, 3)
        ),
        (
            "CommitWorkflow-patch",
            "patch.execution_pointers[0].id",
            "patch.execution_pointers[3].id",
        ),
        ("CommitWorkflow-patch", "patch.removed_pointer_ids[0]", "patch.removed_pointer_ids[1]"),
        ("CommitWorkflow-patch", "patch.execution_pointers[3].id", "patch.removed_pointer_ids[1]"),
        ("CommitWorkflow-patch", "patch.header_mask.paths[0]", "patch.header_mask.paths[10]"),
        *(
            ("CommitWorkflow", f"{first}[0]{field}", f"{second}[1]{field}")
            for first, second, field in (
                ("create_subscriptions", "create_subscriptions", ".id"),
                ("terminate_subscription_ids", "terminate_subscription_ids", ""),
                ("create_events", "create_events", ".id"),
                ("processed_event_ids", "processed_event_ids", ""),
                ("schedule_commands", "schedule_commands", ""),
                ("held_lease_tokens", "held_lease_tokens", ""),
                ("complete_lease_tokens", "complete_lease_tokens", ""),
            )
        ),
        ("CommitWorkflow", "create_subscriptions[0].id", "terminate_subscription_ids[1]"),
        *(
            ("CommitWorkflow", f"{field}[0]{below}", f"{field}[1]{below}")
            for field, below in (("held_lock_tokens", ""), ("acknowledge", ".receipt"))
        ),
        ("RenewCommands", "lease_tokens[0]", "lease_tokens[2]"),
        ("PersistWorkflowWithSubscriptions", "subscriptions[0].id", "subscriptions[1].id"),
        ("CompleteCommands", "lease_tokens[0]", "lease_tokens[2]"),
        ("ReleaseCommands", "lease_tokens[0]", "lease_tokens[2]"),
    ],
)
async def test_twice_the_same_id_is_refused(api: Api, name: str, first: str, second: str) -> None:
    async with Scene(api, RPCS[name]) as scene:
        before = await scene.state()
        request = with_values(scene.request, (second, look(scene.request, first)))
        with invalid(second, reason="DUPLICATE"):
            await scene.rpc.call(api, request)
        assert await scene.state() == before
        await scene.succeed()


async def test_subscriptions_without_ids_are_no_duplicates(api: Api) -> None:
    async with Scene(api, RPCS["PersistWorkflowWithSubscriptions"]) as scene:
        request = with_values(
            scene.request, ("subscriptions[0].id", ""), ("subscriptions[1].id", "")
        )
        [answer] = await scene.rpc.call(api, request)
        assert len(set(answer.subscription_ids)) == 2


# A commit's state: an instance or a patch.


async def test_commit_without_a_state_is_refused(api: Api) -> None:
    async with Scene(api, RPCS["CommitWorkflow"]) as scene:
        before = await scene.state()
        with invalid("state", reason="REQUIRED"):
            await scene.rpc.call(api, with_values(scene.request, ("instance", None)))
        assert await scene.state() == before


async def test_patch_without_a_revision_is_refused(api: Api) -> None:
    async with Scene(api, RPCS["CommitWorkflow-patch"]) as scene:
        before = await scene.state()
        with invalid("expected_revision", reason="REQUIRED"):
            await scene.rpc.call(api, with_values(scene.request, ("expected_revision", None)))
        assert await scene.state() == before
        await scene.succeed()


async def test_instance_without_a_revision_is_committed(api: Api) -> None:
    async with Scene(api, RPCS["CommitWorkflow"]) as scene:
        [answer] = await scene.rpc.call(
            api, with_values(scene.request, ("expected_revision", None))
        )
        assert answer.revision == scene.request.expected_revision + 1


async def test_required_field_that_a_patch_names_and_leaves_out_is_refused(api: Api) -> None:
    required = ("workflow_definition_id", "status", "data_json", "create_time")
    async with Scene(api, RPCS["CommitWorkflow-patch"]) as scene:
        before = await scene.state()
        with fails("INVALID_ARGUMENT", "INVALID_FIELD") as failure:
            await scene.rpc.call(api, with_values(scene.request, ("patch.header", None)))
        assert failure.violations == {
            f"patch.header.{field}": "ENUM_VALUE" if field == "status" else "REQUIRED"
            for field in required
        }
        assert await scene.state() == before


async def test_what_a_patch_does_not_name_may_be_anything_but_nul(api: Api) -> None:
    async with Scene(api, RPCS["CommitWorkflow-patch"]) as scene:
        bad = with_values(
            scene.request,
            ("patch.header.id", "x" * 513),
            ("patch.header.data_json", "{"),
            ("patch.header.create_time", None),
            ("patch.header.status", 99),
            ("patch.header.view", 3),
            ("patch.header.execution_pointers[0].id", ""),
        )
        bad.patch.header_mask.paths[:] = ["reference"]
        with invalid("patch.header.description", reason="TEXT_HAS_NUL"):
            await scene.rpc.call(api, with_values(bad, ("patch.header.description", "\0")))
        await scene.rpc.call(api, bad)


# Fields that need each other, or rule each other out.


@pytest.mark.parametrize(
    ("name", "absent"), [("ListEvents", "event_name"), ("ListSubscriptions", "event_name")]
)
async def test_event_key_without_its_name_is_refused(api: Api, name: str, absent: str) -> None:
    for key in ("key", ""):
        request = with_values(valid_request(RPCS[name]), (absent, None), ("event_key", key))
        with invalid(absent, reason="REQUIRED"):
            await RPCS[name].call(api, request)


@pytest.mark.parametrize("name", ["ListWorkflows", "CountWorkflows"])
async def test_waiting_event_key_without_its_name_is_refused(api: Api, name: str) -> None:
    for key in ("key", ""):
        request = with_values(
            valid_request(RPCS[name]),
            ("filter.waiting_event_name", None),
            ("filter.waiting_event_key", key),
        )
        with invalid("filter.waiting_event_name", reason="REQUIRED"):
            await RPCS[name].call(api, request)


async def test_data_of_a_command_without_its_name_is_refused(api: Api) -> None:
    for data in ("data", ""):
        with invalid("command_name", reason="ENUM_VALUE"):
            await api.list_commands(data=data)


async def test_epoch_without_its_token_is_refused(api: Api) -> None:
    async with Scene(api, RPCS["TerminateSubscription"]) as scene:
        with invalid("token", reason="REQUIRED"):
            await scene.rpc.call(api, with_values(scene.request, ("token", None)))
        await scene.succeed()


async def test_expiry_and_duration_are_refused(api: Api) -> None:
    async with Scene(api, RPCS["SetSubscriptionToken-duration"]) as scene:
        before = await scene.state()
        with invalid("duration", reason="DUPLICATE"):
            await scene.rpc.call(api, with_values(scene.request, ("expiry", make.LAST_TIME)))
        assert await scene.state() == before
        await scene.succeed()


async def test_time_and_wait_are_refused(api: Api) -> None:
    async with Scene(api, RPCS["ClaimCommands-wait"]) as scene:
        before = await scene.state()
        with invalid("wait", reason="DUPLICATE"):
            await scene.rpc.call(api, with_values(scene.request, ("as_of", make.FIRST_TIME)))
        assert await scene.state() == before
        await scene.succeed()


# Lists that may not be too long.

MOST_ITEMS: Final = [
    "held_subscriptions",
    "held_lease_tokens",
    "create_subscriptions",
    "terminate_subscription_ids",
    "create_events",
    "processed_event_ids",
    "errors",
    "schedule_commands",
    "complete_lease_tokens",
    "held_lock_tokens",
    "enqueue",
    "acknowledge",
    "publish",
]


def test_every_list_of_a_commit_has_a_most() -> None:
    lists = {f.name for f in RPCS["CommitWorkflow"].request.DESCRIPTOR.fields if f.is_repeated}
    assert set(MOST_ITEMS) == lists


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("CommitWorkflow", field) for field in MOST_ITEMS),
        *(
            (name, field)
            for name in ("PersistWorkflow", "PersistWorkflowWithSubscriptions")
            for field in ("held_lock_tokens", "enqueue", "acknowledge", "publish")
        ),
        ("CreateNewWorkflow", "enqueue"),
        ("CreateEvent", "enqueue"),
    ],
)
async def test_more_than_1000_items_are_refused(api: Api, name: str, field: str) -> None:
    request = valid_request(RPCS[name])
    items = getattr(request, field)
    items.extend([items[0]] * 999)
    assert len(items) == 1001
    with invalid(field, reason="NUMBER_RANGE"):
        await RPCS[name].call(api, request)


def _pointers(count: int) -> list[ExecutionPointer]:
    return [ExecutionPointer()] * count


# Lists that may be as long as a large workflow needs. They are refused for their length alone,
# whatever is in them.
LONG_LISTS: Final[dict[str, tuple[str, Message, str]]] = {
    "pointers": (
        "PersistWorkflow",
        PersistWorkflowRequest(instance=WorkflowInstance(execution_pointers=_pointers(200_001))),
        "instance.execution_pointers",
    ),
    "pointers of a patch": (
        "CommitWorkflow",
        CommitWorkflowRequest(patch=WorkflowPatch(execution_pointers=_pointers(200_001))),
        "patch.execution_pointers",
    ),
    "subscriptions": (
        "PersistWorkflowWithSubscriptions",
        PersistWorkflowWithSubscriptionsRequest(subscriptions=[EventSubscription()] * 200_001),
        "subscriptions",
    ),
    "errors": (
        "PersistErrors",
        PersistErrorsRequest(errors=[ExecutionError()] * 200_001),
        "errors",
    ),
    "removed pointers": (
        "CommitWorkflow",
        CommitWorkflowRequest(
            patch=WorkflowPatch(id="x", removed_pointer_ids=[f"{i}" for i in range(200_001)]),
            expected_revision=1,
        ),
        "patch.removed_pointer_ids",
    ),
    "children": (
        "PersistWorkflow",
        PersistWorkflowRequest(
            instance=make.instance(execution_pointers=[make.pointer("1", children=["x"] * 200_001)])
        ),
        "instance.execution_pointers[0].children",
    ),
    "attributes of all pointers": (
        "PersistWorkflow",
        PersistWorkflowRequest(
            instance=make.instance(
                execution_pointers=[
                    make.pointer(
                        f"{n}",
                        extension_attributes_json={f"{i}": "1" for i in range(50_000 + n)},
                    )
                    for n in range(2)
                ]
            )
        ),
        "instance.execution_pointers[1].extension_attributes_json",
    ),
    "statuses": (
        "CountWorkflows",
        CountWorkflowsRequest(
            filter=WorkflowFilter(statuses=[WorkflowStatus.WORKFLOW_STATUS_COMPLETE] * 1001)
        ),
        "filter.statuses",
    ),
    "statuses to wait for": (
        "WaitForWorkflow",
        WaitForWorkflowRequest(id="x", statuses=[WorkflowStatus.WORKFLOW_STATUS_COMPLETE] * 1001),
        "statuses",
    ),
    "definitions": (
        "GetRunnableInstances",
        GetRunnableInstancesRequest(workflow_definition_ids=["x"] * 1001),
        "workflow_definition_ids",
    ),
}


@pytest.mark.parametrize("case", LONG_LISTS)
async def test_too_long_lists_are_refused(api: Api, case: str) -> None:
    name, request, field = LONG_LISTS[case]
    with invalid(field, reason="NUMBER_RANGE"):
        await RPCS[name].call(api, request)


async def test_no_more_than_100_fields_are_reported(api: Api) -> None:
    pointers = [make.pointer(f"{i}", step_id=-1) for i in range(5000)]
    request = PersistWorkflowRequest(instance=make.instance(execution_pointers=pointers))
    with fails("INVALID_ARGUMENT", "INVALID_FIELD") as failure:
        await RPCS["PersistWorkflow"].call(api, request)
    assert failure.message.startswith("instance.execution_pointers[0].step_id: ")
    assert failure.message.endswith(" (and 99 more)")


# Lease tokens.

LEASES: Final = [RPCS["CompleteCommands"], RPCS["ReleaseCommands"], RPCS["RenewCommands"]]


@pytest.mark.parametrize("field", ["held_lease_tokens", "complete_lease_tokens"])
async def test_what_is_no_lease_token_is_refused_in_a_commit(api: Api, field: str) -> None:
    async with Scene(api, RPCS["CommitWorkflow"]) as scene:
        before = await scene.state()
        with invalid(f"{field}[1]", reason="FORMAT"):
            await scene.rpc.call(api, with_values(scene.request, (f"{field}[1]", CANARY)))
        assert await scene.state() == before
        await scene.succeed()


@pytest.mark.parametrize("rpc", LEASES, ids=str)
@pytest.mark.parametrize(
    "token", [CANARY, f"{CANARY}; DROP TABLE x", "1", "..", "é", "1.1.1", "0" * 512, "-1.-1.-1"]
)
async def test_what_is_no_lease_token_is_refused(api: Api, rpc: Rpc, token: str) -> None:
    async with Scene(api, rpc) as scene:
        request = with_values(scene.request, ("lease_tokens[1]", token))
        failure, said = await refusal(rpc.call(api, request))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
        assert failure.violations == {"lease_tokens[1]": "FORMAT"}
        assert CANARY not in said
        assert await scene.state() == 0
        await scene.succeed()


@pytest.mark.parametrize("rpc", LEASES, ids=str)
async def test_more_than_1000_lease_tokens_are_refused(api: Api, rpc: Rpc) -> None:
    async with Scene(api, rpc) as scene:
        request = with_values(scene.request)
        request.lease_tokens[:] = [make.new_id() for _ in range(1001)]
        with invalid("lease_tokens", reason="NUMBER_RANGE"):
            await rpc.call(api, request)


@pytest.mark.parametrize("rpc", LEASES, ids=str)
async def test_altered_lease_tokens_remove_nothing(api: Api, rpc: Rpc) -> None:
    async with Scene(api, rpc) as scene:
        held = list(scene.request.lease_tokens)
        for i, character in enumerate(held[1]):
            altered = held[1][:i] + ("1" if character != "1" else "2") + held[1][i + 1 :]
            if altered in held:  # what is claimed together may have tokens that are alike
                continue
            failure = await failure_of(rpc.call(api, rpc.request(lease_tokens=[altered])))
            assert failure is None or failure.reason in ("LEASE_LOST", "INVALID_FIELD"), failure
        for token in held:
            await failure_of(api.release_commands(token))
        assert await scene.state() == 3


async def test_token_expiry_that_has_passed_is_refused(api: Api) -> None:
    async with Scene(api, RPCS["SetSubscriptionToken"]) as scene:
        before = await scene.state()
        for at in (make.FIRST_TIME, Timestamp(), make.from_now(-60)):
            with invalid("expiry", reason="TIME_RANGE"):
                await scene.rpc.call(api, with_values(scene.request, ("expiry", at)))
        assert await scene.state() == before
        await scene.succeed()


# Namespaces.


# For these the metadata plays no part.
UNBOUND: Final = (
    "CreateNamespace", "ListNamespaces", "ListDatabases", "DeleteNamespace",
    "MoveNamespace", "AbortMoveNamespace",
    "CreateNamespaceSet", "GetNamespaceSet", "DeleteNamespaceSet",
)  # fmt: skip
BOUND: Final = [rpc for rpc in RPCS.values() if rpc.name not in UNBOUND]


@pytest.mark.parametrize("rpc", BOUND, ids=str)
async def test_call_to_an_absent_namespace_is_refused(api: Api, rpc: Rpc) -> None:
    name = make.new_namespace()
    for _ in range(2):  # the first does not make the second one succeed
        failure, _ = await refusal(rpc.call(api, valid_request(rpc), **in_namespace(name)))
        assert failure.code is grpc.StatusCode.NOT_FOUND
        assert failure.reason == "NAMESPACE_NOT_FOUND"


@pytest.mark.parametrize("name", BAD_NAMESPACES)
async def test_bad_namespace_is_refused(api: Api, name: str) -> None:
    for rpc in (RPCS["GetStoreInfo"], RPCS["GetWorkflowInstances"], RPCS["NextDefinitionSequence"]):
        failure, said = await refusal(rpc.call(api, valid_request(rpc), **in_namespace(name)))
        assert failure.code is grpc.StatusCode.INVALID_ARGUMENT, rpc
        assert failure.reason == "INVALID_NAMESPACE"
        assert CANARY not in said
    await api.get_store_info()


@pytest.mark.parametrize("rpc", BOUND, ids=str)
async def test_bad_namespace_is_refused_on_every_rpc(api: Api, rpc: Rpc) -> None:
    with fails("INVALID_ARGUMENT", "INVALID_NAMESPACE"):
        await rpc.call(api, valid_request(rpc), **in_namespace("No"))


async def test_longest_namespace_and_names_of_postgres_are_only_absent(api: Api) -> None:
    for name in ("x" * 40, "pg_catalog", "information_schema", "public", "wfc", "select"):
        with fails("NOT_FOUND", "NAMESPACE_NOT_FOUND"):
            await RPCS["GetStoreInfo"].call(api, b"", **in_namespace(name))


@pytest.mark.parametrize("metadata", ["its own name", "absent", "No"])
async def test_metadata_plays_no_part_in_the_creation_of_a_namespace(
    api: Api, metadata: str
) -> None:
    async with Scene(api, RPCS["CreateNamespace"]) as scene:
        name = scene.request.name if metadata == "its own name" else metadata
        await scene.rpc.call(api, scene.request, **in_namespace(name))
        assert await scene.state() is not None


async def test_default_namespace_can_be_named(api: Api) -> None:
    [named] = await RPCS["GetStoreInfo"].call(api, b"", **in_namespace("default"))
    assert named == await api.get_store_info()
    assert named.namespace == "default"


# What is unknown.


@pytest.mark.parametrize(
    "path",
    [
        "/wfe.persistence.v1.WorkflowService/PurgeEverything",
        "/wfe.persistence.v1.WorkflowService/getWorkflowInstance",
        "/wfe.persistence.v1.WorkflowService/",
        "/wfe.persistence.v2.WorkflowService/GetWorkflowInstance",
        "/wfe.persistence.v1.EventService/GetWorkflowInstance",
        "/x",
    ],
)
async def test_unknown_method_is_unimplemented(api: Api, path: str) -> None:
    failure = await failure_of(api.unary(path)(b""))
    assert failure is not None
    assert failure.code is grpc.StatusCode.UNIMPLEMENTED
    await api.get_store_info()


def _messages(message: Message) -> Iterator[Message]:
    """A message and all the messages in it."""
    yield message
    for path, field in fields(message):
        if field.message_type is not None and not is_map(field):
            yield look(message, path)


@pytest.mark.parametrize("rpc", HARMLESS, ids=str)
async def test_unknown_fields_are_ignored(api: Api, rpc: Rpc) -> None:
    async with Scene(api, rpc) as scene:
        for message in _messages(scene.request):
            message.MergeFromString(unknown_field(10))
        assert len(scene.request.SerializeToString()) > 10
        await scene.succeed()
        if rpc.name.startswith("Create"):  # and are no part of the content
            scene.request.DiscardUnknownFields()
            await scene.succeed()


def test_every_reason_for_a_bad_field_is_expected_somewhere() -> None:
    expected = {
        bad.reason
        for rpc in RPCS.values()
        for _, field in fields(valid_request(rpc))
        for bad in bad_values(rpc, field)
    }
    names = FieldViolationReason.DESCRIPTOR.values_by_name
    known = {name.removeprefix("FIELD_VIOLATION_REASON_") for name in names}
    assert expected | {"DUPLICATE", "FORMAT"} == known - {"UNSPECIFIED"}
