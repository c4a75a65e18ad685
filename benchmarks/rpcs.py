"""Each hot RPC: latency, and server CPU per call, beside a bare echo."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks.bench_server import ECHO
from benchmarks.served import Served
from benchmarks.timing import Call, cpu_seconds, percentile, timed
from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1 import command_pb2 as c
from wfe.persistence.v1 import event_pb2 as e
from wfe.persistence.v1 import store_pb2 as st
from wfe.persistence.v1 import subscription_pb2 as s
from wfe.persistence.v1 import workflow_pb2 as w
from wfe.persistence.v1.queue_item_pb2 import Acknowledgement

Figures = list[dict[str, Any]]

ECHO_CASE = "echo"

# Workflows to read and write: enough that callers rarely use the same one at the same time.
STORED = 200


async def measure(
    url: str, callers: list[int], seconds: float, rounds: int, only: list[str]
) -> Figures:
    """Measures every case with every number of callers, in rounds, each time right behind the
    echo: so that what else the machine does meanwhile concerns both.

    Of each it gives the medians of the rounds; also those of the proportions to that echo.
    """
    served = await Served.start(url)
    chosen = {
        name: prepare
        for name, prepare in CASES.items()
        if name == ECHO_CASE or not only or any(part.lower() in name.lower() for part in only)
    }
    seen: dict[tuple[str, int], Figures] = {}
    async with connect(served.address) as channel:
        api = Api(channel)
        await api.store.EnsureStoreExists(st.EnsureStoreExistsRequest())
        calls = {name: await prepare(api) for name, prepare in chosen.items()}
        for call in calls.values():
            await timed(call, 4, 0.3)  # connections, plans, caches
        for _ in range(rounds):
            for count in callers:
                for name, call in calls.items():
                    echo = await _one(served, _shifted(calls[ECHO_CASE]), count, seconds)
                    figure = await _one(served, _shifted(call), count, seconds)
                    for what in ("p50_ms", "server_cpu_ms", "calls_per_second"):
                        # An echo takes no time where the clock of the processor is too coarse.
                        figure[f"{what}_vs_echo"] = figure[what] / (echo[what] or math.nan)
                    seen.setdefault((name, count), []).append(figure)
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    await served.stop()
    return [
        {"rpc": name, "callers": count, "rounds": rounds}
        | {what: _median([figure[what] for figure in figures]) for what in figures[0]}
        for (name, count), figures in seen.items()
    ]


def _median(values: Sequence[float]) -> float | None:
    """The median of what could be measured."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else None


async def _one(served: Served, call: Call, callers: int, seconds: float) -> dict[str, Any]:
    before = cpu_seconds(served.process)
    begun = time.perf_counter()
    took = await timed(call, callers, seconds)
    elapsed = time.perf_counter() - begun
    cpu = cpu_seconds(served.process) - before
    return {
        "p50_ms": percentile(took, 50) * 1e3,
        "p99_ms": percentile(took, 99) * 1e3,
        "server_cpu_ms": cpu / len(took) * 1e3,
        "calls_per_second": len(took) / elapsed,
    }


_shift = 0


def _shifted(call: Call) -> Call:
    """Numbers that earlier runs did not use."""
    global _shift
    _shift += 10**6
    offset = _shift
    return lambda i: call(i + offset)


def table(figures: Figures) -> str:
    """Prints the figures as a table; `x`: in proportion to the echo in the same rounds."""
    names = ("callers", 8), ("p50 ms", 9), ("x", 6), ("p99 ms", 9), ("CPU ms", 9), ("x", 6)
    heads = (f"{name:>{width}}" for name, width in (*names, ("calls/s", 9), ("x", 6)))
    lines = [f"{'RPC':<40}{''.join(heads)}"]
    lines += [
        f"{f['rpc']:<40}{f['callers']:>8}{f['p50_ms']:>9.2f}{f['p50_ms_vs_echo']:>6.2f}"
        f"{f['p99_ms']:>9.2f}{f['server_cpu_ms']:>9.3f}"
        f"{f['server_cpu_ms_vs_echo'] or math.nan:>6.2f}"
        f"{f['calls_per_second']:>9.0f}{f['calls_per_second_vs_echo']:>6.2f}"
        for f in figures
    ]
    return "\n".join(lines)


def _echo(size: int) -> Callable[[Api], Awaitable[Call]]:
    async def prepare(api: Api) -> Call:
        echo = api.unary(ECHO)
        payload = b"x" * size
        return lambda _: echo(payload)

    return prepare


