"""A load of its own process, which `limits` starts for each server: callers that wait for each
answer, as many for each namespace.

It is told what to do by lines of JSON, and answers each with a line:

    {"prepare": [NAMESPACE, …], "workflows": N}    enqueue so many workflows in each
    {"load": NAME, "namespaces": […], "callers": N, "seconds": S}    N callers for each

A workflow has ten steps. In a step the running pointer completes and the next one starts; after the
last one the workflow is complete, and a new one is created, which is part of that step.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc

from benchmarks.timing import percentile
from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1 import event_pb2 as e
from wfe.persistence.v1 import queue_pb2 as q
from wfe.persistence.v1 import workflow_pb2 as w
from wfe.persistence.v1.queue_item_pb2 import Acknowledgement

STEPS: Final = 10
QUEUE: Final = "steps"
DATA: Final = json.dumps({"customer": "Customer 17", "city": "Springfield", "note": "x" * 300})

State = dict[str, Any]
"""What a caller remembers."""


class Namespace:
    """The operations in one namespace."""

    def __init__(self, api: Api, name: str) -> None:
        self._api = api
        self._in = (("wfe-namespace", name),)

    async def create(self, *, enqueue: bool) -> w.CreateNewWorkflowResponse:
        """A workflow at its first step."""
        instance = make.instance(
            data_json=DATA,
            create_time=make.from_now(0),
            execution_pointers=[_pointer(1)],
        )
        items = [make.item(QUEUE, id="")] if enqueue else []
        return await self._api.workflows.CreateNewWorkflow(
            w.CreateNewWorkflowRequest(instance=instance, enqueue=items), metadata=self._in
        )

    async def step(self, _: State) -> None:
        """As a host does it that has the next item of the queue: two calls."""
        taken = await self._api.queues.Dequeue(
            q.DequeueRequest(
                queues=[QUEUE], include_workflow=True, view=w.WorkflowView.WORKFLOW_VIEW_ACTIVE
            ),
            metadata=self._in,
        )
        if not taken.items:
            raise LookupError("the queue is empty")
        [item] = taken.items
        [pointer] = item.workflow.execution_pointers
        id_, number = item.item.id, pointer.step_id
        await self._commit(
            id_,
            item.workflow.revision,
            pointer,
            acknowledge=[Acknowledgement(receipt=item.receipt)],
            enqueue=[] if number == STEPS else [make.item(QUEUE, id=id_)],
            publish=[make.lifecycle_event(workflow_id=id_)],
        )
        if number == STEPS:
            await self.create(enqueue=True)

    async def turn(self, state: State) -> None:
        """As a host does it that goes on with a workflow: one call."""
        if not state:
            created = await self.create(enqueue=False)
            state |= {"id": created.id, "revision": created.revision, "step": 1}
        number = state["step"]
        state["revision"] = await self._commit(state["id"], state["revision"], _pointer(number))
        state["step"] = number + 1
        if number == STEPS:
            state.clear()

    async def _commit(self, id_: str, revision: int, done: Any, **effects: Any) -> int:
        number = done.step_id
        done.active = False
        done.status = w.PointerStatus.POINTER_STATUS_COMPLETE
        done.end_time.CopyFrom(make.from_now(0))
        done.outcome_json = '{"done": true, "by": "worker-1"}'
        patch = make.patch(id_, execution_pointers=[done])
        if number == STEPS:
            patch.header.status = w.WorkflowStatus.WORKFLOW_STATUS_COMPLETE
            patch.header.complete_time.CopyFrom(done.end_time)
            patch.header_mask.paths[:] = ["status", "complete_time"]
        else:
            patch.execution_pointers.append(_pointer(number + 1))
        request = w.CommitWorkflowRequest(
            patch=patch, expected_revision=revision, request_id=make.request_id(), **effects
        )
        return (await self._api.workflows.CommitWorkflow(request, metadata=self._in)).revision

    async def event(self, state: State) -> None:
        """An event is created, and read."""
        event = make.event(event_time=make.from_now(0))
        await self._api.events.CreateEvent(e.CreateEventRequest(event=event), metadata=self._in)
        state["event"] = event.id
        await self._api.events.GetEvent(e.GetEventRequest(id=event.id), metadata=self._in)

    async def mixed(self, state: State) -> None:
        """Of ten operations: five steps from the queue, two of a host that goes on, three events,
        each created and read."""
        lot = random.random()
        if lot < 0.5:
            await self.step(state)
        elif lot < 0.7:
            await self.turn(state.setdefault("turn", {}))
        else:
            await self.event(state)

    async def count(self, _: State) -> None:
        """What takes the database long."""
        await self._api.workflows.CountWorkflows(w.CountWorkflowsRequest(), metadata=self._in)


def _pointer(number: int) -> w.ExecutionPointer:
    return make.pointer(
        f"pointer-{number}",
        step_id=number,
        step_name=f"Step number {number}",
        start_time=make.from_now(0),
    )


OPERATIONS: Final[dict[str, Callable[[Namespace, State], Awaitable[None]]]] = {
    "steps": Namespace.step,
    "turns": Namespace.turn,
    "mixed": Namespace.mixed,
    "counts": Namespace.count,
}


class Load:
    """The callers."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._states: dict[tuple[str, str, int], State] = {}

    async def prepare(self, names: list[str], workflows: int) -> dict[str, Any]:
        """Enqueue so many workflows in each of these namespaces."""
        slots = asyncio.Semaphore(32)

        async def one(name: str) -> None:
            async with slots:
                await Namespace(self._api, name).create(enqueue=True)

        await asyncio.gather(*(one(name) for name in names for _ in range(workflows)))
        return {}

    async def run(
        self, load: str, names: list[str], callers: int, seconds: float
    ) -> dict[str, Any]:
        """What was done in each namespace, how long it took, and what has failed."""
        operation = OPERATIONS[load]
        took: dict[str, list[float]] = {name: [] for name in names}
        failed: Counter[str] = Counter()
        end = time.perf_counter() + seconds

        async def caller(name: str, number: int) -> None:
            namespace = Namespace(self._api, name)
            state = self._states.setdefault((load, name, number), {})
            while (begun := time.perf_counter()) < end:
                try:
                    await operation(namespace, state)
                except (grpc.aio.AioRpcError, LookupError) as exc:
                    failed[_said(exc)] += 1
                    state.clear()
                    await asyncio.sleep(0.01)
                else:
                    took[name].append(time.perf_counter() - begun)

        begun = time.perf_counter()
        await asyncio.gather(*(caller(name, i) for name in names for i in range(callers)))
        return {
            "seconds": time.perf_counter() - begun,
            "done": {name: len(each) for name, each in took.items()},
            "ms": {
                name: [percentile(each, percent) * 1e3 for percent in (50, 99)]
                for name, each in took.items()
                if each
            },
            "failed": failed,
        }


