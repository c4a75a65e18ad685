"""Clients that write and remember what was acknowledged, and the check that all of it is there."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import grpc

from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import read_failure
from wfe.persistence.v1.event_pb2 import CreateEventRequest, GetEventRequest
from wfe.persistence.v1.workflow_pb2 import (
    CreateNewWorkflowRequest,
    GetWorkflowInstanceRequest,
    PersistWorkflowRequest,
    WorkflowInstance,
)

# What a fault may make of a call. Anything else (INTERNAL, UNKNOWN, …) is a bug.
ALLOWED = {
    "DATABASE_UNAVAILABLE",
    "COMMIT_OUTCOME_UNKNOWN",
    "SHUTTING_DOWN",
    "POOL_EXHAUSTED",
    "DEADLINE_EXCEEDED",
    "",  # the server itself is away: gRPC's own UNAVAILABLE, or CANCELLED in the middle
}
ALLOWED_BARE_CODES = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}


@dataclass
class Load:
    """Eight clients, each with a workflow of its own that it persists over and over.

    Every write of a client carries a number in the workflow's data and in each of its pointers.
    """

    address: str
    clients: int = 8
    acknowledged: dict[str, int] = field(default_factory=dict)
    """Workflow id → the last number that was acknowledged."""
    attempted: dict[str, int] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    writes: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    _stop: bool = False

    async def run(self) -> None:
        """Write until `stop()`."""
        async with connect(
            self.address,
            [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)],
        ) as channel:
            api = Api(channel)
            await asyncio.gather(*(self._client(api) for _ in range(self.clients)))

    def stop(self) -> None:
        """Let every client finish its call and end."""
        self._stop = True

    async def _client(self, api: Api) -> None:
        id_ = make.new_id("workflow")
        number = 0
        created = False
        while not self._stop:
            self.attempted[id_] = number
            instance = tagged(id_, number)
            try:
                if not created:
                    await api.workflows.CreateNewWorkflow(
                        CreateNewWorkflowRequest(instance=instance), timeout=5
                    )
                    created = True
                else:
                    await api.workflows.PersistWorkflow(
                        PersistWorkflowRequest(instance=instance), timeout=5
                    )
                self.acknowledged[id_] = number
                number += 1
                event = make.event()
                await api.events.CreateEvent(CreateEventRequest(event=event), timeout=5)
                self.events.append(event.id)
                self.writes += 2
            except grpc.aio.AioRpcError as exc:
                failure = read_failure(exc)
                self.failures[failure.reason or str(failure.code)] += 1
                assert failure.reason in ALLOWED, failure
                assert failure.reason or failure.code in ALLOWED_BARE_CODES, failure
                await asyncio.sleep(0.02)

    async def check(self, address: str) -> None:
        """All that was acknowledged is there, and nothing is a mix of two writes."""
        assert self.acknowledged
        assert self.events
        async with connect(address) as channel:
            api = Api(channel)
            for id_, number in self.acknowledged.items():
                answer = await api.workflows.GetWorkflowInstance(GetWorkflowInstanceRequest(id=id_))
                stored = number_of(answer.instance)
                # A later write that failed may have been made all the same.
                assert number <= stored <= self.attempted[id_], (number, stored)
            for id_ in self.events:
                await api.events.GetEvent(GetEventRequest(id=id_))


def tagged(id_: str, number: int) -> WorkflowInstance:
    """A workflow that carries a number everywhere; which pointers it has depends on it too."""
    pointers = [make.pointer(str(i), outcome_json=str(number)) for i in range(number % 4 + 2)]
    return make.instance(id=id_, data_json=str(number), execution_pointers=pointers)


def number_of(instance: WorkflowInstance) -> int:
    """The number that a workflow carries, which must be the same everywhere."""
    number = int(instance.data_json)
    assert [p.outcome_json for p in instance.execution_pointers] == [str(number)] * (number % 4 + 2)
    return number
