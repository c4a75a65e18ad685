"""The dataclasses and the messages say the same."""

import dataclasses
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from enum import Enum
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from tests.client.test_json_text import JSON_VALUES, TEXT, same, unhurried
from wfe.persistence.v1 import (
    command_pb2,
    event_pb2,
    list_order_pb2,
    queue_item_pb2,
    queue_pb2,
    store_pb2,
    subscription_pb2,
    workflow_pb2,
)
from wfe_persistence_client import (
    ABSENT,
    JSON,
    LEFT_OUT,
    Absent,
    Acknowledgement,
    Capabilities,
    ClaimedCommand,
    CommandLease,
    CommandName,
    Dequeued,
    DequeuedItem,
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    HeaderChanges,
    ListedCommand,
    ListedQueueItem,
    ListOrder,
    MalformedAnswer,
    PointerStatus,
    QueueItem,
    QueueItemLease,
    QueueItemState,
    QueueKind,
    QueueStats,
    ReturnedItem,
    ScheduledCommand,
    StoreInfo,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
    WorkflowView,
    convert,
)

NOW = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)

INT31 = st.integers(0, 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
# At both ends a zone's offset would leave the years 1-9999.
TIMES = st.datetimes(
    datetime(1, 1, 2),  # noqa: DTZ001
    datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.just(UTC) | st.timezones(),
) | st.sampled_from([datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
MAYBE_TEXT = st.none() | TEXT
MAYBE_TIME = st.none() | TIMES
MAYBE_JSON: st.SearchStrategy[JSON | Absent] = st.just(ABSENT) | st.none() | JSON_VALUES

POINTERS = st.builds(
    ExecutionPointer,
    id=TEXT,
    step_id=INT31,
    status=st.sampled_from(PointerStatus),
    active=st.booleans(),
    sleep_until=MAYBE_TIME,
    persistence_data=MAYBE_JSON,
    start_time=MAYBE_TIME,
    end_time=MAYBE_TIME,
    event_name=MAYBE_TEXT,
    event_key=MAYBE_TEXT,
    event_published=st.booleans(),
    event_data=MAYBE_JSON,
    step_name=MAYBE_TEXT,
    retry_count=INT31,
    children=st.lists(TEXT, max_size=3),
    context_item=MAYBE_JSON,
    predecessor_id=MAYBE_TEXT,
    outcome=MAYBE_JSON,
    scope=st.lists(TEXT, max_size=3),
    extension_attributes=st.dictionaries(TEXT, JSON_VALUES, max_size=3),
)
WORKFLOWS = st.builds(
    WorkflowInstance,
    id=TEXT,
    name=TEXT,
    root_workflow_id=MAYBE_TEXT,
    workflow_definition_id=TEXT,
    version=INT31,
    description=MAYBE_TEXT,
    reference=MAYBE_TEXT,
    execution_pointers=st.lists(POINTERS, max_size=2),
    next_execution=st.none() | INT64,
    status=st.sampled_from(WorkflowStatus),
    data=JSON_VALUES,
    create_time=TIMES,
    complete_time=MAYBE_TIME,
    revision=INT64,
    view=st.sampled_from(WorkflowView),
)
EVENTS = st.builds(
    Event,
    id=TEXT,
    event_name=TEXT,
    event_key=TEXT,
    event_data=JSON_VALUES,
    event_time=TIMES,
    is_processed=st.booleans(),
)
SUBSCRIPTIONS = st.builds(
    EventSubscription,
    id=TEXT,
    workflow_id=TEXT,
    step_id=INT31,
    execution_pointer_id=TEXT,
    event_name=TEXT,
    event_key=TEXT,
    subscribe_as_of=TIMES,
    subscription_data=MAYBE_JSON,
    external_token=MAYBE_TEXT,
    external_worker_id=MAYBE_TEXT,
    external_token_expiry=MAYBE_TIME,
    external_token_epoch=INT64,
)
COMMANDS = st.builds(
    ScheduledCommand, command_name=st.sampled_from(CommandName), data=TEXT, execute_time=INT64
)
ERRORS = st.builds(
    ExecutionError, error_time=TIMES, workflow_id=TEXT, execution_pointer_id=TEXT, message=TEXT
)


def over_the_wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


def in_utc(value: Any) -> Any:
    """The value as it must come back: its times in UTC."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).replace(fold=0)
    if isinstance(value, list):
        return [in_utc(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value,
            **{
                field.name: in_utc(getattr(value, field.name))
                for field in dataclasses.fields(value)
            },
        )
    return value


def assert_survives(value: Any, out: Callable[[Any], Any], back: Callable[[Any], Any]) -> None:
    returned = back(over_the_wire(out(value)))
    expected = in_utc(value)
    # repr tells apart what == does not, but not the order of a map's entries.
    assert returned == expected
    for field in dataclasses.fields(expected):
        if field.name not in {"execution_pointers", "extension_attributes"}:
            assert same(getattr(returned, field.name), getattr(expected, field.name)), field.name


@unhurried
@given(WORKFLOWS)
def test_workflow_round_trip(value: WorkflowInstance) -> None:
    assert_survives(value, convert.workflow_to_proto, convert.workflow_from_proto)


@unhurried
@given(POINTERS)
def test_pointer_round_trip(value: ExecutionPointer) -> None:
    def out(pointer: ExecutionPointer) -> workflow_pb2.WorkflowInstance:
        instance = WorkflowInstance(
            workflow_definition_id="d", version=1, data=None, execution_pointers=[pointer]
        )
        return convert.workflow_to_proto(instance)

    def back(message: workflow_pb2.WorkflowInstance) -> ExecutionPointer:
        return convert.workflow_from_proto(message).execution_pointers[0]

    assert_survives(value, out, back)


def test_the_header_changes_are_those_a_patch_can_name() -> None:
    json = {"data", "extension_attributes"}
    names = {f"{n}_json" if n in json else n for n in HeaderChanges.__annotations__}
    fields = {field.name for field in workflow_pb2.WorkflowInstance.DESCRIPTOR.fields}
    assert names == fields - {"id", "execution_pointers", "revision", "view"}


@unhurried
@given(WORKFLOWS)
def test_a_patch_of_every_header_field(value: WorkflowInstance) -> None:
    changes: Any = {name: getattr(value, name) for name in HeaderChanges.__annotations__}
    pointers = [ExecutionPointer(id="p", step_id=1)]
    patch = convert.patch_to_proto(
        WorkflowPatch(
            id="w", header=changes, execution_pointers=pointers, removed_pointer_ids=["q"]
        )
    )
    expected = convert.workflow_to_proto(
        dataclasses.replace(value, id="", execution_pointers=[], revision=0, view=WorkflowView.FULL)
    )
    assert patch.header == expected
    assert patch.id == "w"
    assert list(patch.removed_pointer_ids) == ["q"]
    assert len(patch.header_mask.paths) == len(changes)
    assert [convert.pointer_from_proto(p) for p in patch.execution_pointers] == pointers


def test_a_patch_of_no_header_field() -> None:
    changes: Any = {"revision": 3}
    with pytest.raises(ValueError, match=r"header\.revision: not a header field"):
        convert.patch_to_proto(WorkflowPatch(id="w", header=changes))


@unhurried
@given(EVENTS)
def test_event_round_trip(value: Event) -> None:
    assert_survives(value, convert.event_to_proto, convert.event_from_proto)


@unhurried
@given(SUBSCRIPTIONS)
def test_subscription_round_trip(value: EventSubscription) -> None:
    assert_survives(value, convert.subscription_to_proto, convert.subscription_from_proto)


@unhurried
@given(COMMANDS)
def test_command_round_trip(value: ScheduledCommand) -> None:
    assert_survives(value, convert.command_to_proto, convert.command_from_proto)


@unhurried
@given(ERRORS)
def test_error_round_trip(value: ExecutionError) -> None:
    assert_survives(
        value, lambda error: convert.errors_to_proto([error])[0], convert.error_from_proto
    )


# Absent, null and empty

OPTIONAL_JSON = ["persistence_data", "event_data", "context_item", "outcome"]


def pointer_message(**fields: Any) -> workflow_pb2.ExecutionPointer:
    pointer = ExecutionPointer(id="p", step_id=0, **fields)
    instance = WorkflowInstance(
        workflow_definition_id="d", version=1, data=None, execution_pointers=[pointer]
    )
    return convert.workflow_to_proto(instance).execution_pointers[0]


@pytest.mark.parametrize("name", OPTIONAL_JSON)
def test_absent_json_is_kept_apart_from_null(name: str) -> None:
    assert not pointer_message().HasField(f"{name}_json")  # type: ignore[arg-type]
    assert not pointer_message(**{name: ABSENT}).HasField(f"{name}_json")  # type: ignore[arg-type]
    null = pointer_message(**{name: None})
    assert null.HasField(f"{name}_json")  # type: ignore[arg-type]
    assert getattr(null, f"{name}_json") == "null"


@pytest.mark.parametrize("name", OPTIONAL_JSON)
def test_absent_json_comes_back_apart_from_null(name: str) -> None:
    def read(text: str | None) -> Any:
        fields: dict[str, Any] = {} if text is None else {f"{name}_json": text}
        pointer = workflow_pb2.ExecutionPointer(
            status=workflow_pb2.POINTER_STATUS_PENDING, **fields
        )
        instance = workflow_pb2.WorkflowInstance(
            data_json="0",
            status=workflow_pb2.WORKFLOW_STATUS_RUNNABLE,
            execution_pointers=[pointer],
        )
        return getattr(convert.workflow_from_proto(instance).execution_pointers[0], name)

    assert read(None) is ABSENT
    assert read("null") is None
    assert read("{}") == {}


def test_null_data_is_sent() -> None:
    instance = WorkflowInstance(workflow_definition_id="d", version=1, data=None)
    assert convert.workflow_to_proto(instance).data_json == "null"


def test_absent_is_false_and_says_its_name() -> None:
    assert not ABSENT
    assert repr(ABSENT) == "ABSENT"


def test_absent_inside_of_a_json_value_is_refused() -> None:
    data: Any = {"a": ABSENT}
    with pytest.raises(TypeError, match=r"data\.a: JSON has no type for Absent"):
        convert.workflow_to_proto(
            WorkflowInstance(workflow_definition_id="d", version=1, data=data)
        )


# Times

NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001


def test_naive_times_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="event_time: a naive datetime"):
        convert.event_to_proto(
            Event(event_name="n", event_key="k", event_data=None, event_time=NAIVE)
        )


def test_the_place_of_a_bad_value_is_told() -> None:
    instance = WorkflowInstance(
        workflow_definition_id="d",
        version=1,
        data=None,
        execution_pointers=[
            ExecutionPointer(id="a", step_id=0),
            ExecutionPointer(id="b", step_id=1, sleep_until=NAIVE),
        ],
    )
    place = re.escape("execution_pointers[1].sleep_until: a naive datetime")
    with pytest.raises(ValueError, match=f"^{place}"):
        convert.workflow_to_proto(instance)


class Undecided(tzinfo):
    def utcoffset(self, _dt: datetime | None) -> timedelta | None:
        return None

    def dst(self, _dt: datetime | None) -> timedelta | None:
        return None

    def tzname(self, _dt: datetime | None) -> str | None:
        return None


def test_a_timezone_without_offset_is_naive() -> None:
    with pytest.raises(ValueError, match="naive"):
        convert.timestamp("t", NOW.replace(tzinfo=Undecided()))


@pytest.mark.parametrize(
    "value",
    [
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    ],
)
def test_times_outside_the_years_1_to_9999_in_utc_are_refused(value: datetime) -> None:
    with pytest.raises(ValueError, match="years 1-9999"):
        convert.timestamp("t", value)


def test_the_repeated_hour_is_told_apart() -> None:
    zone = ZoneInfo("Europe/Berlin")
    first = datetime(2024, 10, 27, 2, 30, tzinfo=zone)
    second = first.replace(fold=1)
    between = convert.timestamp("t", second).seconds - convert.timestamp("t", first).seconds
    assert between == 3600


def read_time(value: Timestamp) -> datetime:
    message = event_pb2.Event(event_data_json="0", event_time=value)
    return convert.event_from_proto(message).event_time


@pytest.mark.parametrize("seconds", [0, 1, -1, -62135596800, 253402300799])
def test_nanoseconds_are_truncated_never_rounded(seconds: int) -> None:
    time = read_time(Timestamp(seconds=seconds, nanos=999_999_999))
    assert time.microsecond == 999_999
    assert time.tzinfo is UTC
    assert time == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        seconds=seconds, microseconds=999_999
    )


@pytest.mark.parametrize(
    ("value", "seconds", "nanos"),
    [
        (timedelta(seconds=30), 30, 0),
        (timedelta(milliseconds=1), 0, 1_000_000),
        (timedelta(days=1, microseconds=1), 86400, 1000),
        (timedelta(seconds=-1.5), -1, -500_000_000),
    ],
)
def test_durations(value: timedelta, seconds: int, nanos: int) -> None:
    message = convert.duration(value)
    assert (message.seconds, message.nanos) == (seconds, nanos)


# What the server could send


@pytest.mark.parametrize(
    "bad",
    [
        {"data_json": "NaN"},
        {"status": 99},
        {"create_time": Timestamp(seconds=2**60)},
        {"execution_pointers": [workflow_pb2.ExecutionPointer(status=99)]},  # type: ignore[arg-type]
        {"execution_pointers": [workflow_pb2.ExecutionPointer(status=1, outcome_json=" ")]},  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_read_is_a_malformed_answer(bad: dict[str, Any]) -> None:
    good: dict[str, Any] = {"data_json": "{}", "status": workflow_pb2.WORKFLOW_STATUS_RUNNABLE}
    convert.workflow_from_proto(workflow_pb2.WorkflowInstance(**good))
    with pytest.raises(MalformedAnswer) as caught:
        convert.workflow_from_proto(workflow_pb2.WorkflowInstance(**(good | bad)))
    place = ["in execution_pointers[0]"] if "execution_pointers" in bad else []
    assert getattr(caught.value, "__notes__", []) == place


def test_what_other_software_has_stored_can_be_read_but_not_written() -> None:
    """A status that the server does not know, and documents that it left out of a list."""
    pointer = workflow_pb2.ExecutionPointer(id="1", persistence_data_json="")
    message = workflow_pb2.WorkflowInstance(id="w", execution_pointers=[pointer])
    value = convert.workflow_from_proto(message)
    assert value.status is WorkflowStatus.UNKNOWN
    assert value.data is LEFT_OUT
    assert repr(value.data) == "LEFT_OUT"
    [read] = value.execution_pointers
    assert read.status is PointerStatus.UNKNOWN
    assert read.persistence_data is LEFT_OUT
    assert read.outcome is ABSENT
    with pytest.raises(TypeError, match="persistence_data"):
        convert.workflow_to_proto(value)


# Nothing is forgotten

Pairs = list[tuple[type[Any], Descriptor]]
MESSAGES: Pairs = [
    (WorkflowInstance, workflow_pb2.WorkflowInstance.DESCRIPTOR),
    (ExecutionPointer, workflow_pb2.ExecutionPointer.DESCRIPTOR),
    (Event, event_pb2.Event.DESCRIPTOR),
    (EventSubscription, subscription_pb2.EventSubscription.DESCRIPTOR),
    (ScheduledCommand, command_pb2.ScheduledCommand.DESCRIPTOR),
    (ClaimedCommand, command_pb2.ClaimedCommand.DESCRIPTOR),
    (ListedCommand, command_pb2.ListedCommand.DESCRIPTOR),
    (CommandLease, command_pb2.CommandLease.DESCRIPTOR),
    (QueueItem, queue_item_pb2.QueueItem.DESCRIPTOR),
    (DequeuedItem, queue_pb2.DequeuedItem.DESCRIPTOR),
    (Dequeued, queue_pb2.DequeueResponse.DESCRIPTOR),
    (Acknowledgement, queue_item_pb2.Acknowledgement.DESCRIPTOR),
    (ReturnedItem, queue_pb2.ReturnedItem.DESCRIPTOR),
    (QueueItemLease, queue_pb2.QueueItemLease.DESCRIPTOR),
    (ListedQueueItem, queue_pb2.ListedQueueItem.DESCRIPTOR),
    (QueueStats, queue_pb2.QueueStats.DESCRIPTOR),
    (ExecutionError, store_pb2.ExecutionError.DESCRIPTOR),
    (WorkflowFilter, workflow_pb2.WorkflowFilter.DESCRIPTOR),
    (StoreInfo, store_pb2.GetStoreInfoResponse.DESCRIPTOR),
    (Capabilities, store_pb2.Capabilities.DESCRIPTOR),
]


@pytest.mark.parametrize(("model", "descriptor"), MESSAGES)
def test_the_dataclasses_have_the_fields_of_the_protos(
    model: type[Any], descriptor: Descriptor
) -> None:
    fields = {field.name for field in dataclasses.fields(model)}
    assert fields == {field.name.removesuffix("_json") for field in descriptor.fields}


ENUMS: list[tuple[type[Enum], EnumDescriptor, str]] = [
    (WorkflowStatus, workflow_pb2.WorkflowStatus.DESCRIPTOR, "WORKFLOW_STATUS_"),
    (PointerStatus, workflow_pb2.PointerStatus.DESCRIPTOR, "POINTER_STATUS_"),
    (CommandName, command_pb2.CommandName.DESCRIPTOR, "COMMAND_NAME_"),
    (WorkflowView, workflow_pb2.WorkflowView.DESCRIPTOR, "WORKFLOW_VIEW_"),
    (QueueKind, queue_pb2.QueueKind.DESCRIPTOR, "QUEUE_KIND_"),
    (QueueItemState, queue_pb2.QueueItemState.DESCRIPTOR, "QUEUE_ITEM_STATE_"),
    (ListOrder, list_order_pb2.ListOrder.DESCRIPTOR, "LIST_ORDER_"),
]


@pytest.mark.parametrize(("model", "descriptor", "prefix"), ENUMS)
def test_the_enums_have_the_values_of_the_protos(
    model: type[Enum], descriptor: EnumDescriptor, prefix: str
) -> None:
    ours = {member.name: member.value for member in model if member.name != "UNKNOWN"}
    theirs = {value.name.removeprefix(prefix): value.number for value in descriptor.values}
    assert ours == {name: number for name, number in theirs.items() if name != "UNSPECIFIED"}


def test_store_info() -> None:
    message: Message = store_pb2.GetStoreInfoResponse(
        server_version="0.1.0",
        postgres_version="18.4",
        namespace="default",
        schema="wfc",
        schema_version=3,
        latest_schema_version=4,
        capabilities=store_pb2.Capabilities(
            scheduled_commands=True,
            truncate_all=False,
            delete_namespace=True,
            create_namespace=True,
        ),
        max_message_bytes=4194304,
        request_retention=convert.duration(timedelta(hours=1)),
    )
    assert convert.store_info_from_proto(over_the_wire(message)) == StoreInfo(
        server_version="0.1.0",
        postgres_version="18.4",
        namespace="default",
        schema="wfc",
        schema_version=3,
        latest_schema_version=4,
        capabilities=Capabilities(
            scheduled_commands=True,
            truncate_all=False,
            delete_namespace=True,
            create_namespace=True,
        ),
        max_message_bytes=4194304,
        request_retention=timedelta(hours=1),
    )


def test_claimed_command() -> None:
    message = command_pb2.ClaimedCommand(
        command=command_pb2.ScheduledCommand(command_name=2, data="e", execute_time=-5),  # type: ignore[arg-type]
        lease_token="t",
        lease_expiry=convert.timestamp("t", NOW),
        epoch=7,
    )
    assert convert.claimed_command_from_proto(over_the_wire(message)) == ClaimedCommand(
        command=ScheduledCommand(command_name=CommandName.PROCESS_EVENT, data="e", execute_time=-5),
        lease_token="t",
        lease_expiry=NOW,
        epoch=7,
    )
