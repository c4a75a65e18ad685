"""What is given with a wrong type is refused, by its name, before anything is sent."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import pickle
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from functools import partial
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, is_typeddict

import pytest

from tests.client.fake_store import FakeStore, answers
from wfe.persistence.v1 import command_pb2
from wfe.persistence.v1.transfer_pb2 import Record
from wfe_persistence_client import (
    ABSENT,
    JSON,
    Acknowledgement,
    ClaimedCommand,
    CommandName,
    Event,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    HeaderChanges,
    LifecycleEvent,
    LifecycleEventType,
    ListOrder,
    PersistenceProvider,
    PointerStatus,
    QueueItem,
    RetentionPolicy,
    RetryPolicy,
    ReturnedItem,
    ScheduledCommand,
    SubscriptionClaim,
    Work,
    WorkerHooks,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowRetention,
    WorkflowStatus,
    WorkflowView,
    connect,
    connect_blocking,
    convert,
)
from wfe_persistence_client.provider import CommandHandler
from wfe_persistence_client.worker import WorkHandler

NOW = datetime(2024, 1, 1, tzinfo=UTC)
NAIVE = datetime(2024, 1, 1)  # noqa: DTZ001

POINTER = ExecutionPointer(id="p", step_id=0)
WORKFLOW = WorkflowInstance(id="w", workflow_definition_id="d", version=1, data=None)
PATCH = WorkflowPatch(id="w")
EVENT = Event(event_name="n", event_key="k", event_data=None)
SUBSCRIPTION = EventSubscription(
    workflow_id="w",
    step_id=0,
    execution_pointer_id="p",
    event_name="n",
    event_key="k",
    subscribe_as_of=NOW,
)
CLAIM = SubscriptionClaim(subscription_id="s", token="t")
COMMAND = ScheduledCommand(command_name=CommandName.PROCESS_EVENT, data="e", execute_time=0)
CLAIMED = ClaimedCommand(command=COMMAND, lease_token="t", lease_expiry=NOW)
ERROR = ExecutionError(workflow_id="w")
RULE = WorkflowRetention()
POLICY = RetentionPolicy()
ITEM = QueueItem(queue="q", id="i")
ACKNOWLEDGEMENT = Acknowledgement(receipt="r")
RETURNED = ReturnedItem(receipt="r")
HAPPENED = LifecycleEvent(
    type=LifecycleEventType.STARTED, workflow_id="w", workflow_definition_id="d"
)


async def handle(_command: ScheduledCommand) -> None:
    raise AssertionError("it was called")


async def handle_work(_work: Work) -> None:
    raise AssertionError("it was called")


def handle_plainly(_command: ScheduledCommand) -> None:
    raise AssertionError("it was called")


#: One of every kind of value that somebody may give by mistake.
POOL: list[Any] = [
    None,
    True,
    5,
    1.5,
    "abc",
    b"abc",
    date(2024, 1, 1),
    NAIVE,
    NOW,
    timedelta(seconds=5),
    [5],
    ["a"],
    ["a", None],
    "\ud800",
    {"a": 1},
    {1: 1},
    {"a"},
    object(),
    datetime,
    ABSENT,
    *(kind(1) for kind in (WorkflowStatus, PointerStatus, CommandName, WorkflowView, ListOrder)),
    [PointerStatus.COMPLETE],
    [WorkflowStatus.COMPLETE],
    *(POINTER, WORKFLOW, PATCH, EVENT, SUBSCRIPTION, CLAIM, COMMAND, CLAIMED, ERROR),
    [EVENT, SUBSCRIPTION],
    RetryPolicy(),
]


def takes(hint: Any, value: Any) -> bool:
    """Whether a value is right for a hint: the rule, written a second time."""
    origin, args = get_origin(hint), get_args(hint)
    if any(
        get_origin(arg) is AsyncIterable for arg in args
    ):  # read one by one: its items are looked at later
        return isinstance(value, Iterable) and not isinstance(value, str | bytes)
    if hint in (str, "str"):
        return type(value) is str and value.isascii()
    if hint is float:
        return type(value) in (int, float)
    if hint is datetime:
        return type(value) is datetime and value.tzinfo is not None
    if hint is None or hint is NoneType:
        return value is None
    if origin in (Union, UnionType):
        return any(takes(option, value) for option in args)
    if is_typeddict(hint):
        return type(value) is dict and set(value) <= set(hint.__annotations__)
    if origin is dict:
        return type(value) is dict and all(type(key) is str for key in value)
    if origin in (list, Sequence):
        return type(value) is list and all(takes(args[0], item) for item in value)
    if origin in (Collection, Iterable):
        return type(value) in (list, set, dict) and all(takes(args[0], item) for item in value)
    if origin is Callable:
        return callable(value)
    return type(value) is hint


def is_json(hint: Any) -> bool:
    return set(get_args(hint)) >= set(get_args(JSON))


async def refused(call: Callable[[], Any], path: str) -> None:
    async def complete() -> None:
        made = call()
        if inspect.iscoroutine(made):
            await made
        elif isinstance(made, AsyncIterator):
            await anext(made)

    with pytest.raises((TypeError, ValueError), match=rf"^{re.escape(path)}[:.\[]") as caught:
        await complete()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# Fields

Send = Callable[[PersistenceProvider, Any], Any]


async def in_a_step(provider: PersistenceProvider, act: Callable[[Any], Any]) -> None:
    async with provider.step(dataclasses.replace(WORKFLOW)) as step:
        act(step)


def around(pointer: Any) -> WorkflowInstance:
    return dataclasses.replace(WORKFLOW, execution_pointers=[POINTER, pointer])


#: How objects of each class are sent, and where an error then says that it is.
SENT: list[tuple[Any, str, Send]] = [
    (WORKFLOW, "", lambda p, v: p.create_new_workflow(v)),
    (WORKFLOW, "", lambda p, v: p.persist_workflow(v)),
    (WORKFLOW, "", lambda p, v: p.commit_workflow(v)),
    (POINTER, "execution_pointers[1].", lambda p, v: p.create_new_workflow(around(v))),
    (POINTER, "execution_pointers[1].", lambda p, v: p.persist_workflow(around(v))),
    (
        POINTER,
        "execution_pointers[0].",
        lambda p, v: p.commit_workflow(
            WorkflowPatch(id="w", execution_pointers=[v]), expected_revision=1
        ),
    ),
    (PATCH, "", lambda p, v: p.commit_workflow(v, expected_revision=1)),
    (WorkflowFilter(), "", lambda p, v: p.list_workflows(v)),
    (WorkflowFilter(), "", lambda p, v: p.count_workflows(v)),
    (EVENT, "", lambda p, v: p.create_event(v)),
    (
        EVENT,
        "create_events[1].",
        lambda p, v: p.commit_workflow(WORKFLOW, create_events=[EVENT, v]),
    ),
    (EVENT, "", lambda p, v: in_a_step(p, lambda step: step.create_event(v))),
    (SUBSCRIPTION, "", lambda p, v: p.create_event_subscription(v)),
    (
        SUBSCRIPTION,
        "subscriptions[0].",
        lambda p, v: p.persist_workflow_with_subscriptions(WORKFLOW, [v]),
    ),
    (
        SUBSCRIPTION,
        "create_subscriptions[0].",
        lambda p, v: p.commit_workflow(WORKFLOW, create_subscriptions=[v]),
    ),
    (SUBSCRIPTION, "", lambda p, v: in_a_step(p, lambda step: step.create_subscription(v))),
    (CLAIM, "", lambda p, v: p.renew_subscription_token(v)),
    (CLAIM, "", lambda p, v: p.release_subscription(v)),
    (
        CLAIM,
        "held_subscriptions[0].",
        lambda p, v: p.commit_workflow(WORKFLOW, held_subscriptions=iter([v])),
    ),
    (CLAIM, "", lambda p, v: in_a_step(p, lambda step: step.hold(v))),
    (COMMAND, "", lambda p, v: p.schedule_command(v)),
    (
        COMMAND,
        "schedule_commands[1].",
        lambda p, v: p.commit_workflow(WORKFLOW, schedule_commands=(c for c in (COMMAND, v))),
    ),
    (COMMAND, "", lambda p, v: in_a_step(p, lambda step: step.schedule_command(v))),
    (ITEM, "items[1].", lambda p, v: p.enqueue([ITEM, v])),
    (ITEM, "enqueue[1].", lambda p, v: p.create_event(EVENT, enqueue=[ITEM, v])),
    (ITEM, "enqueue[0].", lambda p, v: p.create_new_workflow(WORKFLOW, enqueue=[v])),
    (ITEM, "enqueue[0].", lambda p, v: p.persist_workflow(WORKFLOW, enqueue=[v])),
    (ITEM, "enqueue[0].", lambda p, v: p.commit_workflow(WORKFLOW, enqueue=[v])),
    (ITEM, "", lambda p, v: in_a_step(p, lambda step: step.enqueue(v))),
    (ACKNOWLEDGEMENT, "acknowledge[0].", lambda p, v: p.dequeue(["q"], acknowledge=[v])),
    (
        ACKNOWLEDGEMENT,
        "acknowledge[0].",
        lambda p, v: p.persist_workflow(WORKFLOW, acknowledge=[v]),
    ),
    (ACKNOWLEDGEMENT, "acknowledge[0].", lambda p, v: p.commit_workflow(WORKFLOW, acknowledge=[v])),
    (RETURNED, "return_items[0].", lambda p, v: p.dequeue(["q"], return_items=[v])),
    (HAPPENED, "events[1].", lambda p, v: p.publish([HAPPENED, v])),
    (HAPPENED, "publish[0].", lambda p, v: p.commit_workflow(WORKFLOW, publish=[v])),
    (HAPPENED, "", lambda p, v: in_a_step(p, lambda step: step.publish(v))),
    (CLAIMED, "", lambda p, v: in_a_step(p, lambda step: step.hold(v))),
    (CLAIMED, "", lambda p, v: in_a_step(p, lambda step: step.complete(v))),
    (ERROR, "errors[0].", lambda p, v: p.persist_errors([v])),
    (ERROR, "errors[0].", lambda p, v: p.commit_workflow(WORKFLOW, errors=[v])),
    (ERROR, "", lambda p, v: in_a_step(p, lambda step: step.log_error(v))),
    (POLICY, "", lambda p, v: p.set_retention_policy(v)),
    (RULE, "workflows[0].", lambda p, v: p.set_retention_policy(RetentionPolicy(workflows=[v]))),
]


@pytest.mark.parametrize(("good", "place", "send"), SENT)
async def test_every_field(
    store: FakeStore, provider: PersistenceProvider, good: Any, place: str, send: Send
) -> None:
    tried = 0
    for field in dataclasses.fields(good):
        if is_json(field.type):
            wrong = [({"a": [1, {2}]}, f"{field.name}.a[1]"), (float("nan"), field.name)]
        else:
            wrong = [(v, field.name) for v in POOL if not takes(field.type, v)]
            if type(good) in (SubscriptionClaim, ClaimedCommand):
                # When the claim expires is not sent.
                wrong = [(v, path) for v, path in wrong if v is not NAIVE]
            if type(good) is LifecycleEvent and field.name == "cursor":  # nor is this
                wrong = [(v, path) for v, path in wrong if not isinstance(v, str)]
        bad: Any
        for value, path in wrong:
            bad = dataclasses.replace(good, **{field.name: value})
            await refused(partial(send, provider, bad), place + path)
            tried += 1
    assert tried > 2 * len(dataclasses.fields(good))
    assert store.requests == {}


def test_no_class_is_forgotten() -> None:
    """Every dataclass that a method takes and sends, also inside of another, is tried above."""
    seen: set[type] = set()

    def look(hint: Any) -> None:
        for part in (get_origin(hint), *get_args(hint), hint):
            if part is not hint:
                look(part)
            elif isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint not in seen:
                seen.add(hint)
                for field in dataclasses.fields(hint):
                    look(field.type)

    for method in METHODS.values():
        for parameter in inspect.signature(method).parameters.values():
            look(parameter.annotation)
    assert (seen - {WorkerHooks}) | {ClaimedCommand} == {type(good) for good, _, _ in SENT}


@pytest.mark.parametrize("name", HeaderChanges.__annotations__)
async def test_every_header_field_of_a_patch(
    store: FakeStore, provider: PersistenceProvider, name: str
) -> None:
    hint = HeaderChanges.__annotations__[name]
    wrong = [{1}] if name == "data" else [value for value in POOL if not takes(hint, value)]
    for value in wrong:
        changes: Any = {name: value}
        patch = WorkflowPatch(id="w", header=changes)
        await refused(
            partial(provider.commit_workflow, patch, expected_revision=1),
            f"header.{name}",
        )
    assert store.requests == {}


@pytest.mark.parametrize("field", dataclasses.fields(RetryPolicy), ids=lambda field: field.name)
async def test_every_field_of_a_retry_policy(field: Any) -> None:
    make: Any = RetryPolicy
    for value in POOL:
        if not takes(field.type, value):
            await refused(partial(make, **{field.name: value}), field.name)


# Arguments

METHODS = {
    name: method
    for name, method in inspect.getmembers(PersistenceProvider, inspect.isfunction)
    if not name.startswith("_") and name != "close"
}

#: A right value for each hint of a required argument.
GOOD: dict[Any, Any] = {
    str: "x",
    float: 1.0,
    datetime: NOW,
    datetime | None: NOW,
    str | None: "x",
    int: 1,
    WorkflowInstance: WORKFLOW,
    WorkflowInstance | WorkflowPatch: WORKFLOW,
    Event: EVENT,
    EventSubscription: SUBSCRIPTION,
    SubscriptionClaim: CLAIM,
    CommandName: CommandName.PROCESS_WORKFLOW,
    ScheduledCommand: COMMAND,
    Iterable[WorkflowInstance] | AsyncIterable[WorkflowInstance]: [WORKFLOW],
    Iterable[Event] | AsyncIterable[Event]: [EVENT],
    Iterable[str]: ["x"],
    Iterable[QueueItem]: [ITEM],
    Iterable[LifecycleEvent]: [HAPPENED],
    Sequence[str]: ["q"],
    Sequence[EventSubscription]: [],
    Sequence[ExecutionError]: [],
    RetentionPolicy: POLICY,
    Iterable[Record]: [Record()],
    CommandHandler: handle,
    WorkHandler: handle_work,
}


@pytest.mark.parametrize("name", METHODS)
async def test_every_argument(store: FakeStore, provider: PersistenceProvider, name: str) -> None:
    parameters = list(inspect.signature(METHODS[name]).parameters.values())[1:]
    required = [p for p in parameters if p.default is p.empty]
    for parameter in parameters:
        for value in POOL:
            if takes(parameter.annotation, value):
                continue
            given = {p.name: GOOD[p.annotation] for p in required} | {parameter.name: value}
            await refused(partial(getattr(provider, name), **given), parameter.name)
            if parameter in required:
                in_order = [given[p.name] for p in required]
                await refused(partial(getattr(provider, name), *in_order), parameter.name)
    assert store.requests == {}


@pytest.mark.parametrize("function", [connect, connect_blocking])
def test_every_argument_of_connect(function: Any) -> None:
    async def go() -> None:
        for parameter in inspect.signature(function).parameters.values():
            for value in POOL:
                if not takes(parameter.annotation, value) and value is not datetime:
                    given = {"target": "localhost:1"} | {parameter.name: value}
                    await refused(partial(function, **given), parameter.name)

    asyncio.run(go())


async def test_numbers_out_of_range(store: FakeStore, provider: PersistenceProvider) -> None:
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: provider.claim_commands(limit=2**31), "limit"),
        (lambda: provider.purge_events(NOW, max_rows=-(2**31) - 1), "max_rows"),
        (lambda: provider.iter_errors(page_size=2**100), "page_size"),
        (lambda: provider.delete_workflow("w", expected_revision=2**63), "expected_revision"),
        (lambda: provider.persist_workflow(WORKFLOW, expected_revision=2**63), "expected_revision"),
        (
            lambda: provider.create_new_workflow(dataclasses.replace(WORKFLOW, version=-1)),
            "version",
        ),
        (
            lambda: provider.create_new_workflow(
                around(dataclasses.replace(POINTER, step_id=2**63))
            ),
            "execution_pointers[1].step_id",
        ),
        (
            lambda: provider.commit_workflow(
                WorkflowPatch(id="w", header={"next_execution": 2**63}), expected_revision=1
            ),
            "header.next_execution",
        ),
        (lambda: provider.process_commands(None, handle, batch_size=0), "batch_size"),
    ]
    for call, path in calls:
        await refused(call, path)
    assert store.requests == {}


async def test_surrogates(store: FakeStore, provider: PersistenceProvider) -> None:
    await refused(lambda: provider.get_event("\ud800"), "event_id")
    await refused(lambda: provider.get_workflow_instance(workflow_id="\ud800"), "workflow_id")
    assert store.requests == {}


class Id(str):
    __slots__ = ()


class Version(IntEnum):
    ONE = 1


class Moment(datetime):
    pass


async def test_subclasses_and_other_iterables_are_right(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on("GetWorkflowInstances", answers([]))
    for ids in (iter(["a", "b"]), ("a", "b"), {"a": 1, "b": 2}, {"a": 1, "b": 2}.keys()):
        await provider.get_workflow_instances(ids)
    assert {tuple(r.ids) for r in store.requests["GetWorkflowInstances"]} == {("a", "b")}
    children: Any = ("a", "b")
    pointers: Any = (dataclasses.replace(POINTER, children=children, sleep_until=Moment.now(UTC)),)
    instance = dataclasses.replace(
        WORKFLOW, id=Id("x"), version=Version.ONE, execution_pointers=pointers
    )
    for _ in range(2):
        message = convert.workflow_to_proto(instance)
    assert (message.id, message.version) == ("x", 1)
    assert list(message.execution_pointers[0].children) == ["a", "b"]


def test_methods_stay_what_they_were() -> None:
    assert inspect.iscoroutinefunction(PersistenceProvider.get_event)
    assert inspect.signature(PersistenceProvider.get_event).parameters["event_id"].annotation is str
    assert (PersistenceProvider.get_event.__doc__ or "").startswith("Returns one event.")


# Functions that are or are not async


class Called:
    async def __call__(self, *_args: object) -> str:
        return "t"


async def token() -> str:
    return "t"


@pytest.mark.parametrize("function", [token, Called()])
async def test_an_async_token_function_is_refused(function: Any) -> None:
    await refused(lambda: connect("localhost:1", token=function), "token")


async def test_a_token_function_that_returns_something_else(store: FakeStore) -> None:
    for function in (lambda: token(), lambda: 5):
        wrong: Any = function
        async with connect(store.target, token=wrong) as provider:
            await refused(lambda: provider.get_event("e"), "token")
    assert store.requests == {}


async def test_a_plain_handler_is_refused(store: FakeStore, provider: PersistenceProvider) -> None:
    plain: Any
    for plain in (handle_plainly, [].append, print, {}.pop):
        await refused(lambda: provider.process_commands(NOW, plain), "handler")  # noqa: B023
    assert store.requests == {}


def claimed(*names: str) -> command_pb2.ClaimCommandsResponse:
    return command_pb2.ClaimCommandsResponse(
        commands=[
            command_pb2.ClaimedCommand(
                command=command_pb2.ScheduledCommand(
                    command_name=command_pb2.COMMAND_NAME_PROCESS_EVENT, data=name
                ),
                lease_token=name,
            )
            for name in names
        ]
    )


async def test_a_handler_that_turns_out_to_be_plain(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    ran: list[str] = []
    store.on("ClaimCommands", answers(claimed("a", "b", "c")))
    store.on("ReleaseCommands", answers(command_pb2.ReleaseCommandsResponse()))
    plain: Any = lambda command: ran.append(command.data)  # noqa: E731
    await refused(lambda: provider.process_commands(NOW, plain), "handler")
    # Once, and all that was claimed is open again.
    assert ran == ["a"]
    released = [token for r in store.requests["ReleaseCommands"] for token in r.lease_tokens]
    assert released == ["a", "b", "c"]


async def test_a_lambda_that_returns_a_coroutine_is_a_handler(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    seen: list[str] = []

    async def note(command: ScheduledCommand) -> None:
        seen.append(command.data)

    store.on("ClaimCommands", answers(claimed("a", "b")), answers(claimed()))
    store.on("CompleteCommands", answers(command_pb2.CompleteCommandsResponse()))
    assert await provider.process_commands(NOW, lambda command: note(command)) == 2
    assert seen == ["a", "b"]


async def test_an_async_handler_of_a_blocking_provider_is_refused(store: FakeStore) -> None:
    store.on("ClaimCommands", answers(claimed("a")))

    def go() -> None:
        with connect_blocking(store.target) as provider:
            with pytest.raises(TypeError, match=r"^handler: "):
                provider.process_commands(NOW, handle)
            assert store.requests == {}
            with pytest.raises(TypeError, match=r"^handler: it returned"):
                provider.process_commands(NOW, lambda command: handle(command))
        assert store.count("CompleteCommands") == 0

    await asyncio.to_thread(go)
