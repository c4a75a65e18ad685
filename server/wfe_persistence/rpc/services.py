"""The registry of services, which the app, health, reflection and the tests read.

To add a service, add it to SERVICES. A property of single RPCs is a table beside SERVER_WIDE with
the names of RPCs as keys, and a field of `Method`; tests/test_architecture.py compares the tables
with the descriptors.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from wfe.persistence.v1 import (
    command_pb2,
    event_pb2,
    lifecycle_pb2,
    lock_pb2,
    queue_pb2,
    store_pb2,
    subscription_pb2,
    transfer_pb2,
    workflow_pb2,
)
from wfe_persistence.access.role import Role
from wfe_persistence.rpc.command_service import ScheduledCommandService
from wfe_persistence.rpc.event_service import EventService
from wfe_persistence.rpc.lifecycle_service import LifecycleService
from wfe_persistence.rpc.lock_service import LockService
from wfe_persistence.rpc.queue_service import QueueService
from wfe_persistence.rpc.store_service import StoreService
from wfe_persistence.rpc.subscription_service import SubscriptionService
from wfe_persistence.rpc.transfer_service import TransferService
from wfe_persistence.rpc.workflow_service import WorkflowService


class Source(Enum):
    """Where an RPC reads."""

    REPLICA = auto()
    """At a replica, unless the client says `wfe-read: primary`."""
    EITHER = auto()
    """At the primary, unless the client says `wfe-read: replica`."""
    PRIMARY = auto()
    """At the primary, whatever the client says."""


SERVER_WIDE: Final = frozenset(
    {
        "CreateNamespace",
        "ListNamespaces",
        "ListDatabases",
        "DeleteNamespace",
        "CreateNamespaceSet",
        "GetNamespaceSet",
        "DeleteNamespaceSet",
        "MoveNamespace",
        "AbortMoveNamespace",
    }
)
"""RPCs that concern the whole server; the namespace in their metadata is ignored."""

NAMESPACE_FIELD: Final = {
    "CreateNamespace": "name",
    "DeleteNamespace": "name",
    "MoveNamespace": "name",
    "AbortMoveNamespace": "name",
}
"""Of server-wide RPCs that concern one namespace, the field of the request that names it."""

SET_FIELD: Final = {
    "CreateNamespaceSet": "name",
    "GetNamespaceSet": "name",
    "DeleteNamespaceSet": "name",
}
"""The same of those that concern a namespace set. The role is required in its first member before
anything else is done, and in all others by the handler, which knows which there are."""

REQUIRED_ROLE: Final = {
    # WorkflowService
    "CreateNewWorkflow": Role.HOST,
    "CreateWorkflows": Role.HOST,
    "PersistWorkflow": Role.HOST,
    "PersistWorkflowWithSubscriptions": Role.HOST,
    "CommitWorkflow": Role.HOST,
    "GetWorkflowInstance": Role.READER,
    "GetWorkflowInstanceByName": Role.READER,
    "WaitForWorkflow": Role.READER,
    "GetWorkflowInstances": Role.READER,
    "GetRunnableInstances": Role.READER,
    "SetNameHolder": Role.HOST,
    "GetNameHolder": Role.READER,
    "NextDefinitionSequence": Role.HOST,
    "ListExecutionPointers": Role.READER,
    "ListWorkflows": Role.READER,
    "CountWorkflows": Role.READER,
    "DeleteWorkflow": Role.OPERATOR,
    "PurgeWorkflows": Role.OPERATOR,
    "WatchWorkflows": Role.READER,
    # EventService
    "CreateEvent": Role.HOST,
    "CreateEvents": Role.HOST,
    "GetEvent": Role.READER,
    "GetRunnableEvents": Role.READER,
    "GetEvents": Role.READER,
    "MarkEventProcessed": Role.HOST,
    "MarkEventUnprocessed": Role.HOST,
    "ListEvents": Role.READER,
    "PurgeEvents": Role.OPERATOR,
    # SubscriptionService
    "CreateEventSubscription": Role.HOST,
    "GetSubscription": Role.READER,
    "GetSubscriptions": Role.READER,
    "GetFirstOpenSubscription": Role.READER,
    "TerminateSubscription": Role.HOST,
    "SetSubscriptionToken": Role.HOST,
    "ClearSubscriptionToken": Role.HOST,
    "RenewSubscriptionToken": Role.HOST,
    "ListSubscriptions": Role.READER,
    # ScheduledCommandService
    "ScheduleCommand": Role.HOST,
    "ClaimCommands": Role.HOST,
    "CompleteCommands": Role.HOST,
    "ReleaseCommands": Role.HOST,
    "RenewCommands": Role.HOST,
    "BreakCommandLease": Role.OPERATOR,
    "ListCommands": Role.READER,
    # LockService
    "AcquireLock": Role.HOST,
    "RenewLocks": Role.HOST,
    "ReleaseLock": Role.HOST,
    "BreakLock": Role.OPERATOR,
    "ListLocks": Role.READER,
    # QueueService
    "Enqueue": Role.HOST,
    "Dequeue": Role.HOST,
    "Acknowledge": Role.HOST,
    "ReturnItems": Role.HOST,
    "RenewItems": Role.HOST,
    "ListQueueItems": Role.READER,
    "GetQueueStats": Role.READER,
    "RequeueItems": Role.OPERATOR,
    "DeleteItems": Role.OPERATOR,
    "ConfigureQueue": Role.OPERATOR,
    # LifecycleService
    "Publish": Role.HOST,
    "Watch": Role.READER,
    # StoreService
    "EnsureStoreExists": Role.HOST,
    "PersistErrors": Role.HOST,
    "ListErrors": Role.READER,
    "GetStoreInfo": Role.READER,
    "TruncateAll": Role.ADMIN,
    "CreateNamespace": Role.OPERATOR,
    "ListNamespaces": Role.READER,
    "ListDatabases": Role.READER,
    "DeleteNamespace": Role.OPERATOR,
    "CreateNamespaceSet": Role.OPERATOR,
    "GetNamespaceSet": Role.READER,
    "DeleteNamespaceSet": Role.OPERATOR,
    "MoveNamespace": Role.ADMIN,
    "AbortMoveNamespace": Role.ADMIN,
    "SetRetentionPolicy": Role.OPERATOR,
    "GetRetentionPolicy": Role.READER,
    "RunRetention": Role.OPERATOR,
    "GetStorageReport": Role.READER,
    # TransferService
    "ExportRecords": Role.READER,
    "ImportRecords": Role.OPERATOR,
}
"""The role that a caller must have for each RPC in its namespace. For a server-wide RPC without one
it is enough in any namespace, and the answer has only the namespaces in which the caller has it."""

ADDS: Final = frozenset(
    {
        "CreateNewWorkflow",
        "CreateWorkflows",
        "PersistWorkflow",
        "PersistWorkflowWithSubscriptions",
        "CommitWorkflow",
        "SetNameHolder",
        "NextDefinitionSequence",
        "CreateEvent",
        "CreateEvents",
        "CreateEventSubscription",
        "ScheduleCommand",
        "Enqueue",
        "PersistErrors",
        "Publish",
        "ImportRecords",
    }
)
"""RPCs that may add rows or bytes to a namespace, which are refused when it is full."""

BULK: Final = frozenset({"CreateWorkflows", "CreateEvents"})
"""Streams of requests whose items are checked and answered one by one, whatever the others are."""

READS: Final = {
    # WorkflowService. A host loads a workflow to write it: what is stale costs it a conflict.
    "GetWorkflowInstance": Source.EITHER,
    "GetWorkflowInstanceByName": Source.EITHER,
    "GetWorkflowInstances": Source.EITHER,
    "GetRunnableInstances": Source.EITHER,  # stale, it names what others have run meanwhile
    "ListExecutionPointers": Source.EITHER,  # a part of loading a workflow, at its revision
    "WaitForWorkflow": Source.PRIMARY,  # it is woken by writes
    "ListWorkflows": Source.REPLICA,
    "CountWorkflows": Source.REPLICA,
    "WatchWorkflows": Source.REPLICA,  # who is behind; what is new is asked of the primary
    # EventService. As with workflows: hosts process what they get.
    "GetEvent": Source.EITHER,
    "GetRunnableEvents": Source.EITHER,
    "GetEvents": Source.EITHER,
    "ListEvents": Source.REPLICA,
    # SubscriptionService. Claims follow, and fail if it was stale.
    "GetSubscription": Source.EITHER,
    "GetSubscriptions": Source.EITHER,
    "GetFirstOpenSubscription": Source.EITHER,
    "ListSubscriptions": Source.REPLICA,
    # ScheduledCommandService, LockService, QueueService. Those who claim get it from the claim.
    "ListCommands": Source.REPLICA,
    "ListLocks": Source.EITHER,  # whoever asks whether somebody is at work goes on to write
    "ListQueueItems": Source.REPLICA,
    "GetQueueStats": Source.REPLICA,
    # LifecycleService
    "Watch": Source.REPLICA,
    # StoreService
    "ListErrors": Source.REPLICA,
    "GetStoreInfo": Source.PRIMARY,  # it is about the primary
    "ListNamespaces": Source.PRIMARY,  # it is of all databases, and seldom
    "ListDatabases": Source.PRIMARY,  # it is about them
    "GetNamespaceSet": Source.PRIMARY,  # clients route by it
    "GetNameHolder": Source.PRIMARY,  # whoever asks goes on to write
    "GetRetentionPolicy": Source.EITHER,  # of one row, mostly to change it
    "GetStorageReport": Source.PRIMARY,  # PostgreSQL counts rows on the primary only
    # TransferService
    "ExportRecords": Source.REPLICA,
}
"""Where RPCs read that change nothing, if the namespace's database has replicas: those that show
many rows to people and tools at a replica, those on which somebody acts at the primary, unless the
client says otherwise. What changes something is at the primary, with all that it reads."""

WRITES_APART: Final = frozenset(
    {"EnsureStoreExists", "CreateNamespace", "DeleteNamespace", "ImportRecords"}
)
"""RPCs that write on a connection of their own: the position that they reach is asked for."""

LASTS: Final = frozenset(
    {"Watch", "WatchWorkflows", "ExportRecords", "ImportRecords", "MoveNamespace", *BULK}
)
"""Streams without a maximum deadline: those that go on until the client ends them, exports, imports
and moves, and those of BULK. Where only the server streams, messages may have a `cursor`, and then
the error that ends the stream has that of the last one; see `boundary.py`."""


_TYPES: Final = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC, with what the boundary must know about it."""

    name: str
    """Unique among all services."""
    descriptor: MethodDescriptor
    request_class: type[Message]
    server_wide: bool
    namespace_field: str | None
    """Of a server-wide RPC: the field of the request that has the name of a namespace."""
    set_field: str | None
    """The same of a namespace set."""
    required_role: Role
    adds: bool
    """Whether it may add rows or bytes to a namespace."""
    labels: tuple[str, str, str]
    """What it is called in metrics: its type, its service, its name."""
    lasts: bool
    """Whether it is a stream without a maximum deadline."""
    is_bulk: bool
    """Whether the items of its requests are checked and answered one by one."""
    reads: Source
    """Where it reads."""

    @property
    def is_write(self) -> bool:
        """Whether it may change anything: more than a reader may do."""
        return self.required_role > Role.READER


