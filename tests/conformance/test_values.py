"""What is stored comes back as it was: absent, null and empty apart, times, numbers, ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    PointerStatus,
    WorkflowInstance,
    WorkflowStatus,
)

MAKE: dict[str, Callable[..., Any]] = {
    "WorkflowInstance": make.instance,
    "ExecutionPointer": make.pointer,
    "Event": make.event,
    "EventSubscription": make.subscription,
    "ExecutionError": make.error,
}
MESSAGES = (WorkflowInstance, ExecutionPointer, Event, EventSubscription, ExecutionError)


async def read_back(api: Api, message: Message) -> Any:
    """Store a message, with what it needs around it, and read it."""
    match message:
        case WorkflowInstance():
            await api.create_new_workflow(message)
            return await api.get_workflow_instance(message.id)
        case ExecutionPointer():
            instance = make.instance(execution_pointers=[make.pointer("other"), message])
            await api.create_new_workflow(instance)
            return (await api.get_workflow_instance(instance.id)).execution_pointers[1]
        case Event():
            await api.create_event(message)
            return await api.get_event(message.id)
        case EventSubscription():
            await api.create_event_subscription(message)
            return await api.get_subscription(message.id)
        case ExecutionError():
            await api.persist_errors(message)
            return (await api.list_errors(workflow_id=message.workflow_id)).errors[0]
        case _:
            raise AssertionError(message.DESCRIPTOR.name)


# Absent, null and empty are three things.


def _optional(suffix: str = "", kind: type = str) -> list[tuple[str, str]]:
    """All fields that may be absent, by message, of a Python type and with this suffix."""
    return [
        (message.DESCRIPTOR.name, field.name)
        for message in MESSAGES
        for field in message.DESCRIPTOR.fields
        if field.has_presence
        and field.message_type is None
        and isinstance(field.default_value, kind)
        and field.name.endswith(suffix)
        and field.name.endswith("_json") == (suffix == "_json")
    ]


@pytest.mark.parametrize(("message", "field"), _optional("_json"))
@pytest.mark.parametrize("value", [None, "null", '""', "{}", "[]", "0", "false", "[null]"])
async def test_optional_json(api: Api, message: str, field: str, value: str | None) -> None:
    stored = await read_back(api, MAKE[message](**{field: value}))
    assert stored.HasField(field) == (value is not None)
    assert getattr(stored, field) == (value or "")


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (message, field, value)
        for message, field in _optional()
        for value in (None, "", "null", "x")
        if (field, value) != ("external_token", "")  # has at least one byte
    ],
)
async def test_optional_text(api: Api, message: str, field: str, value: str | None) -> None:
    stored = await read_back(api, MAKE[message](**{field: value}))
    assert stored.HasField(field) == (value is not None)
    assert getattr(stored, field) == (value or "")


@pytest.mark.parametrize(("message", "field"), _optional(kind=int))
@pytest.mark.parametrize("value", [None, 0, 1, -1])
async def test_optional_number(api: Api, message: str, field: str, value: int | None) -> None:
    stored = await read_back(api, MAKE[message](**{field: value}))
    assert stored.HasField(field) == (value is not None)
    assert getattr(stored, field) == (value or 0)


TIMES = [(m.DESCRIPTOR.name, field) for m in MESSAGES for field in make.times_of(m)]
REQUIRED_TIMES = {"create_time", "event_time", "subscribe_as_of", "error_time"}


@pytest.mark.parametrize(
    ("message", "field"), [(m, field) for m, field in TIMES if field not in REQUIRED_TIMES]
)
async def test_optional_time(api: Api, message: str, field: str) -> None:
    """The epoch, a Timestamp without any field set, is a time."""
    for value in (None, Timestamp(), make.time()):
        stored = await read_back(api, MAKE[message](**{field: value}))
        assert stored.HasField(field) == (value is not None)
        assert getattr(stored, field) == (value or Timestamp())


def test_every_optional_field_is_covered() -> None:
    found = [*_optional("_json"), *_optional(), *_optional(kind=int)]
    assert len(found) == len(set(found))
    assert {field for _, field in found} == {
        *("root_workflow_id", "description", "reference", "next_execution"),
        *("event_name", "event_key", "step_name", "predecessor_id"),
        *("persistence_data_json", "event_data_json", "context_item_json", "outcome_json"),
        *("subscription_data_json", "external_token", "external_worker_id"),
    }


@pytest.mark.parametrize("value", ["null", '""', "{}", "0"])
async def test_null_and_empty_of_json_that_is_required(api: Api, value: str) -> None:
    assert (await read_back(api, make.instance(data_json=value))).data_json == value
    assert (await read_back(api, make.event(event_data_json=value))).event_data_json == value


async def test_extension_attributes_keep_null_and_empty_names(api: Api) -> None:
    attributes = {"": "1", "null": "null", "empty": '""', "a.b": "{}", " ": "[]", "é": "[null]"}
    stored = await read_back(api, make.pointer(extension_attributes_json=attributes))
    assert dict(stored.extension_attributes_json) == attributes


@pytest.mark.parametrize("field", ["children", "scope"])
async def test_lists_of_ids_keep_order_and_repeats(api: Api, field: str) -> None:
    for ids in ([], ["b", "a", "b", "c"], ["null", '"', "\\", "é", "]"]):
        stored = await read_back(api, MAKE["ExecutionPointer"](**{field: ids}))
        assert list(getattr(stored, field)) == ids


# Enums.


@pytest.mark.parametrize("status", [s for s in WorkflowStatus.values() if s])
async def test_every_workflow_status(api: Api, status: WorkflowStatus.ValueType) -> None:
    assert (await read_back(api, make.instance(status=status))).status == status


@pytest.mark.parametrize("status", [s for s in PointerStatus.values() if s])
async def test_every_pointer_status(api: Api, status: PointerStatus.ValueType) -> None:
    assert (await read_back(api, make.pointer(status=status))).status == status


# Times.


@pytest.mark.parametrize(("message", "field"), TIMES)
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (Timestamp(seconds=1, nanos=123_456_999), Timestamp(seconds=1, nanos=123_456_000)),
        (Timestamp(seconds=1, nanos=999_999_999), Timestamp(seconds=1, nanos=999_999_000)),
        (Timestamp(seconds=1, nanos=501), Timestamp(seconds=1)),
        (Timestamp(seconds=-1, nanos=999_999_999), Timestamp(seconds=-1, nanos=999_999_000)),
        (Timestamp(seconds=-1, nanos=500_999), Timestamp(seconds=-1, nanos=500_000)),
        (make.FIRST_TIME, make.FIRST_TIME),
        (make.later(make.LAST_TIME, ns=999), make.LAST_TIME),
    ],
)
async def test_times_are_truncated_to_microseconds(
    api: Api, message: str, field: str, given: Timestamp, kept: Timestamp
) -> None:
    """Never rounded; towards the past also before 1970; years 1 to 9999."""
    stored = await read_back(api, MAKE[message](**{field: given}))
    assert getattr(stored, field) == kept


async def test_expiry_of_a_hold_is_truncated(api: Api) -> None:
    subscription = make.subscription()
    await api.create_event_subscription(subscription)
    expiry = Timestamp(seconds=make.from_now(3600).seconds, nanos=123_456_999)
    await api.set_subscription_token(subscription.id, "token", "worker", expiry)
    stored = await api.get_subscription(subscription.id)
    assert stored.external_token_expiry == make.later(expiry, ns=-999)


@pytest.mark.parametrize("nanos", [0, 1, 499, 500, 501, 999, 123_456_500, 999_999_999])
@pytest.mark.parametrize("seconds", [-86_400 * 365 * 100, -1, 0, 1_767_268_800])
async def test_the_same_instant_given_to_an_event_and_a_query_is_equal(
    api: Api, seconds: int, nanos: int
) -> None:
    at = Timestamp(seconds=seconds, nanos=nanos)
    event, subscription = make.event(event_time=at), make.subscription(subscribe_as_of=at)
    await api.create_event(event)
    await api.create_event_subscription(subscription)
    by_event = {"event_name": event.event_name, "event_key": event.event_key}
    by_subscription = {
        "event_name": subscription.event_name,
        "event_key": subscription.event_key,
    }
    just_before = make.later(at, ns=-(nanos % 1000) - 1)
    for as_of, count in ((at, 1), (just_before, 0)):
        assert len((await api.get_events(as_of=as_of, **by_event)).event_ids) == count
        found = await api.get_subscriptions(as_of=as_of, **by_subscription)
        assert len(found.subscriptions) == count
        first = await api.get_first_open_subscription(as_of=as_of, **by_subscription)
        assert (first is not None) == bool(count)


# Numbers.


@pytest.mark.parametrize(
    "number",
    [
        "9007199254740993",
        "-9007199254740993",
        "18446744073709551617",
        "123456789012345678901234567890.123456789012345678901234567890",
        "0.1000000000000000055511151231257827",
        "1.10",
        "0.0",
    ],
)
async def test_numbers_in_json_keep_every_digit(api: Api, number: str) -> None:
    document = f'{{"n": {number}}}'
    pointer = make.pointer(
        outcome_json=number,
        persistence_data_json=document,
        event_data_json=f"[{number}]",
        context_item_json=number,
        extension_attributes_json={"n": number},
    )
    assert await read_back(api, pointer) == pointer
    assert (await read_back(api, make.instance(data_json=document))).data_json == document
    event = make.event(event_data_json=document)
    assert await read_back(api, event) == event
    subscription = make.subscription(subscription_data_json=document)
    assert await read_back(api, subscription) == subscription


@pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)])
async def test_whole_numbers_beyond_2_to_the_53(api: Api, number: int) -> None:
    instance = make.instance(next_execution=number, status=WorkflowStatus.WORKFLOW_STATUS_SUSPENDED)
    assert (await read_back(api, instance)).next_execution == number


# Ids are compared byte by byte.


@pytest.fixture(params=make.ALIKE, ids=ascii)
def alike(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Two new ids that are easily taken for each other."""
    return make.alike(*request.param)


