"""Subscriptions and claims on them."""

from collections.abc import Sequence

from wfe.persistence.v1 import subscription_pb2, workflow_pb2
from wfe_persistence_client import model
from wfe_persistence_client.convert.scalars import (
    optional_timestamp,
    read_json_field,
    time_from_proto,
    timestamp,
    within,
    write_optional_json_field,
)


def subscription_to_proto(value: model.EventSubscription) -> subscription_pb2.EventSubscription:
    """A subscription as a message."""
    return subscription_pb2.EventSubscription(
        id=value.id,
        workflow_id=value.workflow_id,
        step_id=value.step_id,
        execution_pointer_id=value.execution_pointer_id,
        event_name=value.event_name,
        event_key=value.event_key,
        subscribe_as_of=timestamp("subscribe_as_of", value.subscribe_as_of),
        subscription_data_json=write_optional_json_field(
            "subscription_data", value.subscription_data
        ),
        external_token=value.external_token,
        external_worker_id=value.external_worker_id,
        external_token_expiry=optional_timestamp(
            "external_token_expiry", value.external_token_expiry
        ),
        external_token_epoch=value.external_token_epoch,
    )


def subscription_from_proto(
    message: subscription_pb2.EventSubscription,
) -> model.EventSubscription:
    """A subscription from a message."""
    has = message.HasField
    return model.EventSubscription(
        id=message.id,
        workflow_id=message.workflow_id,
        step_id=message.step_id,
        execution_pointer_id=message.execution_pointer_id,
        event_name=message.event_name,
        event_key=message.event_key,
        subscribe_as_of=time_from_proto(message.subscribe_as_of),
        subscription_data=(
            read_json_field("subscription_data", message.subscription_data_json)
            if has("subscription_data_json")
            else model.ABSENT
        ),
        external_token=message.external_token if has("external_token") else None,
        external_worker_id=message.external_worker_id if has("external_worker_id") else None,
        external_token_expiry=(
            time_from_proto(message.external_token_expiry) if has("external_token_expiry") else None
        ),
        external_token_epoch=message.external_token_epoch,
    )


def claim_to_proto(value: model.SubscriptionClaim) -> workflow_pb2.SubscriptionClaim:
    """A claim on a subscription as a message."""
    return workflow_pb2.SubscriptionClaim(
        subscription_id=value.subscription_id, token=value.token, epoch=value.epoch
    )


def claim_from_proto(
    subscription_id: str,
    token: str,
    message: subscription_pb2.SetSubscriptionTokenResponse
    | subscription_pb2.RenewSubscriptionTokenResponse,
) -> model.SubscriptionClaim:
    """A claim on a subscription from the response to claiming or renewing it."""
    return model.SubscriptionClaim(
        subscription_id=subscription_id,
        token=token,
        # A server that is too old to support epochs sends none.
        epoch=message.epoch or None,
        expiry=time_from_proto(message.expiry) if message.HasField("expiry") else None,
    )


def subscriptions_to_proto(
    values: Sequence[model.EventSubscription],
) -> list[subscription_pb2.EventSubscription]:
    """Subscriptions as messages."""
    messages = []
    for index, value in enumerate(values):
        with within(f"subscriptions[{index}]"):
            messages.append(subscription_to_proto(value))
    return messages