def _instance(pointers: int, tag: int = 0, id_: str = "") -> w.WorkflowInstance:
    return make.instance(
        id=id_ or make.new_id("workflow"),
        execution_pointers=[
            make.pointer(
                str(i), step_name=f"step {i}", outcome_json=f'{{"tag": {tag if i == 0 else 0}}}'
            )
            for i in range(pointers)
        ],
    )


async def _store_workflows(api: Api, pointers: int) -> list[str]:
    ids = []
    for _ in range(STORED):
        instance = _instance(pointers)
        ids.append(instance.id)
        await api.workflows.CreateNewWorkflow(w.CreateNewWorkflowRequest(instance=instance))
    return ids


def _create(pointers: int) -> Callable[[Api], Awaitable[Call]]:
    async def prepare(api: Api) -> Call:
        return lambda _: api.workflows.CreateNewWorkflow(
            w.CreateNewWorkflowRequest(instance=_instance(pointers))
        )

    return prepare


def _get(pointers: int) -> Callable[[Api], Awaitable[Call]]:
    async def prepare(api: Api) -> Call:
        ids = await _store_workflows(api, pointers)
        return lambda i: api.workflows.GetWorkflowInstance(
            w.GetWorkflowInstanceRequest(id=ids[i % STORED])
        )

    return prepare


def _persist(pointers: int) -> Callable[[Api], Awaitable[Call]]:
    """One of the pointers changes per call."""

    async def prepare(api: Api) -> Call:
        ids = await _store_workflows(api, pointers)
        return lambda i: api.workflows.PersistWorkflow(
            w.PersistWorkflowRequest(instance=_instance(pointers, i, ids[i % STORED]))
        )

    return prepare


async def _persist_with_subscription(api: Api) -> Call:
    ids = await _store_workflows(api, 10)
    return lambda i: api.workflows.PersistWorkflowWithSubscriptions(
        w.PersistWorkflowWithSubscriptionsRequest(
            instance=_instance(10, i, ids[i % STORED]), subscriptions=[make.subscription()]
        )
    )


async def _patch(api: Api) -> Call:
    """One of ten pointers changes, if the workflow is as the caller knows it."""
    ids = await _store_workflows(api, 10)
    # Those that nobody changes just now, with their revisions.
    free = deque([(id_, (await api.get_workflow_instance(id_)).revision) for id_ in ids])

    async def call(i: int) -> None:
        id_, revision = free.popleft()
        pointer = make.pointer("1", step_name="step 1", outcome_json=f'{{"tag": {i}}}')
        patch = w.WorkflowPatch(id=id_, execution_pointers=[pointer])
        answer = await api.commit_workflow(patch=patch, expected_revision=revision)
        free.append((id_, answer.revision))

    return call


async def _step(api: Api) -> Call:
    """What a host does for a step: it takes an item with its workflow, and stores the step with the
    acknowledgement, the item of the next step and what it tells about it."""
    queue = make.queue()
    for id_ in await _store_workflows(api, 10):
        await api.enqueue(make.item(queue, id=id_))

    async def call(_: int) -> w.CommitWorkflowResponse:
        [taken] = (
            await api.dequeue(
                queues=[queue], include_workflow=True, view=w.WorkflowView.WORKFLOW_VIEW_HEADER
            )
        ).items
        id_ = taken.item.id
        return await api.commit_workflow(
            patch=w.WorkflowPatch(id=id_, execution_pointers=[make.pointer("1")]),
            expected_revision=taken.workflow.revision,
            acknowledge=[Acknowledgement(receipt=taken.receipt)],
            enqueue=[make.item(queue, id=id_)],
            publish=[make.lifecycle_event(workflow_id=id_) for _ in range(2)],
            request_id=make.request_id(),
        )

    return call


async def _get_runnable_instances(api: Api) -> Call:
    return lambda _: api.workflows.GetRunnableInstances(w.GetRunnableInstancesRequest())


async def _next_definition_sequence(api: Api) -> Call:
    return lambda i: api.workflows.NextDefinitionSequence(
        w.NextDefinitionSequenceRequest(definition_id=f"d{i % 50}")
    )


async def _create_event(api: Api) -> Call:
    return lambda _: api.events.CreateEvent(e.CreateEventRequest(event=make.event()))


async def _store_events(api: Api) -> list[e.Event]:
    events = [make.event() for _ in range(STORED)]
    for event in events:
        await api.events.CreateEvent(e.CreateEventRequest(event=event))
    return events


