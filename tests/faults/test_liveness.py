"""A request that is hard to judge holds up its own caller and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from google.protobuf.message import Message

from tests.support import hostile, make
from tests.support.api import Api, connect
from tests.support.expect import fails
from tests.support.liveness import wait_of_others
from tests.support.server import ServerProcess
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.workflow_pb2 import (
    ExecutionPointer,
    GetWorkflowInstanceRequest,
    GetWorkflowInstancesRequest,
    ListExecutionPointersRequest,
    ListWorkflowsRequest,
    PersistWorkflowRequest,
    PointerStatus,
    WorkflowFilter,
    WorkflowView,
)

LONGEST_WAIT = 1.0
"""In seconds. It is under 50 ms, but a machine may be busy: `./run bench --checks` has the figures.
Without worker threads, most of the requests here would make others wait longer."""
TRIES = 4


@pytest.fixture(scope="module")
def server(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("server") / "log"
    with ServerProcess(log, "--db-url", postgres_url, "--schema", "liveness") as server:
        yield server
    assert "bug" not in server.log(), server.log()


@pytest.fixture
async def api(server: ServerProcess) -> AsyncIterator[Api]:
    async with connect(server.address) as channel:
        yield Api(channel)


async def assert_others_are_served(
    server: ServerProcess, path: str, data: bytes, *, times: int = 1
) -> None:
    waits = []
    for _ in range(TRIES):
        waits.append(await wait_of_others(server.address, path, data, times=times))
        if max(waits[-1].health, waits[-1].write) < LONGEST_WAIT:
            return
    raise AssertionError(waits)


@pytest.mark.parametrize(("path", "encode"), hostile.REQUESTS.values(), ids=hostile.REQUESTS)
async def test_others_are_served_meanwhile(
    server: ServerProcess, path: str, encode: hostile.Encode
) -> None:
    await assert_others_are_served(server, path, encode())


async def test_others_are_served_while_many_such_requests_wait(server: ServerProcess) -> None:
    path, encode = hostile.REQUESTS["JSON: different exponents"]
    await assert_others_are_served(server, path, encode(), times=8)


async def test_others_are_served_while_large_workflows_are_read(
    server: ServerProcess, api: Api
) -> None:
    pointers = [
        ExecutionPointer(id=f"{i:x}", status=PointerStatus.POINTER_STATUS_COMPLETE)
        for i in range(60_000)
    ]
    instance = make.instance(
        workflow_definition_id=make.new_id("definition"), execution_pointers=pointers
    )
    await api.create_new_workflow(instance)
    read: dict[str, Message] = {
        "GetWorkflowInstance": GetWorkflowInstanceRequest(id=instance.id),
        "GetWorkflowInstances": GetWorkflowInstancesRequest(ids=[instance.id]),
        "ListWorkflows": ListWorkflowsRequest(
            filter=WorkflowFilter(workflow_definition_id=instance.workflow_definition_id),
            view=WorkflowView.WORKFLOW_VIEW_FULL,
        ),
        "ListExecutionPointers": ListExecutionPointersRequest(
            workflow_id=instance.id, page_size=1000
        ),
    }
    for rpc, request in read.items():
        path = f"/wfe.persistence.v1.WorkflowService/{rpc}"
        await assert_others_are_served(server, path, request.SerializeToString(), times=4)


@pytest.mark.parametrize("cancelled", [False, True], ids=["deadline", "cancelled"])
async def test_a_call_that_ends_while_it_is_checked_writes_nothing(
    server: ServerProcess, api: Api, *, cancelled: bool
) -> None:
    numbers = f"[{','.join(['1e1'] * 300_000)}]"  # valid, and looked at one by one
    event = make.event(event_data_json=numbers)
    request = CreateEventRequest(event=event)
    if cancelled:
        call = asyncio.ensure_future(api.events.CreateEvent(request))
        await asyncio.sleep(0.03)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    else:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await api.events.CreateEvent(request, timeout=0.03)
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # Another one has its turn only after it.
    other = make.event(event_data_json=numbers, event_name="")
    with fails("INVALID_ARGUMENT", "INVALID_FIELD"):
        await api.create_event(other)
    with fails("NOT_FOUND", "EVENT_NOT_FOUND"):
        await api.get_event(event.id)


async def test_a_repeated_workflow_is_read_as_it_was_written_in_a_thread(api: Api) -> None:
    """Nothing gets mixed up between calls whose work is done in threads."""
    sizes = [10, 30, 100, 300, 1000, 3000, 10_000]
    instances = [
        make.instance(
            execution_pointers=[make.pointer(f"{i}", outcome_json=f"{i}") for i in range(size)]
        )
        for size in sizes
    ]
    await asyncio.gather(*map(api.create_new_workflow, instances))
    for instance in instances:
        instance.execution_pointers[0].outcome_json = '"changed"'
    await asyncio.gather(
        *(api.workflows.PersistWorkflow(PersistWorkflowRequest(instance=i)) for i in instances)
    )
    read = await asyncio.gather(*(api.get_workflow_instance(i.id) for i in instances))
    for instance, found in zip(instances, read, strict=True):
        assert found.execution_pointers == instance.execution_pointers
