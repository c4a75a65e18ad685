"""Locks."""

from datetime import datetime

from wfe.persistence.v1 import lock_pb2
from wfe_persistence_client import model
from wfe_persistence_client.convert.scalars import time_from_proto


def acquired_lock_from_proto(
    resource: str, message: lock_pb2.AcquireLockResponse
) -> model.AcquiredLock:
    """The lock that was acquired, from a response."""
    return model.AcquiredLock(
        resource=resource,
        token=message.token,
        epoch=message.epoch,
        expiry=time_from_proto(message.expiry),
    )


def lock_from_proto(message: lock_pb2.Lock) -> model.Lock:
    """A lock as others see it, from a message."""
    return model.Lock(
        resource=message.resource,
        owner=message.owner,
        epoch=message.epoch,
        expiry=time_from_proto(message.expiry),
        acquire_time=time_from_proto(message.acquire_time),
    )


def expiry_from_proto(message: lock_pb2.RenewLocksResponse) -> datetime | None:
    """When renewed locks expire."""
    return time_from_proto(message.expiry) if message.HasField("expiry") else None
