"""The mixed load of the soak, and how long each of its calls took."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from wfe.persistence.v1 import store_pb2, workflow_pb2
from wfe.persistence.v1.queue_item_pb2 import Acknowledgement
from wfe.persistence.v1.workflow_pb2 import PointerStatus, WorkflowStatus, WorkflowView

T = TypeVar("T")


QUEUE: Final = "soak"
DEFINITION: Final = "soak"
STEPS: Final = 5
"""Of each workflow; then it is complete, and retention deletes it."""

_TICK: Final = math.log(2) / 8
_LEAST: Final = 1e-4


class Took:
    """How long calls took: counted by size, each 9 % more than the one before."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.most = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[max(0, round(math.log(max(seconds, _LEAST) / _LEAST) / _TICK))] += 1
        self.most = max(self.most, seconds)

    def percentile(self, percent: float) -> float:
        """In seconds."""
        left = self.counts.total() * percent / 100
        for size in sorted(self.counts):
            left -= self.counts[size]
            if left <= 0:
                return min(_LEAST * math.exp(size * _TICK), self.most)
        return self.most

    def figures(self) -> dict[str, float]:
        """The figures for the results."""
        median, p99 = self.percentile(50) * 1e3, self.percentile(99) * 1e3
        return {
            "calls": self.counts.total(),
            "p50_ms": round(median, 3),
            "p99_ms": round(p99, 3),
            "p999_ms": round(self.percentile(99.9) * 1e3, 3),
            "most_ms": round(self.most * 1e3, 3),
            "p99_to_p50": round(p99 / median, 2) if median else 0.0,
        }


