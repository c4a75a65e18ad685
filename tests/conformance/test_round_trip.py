"""Whatever is accepted reads back as it was given, for any valid message.

Times are truncated to microseconds; JSON is compared as values, with every digit of its numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import make, strategies
from tests.support.scene import never_due
from wfe.persistence.v1 import (
    command_pb2,
    command_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    store_pb2,
    store_pb2_grpc,
    subscription_pb2,
    subscription_pb2_grpc,
    workflow_pb2,
    workflow_pb2_grpc,
)
from wfe.persistence.v1.command_pb2 import ClaimedCommand, ScheduledCommand
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.store_pb2 import ExecutionError
from wfe.persistence.v1.subscription_pb2 import EventSubscription
from wfe.persistence.v1.workflow_pb2 import WorkflowInstance, WorkflowStatus

# A property that fails is shrunk, which may take minutes.
pytestmark = pytest.mark.timeout(600)


def examples(number: int) -> settings:
    """How often a property is tried. That it takes its time is no flaw: there are calls in it."""
    return settings(
        max_examples=number,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# Hypothesis knows no coroutines, so the calls here are blocking ones.


class Services:
    """The services on a blocking channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.workflows = workflow_pb2_grpc.WorkflowServiceStub(channel)
        self.events = event_pb2_grpc.EventServiceStub(channel)
        self.subscriptions = subscription_pb2_grpc.SubscriptionServiceStub(channel)
        self.commands = command_pb2_grpc.ScheduledCommandServiceStub(channel)
        self.store = store_pb2_grpc.StoreServiceStub(channel)

    def create(self, instance: WorkflowInstance) -> workflow_pb2.CreateNewWorkflowResponse:
        request = workflow_pb2.CreateNewWorkflowRequest(instance=instance)
        return self.workflows.CreateNewWorkflow(request)

    def persist(self, instance: WorkflowInstance) -> int:
        request = workflow_pb2.PersistWorkflowRequest(instance=instance)
        return self.workflows.PersistWorkflow(request).revision

    def get(self, id_: str) -> WorkflowInstance:
        request = workflow_pb2.GetWorkflowInstanceRequest(id=id_)
        return self.workflows.GetWorkflowInstance(request).instance

    def get_by_name(self, name: str) -> WorkflowInstance:
        request = workflow_pb2.GetWorkflowInstanceByNameRequest(name=name)
        return self.workflows.GetWorkflowInstanceByName(request).instance

    def get_many(self, ids: Sequence[str]) -> list[WorkflowInstance]:
        request = workflow_pb2.GetWorkflowInstancesRequest(ids=ids)
        return [answer.instance for answer in self.workflows.GetWorkflowInstances(request)]

    def retire(self, instance: WorkflowInstance) -> None:
        """See to it that no other test finds this workflow due."""
        if instance.status == WorkflowStatus.WORKFLOW_STATUS_RUNNABLE:
            instance.status = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
            self.persist(instance)

    def get_event(self, id_: str) -> Event:
        return self.events.GetEvent(event_pb2.GetEventRequest(id=id_)).event

    def get_subscription(self, id_: str) -> EventSubscription:
        request = subscription_pb2.GetSubscriptionRequest(id=id_)
        return self.subscriptions.GetSubscription(request).subscription

    def terminate(self, id_: str) -> None:
        request = subscription_pb2.TerminateSubscriptionRequest(id=id_)
        self.subscriptions.TerminateSubscription(request)

    def claim(self, *data: str) -> list[ClaimedCommand]:
        """Claim what is due by the year 1; give back what is not about this data."""
        request = command_pb2.ClaimCommandsRequest(as_of=make.FIRST_TIME, limit=1000)
        claims = self.commands.ClaimCommands(request).commands
        strange = [claim.lease_token for claim in claims if claim.command.data not in data]
        self.commands.ReleaseCommands(command_pb2.ReleaseCommandsRequest(lease_tokens=strange))
        return [claim for claim in claims if claim.command.data in data]


