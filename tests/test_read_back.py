"""Whatever is accepted fits in every answer that can carry it: all RPCs, by their descriptors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.rpcs import RPCS, Rpc, is_map
from wfe.persistence.v1.command_pb2 import CommandLease, ScheduledCommand
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.queue_pb2 import QueueItemLease
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    ListWorkflowsResponse,
    WorkflowInstance,
)
from wfe_persistence.rpc.check import read_back
from wfe_persistence.rpc.check.bounds import ATTRIBUTE_BYTES, MAX_HEADER_ATTRIBUTES_BYTES
from wfe_persistence.rpc.paging import FRAMING_BYTES, MAX_TOKEN_BYTES
from wfe_persistence.store.oversize import reduce

WIDEST_TIME: Final = Timestamp(seconds=-62_135_596_800, nanos=999_999_000)
"""The time that takes the most bytes."""

Predict = Callable[[Iterable[Any]], Iterator[Message]]

PREDICTIONS: Final[dict[type[Message], Predict]] = {
    WorkflowInstance: lambda items: (a for item in items for a in read_back.workflow(item)),
    ExecutionPointer: read_back.pointers,
    Event: read_back.events,
    EventSubscription: read_back.subscriptions,
    ExecutionError: read_back.errors,
    ScheduledCommand: read_back.commands,
    QueueItem: read_back.queue_items,
}
"""The functions that predict the largest answer."""

FREE_TEXTS: Final = {
    # What can be made as long as a message.
    WorkflowInstance: "data_json",
    ExecutionPointer: "outcome_json",
    Event: "event_data_json",
    EventSubscription: "subscription_data_json",
    ExecutionError: "message",
    ScheduledCommand: "data",
    QueueItem: "payload_json",
}

BESIDE: Final[dict[str, Any]] = {
    # What else an answer with one item has, at its largest.
    "next_page_token": "x" * MAX_TOKEN_BYTES,
    "ListExecutionPointersResponse.revision": 2**63 - 1,
    "ClaimedCommand.lease_token": f"{2**63 - 1}.{2**63 - 1}.{'f' * 32}",
    "ClaimedCommand.lease_expiry": make.LAST_TIME,
    "ClaimedCommand.epoch": 2**63 - 1,
    "ListedCommand.lease": CommandLease(
        worker_id="w" * 512, expiry=make.LAST_TIME, epoch=2**63 - 1
    ),
    "DequeuedItem.receipt": f"{2**63 - 1}.{'f' * 32}",
    "DequeuedItem.lease_expiry": make.LAST_TIME,
    "DequeuedItem.epoch": 2**63 - 1,
    "DequeuedItem.attempt": 2**31 - 1,
    "DequeuedItem.workflow": WorkflowInstance(),
    "DequeuedItem.workflow_omitted": True,
    "DequeueResponse.returned_receipts": "",
    "ListedQueueItem.state": 4,
    "ListedQueueItem.attempt": 2**31 - 1,
    "ListedQueueItem.lease": QueueItemLease(
        worker_id="w" * 512, expiry=make.LAST_TIME, epoch=2**63 - 1
    ),
    "ListedQueueItem.again_time": make.LAST_TIME,
    "WorkflowChange.deleted": True,
    "WorkflowChange.passes": True,
    "WorkflowChange.cursor": "x" * 43,
    "WatchWorkflowsResponse.cursor": "x" * 43,
    "ExportRecordsResponse.cursor": "x" * 140,
    # In the first response, which has no records.
    "ExportRecordsResponse.estimated_records": 0,
    "ExportRecordsResponse.snapshot_time": Timestamp(),
    "Record.creation_hash": b"x" * 32,
    "WorkflowRecord.first_revision": 2**63 - 1,
    "WorkflowRecord.is_continued": True,
    "ExecutionPointersRecord.workflow_id": "w" * 512,
    "ExecutionPointersRecord.is_continued": True,
    "ErrorRecord.copy": 2**31 - 1,
    "QueueItemRecord.is_dead": True,
    "QueueItemRecord.attempt": 2**31 - 1,
}

BY_THE_STORE: Final[dict[str, Any]] = {
    # What the store puts into an item, at its largest.
    "WorkflowInstance.name": "n" * 512,
    "WorkflowInstance.revision": 2**63 - 1,
    "WorkflowInstance.view": 3,
    "Event.is_processed": True,
    "EventSubscription.external_token": "t" * 512,
    "EventSubscription.external_worker_id": "w" * 512,
    "EventSubscription.external_token_expiry": make.LAST_TIME,
    "EventSubscription.external_token_epoch": 2**63 - 1,
    "QueueItem.visible_time": make.LAST_TIME,
}

LARGEST_OF_HEADER: Final[dict[str, Any]] = {
    **dict.fromkeys(
        ("id", "name", "root_workflow_id", "workflow_definition_id", "reference"), "x" * 512
    ),
    "version": 2**31 - 1,
    "next_execution": -1,
    "status": 4,
    "create_time": WIDEST_TIME,
    "complete_time": WIDEST_TIME,
    "revision": 2**63 - 1,
    "view": 3,
}


def _put(holder: Any, field: Any, value: Any) -> None:
    if field.is_repeated:
        getattr(holder, field.name).append(value)
    elif isinstance(value, Message):
        getattr(holder, field.name).CopyFrom(value)
    else:
        setattr(holder, field.name, value)


def _excludes(field: Any, other: Any) -> bool:
    """Whether a message has only one of these."""
    return field.containing_oneof is not None and field.containing_oneof is other.containing_oneof


def envelopes(holder: Any, item: Message) -> Iterator[Message]:
    """The messages of this type with the item somewhere in it, and all else at its largest. Inside
    of a workflow, pointers are part of it."""
    for field in holder.DESCRIPTOR.fields:
        if field.message_type is None or is_map(field):
            continue
        found: list[Message] = []
        if field.message_type is item.DESCRIPTOR:
            found = [item]
        elif field.message_type.file.package.startswith("wfe.") and (
            GetMessageClass(field.message_type) not in PREDICTIONS
        ):
            found = list(envelopes(GetMessageClass(field.message_type)(), item))
        for value in found:
            answer = type(holder)()
            _put(answer, field, value)
            for other in holder.DESCRIPTOR.fields:
                if other is not field and not _excludes(field, other):
                    name = f"{holder.DESCRIPTOR.name}.{other.name}"
                    given = BESIDE.get(name, BESIDE.get(other.name))
                    assert given is not None, f"{name}: how large can it be beside an item?"
                    _put(answer, other, given)
            yield answer


CARRIERS: Final = [
    pytest.param(rpc, message, id=f"{rpc}-{message.DESCRIPTOR.name}")
    for rpc in RPCS.values()
    if not rpc.variant
    for message in PREDICTIONS
    # Dequeue leaves workflows out that do not fit.
    if (rpc.name, message) != ("Dequeue", WorkflowInstance)
    if list(envelopes(rpc.response(), message()))
]


def test_every_message_is_carried_by_the_answers_that_are_known_to() -> None:
    found = {case.id for case in CARRIERS}
    assert found >= {
        "GetWorkflowInstance-WorkflowInstance",
        "GetWorkflowInstanceByName-WorkflowInstance",
        "GetWorkflowInstances-WorkflowInstance",
        "ListWorkflows-WorkflowInstance",
        "ListExecutionPointers-ExecutionPointer",
        "GetEvent-Event",
        "ListEvents-Event",
        "GetSubscription-EventSubscription",
        "GetSubscriptions-EventSubscription",
        "GetFirstOpenSubscription-EventSubscription",
        "ListSubscriptions-EventSubscription",
        "ListErrors-ExecutionError",
        "ClaimCommands-ScheduledCommand",
        "ListCommands-ScheduledCommand",
        "Dequeue-QueueItem",
        "ListQueueItems-QueueItem",
    }


@pytest.mark.parametrize(("rpc", "message"), CARRIERS)
@pytest.mark.parametrize("limit", [4096, 50_000, 4 * 2**20])
def test_what_is_predicted_to_fit_does(rpc: Rpc, message: type[Message], limit: int) -> None:
    """The largest item that is accepted, in the answer, and in a page without a part left out."""
    item: Any = message(**{FREE_TEXTS[message]: ""})
    size = limit
    while True:
        setattr(item, FREE_TEXTS[message], _document(size))
        if read_back_bytes(item) <= limit:
            break
        size -= max(1, read_back_bytes(item) - limit)
    stored: Any = message()
    stored.CopyFrom(item)
    for field in message.DESCRIPTOR.fields:
        if (given := BY_THE_STORE.get(f"{message.DESCRIPTOR.name}.{field.name}")) is not None:
            _put(stored, field, given)
    for answer in envelopes(rpc.response(), stored):
        assert answer.ByteSize() <= limit
    if "next_page_token" in rpc.response.DESCRIPTOR.fields_by_name:
        page: Any = message()
        page.CopyFrom(stored)
        reduce(page, limit - MAX_TOKEN_BYTES - FRAMING_BYTES - 8)  # as fill_page does
        assert page == stored


def _document(size: int) -> str:
    return f'"{"x" * max(0, size - 2)}"'


def read_back_bytes(item: Any) -> int:
    """The size of the largest answer that is predicted."""
    copy = type(item)()
    copy.CopyFrom(item)
    [answer] = PREDICTIONS[type(item)]([copy])
    return answer.ByteSize()


def test_largest_header_leaves_the_rest_of_a_message_to_its_description_and_data() -> None:
    header = WorkflowInstance(data_json="x" * 10**7, description="x" * 10**7)
    for field in WorkflowInstance.DESCRIPTOR.fields:
        if field.name in LARGEST_OF_HEADER:
            _put(header, field, LARGEST_OF_HEADER[field.name])
        elif field.name == "extension_attributes_json":
            value = "x" * (MAX_HEADER_ATTRIBUTES_BYTES - ATTRIBUTE_BYTES - 1)
            header.extension_attributes_json["n"] = value
        else:  # a new field needs its place here
            assert field.name in ("data_json", "description", "execution_pointers")
    answers = envelopes(ListWorkflowsResponse(), header)
    assert max(answer.ByteSize() for answer in answers) < 2 * 10**7 + read_back.HEADER_BYTES - 100


def test_every_message_that_is_stored_has_a_prediction() -> None:
    """A new message in a request to write fails here, until it is said how it is read."""
    written = {
        field.message_type.name
        for rpc in RPCS.values()
        if rpc.name.startswith(("Create", "Persist", "Commit", "Schedule", "Enqueue"))
        for field in rpc.request.DESCRIPTOR.fields
        if field.message_type is not None
    }
    # Not stored as such; and lifecycle events are so small that they always fit.
    parts = {"WorkflowPatch", "SubscriptionClaim", "Acknowledgement", "LifecycleEvent"}
    parts |= {"CreateEventRequest", "CreateNewWorkflowRequest"}  # of bulk creates: looked at above
    assert written - parts <= {message.DESCRIPTOR.name for message in PREDICTIONS}
