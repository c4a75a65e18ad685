"""The cost of a change in short and in long workflows, side by side.

One pointer changes per call. Workflows of all lengths take turns of a few calls each, so that other
load on the machine affects all of them equally. Server time is the CPU time of the server process
and of PostgreSQL, with the resolution of the operating system's clock (10 ms per turn).
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
from google.protobuf.field_mask_pb2 import FieldMask

from benchmarks.served import Served
from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1 import store_pb2 as st
from wfe.persistence.v1 import workflow_pb2 as w

Figures = list[dict[str, Any]]

LENGTHS = (1, 10, 100, 1000, 10_000)
TURNS = 12
CALLS = 100
_POINTERS_PER_CALL = 5000
_LONGEST_PERSIST = 1000


class Counted:
    """A call, how many bytes it sends and receives, and what it cost."""

    def __init__(self, name: str, length: int, call: Callable[[int], Awaitable[int]]) -> None:
        self.name = name
        self.length = length
        self.call = call
        self.calls = 0
        self.bytes = 0
        self.server_cpu = 0.0
        self.postgres_cpu = 0.0


async def measure(url: str, postgres: psutil.Process) -> Figures:
    """Measures patches, views and pages on workflows of every length."""
    served = await Served.start(url)
    server = served.process
    async with connect(served.address) as channel:
        api = Api(channel)
        await api.store.EnsureStoreExists(st.EnsureStoreExistsRequest())
        cases = [case for length in LENGTHS for case in await _cases(api, length)]
        await _run(cases, server, postgres, turns=1)
        for case in cases:
            case.calls, case.bytes, case.server_cpu, case.postgres_cpu = 0, 0, 0.0, 0.0
        await _run(cases, server, postgres, TURNS)
    await served.stop()
    figures: Figures = [
        {
            "rpc": case.name,
            "pointers": case.length,
            "calls": case.calls,
            "bytes": case.bytes / case.calls,
            "server_ms": case.server_cpu / case.calls * 1e3,
            "postgres_ms": case.postgres_cpu / case.calls * 1e3,
        }
        for case in cases
    ]
    of_one = {f["rpc"]: f for f in figures if f["pointers"] == 1}
    for figure in figures:
        one = of_one[figure["rpc"]]
        figure["bytes_ratio"] = figure["bytes"] / one["bytes"]
        figure["time_ratio"] = (figure["server_ms"] + figure["postgres_ms"]) / (
            one["server_ms"] + one["postgres_ms"]
        )
    return sorted(figures, key=lambda f: (f["rpc"], f["pointers"]))


async def _run(
    cases: list[Counted], server: psutil.Process, postgres: psutil.Process, turns: int
) -> None:
    for _ in range(turns):
        for case in cases:
            before = _cpu(server), _cpu_of_tree(postgres)
            for _ in range(CALLS):
                case.bytes += await case.call(case.calls)
                case.calls += 1
            case.server_cpu += _cpu(server) - before[0]
            case.postgres_cpu += _cpu_of_tree(postgres) - before[1]
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)


def _cpu(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def _cpu_of_tree(postgres: psutil.Process) -> float:
    total = 0.0
    for process in postgres.children(recursive=True):
        try:
            total += _cpu(process)
        except psutil.Error:
            continue
    return total


async def _cases(api: Api, length: int) -> list[Counted]:
    id_ = await _store(api, length)
    revision = [
        (await api.workflows.GetWorkflowInstance(
            w.GetWorkflowInstanceRequest(id=id_, view=w.WORKFLOW_VIEW_HEADER)
        )).instance.revision
    ]  # fmt: skip
    last = str(length - 1)

    async def patch(i: int) -> int:
        pointer = make.pointer(last, step_name="step", active=True, outcome_json=f'{{"tag": {i}}}')
        request = w.CommitWorkflowRequest(
            patch=w.WorkflowPatch(
                id=id_,
                header=w.WorkflowInstance(next_execution=i),
                header_mask=FieldMask(paths=["next_execution"]),
                execution_pointers=[pointer],
            ),
            expected_revision=revision[0],
        )
        response = await api.workflows.CommitWorkflow(request)
        revision[0] = response.revision
        return request.ByteSize() + response.ByteSize()

    async def get(view: w.WorkflowView.ValueType) -> int:
        request = w.GetWorkflowInstanceRequest(id=id_, view=view)
        return (await api.workflows.GetWorkflowInstance(request)).ByteSize()

    async def page(_: int) -> int:
        request = w.ListExecutionPointersRequest(workflow_id=id_, page_size=1)
        return (await api.workflows.ListExecutionPointers(request)).ByteSize()

    async def persist(i: int) -> int:
        instance = make.instance(id=id_, execution_pointers=_pointers(0, length))
        instance.execution_pointers[-1].outcome_json = f'{{"tag": {i}}}'
        instance.execution_pointers[-1].active = True
        request = w.PersistWorkflowRequest(instance=instance)
        response = await api.workflows.PersistWorkflow(request)
        revision[0] = response.revision
        return request.ByteSize() + response.ByteSize()

    cases = [
        Counted("CommitWorkflow, patch", length, patch),
        Counted("GetWorkflowInstance, ACTIVE", length, lambda _: get(w.WORKFLOW_VIEW_ACTIVE)),
        Counted("GetWorkflowInstance, HEADER", length, lambda _: get(w.WORKFLOW_VIEW_HEADER)),
        Counted("ListExecutionPointers, 1", length, page),
    ]
    if length <= _LONGEST_PERSIST:
        cases.append(Counted("PersistWorkflow (for comparison)", length, persist))
    return cases


async def _store(api: Api, length: int) -> str:
    """Creates a workflow with this many ended pointers incrementally, as a host would."""
    first = min(length, _POINTERS_PER_CALL)
    instance = make.instance(id=make.new_id("workflow"), execution_pointers=_pointers(0, first))
    await api.workflows.CreateNewWorkflow(w.CreateNewWorkflowRequest(instance=instance))
    revision = 1
    for begin in range(first, length, _POINTERS_PER_CALL):
        end = min(begin + _POINTERS_PER_CALL, length)
        patch = w.WorkflowPatch(id=instance.id, execution_pointers=_pointers(begin, end))
        request = w.CommitWorkflowRequest(patch=patch, expected_revision=revision)
        revision = (await api.workflows.CommitWorkflow(request)).revision
    return instance.id


def _pointers(begin: int, end: int) -> list[w.ExecutionPointer]:
    return [
        make.pointer(
            str(i),
            step_name=f"step {i}",
            active=False,
            status=w.POINTER_STATUS_COMPLETE,
            outcome_json='{"tag": 0}',
        )
        for i in range(begin, end)
    ]


def table(figures: Figures) -> str:
    """Prints the figures as a table."""
    columns = ("server ms", 11), ("PostgreSQL ms", 15), ("x of 1", 8), ("bytes", 10), ("x of 1", 8)
    heads = "".join(f"{head:>{width}}" for head, width in columns)
    lines = [f"{'RPC':<36}{'pointers':>9}{heads}"]
    lines += [
        f"{f['rpc']:<36}{f['pointers']:>9}{f['server_ms']:>11.3f}{f['postgres_ms']:>15.3f}"
        f"{f['time_ratio']:>8.2f}{f['bytes']:>10.0f}{f['bytes_ratio']:>8.2f}"
        for f in figures
    ]
    return "\n".join(lines)