@pytest.fixture(scope="module")
def services(target: str) -> Iterator[Services]:
    options = [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(target, options=options) as channel:
        yield Services(channel)


# What it means for two messages to be the same.


@dataclass(frozen=True)
class Number:
    """A JSON number with every digit; not the same as true, 1 or "1"."""

    value: Decimal


def _number(literal: str) -> Number:
    return Number(Decimal(literal))


def _no_json(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


def json_value(text: str) -> Any:
    """What a JSON document says: of duplicate members the last one counts, and -0 is 0."""
    return json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_no_json)


def content(message: Message, *, truncate: bool = False) -> dict[str, Any]:
    """A message as what counts of it; absent fields are left out. `truncate`: times as stored."""
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name.endswith("_json"):
            if isinstance(value, str):
                found[field.name] = json_value(value)
            else:
                found[field.name] = {key: json_value(text) for key, text in value.items()}
        elif isinstance(value, Timestamp):
            nanos = value.nanos // 1000 * 1000 if truncate else value.nanos
            found[field.name] = (value.seconds, nanos)
        elif field.is_repeated and field.message_type is not None:
            found[field.name] = [content(item, truncate=truncate) for item in value]
        else:
            found[field.name] = list(value) if field.is_repeated else value
    return found


# What a host may send back and the store does not take from it.
NOT_TAKEN: Final = ("view", "external_token_epoch")


def stored(message: Any, **fields: Any) -> dict[str, Any]:
    """What is to be read of a message that was given; `fields`: what the store has set."""
    given = content(message, truncate=True)
    return {name: value for name, value in given.items() if name not in NOT_TAKEN} | fields


# Workflows.


@given(instance=strategies.workflow_instances())
@examples(60)
def test_created_workflow(services: Services, instance: WorkflowInstance) -> None:
    name = instance.name or instance.id
    answer = services.create(instance)
    assert (answer.id, answer.name) == (instance.id, name)
    expected = stored(instance, name=name, revision=answer.revision)
    assert content(services.get(instance.id)) == expected
    assert content(services.get_by_name(name)) == expected
    again = services.create(instance)
    assert again == answer
    services.retire(instance)


@given(
    first=strategies.workflow_instances(),
    second=strategies.workflow_instances(),
    kept=st.booleans(),
)
@examples(40)
def test_persisted_workflow(
    services: Services, first: WorkflowInstance, second: WorkflowInstance, kept: bool
) -> None:
    """Also where some of the pointers are those of before."""
    revision = services.create(first).revision
    second.id = first.id
    if kept:
        ids = {pointer.id for pointer in second.execution_pointers}
        others = [p for p in first.execution_pointers if p.id not in ids]
        second.execution_pointers.extend(others)
    assert services.persist(second) == revision + 1
    name = second.name or first.name or first.id
    if not second.extension_attributes_json:  # unchanged
        second.extension_attributes_json.update(first.extension_attributes_json)
    expected = stored(second, name=name, revision=revision + 1)
    assert content(services.get(first.id)) == expected
    services.retire(second)


@pytest.mark.parametrize("mantissa", ["1", "1.5", "7" * 1000, "0." + "7" * 999])
@pytest.mark.parametrize("exponent", ["", "e1000", "e-1000"])
def test_number_that_was_read_can_be_written(
    services: Services, mantissa: str, exponent: str
) -> None:
    """Written out, as they are read, numbers have many more digits."""
    instance = never_due(data_json=mantissa + exponent)
    services.create(instance)
    read = services.get(instance.id)
    assert json_value(read.data_json) == json_value(instance.data_json)
    services.persist(read)
    assert services.get(instance.id).data_json == read.data_json


@given(instance=strategies.workflow_instances())
@examples(40)
def test_workflow_that_was_read_can_be_written(
    services: Services, instance: WorkflowInstance
) -> None:
    """As hosts do: load, change, persist."""
    first = services.create(instance).revision
    read = services.get(instance.id)
    assert services.persist(read) == first + 1
    assert content(services.get(instance.id)) == content(read) | {"revision": first + 1}
    assert services.create(read).revision == first, "what was read is the content that was created"
    services.retire(instance)


@given(instances=st.lists(strategies.workflow_instances(), min_size=1, max_size=3), data=st.data())
@examples(20)
def test_batch_of_workflows(
    services: Services, instances: list[WorkflowInstance], data: st.DataObject
) -> None:
    first = {instance.id: services.create(instance).revision for instance in instances}
    asked = data.draw(st.lists(st.sampled_from(instances), max_size=5))
    ids = [instance.id for instance in asked]
    answers = services.get_many([*ids, make.new_id("absent")])
    assert [content(answer) for answer in answers] == [
        stored(instance, name=instance.name or instance.id, revision=first[instance.id])
        for instance in {instance.id: instance for instance in asked}.values()  # each of them once
    ]
    for instance in instances:
        services.retire(instance)


@given(
    instance=strategies.workflow_instances(),
    subscriptions=st.lists(strategies.event_subscriptions(), max_size=3),
)
@examples(30)
def test_workflow_persisted_with_subscriptions(
    services: Services, instance: WorkflowInstance, subscriptions: list[EventSubscription]
) -> None:
    first = services.create(instance).revision
    request = workflow_pb2.PersistWorkflowWithSubscriptionsRequest(
        instance=instance, subscriptions=subscriptions, expected_revision=first
    )
    answer = services.workflows.PersistWorkflowWithSubscriptions(request)
    assert list(answer.subscription_ids) == [each.id for each in subscriptions]
    expected = stored(instance, name=instance.name or instance.id, revision=first + 1)
    assert content(services.get(instance.id)) == expected
    for each in subscriptions:
        assert content(services.get_subscription(each.id)) == stored(each)
        services.terminate(each.id)
    services.retire(instance)


@given(definition=strategies.new_ids())
@examples(20)
def test_sequence_of_any_definition(services: Services, definition: str) -> None:
    request = workflow_pb2.NextDefinitionSequenceRequest(definition_id=definition)
    numbers = [services.workflows.NextDefinitionSequence(request).number for _ in range(2)]
    assert numbers == [1, 2]


# Events.


@given(event=strategies.events())
@examples(80)
def test_created_event(services: Services, event: Event) -> None:
    for _ in range(2):
        answer = services.events.CreateEvent(event_pb2.CreateEventRequest(event=event))
        assert answer.id == event.id
    assert content(services.get_event(event.id)) == stored(event)
    # Asked for with its own time, nanoseconds and all, it is there.
    query = event_pb2.GetEventsRequest(
        event_name=event.event_name,
        event_key=event.event_key,
        as_of=event.event_time,
        page_size=1000,
    )
    assert event.id in services.events.GetEvents(query).event_ids
    services.events.MarkEventProcessed(event_pb2.MarkEventProcessedRequest(id=event.id))


# Subscriptions.


@given(subscription=strategies.event_subscriptions())
@examples(80)
def test_created_subscription(services: Services, subscription: EventSubscription) -> None:
    request = subscription_pb2.CreateEventSubscriptionRequest(subscription=subscription)
    for _ in range(2):
        answer = services.subscriptions.CreateEventSubscription(request)
        assert answer.id == subscription.id
    expected = stored(subscription)
    assert content(services.get_subscription(subscription.id)) == expected
    query = subscription_pb2.GetSubscriptionsRequest(
        event_name=subscription.event_name,
        event_key=subscription.event_key,
        as_of=subscription.subscribe_as_of,
        page_size=1000,
    )
    listed = services.subscriptions.GetSubscriptions(query).subscriptions
    found = [content(each) for each in listed if each.id == subscription.id]
    assert found in ([], [expected])
    if not subscription.HasField("external_token"):
        assert found
    elif not subscription.HasField("external_token_expiry"):
        assert not found
    services.terminate(subscription.id)


@given(
    subscription=strategies.event_subscriptions(),
    token=strategies.names(),
    worker=strategies.keys(),
    expires=st.booleans(),
)
@examples(40)
def test_token_of_a_subscription(
    services: Services,
    subscription: EventSubscription,
    token: str,
    worker: str,
    expires: bool,
) -> None:
    for field in ("external_token", "external_worker_id", "external_token_expiry"):
        subscription.ClearField(field)
    services.subscriptions.CreateEventSubscription(
        subscription_pb2.CreateEventSubscriptionRequest(subscription=subscription)
    )
    held = subscription_pb2.SetSubscriptionTokenRequest(
        id=subscription.id, token=token, worker_id=worker
    )
    subscription.external_token = token
    subscription.external_worker_id = worker
    if expires:
        held.expiry.CopyFrom(make.LAST_TIME)
        subscription.external_token_expiry.CopyFrom(make.LAST_TIME)
    answers = [services.subscriptions.SetSubscriptionToken(held) for _ in range(2)]
    assert answers[0].acquired
    assert answers[0] == answers[1]
    assert content(services.get_subscription(subscription.id)) == stored(
        subscription, external_token_epoch=answers[0].epoch
    )
    services.subscriptions.ClearSubscriptionToken(
        subscription_pb2.ClearSubscriptionTokenRequest(id=subscription.id, token=token)
    )
    services.terminate(subscription.id)


# Commands. Only those due by the year 1 can be claimed without taking those of others.


@given(command=strategies.scheduled_commands())
@examples(60)
def test_scheduled_command(services: Services, command: ScheduledCommand) -> None:
    """It is handed out as it was last scheduled."""
    services.commands.ScheduleCommand(command_pb2.ScheduleCommandRequest(command=command))
    if command.execute_time > make.epoch_ms(make.FIRST_TIME):
        assert not services.claim(command.data)
        command.execute_time = ~command.execute_time % 2**62 - 2**63
        services.commands.ScheduleCommand(command_pb2.ScheduleCommandRequest(command=command))
    [claim] = services.claim(command.data)
    assert claim.command == command
    services.commands.CompleteCommands(
        command_pb2.CompleteCommandsRequest(lease_tokens=[claim.lease_token])
    )


# The error log.


@given(errors=st.lists(strategies.execution_errors(), max_size=4), workflow=strategies.new_ids())
@examples(60)
def test_logged_errors(services: Services, errors: list[ExecutionError], workflow: str) -> None:
    for error in errors:
        error.workflow_id = workflow
    services.store.PersistErrors(store_pb2.PersistErrorsRequest(errors=errors))
    listed = services.store.ListErrors(store_pb2.ListErrorsRequest(workflow_id=workflow)).errors
    assert [content(error) for error in listed] == [stored(error) for error in reversed(errors)]
