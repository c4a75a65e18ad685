"""Limits: too large to take, too large to give back, too late. What is refused leaves no trace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest

from tests.support import make
from tests.support.api import Api, for_each, pages
from tests.support.expect import fails, failure_of
from tests.support.rpcs import HARMLESS, RPCS, Rpc, look, of_size, put
from tests.support.scene import Scene, filled, found, never_due
from wfe.persistence.v1.event_pb2 import CreateEventRequest, GetEventResponse
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe.persistence.v1.store_pb2 import ListErrorsResponse
from wfe.persistence.v1.subscription_pb2 import (
    CreateEventSubscriptionRequest,
    GetSubscriptionResponse,
)
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    CreateNewWorkflowRequest,
    ExecutionPointer,
    GetWorkflowInstanceResponse,
    PersistWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
    PointerStatus,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowView,
)

# Too large.


@pytest.fixture(scope="module")
async def limit(api: Api) -> int:
    """The largest message, in bytes."""
    return (await api.get_store_info()).max_message_bytes


@pytest.fixture(scope="module")
async def reader(target: str, limit: int) -> AsyncIterator[Api]:
    """A client that takes answers up to the limit, as gRPC's clients do at 4 MiB by default."""
    options = [("grpc.max_receive_message_length", limit)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield Api(channel)


@pytest.mark.parametrize("rpc", HARMLESS, ids=str)
async def test_request_over_the_limit_is_refused(api: Api, rpc: Rpc, limit: int) -> None:
    async with Scene(api, rpc) as scene:
        before = await scene.state()
        with fails("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE") as failure:
            await rpc.call(api, of_size(scene.request, limit + 1))
        assert failure.metadata["limit_bytes"] == str(limit)
        assert await scene.state() == before
        await scene.succeed()


async def test_request_of_the_limit_is_taken_and_one_of_twice_the_limit_refused(
    api: Api, limit: int
) -> None:
    rpc = RPCS["GetStoreInfo"]
    for size in (limit, limit * 2):
        assert len(of_size(rpc.request(), size)) == size
    await rpc.call(api, of_size(rpc.request(), limit))
    with fails("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"):
        await rpc.call(api, of_size(rpc.request(), limit * 2))


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_request_far_over_the_limit_is_refused(
    api: Api, limit: int, compression: grpc.Compression
) -> None:
    rpc = RPCS["GetStoreInfo"]
    data = of_size(rpc.request(), limit * 8)
    failure = await failure_of(rpc.call(api, data, compression=compression))
    assert failure is not None
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await api.get_store_info()


async def test_very_large_metadata_is_refused(api: Api) -> None:
    metadata = [("x-canary", "x" * 100_000)]
    failure = await failure_of(RPCS["GetStoreInfo"].call(api, b"", metadata=metadata))
    assert failure is not None
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await api.get_store_info()


# Documents of a size, and how they are read back: jsonb puts a space behind each comma and colon
# and writes numbers out.
Shape = Callable[[int], tuple[str, str]]
SHAPES: Final[dict[str, Shape]] = {
    "a string": lambda size: (f'"{"x" * size}"',) * 2,
    "a string of commas": lambda size: (f'"{",:" * (size // 2)}"',) * 2,
    "a list with spaces": lambda size: (f"[{', '.join(['1'] * (size // 3))}]",) * 2,
    "a list without spaces": lambda size: (
        f"[{','.join(['1'] * (size // 3))}]",
        f"[{', '.join(['1'] * (size // 3))}]",
    ),
    "exponents": lambda size: (
        f"[{', '.join(['1e1000'] * (size // 1003))}]",
        f"[{', '.join(['1' + '0' * 1000] * (size // 1003))}]",
    ),
}


def _pad(answer: Any, path: str, size: int) -> str:
    """Make an answer so many bytes long, by a text field; that text."""
    text: str = look(answer, path)
    for _ in range(3):  # the length of the length may change on the way
        room = size - answer.ByteSize()
        text = text + "x" * room if room >= 0 else text[:room]
        put(answer, path, text)
    assert answer.ByteSize() == size
    return text


@dataclass(frozen=True)
class Large:
    """A workflow to be written, and the answer in which it would be read."""

    given: WorkflowInstance
    answer: GetWorkflowInstanceResponse


def _large(shape: str, size: int) -> Large:
    """A workflow whose answer has exactly this size."""
    given = never_due(description="x" * 5000)
    if shape == "small documents":
        # Of 127 bytes, the most whose length fits into one byte; the answer's does not.
        document = f"[{','.join('1' * 63)}]"
        one = make.pointer("000000", outcome_json=document.replace(",", ", ")).ByteSize() + 3
        given.execution_pointers.extend(
            make.pointer(f"{i:06}", outcome_json=document) for i in range((size - 8000) // one)
        )
        stored = document.replace(",", ", ")
    elif shape == "a name that is the id":
        given.id = filled(make.new_id(), "x", 512)
        given.data_json, stored = SHAPES["a string"](size - 8000)
    else:
        given.data_json, stored = SHAPES[shape](size - 8000)
    answer = GetWorkflowInstanceResponse(instance=given)
    instance = answer.instance
    instance.revision = 1  # the shortest that there is
    instance.name = instance.id
    for pointer in instance.execution_pointers:
        pointer.outcome_json = stored
    if not instance.execution_pointers:
        instance.data_json = stored
    given.description = _pad(answer, "instance.description", size)
    return Large(given, answer)


LARGE_SHAPES: Final = [*SHAPES, "small documents", "a name that is the id"]
# Whose answers are larger than the requests.
GROWING_SHAPES: Final = [
    shape
    for shape in LARGE_SHAPES
    if shape not in ("a string", "a string of commas", "a list with spaces")
]


@pytest.mark.parametrize("shape", LARGE_SHAPES)
async def test_workflow_under_the_limit_is_stored_and_can_be_read(
    api: Api, reader: Api, limit: int, shape: str
) -> None:
    large = _large(shape, limit * 95 // 100)
    assert CreateNewWorkflowRequest(instance=large.given).ByteSize() <= limit
    large.answer.instance.revision = await api.create(large.given)
    assert await reader.get_workflow_instance(large.given.id) == large.answer.instance


@pytest.mark.parametrize("shape", GROWING_SHAPES)
async def test_workflow_that_could_not_be_read_is_not_created(
    api: Api, reader: Api, limit: int, shape: str
) -> None:
    large = _large(shape, limit + 1)
    assert CreateNewWorkflowRequest(instance=large.given).ByteSize() <= limit
    with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE") as failure:
        await api.create_new_workflow(large.given)
    assert failure.metadata["limit_bytes"] == str(limit)
    assert failure.retry_after is None
    assert await found(reader.get_workflow_instance(large.given.id)) is None


@pytest.mark.parametrize("with_subscriptions", [False, True])
async def test_workflow_that_could_not_be_read_is_not_persisted(
    api: Api, limit: int, with_subscriptions: bool
) -> None:
    large, subscription = _large("a list without spaces", limit + 1), make.subscription()
    stored = never_due(id=large.given.id)
    await api.create_new_workflow(stored)
    before = await api.get_workflow_instance(stored.id)
    with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE"):
        if with_subscriptions:
            await api.persist_workflow_with_subscriptions(large.given, [subscription])
        else:
            await api.persist_workflow(large.given)
    assert await api.get_workflow_instance(stored.id) == before
    assert await found(api.get_subscription(subscription.id)) is None


async def test_workflow_that_keeps_a_long_name_can_be_read(
    api: Api, reader: Api, limit: int
) -> None:
    """The name that an empty one leaves unchanged is part of the answer, too."""
    stored = never_due(name=filled(make.new_id(), "x", 512))
    await api.create_new_workflow(stored)
    given = never_due(id=stored.id, name="", description="x")
    request = PersistWorkflowRequest(instance=given)
    given.description = _pad(request, "instance.description", limit - 100)
    failure = await failure_of(api.persist_workflow(given))
    assert failure is None or failure.reason == "ANSWER_TOO_LARGE"
    assert (await reader.get_workflow_instance(stored.id)).name == stored.name


async def test_workflow_and_subscriptions_are_read_apart_and_so_measured_apart(
    api: Api, reader: Api, limit: int
) -> None:
    document, _ = SHAPES["a list without spaces"](limit * 65 // 100)
    instance = never_due()
    await api.create_new_workflow(instance)
    instance.data_json = document
    subscription = make.subscription(subscription_data_json=document)
    await api.persist_workflow_with_subscriptions(instance, [subscription])
    assert len((await reader.get_workflow_instance(instance.id)).data_json) > limit // 2
    assert len((await reader.get_subscription(subscription.id)).subscription_data_json) > limit // 2


@pytest.mark.parametrize("shape", ["a list without spaces", "exponents"])
async def test_event_that_could_not_be_read_is_not_created(
    api: Api, limit: int, shape: str
) -> None:
    document, stored = SHAPES[shape](limit - 8000)
    event = make.event(event_data_json=document, is_processed=True)
    answer = GetEventResponse(event=event)
    answer.event.event_data_json = stored
    while answer.ByteSize() <= limit:
        event.event_data_json = event.event_data_json[:-1] + ",1" * 1000 + "]"
        answer.event.event_data_json = answer.event.event_data_json[:-1] + ", 1" * 1000 + "]"
    assert CreateEventRequest(event=event).ByteSize() <= limit
    with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE"):
        await api.create_event(event)
    assert await found(api.get_event(event.id)) is None


@pytest.mark.parametrize("way", ["CreateEventSubscription", "PersistWorkflowWithSubscriptions"])
async def test_subscription_that_could_not_be_read_is_not_created(
    api: Api, limit: int, way: str
) -> None:
    document, stored = SHAPES["a list without spaces"](limit)
    subscription = make.subscription(subscription_data_json=document)
    answer = make.subscription(subscription_data_json=stored)
    assert GetSubscriptionResponse(subscription=answer).ByteSize() > limit
    assert CreateEventSubscriptionRequest(subscription=subscription).ByteSize() < limit
    instance = never_due()
    first = await api.create(instance)
    with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE"):
        if way == "CreateEventSubscription":
            await api.create_event_subscription(subscription)
        else:
            await api.persist_workflow_with_subscriptions(instance, [subscription])
    assert await found(api.get_subscription(subscription.id)) is None
    assert (await api.get_workflow_instance(instance.id)).revision == first


async def test_page_with_a_large_error_and_a_token_can_be_read(
    api: Api, reader: Api, limit: int
) -> None:
    small = make.error()
    large = make.error(workflow_id=small.workflow_id, message="x")
    large.message = _pad(ListErrorsResponse(errors=[large]), "errors[0].message", limit - 70)
    await api.persist_errors(small)
    failure = await failure_of(api.persist_errors(large))
    assert failure is None or failure.reason == "ANSWER_TOO_LARGE"
    await reader.list_errors(workflow_id=small.workflow_id, page_size=1)


async def test_page_with_a_large_subscription_and_a_token_can_be_read(
    api: Api, reader: Api, limit: int
) -> None:
    """A page token may be long: here it stands for an id that looks long however it is written."""
    key = make.new_id("key")
    for i in range(2):
        large = make.subscription(
            id=filled(make.new_id(f"{i}"), "\x01", 512),
            event_key=key,
            subscription_data_json='"x"',
        )
        answer = GetSubscriptionResponse(subscription=large)
        size = limit - 70 - answer.ByteSize()
        large.subscription_data_json = f'"{"x" * size}"'
        failure = await failure_of(api.create_event_subscription(large))
        assert failure is None or failure.reason == "ANSWER_TOO_LARGE"
    for size in (1, 2):
        await reader.get_subscriptions(event_name="order.paid", event_key=key, page_size=size)


# Commits: what they store is read in parts.


@pytest.mark.parametrize("part", ["header", "pointer", "event", "subscription"])
async def test_commit_of_what_could_not_be_read_writes_nothing(
    api: Api, limit: int, part: str
) -> None:
    document, _ = SHAPES["a list without spaces"](limit)
    instance, event, subscription = never_due(), make.event(), make.subscription()
    await api.create(instance)
    patch = make.patch(instance.id, reference="changed")
    request = CommitWorkflowRequest(patch=patch, expected_revision=instance.revision)
    match part:
        case "header":
            request.patch.header.data_json = document
            request.patch.header_mask.paths.append("data_json")
        case "pointer":
            request.patch.execution_pointers.append(make.pointer(outcome_json=document))
        case "event":
            event.event_data_json = document
            request.create_events.append(event)
        case "subscription":
            subscription.subscription_data_json = document
            request.create_subscriptions.append(subscription)
    assert request.ByteSize() < limit
    with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE") as failure:
        await api.workflows.CommitWorkflow(request)
    assert failure.metadata["limit_bytes"] == str(limit)
    instance.name = instance.id
    assert await api.get_workflow_instance(instance.id) == instance
    assert await found(api.get_event(event.id)) is None
    assert await found(api.get_subscription(subscription.id)) is None


@pytest.fixture(scope="module")
async def grown(api: Api, limit: int) -> WorkflowInstance:
    """A workflow that patches have made too large for a message; most of it can't run any more."""
    definition = make.new_id("definition")
    instance = never_due(
        workflow_definition_id=definition, execution_pointers=[make.pointer("active")]
    )
    await api.create(instance)
    for n in range(5):
        pointer = make.pointer(
            f"{n}",
            active=False,
            status=PointerStatus.POINTER_STATUS_COMPLETE,
            outcome_json=f'"{"x" * (limit // 4)}"',
        )
        patch = make.patch(instance.id, execution_pointers=[pointer])
        answer = await api.commit_workflow(patch=patch, expected_revision=instance.revision)
        assert answer.revision == instance.revision + 1
        instance.revision = answer.revision
        instance.execution_pointers.append(pointer)
    instance.name = instance.id
    return instance


async def test_workflow_beyond_a_message_is_not_read_at_once(
    reader: Api, grown: WorkflowInstance, limit: int
) -> None:
    for view in (WorkflowView.WORKFLOW_VIEW_UNSPECIFIED, WorkflowView.WORKFLOW_VIEW_FULL):
        for read, key in (
            (reader.get_workflow_instance, grown.id),
            (reader.get_workflow_instance_by_name, grown.name),
        ):
            with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE") as failure:
                await read(key, view)
            assert failure.metadata["limit_bytes"] == str(limit)
            assert failure.retry_after is None


async def test_stream_goes_on_behind_a_workflow_beyond_a_message(
    reader: Api, api: Api, grown: WorkflowInstance
) -> None:
    before, behind = never_due(), never_due()
    await for_each(api.create_new_workflow, [before, behind])
    first, second, third = await reader.get_workflow_instances([before.id, grown.id, behind.id])
    assert second == await reader.get_workflow_instance(grown.id, WorkflowView.WORKFLOW_VIEW_HEADER)
    assert (first.id, third.id) == (before.id, behind.id)


async def test_workflow_beyond_a_message_is_read_in_parts(
    reader: Api, grown: WorkflowInstance
) -> None:
    header = WorkflowInstance()
    header.CopyFrom(grown)
    header.ClearField("execution_pointers")
    header.view = WorkflowView.WORKFLOW_VIEW_HEADER
    assert await reader.get_workflow_instance(grown.id, header.view) == header
    active = WorkflowInstance()
    active.CopyFrom(header)
    active.execution_pointers.append(grown.execution_pointers[0])
    active.view = WorkflowView.WORKFLOW_VIEW_ACTIVE
    assert await reader.get_workflow_instance(grown.id, active.view) == active
    assert await reader.get_workflow_instances([grown.id], active.view) == [active]
    answers = await pages(
        reader.list_execution_pointers,
        workflow_id=grown.id,
        page_size=1000,
        expected_revision=grown.revision,
    )
    pointers = [pointer for answer in answers for pointer in answer.execution_pointers]
    assert pointers == list(grown.execution_pointers)
    assert len(answers) > 1


async def test_workflow_beyond_a_message_goes_on(
    api: Api, reader: Api, grown: WorkflowInstance
) -> None:
    """It can be patched, and is listed: without its pointers where they don't fit."""
    small = never_due(workflow_definition_id=grown.workflow_definition_id)
    small.create_time.CopyFrom(make.time(1))
    await api.create_new_workflow(small)
    filter_ = WorkflowFilter(workflow_definition_id=grown.workflow_definition_id)
    [answer] = await pages(
        reader.list_workflows, filter=filter_, view=WorkflowView.WORKFLOW_VIEW_FULL
    )
    assert [(w.id, w.view, len(w.execution_pointers)) for w in answer.instances] == [
        (small.id, WorkflowView.WORKFLOW_VIEW_UNSPECIFIED, 0),
        (grown.id, WorkflowView.WORKFLOW_VIEW_HEADER, 0),
    ]


# The largest that is accepted can be read in every way.


async def _largest(limit: int, create: Callable[[int], Awaitable[object]]) -> None:
    """Create the largest that is accepted, to a few bytes."""
    accepted, refused = limit - 9000, limit
    while refused - accepted > 50:
        size = (accepted + refused) // 2
        failure = await failure_of(create(size))
        if failure is None:
            accepted = size
        else:
            assert failure.reason in ("ANSWER_TOO_LARGE", "MESSAGE_TOO_LARGE")
            refused = size
    assert accepted > limit - 9000


def _document(size: int) -> str:
    return f'"{"x" * (size - 2)}"'


ORDERS: Final = {ListOrder.LIST_ORDER_OLDEST_FIRST: 1, ListOrder.LIST_ORDER_NEWEST_FIRST: 1000}
"""Both orders, and a page size for each."""


async def test_largest_workflow_is_listed_between_small_ones(
    api: Api, reader: Api, limit: int
) -> None:
    definition = make.new_id("definition")
    ids: list[str] = []

    async def create(size: int) -> None:
        instance = never_due(workflow_definition_id=definition, create_time=make.time(len(ids) + 1))
        instance.data_json = _document(size) if size else "1"
        await api.create_new_workflow(instance)
        ids.append(instance.id)

    await create(0)
    await _largest(limit, create)
    await create(0)
    largest = ids[-2]
    filter_ = WorkflowFilter(workflow_definition_id=definition)
    views = (WorkflowView.WORKFLOW_VIEW_HEADER, WorkflowView.WORKFLOW_VIEW_FULL)
    whole = await reader.get_workflow_instance(largest)
    assert await reader.get_workflow_instance_by_name(whole.name) == whole
    assert await reader.get_workflow_instances([ids[0], largest, ids[-1]]) == [
        await reader.get_workflow_instance(ids[0]),
        whole,
        await reader.get_workflow_instance(ids[-1]),
    ]
    for view in views:
        for order, page_size in ORDERS.items():
            answers = await pages(
                reader.list_workflows, filter=filter_, view=view, order=order, page_size=page_size
            )
            found = [instance for answer in answers for instance in answer.instances]
            expected = ids if order == ListOrder.LIST_ORDER_OLDEST_FIRST else ids[::-1]
            assert [instance.id for instance in found] == expected
            assert all(instance.data_json for instance in found)


async def test_largest_event_is_listed_between_small_ones(
    api: Api, reader: Api, limit: int
) -> None:
    name = make.new_id("name")
    ids: list[str] = []

    async def create(size: int) -> None:
        event = make.event(
            event_name=name, event_time=make.time(len(ids)), is_processed=False,
            event_data_json=_document(size) if size else "1",
        )  # fmt: skip
        ids.append(await api.create_event(event))
        await api.mark_event_processed(event.id)

    await create(0)
    await _largest(limit, create)
    await create(0)
    for order, page_size in ORDERS.items():
        answers = await pages(reader.list_events, event_name=name, order=order, page_size=page_size)
        found = [event for answer in answers for event in answer.events]
        expected = ids if order == ListOrder.LIST_ORDER_OLDEST_FIRST else ids[::-1]
        assert [event.id for event in found] == expected
        assert all(event.event_data_json for event in found)
    assert (await reader.get_event(ids[-2])).event_data_json


async def test_largest_subscription_can_be_claimed_and_read(
    api: Api, reader: Api, limit: int
) -> None:
    """The claim makes it larger."""
    name = make.new_id("name")
    ids: list[str] = []

    async def create(size: int) -> None:
        subscription = make.subscription(
            event_name=name, event_key="", subscribe_as_of=make.time(len(ids)),
            subscription_data_json=_document(size) if size else "1",
        )  # fmt: skip
        ids.append(await api.create_event_subscription(subscription))

    await create(0)
    await _largest(limit, create)
    await create(0)
    for claimed in (False, True):
        if claimed:
            for id_ in ids:
                assert await api.set_subscription_token(
                    id_, filled("", "t", 512), filled("", "w", 512), make.LAST_TIME
                )
        else:
            due = await pages(
                reader.get_subscriptions, event_name=name, as_of=make.LAST_TIME, page_size=1
            )
            assert [s.id for answer in due for s in answer.subscriptions] == ids
        answers = await pages(reader.list_subscriptions, event_name=name)
        found = [s for answer in answers for s in answer.subscriptions]
        assert sorted(s.id for s in found) == sorted(ids)
        assert all(s.subscription_data_json for s in found)
        assert (await reader.get_subscription(ids[-2])).subscription_data_json
        if claimed:
            continue
        await api.terminate_subscription(ids.pop(0))
        first = await reader.get_first_open_subscription(event_name=name, as_of=make.LAST_TIME)
        assert first is not None
        assert first.id == ids[0]


async def test_answer_of_ids_that_could_not_be_sent_writes_nothing(api: Api, limit: int) -> None:
    """Many subscriptions without ids: the ids in the answer are larger than the request."""
    instance = never_due()
    first = await api.create(instance)
    one = make.subscription(id="", workflow_id=instance.id[-9:], event_name="n", event_key="")
    one.ClearField("subscription_data_json")
    count = limit // 38 + 1
    request = PersistWorkflowWithSubscriptionsRequest(
        instance=instance, subscriptions=[one] * count
    )
    if request.ByteSize() > limit:
        pytest.skip("so many do not fit into a request")
    with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE"):
        await api.workflows.PersistWorkflowWithSubscriptions(request)
    assert (await api.get_workflow_instance(instance.id)).revision == first
    answer = await api.list_subscriptions(workflow_id=instance.id[-9:])
    assert not answer.subscriptions


# Lists: a page ends where the next item would not fit.


async def test_pages_of_large_workflows_fit(api: Api, reader: Api, limit: int) -> None:
    definition = make.new_id("definition")
    ids = []
    for n in range(5):
        instance = never_due(
            workflow_definition_id=definition,
            create_time=make.time(-n),
            execution_pointers=[make.pointer(outcome_json=f'"{"x" * (limit // 3)}"')],
        )
        await api.create_new_workflow(instance)
        ids.append(instance.id)
    answers = await pages(
        reader.list_workflows,
        filter=WorkflowFilter(workflow_definition_id=definition),
        view=WorkflowView.WORKFLOW_VIEW_FULL,
    )
    assert [w.id for answer in answers for w in answer.instances] == ids
    assert all(len(w.execution_pointers) == 1 for answer in answers for w in answer.instances)
    assert len(answers) == 3
    # Without the pointers they all fit into one.
    [_] = await pages(
        reader.list_workflows, filter=WorkflowFilter(workflow_definition_id=definition)
    )


async def test_pages_of_large_events_fit(api: Api, reader: Api, limit: int) -> None:
    name = make.new_id("name")
    document = f'"{"x" * (limit // 3)}"'
    for n in range(5):
        await api.create_event(
            make.event(
                event_name=name, event_time=make.time(n), event_data_json=document,
                is_processed=True,
            )
        )  # fmt: skip
    answers = await pages(reader.list_events, event_name=name)
    assert [len(answer.events) for answer in answers] == [2, 2, 1]


async def test_pages_of_large_subscriptions_fit(api: Api, reader: Api, limit: int) -> None:
    name = make.new_id("name")
    document = f'"{"x" * (limit // 3)}"'
    for _ in range(5):
        await api.create_event_subscription(
            make.subscription(event_name=name, subscription_data_json=document)
        )
    answers = await pages(reader.list_subscriptions, event_name=name)
    assert [len(answer.subscriptions) for answer in answers] == [2, 2, 1]


@pytest.mark.parametrize("over", [False, True])
async def test_pointer_just_within_a_message_fits_a_page_of_its_own(
    api: Api, reader: Api, limit: int, over: bool
) -> None:
    """With a page token behind it, however long its id."""
    instance = never_due()
    first = await api.create(instance)
    large: ExecutionPointer = make.pointer(filled("large", "\x01", 512), outcome_json='"x"')
    room = limit - 1000 - (0 if over else 2000)
    large.outcome_json = f'"{"x" * (room - large.ByteSize())}"'
    after = make.pointer("after")
    failure = await failure_of(
        api.commit_workflow(
            patch=make.patch(instance.id, execution_pointers=[large, after]),
            expected_revision=first,
        )
    )
    if over and failure is not None:
        assert failure.reason == "ANSWER_TOO_LARGE"
        return
    assert failure is None
    answers = await pages(reader.list_execution_pointers, workflow_id=instance.id)
    assert [p for answer in answers for p in answer.execution_pointers] == [large, after]


# Deadlines.


@pytest.mark.parametrize("rpc", HARMLESS, ids=str)
async def test_passed_deadline_changes_nothing(api: Api, rpc: Rpc) -> None:
    async with Scene(api, rpc) as scene:
        before = await scene.state()
        for seconds in (0.0, 1e-6):
            failure = await failure_of(rpc.call(api, scene.request, timeout=seconds))
            assert failure is not None
            assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await scene.state() == before
        await scene.succeed()


async def test_deadline_that_passes_during_a_write_leaves_nothing(api: Api, limit: int) -> None:
    """However far the write has come, it is all there or nothing is."""
    rpc = RPCS["CreateNewWorkflow"]

    def large() -> Any:
        given = _large("small documents", limit // 8).given
        given.id = make.new_id("workflow")
        return rpc.request(instance=given)

    await rpc.call(api, large())
    begin = time.perf_counter()
    await rpc.call(api, large())
    took = time.perf_counter() - begin
    exceeded = 0
    for part in (0.1, 0.2, 0.3, 0.4, 0.5):
        request = large()
        failure = await failure_of(rpc.call(api, request, timeout=took * part))
        if failure is None:
            stored = await api.get_workflow_instance(request.instance.id)
            assert len(stored.execution_pointers) == len(request.instance.execution_pointers)
        else:
            assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert failure.reason in ("", "DEADLINE_EXCEEDED")  # told by client or by server
            exceeded += 1
            # The client has not waited for the end: the write was called off, or has been made.
            await asyncio.sleep(took)
            after = await found(api.get_workflow_instance(request.instance.id))
            whole = len(request.instance.execution_pointers)
            assert after is None or len(after.execution_pointers) == whole
    assert exceeded