@dataclass(frozen=True, slots=True)
class Service:
    """A service and the class that implements it, with one coroutine function per RPC."""

    descriptor: ServiceDescriptor
    servicer: type

    @property
    def name(self) -> str:
        """The full name of the service, as in the path of a call."""
        return str(self.descriptor.full_name)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The RPCs of the service."""
        return tuple(
            Method(
                method.name,
                method,
                GetMessageClass(method.input_type),
                server_wide=method.name in SERVER_WIDE,
                namespace_field=NAMESPACE_FIELD.get(method.name),
                set_field=SET_FIELD.get(method.name),
                required_role=REQUIRED_ROLE.get(method.name, Role.ADMIN),
                adds=method.name in ADDS,
                labels=(
                    _TYPES[method.client_streaming, method.server_streaming],
                    self.name,
                    method.name,
                ),
                lasts=method.name in LASTS,
                is_bulk=method.name in BULK,
                reads=READS.get(method.name, Source.PRIMARY),
            )
            for method in self.descriptor.methods
        )


SERVICES: Final = (
    Service(workflow_pb2.DESCRIPTOR.services_by_name["WorkflowService"], WorkflowService),
    Service(event_pb2.DESCRIPTOR.services_by_name["EventService"], EventService),
    Service(
        subscription_pb2.DESCRIPTOR.services_by_name["SubscriptionService"], SubscriptionService
    ),
    Service(
        command_pb2.DESCRIPTOR.services_by_name["ScheduledCommandService"], ScheduledCommandService
    ),
    Service(lock_pb2.DESCRIPTOR.services_by_name["LockService"], LockService),
    Service(queue_pb2.DESCRIPTOR.services_by_name["QueueService"], QueueService),
    Service(lifecycle_pb2.DESCRIPTOR.services_by_name["LifecycleService"], LifecycleService),
    Service(store_pb2.DESCRIPTOR.services_by_name["StoreService"], StoreService),
    Service(transfer_pb2.DESCRIPTOR.services_by_name["TransferService"], TransferService),
)