async def test_workflow_ids_and_names_are_compared_byte_by_byte(
    api: Api, alike: tuple[str, str]
) -> None:
    for id_ in alike:
        await api.create_new_workflow(make.instance(id=id_, name=f"{id_}{id_}", reference=id_))
    for id_ in alike:
        assert (await api.get_workflow_instance(id_)).reference == id_
        assert (await api.get_workflow_instance_by_name(f"{id_}{id_}")).reference == id_
    assert [i.id for i in await api.get_workflow_instances(alike[::-1])] == list(alike[::-1])


async def test_pointer_ids_are_compared_byte_by_byte(api: Api, alike: tuple[str, str]) -> None:
    instance = make.instance(execution_pointers=[make.pointer(i, step_name=i) for i in alike])
    await api.create_new_workflow(instance)
    instance.execution_pointers[1].step_name = "changed"
    instance.revision = await api.persist_workflow(instance)
    instance.name = instance.id
    assert await api.get_workflow_instance(instance.id) == instance


async def test_event_ids_names_and_keys_are_compared_byte_by_byte(
    api: Api, alike: tuple[str, str]
) -> None:
    for field in ("id", "event_name", "event_key"):
        first, second = (make.event(**{field: text}) for text in alike)
        second.event_name = second.event_name if field == "event_name" else first.event_name
        second.event_key = second.event_key if field == "event_key" else first.event_key
        for event in (first, second):
            await api.create_event(event)
        for event in (first, second):
            assert await api.get_event(event.id) == event
            if field != "id":
                found = await api.get_events(event_name=event.event_name, event_key=event.event_key)
                assert list(found.event_ids) == [event.id]


