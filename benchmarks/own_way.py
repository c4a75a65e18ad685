"""Workflows on a worker of the Python client: a call to get work, one to commit. It is one side of
`client_rs/benches/compare`, which tells it what to run: `python -m benchmarks.own_way TARGET`.

Each line on stdin is one run, `{"steps": 5, "at_once": 1, "seconds": 1.0}`, that on stdout what
came of it: the number of workflows, and the milliseconds from each step of a workflow to its next.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from wfe_persistence_client import (
    ExecutionPointer,
    PersistenceProvider,
    PointerStatus,
    QueueItem,
    Work,
    WorkflowInstance,
    WorkflowStatus,
    connect,
)


@dataclass(slots=True)
class Run:
    """Workflows of so many steps, as many at once, for this time."""

    provider: PersistenceProvider
    steps: int
    at_once: int
    seconds: float
    queue: str = ""
    begun: float = field(default_factory=time.perf_counter)
    workflows: int = 0
    between: list[float] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)
    left: int = 0

    async def run(self) -> None:
        """All of them, from the first to the end of the last."""
        self.queue = f"own-{self.steps}-{self.at_once}"
        self.left = self.at_once
        ended = asyncio.Event()

        async def handle(work: Work) -> None:
            if await self._step(work):
                ended.set()

        worker = self.provider.worker(
            self.queue, handle, concurrency=self.at_once, wait=timedelta(seconds=10)
        )
        working = asyncio.create_task(worker.run())
        await asyncio.gather(*(self._start() for _ in range(self.at_once)))
        await ended.wait()
        working.cancel()

    async def _start(self) -> None:
        instance = WorkflowInstance(
            id=str(uuid.uuid4()),
            workflow_definition_id="compare",
            version=1,
            data={},
            status=WorkflowStatus.RUNNABLE,
            execution_pointers=[_pointer(0)],
            create_time=datetime.now(UTC),
            next_execution=0,
        )
        await self.provider.create_new_workflow(
            instance, enqueue=[QueueItem(queue=self.queue, id="")]
        )

    async def _step(self, work: Work) -> bool:
        """Run a step, which does nothing; whether all is done with it."""
        workflow = work.workflow
        assert workflow is not None
        pointers = workflow.execution_pointers
        now = time.perf_counter()
        if workflow.id in self.last:
            self.between.append(now - self.last[workflow.id])
        self.last[workflow.id] = now
        is_last = len(pointers) == self.steps
        async with work.commit() as step:
            pointers[-1].active = False
            pointers[-1].status = PointerStatus.COMPLETE
            if is_last:
                workflow.status = WorkflowStatus.COMPLETE
            else:
                pointers.append(_pointer(len(pointers)))
                step.enqueue(QueueItem(queue=self.queue, id=""))
        if not is_last:
            return False
        del self.last[workflow.id]
        self.workflows += 1
        if now - self.begun < self.seconds:
            await self._start()
        else:
            self.left -= 1
        return self.left == 0


def _pointer(step: int) -> ExecutionPointer:
    return ExecutionPointer(
        id=f"pointer {step}",
        step_id=step,
        active=True,
        status=PointerStatus.PENDING,
        step_name=f"step {step}",
    )


async def main(target: str) -> None:
    """Run what comes on stdin."""
    async with connect(target) as provider:
        while line := await asyncio.to_thread(sys.stdin.readline):
            run = Run(provider, **json.loads(line))
            await run.run()
            between = [1e3 * seconds for seconds in run.between]
            print(json.dumps({"workflows": run.workflows, "between": between}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
