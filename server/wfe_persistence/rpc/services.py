"""The registry of services, which the app, health, reflection and the tests read.

To add a service, add it to SERVICES. A property of single RPCs is a table beside SERVER_WIDE with
the names of RPCs as keys, and a field of `Method`; tests/test_architecture.py compares the tables
with the descriptors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from wfe.persistence.v1 import command_pb2, event_pb2, store_pb2, subscription_pb2, workflow_pb2
from wfe_persistence.rpc.command_service import ScheduledCommandService
from wfe_persistence.rpc.event_service import EventService
from wfe_persistence.rpc.store_service import StoreService
from wfe_persistence.rpc.subscription_service import SubscriptionService
from wfe_persistence.rpc.workflow_service import WorkflowService

SERVER_WIDE: Final = frozenset({"CreateNamespace", "ListNamespaces", "DeleteNamespace"})
"""RPCs that concern the whole server; the namespace in their metadata is ignored."""


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC, with what the boundary must know about it."""

    name: str
    """Unique among all services."""
    descriptor: MethodDescriptor
    request_class: type[Message]
    server_wide: bool


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
    Service(store_pb2.DESCRIPTOR.services_by_name["StoreService"], StoreService),
)
