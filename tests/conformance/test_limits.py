"""Limits: too large to take, too large to give back, too late. What is refused leaves no trace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails, failure_of
from tests.support.rpcs import HARMLESS, RPCS, Rpc, look, of_size, put
from tests.support.scene import Scene, filled, found, never_due
from wfe.persistence.v1.event_pb2 import CreateEventRequest, GetEventResponse
from wfe.persistence.v1.store_pb2 import ListErrorsResponse
from wfe.persistence.v1.subscription_pb2 import (
    CreateEventSubscriptionRequest,
    GetSubscriptionResponse,
)
from wfe.persistence.v1.workflow_pb2 import (
    CreateNewWorkflowRequest,
    GetWorkflowInstanceResponse,
    PersistWorkflowRequest,
    WorkflowInstance,
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
    instance.revision = 1
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
    await api.create_new_workflow(large.given)
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
    await api.create_new_workflow(instance)
    with fails("RESOURCE_EXHAUSTED", "ANSWER_TOO_LARGE"):
        if way == "CreateEventSubscription":
            await api.create_event_subscription(subscription)
        else:
            await api.persist_workflow_with_subscriptions(instance, [subscription])
    assert await found(api.get_subscription(subscription.id)) is None
    assert (await api.get_workflow_instance(instance.id)).revision == 1


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