class Load:
    """Operations of hosts, of one call or several, on a store of so many workflows."""

    def __init__(self, apis: list[Api], workflows: int) -> None:
        self._apis = itertools.cycle(apis)
        self._workflows = workflows
        self._numbers = random.Random(1)
        self.took: dict[str, Took] = {}
        """By RPC, since the last `renew`."""
        self.late = Took()
        """How long after its time the load itself has begun an operation."""
        self.calls = 0
        self.failed: Counter[str] = Counter()
        self.idle = 0
        """How often there was no item in the queue."""
        mix: list[Callable[[Api, float], Awaitable[None]]] = [
            operation for operation, weight in self._weights() for _ in range(weight)
        ]
        self._numbers.shuffle(mix)
        self._mix = itertools.cycle(mix)

    def _weights(self) -> list[tuple[Callable[[Api, float], Awaitable[None]], int]]:
        return [
            (self._step, STEPS * 3),
            (self._create, 3),
            (self._event, 4),
            (self._wait_for_event, 2),
            (self._read, 8),
            (self._list, 2),
            (self._runnable, 1),
            (self._command, 2),
            (self._lock, 3),
        ]

    async def prepare(self, api: Api) -> None:
        """Have the store delete what has ended, and put first items into the queue."""
        policy = store_pb2.RetentionPolicy(
            workflows=[
                store_pb2.WorkflowRetention(
                    workflow_definition_id=DEFINITION, complete_age=Duration(seconds=60)
                )
            ]
        )
        await api.store.SetRetentionPolicy(store_pb2.SetRetentionPolicyRequest(policy=policy))
        for _ in range(500):
            await self._create(api, time.perf_counter())

    async def highest_rate(self, seconds: float, callers: int) -> float:
        """How many operations a second so many callers get done, each after the other."""
        end = time.perf_counter() + seconds
        done = 0

        async def caller() -> None:
            nonlocal done
            while (now := time.perf_counter()) < end:
                await self._one(now)
                done += 1

        await asyncio.gather(*(caller() for _ in range(callers)))
        return done / seconds

    async def run(self, rate: float, stop: asyncio.Event) -> None:
        """Begin so many operations a second, however long the others take, until told to stop."""
        begun = time.perf_counter()
        running: set[asyncio.Task[None]] = set()
        for number in itertools.count():
            due = begun + number / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if stop.is_set():
                break
            self.late.add(time.perf_counter() - due)
            task = asyncio.create_task(self._one(due))
            running.add(task)
            task.add_done_callback(running.discard)
            if not number % 50:
                await asyncio.sleep(0)
        if running:
            await asyncio.wait(running, timeout=60)

    def renew(self) -> dict[str, Took]:
        """What was counted since the last time."""
        took, self.took = self.took, {}
        return took

    async def _one(self, due: float) -> None:
        """The next operation, the first call of which counts from when it was due."""
        try:
            await next(self._mix)(next(self._apis), due)
        except grpc.aio.AioRpcError as exc:
            self.failed[f"{exc.code().name}: {exc.details()}"[:120]] += 1

    async def _timed(self, rpc: str, call: Awaitable[T], since: float | None = None) -> T:
        begun = time.perf_counter() if since is None else since
        result = await call
        self.took.setdefault(rpc, Took()).add(time.perf_counter() - begun)
        self.calls += 1
        return result

    def _any_workflow(self) -> int:
        return self._numbers.randint(1, self._workflows)

    # ----- the operations -----

    async def _create(self, api: Api, due: float) -> None:
        instance = make.instance(
            workflow_definition_id=DEFINITION,
            create_time=make.from_now(0),
            data_json=f'{{"order": {self._any_workflow()}, "note": "{"x" * 200}"}}',
            execution_pointers=[make.pointer("1", step_name="Step number 1")],
            next_execution=4_000_000_000_000,
        )
        await self._timed("CreateNewWorkflow", api.create_new_workflow(instance), due)
        await self._timed("Enqueue", api.enqueue(make.item(QUEUE, id=instance.id)))

    async def _step(self, api: Api, due: float) -> None:
        taken = await self._timed(
            "Dequeue, with its workflow",
            api.dequeue(
                queues=[QUEUE], include_workflow=True, view=WorkflowView.WORKFLOW_VIEW_ACTIVE
            ),
            due,
        )
        if not taken.items:
            self.idle += 1
            return
        [item] = taken.items
        [pointer] = item.workflow.execution_pointers
        pointer.active = False
        pointer.status = PointerStatus.POINTER_STATUS_COMPLETE
        pointer.end_time.CopyFrom(make.from_now(0))
        pointer.outcome_json = '{"done": true}'
        number = pointer.step_id
        patch = make.patch(item.item.id, execution_pointers=[pointer])
        if number == STEPS:
            patch.header.status = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
            patch.header.complete_time.CopyFrom(pointer.end_time)
            patch.header_mask.paths[:] = ["status", "complete_time"]
        else:
            patch.execution_pointers.append(
                make.pointer(
                    str(number + 1), step_id=number + 1, step_name=f"Step number {number + 1}"
                )
            )
        await self._timed(
            "CommitWorkflow, a step",
            api.commit_workflow(
                patch=patch,
                expected_revision=item.workflow.revision,
                acknowledge=[Acknowledgement(receipt=item.receipt)],
                enqueue=[] if number == STEPS else [make.item(QUEUE, id=item.item.id)],
                publish=[make.lifecycle_event(workflow_id=item.item.id)],
                request_id=make.request_id(),
            ),
        )

    async def _event(self, api: Api, due: float) -> None:
        event = make.event(event_name="paid", event_time=make.from_now(0))
        await self._timed("CreateEvent", api.create_event(event), due)
        await self._timed("GetEvent", api.get_event(event.id))
        await self._timed("MarkEventProcessed", api.mark_event_processed(event.id))

    async def _wait_for_event(self, api: Api, due: float) -> None:
        waits = make.subscription(event_name="shipped")
        await self._timed("CreateEventSubscription", api.create_event_subscription(waits), due)
        await self._timed(
            "GetFirstOpenSubscription",
            api.get_first_open_subscription(
                event_name="paid", event_key=f"order-{self._any_workflow()}"
            ),
        )
        await self._timed(
            "SetSubscriptionToken",
            api.set_subscription_token(waits.id, "token", expiry=make.from_now(60)),
        )
        await self._timed(
            "TerminateSubscription", api.terminate_subscription(waits.id, token="token")
        )

    async def _read(self, api: Api, due: float) -> None:
        id_ = hashlib.md5(f"workflow{self._any_workflow()}".encode()).hexdigest()
        await self._timed("GetWorkflowInstance", api.get_workflow_instance(id_), due)

    async def _list(self, api: Api, due: float) -> None:
        where = workflow_pb2.WorkflowFilter(
            workflow_definition_id=f"order-{self._numbers.randrange(20)}",
            statuses=[WorkflowStatus.WORKFLOW_STATUS_RUNNABLE],
        )
        await self._timed("ListWorkflows, 20", api.list_workflows(filter=where, page_size=20), due)

    async def _runnable(self, api: Api, due: float) -> None:
        call = api.workflows.GetRunnableInstances(workflow_pb2.GetRunnableInstancesRequest())
        await self._timed("GetRunnableInstances", call, due)

    async def _command(self, api: Api, due: float) -> None:
        await self._timed("ScheduleCommand", api.schedule_command(make.command()), due)
        claimed = await self._timed("ClaimCommands", api.claim_commands(limit=1))
        if claimed:
            tokens = [each.lease_token for each in claimed]
            await self._timed("CompleteCommands", api.complete_commands(*tokens))

    async def _lock(self, api: Api, due: float) -> None:
        held = await self._timed("AcquireLock", api.acquire_lock(make.new_id("lock")), due)
        await self._timed("ReleaseLock", api.release_lock(held.token))