async def test_subscription_ids_names_and_keys_are_compared_byte_by_byte(
    api: Api, alike: tuple[str, str]
) -> None:
    for field in ("id", "event_name", "event_key"):
        first, second = (make.subscription(**{field: text}) for text in alike)
        second.event_name = second.event_name if field == "event_name" else first.event_name
        second.event_key = second.event_key if field == "event_key" else first.event_key
        for subscription in (first, second):
            await api.create_event_subscription(subscription)
        for subscription in (first, second):
            assert await api.get_subscription(subscription.id) == subscription
            if field != "id":
                found = await api.get_subscriptions(
                    event_name=subscription.event_name, event_key=subscription.event_key
                )
                assert list(found.subscriptions) == [subscription]


async def test_definition_ids_are_compared_byte_by_byte(api: Api, alike: tuple[str, str]) -> None:
    first, second = alike
    numbers = [await api.next_definition_sequence(id_) for id_ in (first, first, second)]
    assert numbers == [1, 2, 1]


async def test_workflow_ids_of_errors_are_compared_byte_by_byte(
    api: Api, alike: tuple[str, str]
) -> None:
    errors = [make.error(workflow_id=id_) for id_ in alike]
    await api.persist_errors(*errors)
    for error in errors:
        assert list((await api.list_errors(workflow_id=error.workflow_id)).errors) == [error]


async def test_equal_times_are_listed_in_the_byte_order_of_ids(api: Api) -> None:
    prefix, key = make.new_id(), make.new_id("key")
    ids = [prefix + end for end in ("-B", "-a", "_", "-C", "-b", "é", "z", "Z", "~", " x", "0")]
    for id_ in ids:
        await api.create_event(make.event(id=id_, event_key=key))
    for page_size in (0, 1, 4):
        listed: list[str] = []
        token = ""
        while token or not listed:
            answer = await api.get_events(
                event_name="order.paid", event_key=key, page_size=page_size, page_token=token
            )
            listed += answer.event_ids
            token = answer.next_page_token
        assert listed == sorted(ids, key=str.encode)


async def test_id_that_is_alike_is_not_found(api: Api) -> None:
    id_ = make.new_id("Workflow")
    await api.create_new_workflow(make.instance(id=id_))
    for other in (id_.upper(), id_.lower(), id_ + " ", id_[:-1], id_[:-1] + "%"):
        with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
            await api.get_workflow_instance(other)
