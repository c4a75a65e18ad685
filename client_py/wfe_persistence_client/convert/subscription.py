"""Subscriptions and claims on them."""

from collections.abc import Sequence
from typing import Final

from wfe.persistence.v1 import subscription_pb2, workflow_pb2
from wfe_persistence_client import model
from wfe_persistence_client.convert.scalars import (
    optional_timestamp,
    read_json_field,
    time_from_proto,
    timestamp,
    write_optional_json_field,
)
from wfe_persistence_client.hints import Fields
from wfe_persistence_client.misfit import build, each

_SUBSCRIPTION: Final = Fields(model.EventSubscription)
_CLAIM: Final = Fields(model.SubscriptionClaim)


def subscription_to_proto(value: model.EventSubscription) -> subscription_pb2.EventSubscription:
    """A subscription as a message."""
    _SUBSCRIPTION.check(value)
    return build(
        subscription_pb2.EventSubscription,
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


def check_claim(value: model.SubscriptionClaim) -> None:
    """Rejects a claim with a value that cannot be sent."""
    claim_to_proto(value)


def claim_to_proto(value: model.SubscriptionClaim) -> workflow_pb2.SubscriptionClaim:
    """A claim on a subscription as a message."""
    _CLAIM.check(value)
    return build(
        workflow_pb2.SubscriptionClaim,
        subscription_id=value.subscription_id,
        token=value.token,
        epoch=value.epoch,
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
    place: str, values: Sequence[model.EventSubscription]
) -> list[subscription_pb2.EventSubscription]:
    """Subscriptions as messages; `place` is the argument's name, for errors."""
    return each(place, values, subscription_to_proto)