async def _get_event(api: Api) -> Call:
    events = await _store_events(api)
    return lambda i: api.events.GetEvent(e.GetEventRequest(id=events[i % STORED].id))


async def _get_events(api: Api) -> Call:
    events = await _store_events(api)
    return lambda i: api.events.GetEvents(
        e.GetEventsRequest(event_name="order.paid", event_key=events[i % STORED].event_key)
    )


async def _mark_event_processed(api: Api) -> Call:
    events = await _store_events(api)
    return lambda i: api.events.MarkEventProcessed(
        e.MarkEventProcessedRequest(id=events[i % STORED].id)
    )


async def _create_subscription(api: Api) -> Call:
    return lambda _: api.subscriptions.CreateEventSubscription(
        s.CreateEventSubscriptionRequest(subscription=make.subscription())
    )


async def _store_subscriptions(api: Api) -> list[s.EventSubscription]:
    subscriptions = [make.subscription() for _ in range(STORED)]
    for subscription in subscriptions:
        await api.subscriptions.CreateEventSubscription(
            s.CreateEventSubscriptionRequest(subscription=subscription)
        )
    return subscriptions


async def _get_subscriptions(api: Api) -> Call:
    stored = await _store_subscriptions(api)
    return lambda i: api.subscriptions.GetSubscriptions(
        s.GetSubscriptionsRequest(event_name="order.paid", event_key=stored[i % STORED].event_key)
    )


async def _get_first_open_subscription(api: Api) -> Call:
    stored = await _store_subscriptions(api)
    return lambda i: api.subscriptions.GetFirstOpenSubscription(
        s.GetFirstOpenSubscriptionRequest(
            event_name="order.paid", event_key=stored[i % STORED].event_key
        )
    )


async def _set_subscription_token(api: Api) -> Call:
    stored = await _store_subscriptions(api)
    return lambda i: api.subscriptions.SetSubscriptionToken(
        s.SetSubscriptionTokenRequest(
            id=stored[i % STORED].id, token="t", worker_id="w", expiry=make.from_now(60)
        )
    )


async def _schedule_command(api: Api) -> Call:
    return lambda i: api.commands.ScheduleCommand(
        c.ScheduleCommandRequest(command=make.command(data=f"w{i % 1000}", execute_time=2**60))
    )


async def _claim_and_complete(api: Api) -> Call:
    async def call(_: int) -> None:
        await api.commands.ScheduleCommand(c.ScheduleCommandRequest(command=make.command()))
        claimed = await api.commands.ClaimCommands(c.ClaimCommandsRequest(limit=1))
        await api.commands.CompleteCommands(
            c.CompleteCommandsRequest(lease_tokens=[x.lease_token for x in claimed.commands])
        )

    return call


async def _persist_error(api: Api) -> Call:
    return lambda _: api.store.PersistErrors(st.PersistErrorsRequest(errors=[make.error()]))


CASES: dict[str, Callable[[Api], Awaitable[Call]]] = {
    ECHO_CASE: _echo(100),
    "CreateNewWorkflow, 1 pointer": _create(1),
    "CreateNewWorkflow, 50 pointers": _create(50),
    "GetWorkflowInstance, 1 pointer": _get(1),
    "GetWorkflowInstance, 50 pointers": _get(50),
    "PersistWorkflow, 1 pointer": _persist(1),
    "PersistWorkflow, 10 pointers": _persist(10),
    "PersistWorkflow, 50 pointers": _persist(50),
    "PersistWorkflow, 200 pointers": _persist(200),
    "PersistWorkflowWithSubscriptions, 10+1": _persist_with_subscription,
    "CommitWorkflow, a patch of 1 in 10": _patch,
    "Dequeue + CommitWorkflow, a step": _step,
    "GetRunnableInstances, page of 100": _get_runnable_instances,
    "NextDefinitionSequence": _next_definition_sequence,
    "CreateEvent": _create_event,
    "GetEvent": _get_event,
    "GetEvents": _get_events,
    "MarkEventProcessed": _mark_event_processed,
    "CreateEventSubscription": _create_subscription,
    "GetSubscriptions": _get_subscriptions,
    "GetFirstOpenSubscription": _get_first_open_subscription,
    "SetSubscriptionToken": _set_subscription_token,
    "ScheduleCommand": _schedule_command,
    "Schedule + Claim + CompleteCommands": _claim_and_complete,
    "PersistErrors": _persist_error,
}
