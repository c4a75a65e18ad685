"""Every method asks for what it was told, and answers what it was answered."""

import asyncio
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

import wfe_persistence_client
from tests.client.conftest import FAST
from tests.client.fake_store import FakeStore, answers
from tests.client.test_calls import COMMAND, EVENT, NOW, STORED, SUBSCRIPTION, WORKFLOW
from wfe.persistence.v1 import command_pb2, event_pb2, store_pb2, subscription_pb2, workflow_pb2
from wfe_persistence_client import (
    ABSENT,
    ClaimedCommand,
    CommandName,
    EventSubscription,
    ExecutionError,
    MigratedStore,
    PersistedWorkflow,
    PersistenceProvider,
    StoreInfo,
    WorkflowInstance,
    connect,
    convert,
)


def only(store: FakeStore, rpc: str) -> Any:
    (request,) = store.requests[rpc]
    return request


def is_uuid(text: str) -> bool:
    return str(uuid.UUID(text)) == text


# Workflows


@pytest.mark.parametrize("channels", [0, 65])
async def test_an_impossible_number_of_channels(channels: int) -> None:
    with pytest.raises(ValueError, match="channels must be from 1 to 64"):
        connect("localhost:1", channels=channels)


async def test_create_new_workflow(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on("CreateNewWorkflow", answers(workflow_pb2.CreateNewWorkflowResponse(id="chosen")))
    instance = replace(WORKFLOW)
    assert await provider.create_new_workflow(instance) == "chosen"
    sent = only(store, "CreateNewWorkflow").instance
    assert is_uuid(sent.id)
    assert sent.name == ""
    assert instance.id == "chosen"


async def test_a_given_id_is_kept(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on("CreateNewWorkflow", answers(workflow_pb2.CreateNewWorkflowResponse(id="mine")))
    instance = WorkflowInstance(id="mine", workflow_definition_id="d", version=1, data=None)
    await provider.create_new_workflow(instance)
    assert only(store, "CreateNewWorkflow").instance == convert.workflow_to_proto(instance)


async def test_persist_workflow(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on("PersistWorkflow", answers(workflow_pb2.PersistWorkflowResponse(revision=7)))
    instance = WorkflowInstance(id="w", workflow_definition_id="d", version=1, data={"a": 1})
    assert await provider.persist_workflow(instance) == 7
    assert await provider.persist_workflow(instance, expected_revision=6) == 7
    last_wins, guarded = store.requests["PersistWorkflow"]
    assert last_wins.instance == guarded.instance
    assert convert.workflow_from_proto(guarded.instance) == replace(instance, revision=0)
    assert not last_wins.HasField("expected_revision")
    assert guarded.expected_revision == 6
    assert is_uuid(last_wins.request_id)
    assert is_uuid(guarded.request_id)
    assert last_wins.request_id != guarded.request_id
    assert instance.revision == 7


async def test_persist_workflow_sends_an_expected_revision_of_zero(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on("PersistWorkflow", answers(workflow_pb2.PersistWorkflowResponse(revision=7)))
    await provider.persist_workflow(WORKFLOW, expected_revision=0)
    assert only(store, "PersistWorkflow").HasField("expected_revision")


async def test_persist_workflow_with_subscriptions(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on(
        "PersistWorkflowWithSubscriptions",
        answers(
            workflow_pb2.PersistWorkflowWithSubscriptionsResponse(
                revision=3, subscription_ids=["a", "b"]
            )
        ),
    )
    given = EventSubscription(
        id="given",
        workflow_id="w",
        step_id=1,
        execution_pointer_id="p",
        event_name="n",
        event_key="k",
        subscribe_as_of=NOW,
    )
    answer = await provider.persist_workflow_with_subscriptions(
        WORKFLOW, [given, SUBSCRIPTION], expected_revision=2
    )
    assert answer == PersistedWorkflow(revision=3, subscription_ids=["a", "b"])
    request = only(store, "PersistWorkflowWithSubscriptions")
    assert request.instance == convert.workflow_to_proto(replace(WORKFLOW, revision=0))
    assert request.expected_revision == 2
    assert request.subscriptions[0] == convert.subscription_to_proto(given)
    assert is_uuid(request.subscriptions[1].id)
    assert SUBSCRIPTION.id == ""


async def test_get_workflow_instance(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on(
        "GetWorkflowInstance", answers(workflow_pb2.GetWorkflowInstanceResponse(instance=STORED))
    )
    assert await provider.get_workflow_instance("w") == convert.workflow_from_proto(STORED)
    assert only(store, "GetWorkflowInstance").id == "w"


async def test_get_workflow_instance_by_name(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on(
        "GetWorkflowInstanceByName",
        answers(workflow_pb2.GetWorkflowInstanceByNameResponse(instance=STORED)),
    )
    assert await provider.get_workflow_instance_by_name("n") == convert.workflow_from_proto(STORED)
    assert only(store, "GetWorkflowInstanceByName").name == "n"


async def test_get_workflow_instances(store: FakeStore, provider: PersistenceProvider) -> None:
    message = workflow_pb2.GetWorkflowInstancesResponse(instance=STORED)
    store.on("GetWorkflowInstances", answers([message]), answers([]))
    instance = convert.workflow_from_proto(STORED)
    assert await provider.get_workflow_instances(i for i in ("w", "x", "w")) == [instance] * 2
    assert only(store, "GetWorkflowInstances").ids == ["w", "x"]
    assert await provider.get_workflow_instances([]) == []


async def test_get_many_workflow_instances(store: FakeStore, provider: PersistenceProvider) -> None:
    """Of more ids than one call takes."""

    def stored(workflow_id: str) -> workflow_pb2.WorkflowInstance:
        instance = workflow_pb2.WorkflowInstance()
        instance.CopyFrom(STORED)
        instance.id = workflow_id
        return instance

    async def found(request: Any, context: Any) -> Any:
        asked.append(list(request.ids))
        return [
            workflow_pb2.GetWorkflowInstancesResponse(instance=stored(id_))
            for id_ in request.ids
            if not id_.endswith("7")
        ]

    asked: list[list[str]] = []
    store.on("GetWorkflowInstances", found, found, found)
    ids = [str(n) for n in range(2500)]
    instances = await provider.get_workflow_instances([*ids, "5", "7", "2499"])
    assert asked == [ids[:1000], ids[1000:2000], ids[2000:]]
    existing = [id_ for id_ in ids if not id_.endswith("7")]
    assert [instance.id for instance in instances] == [*existing, "5", "2499"]
    assert instances[5] is not instances[-2]


async def test_next_definition_sequence(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on(
        "NextDefinitionSequence", answers(workflow_pb2.NextDefinitionSequenceResponse(number=9))
    )
    assert await provider.next_definition_sequence("d") == 9
    assert only(store, "NextDefinitionSequence").definition_id == "d"


# Pages


async def collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


async def test_get_runnable_instances(store: FakeStore, provider: PersistenceProvider) -> None:
    pages = [
        workflow_pb2.GetRunnableInstancesResponse(instance_ids=["a", "b"], next_page_token="2"),
        # A page may be empty and not be the last one.
        workflow_pb2.GetRunnableInstancesResponse(next_page_token="3"),
        workflow_pb2.GetRunnableInstancesResponse(instance_ids=["c"]),
    ]
    store.on("GetRunnableInstances", *map(answers, pages))
    assert await provider.get_runnable_instances(NOW) == ["a", "b", "c"]
    requests = store.requests["GetRunnableInstances"]
    assert [request.page_token for request in requests] == ["", "2", "3"]
    assert {(request.as_at.seconds, request.page_size) for request in requests} == {
        (int(NOW.timestamp()), 1000)
    }


async def test_get_runnable_instances_of_some_definitions(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    page = workflow_pb2.GetRunnableInstancesResponse(instance_ids=["a"])
    store.on("GetRunnableInstances", answers(page))
    definitions = ["d", "e"]
    assert await provider.get_runnable_instances(workflow_definition_ids=iter(definitions)) == ["a"]
    ids = provider.iter_runnable_instances(workflow_definition_ids=definitions)
    assert await collected(ids) == ["a"]
    for request in store.requests["GetRunnableInstances"]:
        assert request.workflow_definition_ids == definitions


async def test_get_events_since_a_time(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on("GetEvents", answers(event_pb2.GetEventsResponse(event_ids=["a"])))
    assert await provider.get_events("n", "k", event_time_from=NOW) == ["a"]
    assert await collected(provider.iter_events("n", "k", event_time_from=NOW)) == ["a"]
    for request in store.requests["GetEvents"]:
        assert request.event_time_from == convert.timestamp("event_time_from", NOW)
        assert not request.HasField("as_of")


async def test_pages_are_read_as_they_are_wanted(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    page = workflow_pb2.GetRunnableInstancesResponse(instance_ids=["a", "b"], next_page_token="2")
    store.on("GetRunnableInstances", answers(page))
    ids = provider.iter_runnable_instances(page_size=2)
    assert store.count("GetRunnableInstances") == 0
    assert [await anext(ids), await anext(ids)] == ["a", "b"]
    assert store.count("GetRunnableInstances") == 1
    await anext(ids)
    assert store.count("GetRunnableInstances") == 2
    first, second = store.requests["GetRunnableInstances"]
    assert (first.page_size, first.HasField("as_at")) == (2, False)
    assert (second.page_size, second.page_token) == (2, "2")


async def test_get_runnable_events(store: FakeStore, provider: PersistenceProvider) -> None:
    page = event_pb2.GetRunnableEventsResponse(event_ids=["a"])
    store.on("GetRunnableEvents", answers(page))
    assert await provider.get_runnable_events(NOW) == ["a"]
    assert await collected(provider.iter_runnable_events(NOW, page_size=5)) == ["a"]
    all_at_once, by_five = store.requests["GetRunnableEvents"]
    assert all_at_once.as_at == by_five.as_at == convert.timestamp("as_at", NOW)
    assert by_five.page_size == 5


async def test_get_events(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on("GetEvents", answers(event_pb2.GetEventsResponse(event_ids=["a"])))
    assert await provider.get_events("n", "k", NOW) == ["a"]
    assert await collected(provider.iter_events("n", "k", NOW, page_size=5)) == ["a"]
    for request in store.requests["GetEvents"]:
        assert (request.event_name, request.event_key) == ("n", "k")
        assert request.as_of == convert.timestamp("as_of", NOW)


async def test_get_subscriptions(store: FakeStore, provider: PersistenceProvider) -> None:
    stored = convert.subscription_to_proto(SUBSCRIPTION)
    page = subscription_pb2.GetSubscriptionsResponse(subscriptions=[stored, stored])
    store.on("GetSubscriptions", answers(page))
    assert await provider.get_subscriptions("n", "k", NOW) == [SUBSCRIPTION] * 2
    assert await collected(provider.iter_subscriptions("n", "k", NOW)) == [SUBSCRIPTION] * 2
    for request in store.requests["GetSubscriptions"]:
        assert (request.event_name, request.event_key) == ("n", "k")
        assert request.as_of == convert.timestamp("as_of", NOW)


async def test_list_errors(store: FakeStore, provider: PersistenceProvider) -> None:
    error = ExecutionError(error_time=NOW, workflow_id="w", message="no")
    stored = convert.errors_to_proto([error])
    store.on("ListErrors", answers(store_pb2.ListErrorsResponse(errors=stored)))
    assert await provider.list_errors() == [error]
    assert await collected(provider.iter_errors("w", page_size=20)) == [error]
    of_all, of_one = store.requests["ListErrors"]
    assert of_all.workflow_id == ""
    assert (of_one.workflow_id, of_one.page_size) == ("w", 20)


# Subscriptions


async def test_create_event_subscription(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on(
        "CreateEventSubscription",
        answers(subscription_pb2.CreateEventSubscriptionResponse(id="chosen")),
    )
    assert await provider.create_event_subscription(SUBSCRIPTION) == "chosen"
    assert is_uuid(only(store, "CreateEventSubscription").subscription.id)


async def test_get_subscription(store: FakeStore, provider: PersistenceProvider) -> None:
    stored = convert.subscription_to_proto(SUBSCRIPTION)
    store.on(
        "GetSubscription", answers(subscription_pb2.GetSubscriptionResponse(subscription=stored))
    )
    subscription = await provider.get_subscription("s")
    assert subscription == SUBSCRIPTION
    assert subscription.subscription_data is ABSENT
    assert only(store, "GetSubscription").id == "s"


async def test_get_first_open_subscription(store: FakeStore, provider: PersistenceProvider) -> None:
    stored = convert.subscription_to_proto(SUBSCRIPTION)
    store.on(
        "GetFirstOpenSubscription",
        answers(subscription_pb2.GetFirstOpenSubscriptionResponse(subscription=stored)),
        answers(subscription_pb2.GetFirstOpenSubscriptionResponse()),
    )
    assert await provider.get_first_open_subscription("n", "k", NOW) == SUBSCRIPTION
    assert await provider.get_first_open_subscription("n", "k") is None
    first, second = store.requests["GetFirstOpenSubscription"]
    assert first.as_of == convert.timestamp("as_of", NOW)
    assert not second.HasField("as_of")


async def test_the_life_of_a_token(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on(
        "SetSubscriptionToken",
        answers(subscription_pb2.SetSubscriptionTokenResponse(acquired=True)),
        answers(subscription_pb2.SetSubscriptionTokenResponse(acquired=False)),
    )
    store.on("ClearSubscriptionToken", answers(subscription_pb2.ClearSubscriptionTokenResponse()))
    store.on("TerminateSubscription", answers(subscription_pb2.TerminateSubscriptionResponse()))
    assert await provider.set_subscription_token("s", "t", "me", NOW) is True
    assert await provider.set_subscription_token("s", "t", "me", None) is False
    await provider.clear_subscription_token("s", "t")
    await provider.terminate_subscription("s")
    held_until, held = store.requests["SetSubscriptionToken"]
    assert held_until == subscription_pb2.SetSubscriptionTokenRequest(
        id="s", token="t", worker_id="me", expiry=convert.timestamp("expiry", NOW)
    )
    assert not held.HasField("expiry")
    cleared = only(store, "ClearSubscriptionToken")
    assert (cleared.id, cleared.token) == ("s", "t")
    assert only(store, "TerminateSubscription").id == "s"


# Events


async def test_events(store: FakeStore, provider: PersistenceProvider) -> None:
    stored = convert.event_to_proto(EVENT)
    store.on("CreateEvent", answers(event_pb2.CreateEventResponse(id="chosen")))
    store.on("GetEvent", answers(event_pb2.GetEventResponse(event=stored)))
    store.on("MarkEventProcessed", answers(event_pb2.MarkEventProcessedResponse()))
    store.on("MarkEventUnprocessed", answers(event_pb2.MarkEventUnprocessedResponse()))
    assert await provider.create_event(EVENT) == "chosen"
    assert is_uuid(only(store, "CreateEvent").event.id)
    assert await provider.get_event("e") == EVENT
    await provider.mark_event_processed("e")
    await provider.mark_event_unprocessed("f")
    assert only(store, "GetEvent").id == "e"
    assert only(store, "MarkEventProcessed").id == "e"
    assert only(store, "MarkEventUnprocessed").id == "f"


# Commands


async def test_commands(store: FakeStore, provider: PersistenceProvider) -> None:
    claimed = command_pb2.ClaimedCommand(
        command=convert.command_to_proto(COMMAND),
        lease_token="t",
        lease_expiry=convert.timestamp("lease_expiry", NOW),
    )
    store.on("ScheduleCommand", answers(command_pb2.ScheduleCommandResponse()))
    store.on("ClaimCommands", answers(command_pb2.ClaimCommandsResponse(commands=[claimed])))
    store.on("CompleteCommands", answers(command_pb2.CompleteCommandsResponse()))
    store.on("ReleaseCommands", answers(command_pb2.ReleaseCommandsResponse()))
    await provider.schedule_command(COMMAND)
    assert only(store, "ScheduleCommand").command == convert.command_to_proto(COMMAND)
    expected = ClaimedCommand(command=COMMAND, lease_token="t", lease_expiry=NOW)
    assert await provider.claim_commands() == [expected]
    assert await provider.claim_commands(
        NOW,
        limit=5,
        lease_duration=timedelta(milliseconds=1500),
        worker_id="me",
        command_name=CommandName.PROCESS_WORKFLOW,
    ) == [expected]
    plain, full = store.requests["ClaimCommands"]
    assert plain == command_pb2.ClaimCommandsRequest()
    assert full == command_pb2.ClaimCommandsRequest(
        as_of=convert.timestamp("as_of", NOW),
        limit=5,
        lease_duration=convert.duration(timedelta(milliseconds=1500)),
        worker_id="me",
        command_name=command_pb2.COMMAND_NAME_PROCESS_WORKFLOW,
    )
    await provider.complete_commands(token for token in ("a", "b"))
    await provider.release_commands(["c"])
    assert only(store, "CompleteCommands").lease_tokens == ["a", "b"]
    assert only(store, "ReleaseCommands").lease_tokens == ["c"]


# Store


async def test_the_store(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on(
        "EnsureStoreExists",
        answers(store_pb2.EnsureStoreExistsResponse(schema_version=2, applied_migrations=["1"])),
    )
    info = store_pb2.GetStoreInfoResponse(
        schema="wfc", capabilities=store_pb2.Capabilities(scheduled_commands=True)
    )
    store.on("GetStoreInfo", answers(info))
    store.on("PersistErrors", answers(store_pb2.PersistErrorsResponse()))
    store.on("TruncateAll", answers(store_pb2.TruncateAllResponse()))
    assert await provider.ensure_store_exists() == MigratedStore(
        schema_version=2, applied_migrations=["1"]
    )
    answer = await provider.get_store_info()
    assert isinstance(answer, StoreInfo)
    assert answer.schema == "wfc"
    assert await provider.supports_scheduled_commands() is True
    errors = [ExecutionError(error_time=NOW, workflow_id=i) for i in "ab"]
    await provider.persist_errors(errors)
    assert list(only(store, "PersistErrors").errors) == convert.errors_to_proto(errors)
    await provider.truncate_all()


# What goes with every call


async def test_without_a_namespace_and_a_token_neither_is_sent(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on("GetStoreInfo", answers(store_pb2.GetStoreInfoResponse()))
    await provider.get_store_info()
    assert not {"wfe-namespace", "authorization"} & set(store.metadata)


async def test_namespace_and_token_go_with_every_call(store: FakeStore) -> None:
    tokens = iter(["second", "third"])
    store.on("GetStoreInfo", answers(store_pb2.GetStoreInfoResponse()))
    store.on("GetWorkflowInstances", answers([]))
    async with connect(store.target, namespace="orders", token="first", retry=FAST) as provider:
        await provider.get_store_info()
        assert store.metadata["wfe-namespace"] == "orders"
        assert store.metadata["authorization"] == "Bearer first"
        await provider.with_timeout(5).with_namespace("other").get_workflow_instances([])
        assert store.metadata["wfe-namespace"] == "other"
        assert store.metadata["authorization"] == "Bearer first"
        await provider.with_namespace(None).get_store_info()
        assert "wfe-namespace" not in store.metadata
        await provider.get_store_info()
        assert store.metadata["wfe-namespace"] == "orders"
    async with connect(store.target, token=lambda: next(tokens), retry=FAST) as provider:
        await provider.get_store_info()
        assert store.metadata["authorization"] == "Bearer second"
        await provider.get_store_info()
        assert store.metadata["authorization"] == "Bearer third"


@pytest.mark.parametrize("bad", ["ä", "a\nb", "a\0"])
async def test_what_metadata_cannot_carry_is_refused(
    store: FakeStore, provider: PersistenceProvider, bad: str
) -> None:
    with pytest.raises(ValueError, match="namespace must be printable"):
        provider.with_namespace(bad)
    async with connect(store.target, token=bad, retry=FAST) as secret:
        with pytest.raises(ValueError, match="token must be printable") as caught:
            await secret.get_store_info()
    assert bad not in str(caught.value)


async def test_a_channel_of_the_callers(store: FakeStore) -> None:
    store.on("GetStoreInfo", answers(store_pb2.GetStoreInfoResponse(namespace="n")))
    channel = grpc.aio.insecure_channel(store.target)
    async with PersistenceProvider(channel, namespace="n") as provider:
        assert (await provider.get_store_info()).namespace == "n"
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_many_calls_at_once(store: FakeStore, provider: PersistenceProvider) -> None:
    async def step(request: Any, context: Any) -> Any:
        await asyncio.sleep(0)
        return event_pb2.CreateEventResponse(id=request.event.id)

    store.on("CreateEvent", step)
    ids = await asyncio.gather(*(provider.create_event(EVENT) for _ in range(100)))
    assert len(set(ids)) == 100


async def test_naive_times_are_refused_before_anything_is_sent(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    naive = datetime.now(UTC).replace(tzinfo=None)
    with pytest.raises(ValueError, match="as_at: a naive datetime"):
        await provider.get_runnable_instances(naive)
    with pytest.raises(ValueError, match="as_of: a naive datetime"):
        await provider.claim_commands(naive)
    with pytest.raises(ValueError, match="expiry: a naive datetime"):
        await provider.set_subscription_token("s", "t", "w", naive)
    assert store.requests == {}


def test_connecting_needs_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="event loop"):
        connect("localhost:1")


def test_the_client_needs_nothing_of_the_server() -> None:
    program = "import sys, wfe_persistence_client; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"wfe_persistence", "psycopg", "click"}


def test_all_public_names_exist() -> None:
    assert len(set(wfe_persistence_client.__all__)) == len(wfe_persistence_client.__all__)
    for name in wfe_persistence_client.__all__:
        assert hasattr(wfe_persistence_client, name)
