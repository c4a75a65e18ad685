"""The services as typed stubs on one channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from wfe.persistence.v1 import (
    command_pb2_grpc,
    event_pb2_grpc,
    store_pb2_grpc,
    subscription_pb2_grpc,
    workflow_pb2_grpc,
)


class Api:
    """All five services of a server, through the generated stubs and nothing else."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.workflows: workflow_pb2_grpc.WorkflowServiceAsyncStub = (
            workflow_pb2_grpc.WorkflowServiceStub(channel)
        )
        self.events: event_pb2_grpc.EventServiceAsyncStub = event_pb2_grpc.EventServiceStub(channel)
        self.subscriptions: subscription_pb2_grpc.SubscriptionServiceAsyncStub = (
            subscription_pb2_grpc.SubscriptionServiceStub(channel)
        )
        self.commands: command_pb2_grpc.ScheduledCommandServiceAsyncStub = (
            command_pb2_grpc.ScheduledCommandServiceStub(channel)
        )
        self.store: store_pb2_grpc.StoreServiceAsyncStub = store_pb2_grpc.StoreServiceStub(channel)

    def unary(self, method: str) -> Any:
        """A unary method by its full path, bytes in and bytes out."""
        return self.channel.unary_unary(method)


def connect(address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
    """A channel that shows each failure as it is: no retries of its own."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.enable_retries", 0),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            *options,
        ],
    )