def _said(exc: grpc.aio.AioRpcError | LookupError) -> str:
    if isinstance(exc, grpc.aio.AioRpcError):
        return f"{exc.code().name}: {exc.details()}"[:120]
    return str(exc)


async def _main(address: str) -> None:
    loop = asyncio.get_running_loop()
    async with connect(address) as channel:
        load = Load(Api(channel))
        print(json.dumps("ready"), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            wanted = json.loads(line)
            if "prepare" in wanted:
                answer = await load.prepare(wanted["prepare"], wanted["workflows"])
            else:
                answer = await load.run(
                    wanted["load"], wanted["namespaces"], wanted["callers"], wanted["seconds"]
                )
            print(json.dumps(answer), flush=True)


class LoadProcess:
    """Such a process; it ends with the one that has started it at the latest."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, address: str) -> LoadProcess:
        """Start it, and wait until it is ready."""
        started = cls(
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "benchmarks.limits_load", address,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24,
            )
        )  # fmt: skip
        await started._answer()
        return started

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    async def do(self, **wanted: Any) -> dict[str, Any]:
        """Have it do something."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
        answer = await self._answer()
        assert isinstance(answer, dict)
        return answer

    async def _answer(self) -> Any:
        assert self._process.stdout
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load has ended")
        return json.loads(line)

    async def stop(self) -> None:
        """End it, and wait."""
        assert self._process.stdin
        self._process.stdin.close()
        await self._process.wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
