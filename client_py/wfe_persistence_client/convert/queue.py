"""Queues and their items."""

from collections.abc import Callable, Iterable
from typing import Final

from wfe.persistence.v1 import queue_item_pb2, queue_pb2, workflow_pb2
from wfe_persistence_client import model
from wfe_persistence_client.convert.scalars import (
    enum_from_proto,
    optional_duration,
    optional_timestamp,
    read_json_field,
    time_from_proto,
    timedelta_from_proto,
    write_optional_json_field,
)
from wfe_persistence_client.hints import Fields
from wfe_persistence_client.misfit import build, each

_ITEM: Final = Fields(model.QueueItem)
_ACKNOWLEDGEMENT: Final = Fields(model.Acknowledgement)
_RETURNED: Final = Fields(model.ReturnedItem)

ReadWorkflow = Callable[[workflow_pb2.WorkflowInstance], model.WorkflowInstance]


def queue_items_to_proto(
    place: str, values: Iterable[model.QueueItem]
) -> list[queue_item_pb2.QueueItem]:
    """Items to enqueue as messages; `place` is the argument's name, for errors."""
    return each(place, values, queue_item_to_proto)


def queue_item_to_proto(value: model.QueueItem) -> queue_item_pb2.QueueItem:
    """An item to enqueue as a message."""
    _ITEM.check(value)
    return build(
        queue_item_pb2.QueueItem,
        queue=value.queue,
        id=value.id,
        payload_json=write_optional_json_field("payload", value.payload),
        visible_time=optional_timestamp("visible_time", value.visible_time),
        blocked_by=value.blocked_by,
    )


def _item_from_proto(message: queue_item_pb2.QueueItem) -> model.QueueItem:
    return model.QueueItem(
        queue=message.queue,
        id=message.id,
        payload=(
            read_json_field("payload", message.payload_json)
            if message.HasField("payload_json")
            else model.ABSENT
        ),
        visible_time=time_from_proto(message.visible_time),
        blocked_by=list(message.blocked_by),
    )


def acknowledgements_to_proto(
    values: Iterable[model.Acknowledgement],
) -> list[queue_item_pb2.Acknowledgement]:
    """Acknowledgements as messages."""
    return each("acknowledge", values, acknowledgement_to_proto)


def acknowledgement_to_proto(value: model.Acknowledgement) -> queue_item_pb2.Acknowledgement:
    """An acknowledgement as a message."""
    _ACKNOWLEDGEMENT.check(value)
    return build(queue_item_pb2.Acknowledgement, receipt=value.receipt, confirmed=value.confirmed)


def returned_items_to_proto(
    values: Iterable[model.ReturnedItem],
) -> list[queue_pb2.ReturnedItem]:
    """Items to be given back as messages."""
    return each("return_items", values, _returned_item_to_proto)


def _returned_item_to_proto(value: model.ReturnedItem) -> queue_pb2.ReturnedItem:
    _RETURNED.check(value)
    return build(
        queue_pb2.ReturnedItem, receipt=value.receipt, delay=optional_duration(value.delay)
    )


def dequeued_from_proto(message: queue_pb2.DequeueResponse, read: ReadWorkflow) -> model.Dequeued:
    """What was handed out from a message; `read` converts a workflow."""

    def item(message: queue_pb2.DequeuedItem) -> model.DequeuedItem:
        return model.DequeuedItem(
            item=_item_from_proto(message.item),
            receipt=message.receipt,
            lease_expiry=time_from_proto(message.lease_expiry),
            epoch=message.epoch,
            attempt=message.attempt,
            workflow=read(message.workflow) if message.HasField("workflow") else None,
            workflow_omitted=message.workflow_omitted,
        )

    return model.Dequeued(
        items=each("items", message.items, item),
        returned_receipts=list(message.returned_receipts),
    )


def listed_item_from_proto(message: queue_pb2.ListedQueueItem) -> model.ListedQueueItem:
    """An item of a list from a message."""
    lease = None
    if message.HasField("lease"):
        lease = model.QueueItemLease(
            worker_id=message.lease.worker_id,
            expiry=time_from_proto(message.lease.expiry),
            epoch=message.lease.epoch,
        )
    return model.ListedQueueItem(
        item=_item_from_proto(message.item),
        state=enum_from_proto(model.QueueItemState, message.state),
        attempt=message.attempt,
        lease=lease,
        again_time=time_from_proto(message.again_time) if message.HasField("again_time") else None,
    )


def queue_stats_from_proto(message: queue_pb2.QueueStats) -> model.QueueStats:
    """The statistics of a queue from a message."""
    return model.QueueStats(
        queue=message.queue,
        kind=enum_from_proto(model.QueueKind, message.kind),
        max_attempts=message.max_attempts,
        waiting=message.waiting,
        delayed=message.delayed,
        leased=message.leased,
        dead=message.dead,
        oldest_waiting_age=(
            timedelta_from_proto(message.oldest_waiting_age)
            if message.HasField("oldest_waiting_age")
            else None
        ),
    )


def item_state_to_proto(
    value: model.QueueItemState | None,
) -> queue_pb2.QueueItemState.ValueType:
    """The state of items to list as in a message; None: any."""
    return queue_pb2.QueueItemState.ValueType(0 if value is None else value.value)


def queue_kind_to_proto(value: model.QueueKind) -> queue_pb2.QueueKind.ValueType:
    """What a queue's items stand for, as in a message."""
    return queue_pb2.QueueKind.ValueType(value.value)
