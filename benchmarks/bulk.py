"""Workflows and events that are created one by one, in bulk, and by an import: items a second, and
the processor time that each takes from the server and from PostgreSQL.

The ways take turns, each in every round, on one server that keeps what was created; the medians of
the rounds count. Single calls come from 32 callers at once, which is where they are cheapest. The
clients share the machine, so what they take is left out of the CPU.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

import psutil

from benchmarks.served import Served
from benchmarks.transfer import cpu_seconds
from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1 import event_pb2, transfer_pb2, workflow_pb2
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.store_pb2 import EnsureStoreExistsRequest

Figures = list[dict[str, Any]]

CALLERS: Final = 32
BATCH: Final = 500
SINGLE: Final = 1_000
BULK: Final = 10_000
POINTERS: Final = 2
AHEAD: Final = 2
"""How many requests are sent ahead of their answers, as the clients do."""

Way = Callable[[Api, int], Awaitable[None]]


def _workflows(count: int, *, enqueue: bool = False) -> list[workflow_pb2.CreateNewWorkflowRequest]:
    pointers = [make.pointer(str(n)) for n in range(POINTERS)]
    items = [QueueItem(queue="workflows")] if enqueue else []
    return [
        workflow_pb2.CreateNewWorkflowRequest(
            instance=make.instance(id=make.new_id(), execution_pointers=pointers), enqueue=items
        )
        for _ in range(count)
    ]


def _events(count: int) -> list[event_pb2.CreateEventRequest]:
    return [event_pb2.CreateEventRequest(event=make.event(id=make.new_id())) for _ in range(count)]


def _single(make_: Callable[[int], Sequence[Any]], service: str, rpc: str) -> Way:
    async def run(api: Api, count: int) -> None:
        method = getattr(getattr(api, service), rpc)
        requests = iter(make_(count))

        async def caller() -> None:
            for request in requests:
                await method(request)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    return run


def _bulk(
    make_: Callable[[int], Sequence[Any]], service: str, rpc: str, request: Callable[[Any], Any]
) -> Way:
    async def run(api: Api, count: int) -> None:
        parts = [request(part) for part in _parts(make_(count))]
        room = asyncio.Semaphore(AHEAD)

        async def requests() -> AsyncIterator[Any]:
            for part in parts:
                await room.acquire()
                yield part

        async for answer in getattr(getattr(api, service), rpc)(requests()):
            assert all(result.HasField("created") for result in getattr(answer, "results", ()))
            room.release()

    return run


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for at in range(0, len(items), BATCH):
        yield items[at : at + BATCH]


def _workflow_record(request: workflow_pb2.CreateNewWorkflowRequest) -> transfer_pb2.Record:
    request.instance.revision = 1
    request.instance.name = request.instance.id
    record = transfer_pb2.WorkflowRecord(instance=request.instance, first_revision=1)
    return transfer_pb2.Record(workflow=record, creation_hash=bytes(32))


def _event_record(request: event_pb2.CreateEventRequest) -> transfer_pb2.Record:
    return transfer_pb2.Record(event=request.event, creation_hash=bytes(32))


def _imported(records: Sequence[transfer_pb2.Record]) -> transfer_pb2.ImportRecordsRequest:
    return transfer_pb2.ImportRecordsRequest(records=records)


WAYS: Final[dict[tuple[str, str], Way]] = {
    ("workflow", "CreateNewWorkflow"): _single(_workflows, "workflows", "CreateNewWorkflow"),
    ("workflow", "CreateWorkflows"): _bulk(
        _workflows,
        "workflows",
        "CreateWorkflows",
        lambda some: workflow_pb2.CreateWorkflowsRequest(workflows=some),
    ),
    ("workflow", "ImportRecords"): _bulk(
        lambda count: list(map(_workflow_record, _workflows(count))),
        "transfer",
        "ImportRecords",
        _imported,
    ),
    ("workflow, enqueued", "CreateNewWorkflow"): _single(
        lambda count: _workflows(count, enqueue=True), "workflows", "CreateNewWorkflow"
    ),
    ("workflow, enqueued", "CreateWorkflows"): _bulk(
        lambda count: _workflows(count, enqueue=True),
        "workflows",
        "CreateWorkflows",
        lambda some: workflow_pb2.CreateWorkflowsRequest(workflows=some),
    ),
    ("event", "CreateEvent"): _single(_events, "events", "CreateEvent"),
    ("event", "CreateEvents"): _bulk(
        _events,
        "events",
        "CreateEvents",
        lambda some: event_pb2.CreateEventsRequest(events=some),
    ),
    ("event", "ImportRecords"): _bulk(
        lambda count: list(map(_event_record, _events(count))),
        "transfer",
        "ImportRecords",
        _imported,
    ),
}


async def measure(url: str, postgres: psutil.Process, rounds: int) -> Figures:
    """The figures of each way, with the ratio to the single calls of the same kind."""
    served = await Served.start(url)
    measured: dict[tuple[str, str], list[dict[str, float]]] = {way: [] for way in WAYS}
    async with connect(served.address) as channel:
        api = Api(channel)
        await api.store.EnsureStoreExists(EnsureStoreExistsRequest())
        for number in range(rounds + 1):
            for way, run in WAYS.items():
                count = SINGLE if way[1] in ("CreateNewWorkflow", "CreateEvent") else BULK
                gc.collect()
                server, database = cpu_seconds(served.process), cpu_seconds(postgres)
                begin = time.perf_counter()
                await run(api, count)
                seconds = time.perf_counter() - begin
                if number:  # the first round warms up
                    measured[way].append(
                        {
                            "items_per_second": count / seconds,
                            "server_us": (cpu_seconds(served.process) - server) / count * 1e6,
                            "postgres_us": (cpu_seconds(postgres) - database) / count * 1e6,
                        }
                    )
    await served.stop()
    figures: Figures = []
    for (what, rpc), found in measured.items():
        figure: dict[str, Any] = {"what": what, "rpc": rpc, "batch": BATCH}
        for name in found[0]:
            figure[name] = statistics.median(each[name] for each in found)
        figure["cpu_us"] = statistics.median(e["server_us"] + e["postgres_us"] for e in found)
        single = next((f for f in figures if f["what"] == what), figure)
        figure["per_core"] = single["cpu_us"] / figure["cpu_us"]
        figure["faster"] = figure["items_per_second"] / single["items_per_second"]
        figures.append(figure)
    return figures


def table(figures: Figures) -> str:
    """The figures as a table."""
    columns = ("items_per_second", "server_us", "postgres_us", "cpu_us", "per_core", "faster")
    lines = [f"{'':40}" + "".join(f"{name:>18}" for name in columns)]
    for figure in figures:
        cells = (f"{figure[name]:18,.1f}" for name in columns)
        lines.append(f"{figure['what'] + ': ' + figure['rpc']:40}" + "".join(cells))
    return "\n".join(lines)
