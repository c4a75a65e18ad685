"""What the pages show: each function makes the calls for one request and returns its JSON."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final

from wfe.persistence.v1 import (
    command_pb2,
    event_pb2,
    lock_pb2,
    queue_pb2,
    store_pb2,
    subscription_pb2,
    workflow_pb2,
)
from wfe.persistence.v1.list_order_pb2 import ListOrder
from wfe_persistence_client.administration import stuck_since
from wfe_persistence_console import shapes
from wfe_persistence_console.link import Caller
from wfe_persistence_console.parameters import given_with
from wfe_persistence_console.shapes import Shape
from wfe_persistence_console.web import Refusal, Request

_PAGE: Final = 50
_LARGEST_PAGE: Final = 1000
_MOST_ERRORS: Final = 1000

# A page of pointers has megabytes: the event loop, which may be the server's, does not wait for it.
_SHAPING: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="console")

_BUCKETS: Final = 24
_BUCKET: Final = timedelta(minutes=5)

Read = Callable[[Caller, Request], Awaitable[Shape]]


async def _shaped(make: Callable[[], Shape]) -> Shape:
    return await asyncio.get_running_loop().run_in_executor(_SHAPING, make)


def _malformed(name: str, what: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", f"{name}: is not {what}")


def _whole(request: Request, name: str, default: int, largest: int) -> int:
    text = request.text(name)
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and 1 <= len(text) <= 10):
        raise _malformed(name, "a number")
    return min(int(text), largest)


def _size(request: Request) -> int:
    return max(1, _whole(request, "size", _PAGE, _LARGEST_PAGE))


def _truth(request: Request, name: str) -> bool | None:
    text = request.text(name)
    if text not in ("", "true", "false"):
        raise _malformed(name, "true or false")
    return {"": None, "true": True, "false": False}[text]


def _time(request: Request, name: str) -> datetime | None:
    """A parameter that is a time in ISO 8601, with its zone or in UTC."""
    text = request.text(name)
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _malformed(name, "a time") from None


def _ago(request: Request, name: str, now: datetime) -> datetime | None:
    """A parameter that is a number of seconds, as that long before now."""
    if not request.text(name):
        return None
    return now - timedelta(seconds=_whole(request, name, 0, 10**9))


def _order(request: Request) -> ListOrder.ValueType:
    match request.text("order"):
        case "" | "newest":
            return ListOrder.LIST_ORDER_NEWEST_FIRST
        case "oldest":
            return ListOrder.LIST_ORDER_OLDEST_FIRST
    raise _malformed("order", "newest or oldest")


def _named(labels: dict[int, str], text: str, name: str) -> int:
    for number, found in labels.items():
        if found == text.upper() and number:
            return number
    raise _malformed(name, f"one of {', '.join(list(labels.values())[1:])}")


def _filter(request: Request, now: datetime) -> workflow_pb2.WorkflowFilter:
    """The filter that the parameters of a list of workflows say. Ages count from `now`."""
    chosen = workflow_pb2.WorkflowFilter(
        workflow_definition_id=request.text("definition"),
        name_prefix=request.text("name"),
        root_workflow_id=request.text("root"),
        waiting_event_name=request.text("event"),
    )
    for status in filter(None, request.text("status").split(",")):
        number = _named(shapes.WORKFLOW_STATUSES, status, "status")
        chosen.statuses.append(workflow_pb2.WorkflowStatus.ValueType(number))
    if request.text("version"):
        chosen.version = _whole(request, "version", 0, 2**31 - 1)
    if request.text("reference"):
        chosen.reference = request.text("reference")
    if (key := given_with(request, "key", "event")) is not None:
        chosen.waiting_event_key = key
    times = (
        ("create_time_from", _ago(request, "younger", now)),
        ("create_time_before", _ago(request, "older", now)),
        ("complete_time_from", _ago(request, "ended", now)),
        ("error_time_from", _ago(request, "errors", now)),
    )
    since = _ago(request, "stuck", now)
    stuck = () if since is None else stuck_since(since).items()
    for field, time in (*times, *stuck):
        if time is not None:
            getattr(chosen, field).FromDatetime(time)
    return chosen


async def workflows(caller: Caller, request: Request) -> Shape:
    """A page of workflows. `at` is the moment from which ages count: the next page needs it."""
    at = _time(request, "at") or datetime.now(UTC)
    response = await caller.call(
        caller.stubs.workflows.ListWorkflows,
        workflow_pb2.ListWorkflowsRequest(
            filter=_filter(request, at),
            order=_order(request),
            page_size=_size(request),
            page_token=request.text("cursor"),
        ),
    )
    return {
        **shapes.page("workflows", response.instances, shapes.header, response.next_page_token),
        "at": at.isoformat(),
    }


async def count(caller: Caller, request: Request) -> Shape:
    """How many workflows a list has, by status."""
    chosen = _filter(request, _time(request, "at") or datetime.now(UTC))
    response = await caller.call(
        caller.stubs.workflows.CountWorkflows, workflow_pb2.CountWorkflowsRequest(filter=chosen)
    )
    return {"counts": shapes.counts(response.counts)}


async def workflow(caller: Caller, request: Request) -> Shape:
    """A workflow, by its id or its name, without its pointers."""
    view = workflow_pb2.WorkflowView.WORKFLOW_VIEW_HEADER
    if (id_ := request.given("id")) is not None:
        if request.given("name") is not None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", "name: is of no use with id")
        found = await caller.call(
            caller.stubs.workflows.GetWorkflowInstance,
            workflow_pb2.GetWorkflowInstanceRequest(id=id_, view=view),
        )
        return {"workflow": shapes.workflow(found.instance)}
    named = await caller.call(
        caller.stubs.workflows.GetWorkflowInstanceByName,
        workflow_pb2.GetWorkflowInstanceByNameRequest(name=request.text("name"), view=view),
    )
    return {"workflow": shapes.workflow(named.instance)}


async def _pointer_page(
    caller: Caller, request: Request
) -> workflow_pb2.ListExecutionPointersResponse:
    return await caller.call(
        caller.stubs.workflows.ListExecutionPointers,
        workflow_pb2.ListExecutionPointersRequest(
            workflow_id=request.text("id"),
            page_size=_size(request),
            page_token=request.text("cursor"),
        ),
    )


async def pointers(caller: Caller, request: Request) -> Shape:
    """A page of a workflow's pointers, without their documents."""
    found = await _pointer_page(caller, request)
    shape = functools.partial(
        shapes.page, "pointers", found.execution_pointers, shapes.pointer, found.next_page_token
    )
    return {**await _shaped(shape), "revision": str(found.revision)}


async def pointer(caller: Caller, request: Request) -> Shape:
    """One pointer with its documents: on the page of pointers that the same `cursor` and `size`
    led to, because the API has no call for one alone."""
    found = await _pointer_page(caller, request)
    for one in found.execution_pointers:
        if one.id == request.text("pointer"):
            return {"pointer": shapes.whole_pointer(one)}
    raise Refusal(HTTPStatus.NOT_FOUND, "POINTER_NOT_FOUND", "there is no such pointer any more")


async def errors(caller: Caller, request: Request) -> Shape:
    """A page of logged errors."""
    asked = store_pb2.ListErrorsRequest(
        workflow_id=request.text("workflow"),
        page_size=_size(request),
        page_token=request.text("cursor"),
    )
    at = _time(request, "at") or datetime.now(UTC)
    if (since := _ago(request, "younger", at)) is not None:
        asked.error_time_from.FromDatetime(since)
    found = await caller.call(caller.stubs.store.ListErrors, asked)
    return {
        **shapes.page("errors", found.errors, shapes.error, found.next_page_token),
        "at": at.isoformat(),
    }


async def events(caller: Caller, request: Request) -> Shape:
    """A page of events."""
    asked = event_pb2.ListEventsRequest(
        event_name=request.text("event"),
        event_key=given_with(request, "key", "event"),
        is_processed=_truth(request, "processed"),
        order=_order(request),
        page_size=_size(request),
        page_token=request.text("cursor"),
    )
    found = await caller.call(caller.stubs.events.ListEvents, asked)
    return shapes.page("events", found.events, shapes.event, found.next_page_token)


async def subscriptions(caller: Caller, request: Request) -> Shape:
    """A page of subscriptions, open and held."""
    asked = subscription_pb2.ListSubscriptionsRequest(
        workflow_id=request.text("workflow"),
        event_name=request.text("event"),
        event_key=given_with(request, "key", "event"),
        held=_truth(request, "held"),
        page_size=_size(request),
        page_token=request.text("cursor"),
    )
    found = await caller.call(caller.stubs.subscriptions.ListSubscriptions, asked)
    return shapes.page(
        "subscriptions", found.subscriptions, shapes.subscription, found.next_page_token
    )


async def commands(caller: Caller, request: Request) -> Shape:
    """A page of commands, soonest first."""
    asked = command_pb2.ListCommandsRequest(
        data=given_with(request, "data", "command"),
        leased=_truth(request, "leased"),
        worker_id=request.text("worker"),
        page_size=_size(request),
        page_token=request.text("cursor"),
    )
    if request.text("command"):
        number = _named(shapes.COMMAND_NAMES, request.text("command"), "command")
        asked.command_name = command_pb2.CommandName.ValueType(number)
    found = await caller.call(caller.stubs.commands.ListCommands, asked)
    return shapes.page("commands", found.commands, shapes.command, found.next_page_token)


async def queues(caller: Caller, request: Request) -> Shape:
    """A page of queues."""
    found = await caller.call(
        caller.stubs.queues.GetQueueStats,
        queue_pb2.GetQueueStatsRequest(page_size=_size(request), page_token=request.text("cursor")),
    )
    return shapes.page("queues", found.queues, shapes.queue, found.next_page_token)


async def queue_items(caller: Caller, request: Request) -> Shape:
    """A page of a queue's items."""
    asked = queue_pb2.ListQueueItemsRequest(
        queue=request.text("queue"),
        id=request.text("id"),
        page_size=_size(request),
        page_token=request.text("cursor"),
    )
    if request.text("state"):
        number = _named(shapes.ITEM_STATES, request.text("state"), "state")
        asked.state = queue_pb2.QueueItemState.ValueType(number)
    found = await caller.call(caller.stubs.queues.ListQueueItems, asked)
    return shapes.page("items", found.items, shapes.queue_item, found.next_page_token)


async def locks(caller: Caller, request: Request) -> Shape:
    """A page of the locks that are held."""
    found = await caller.call(
        caller.stubs.locks.ListLocks,
        lock_pb2.ListLocksRequest(
            resource_prefix=request.text("resource"),
            owner=request.text("owner"),
            page_size=_size(request),
            page_token=request.text("cursor"),
        ),
    )
    return shapes.page("locks", found.locks, shapes.lock, found.next_page_token)


async def namespaces(caller: Caller, request: Request) -> Shape:
    """A page of the namespaces in which the caller has a role."""
    found = await caller.call(
        caller.stubs.store.ListNamespaces,
        store_pb2.ListNamespacesRequest(
            page_size=_size(request), page_token=request.text("cursor")
        ),
    )
    return shapes.page("namespaces", found.namespaces, shapes.namespace, found.next_page_token)


async def storage(caller: Caller, _: Request) -> Shape:
    """How much space the namespace takes, and what its retention policy lets go."""
    report, policy, info = await asyncio.gather(
        caller.call(caller.stubs.store.GetStorageReport, store_pb2.GetStorageReportRequest()),
        caller.call(caller.stubs.store.GetRetentionPolicy, store_pb2.GetRetentionPolicyRequest()),
        caller.call(caller.stubs.store.GetStoreInfo, store_pb2.GetStoreInfoRequest()),
    )
    return {
        **shapes.storage(report),
        "policy": shapes.retention_policy(policy.policy),
        "policy_set": shapes.time_of(policy, "set_time"),
        "policy_deleted_rows": policy.deleted_rows,
        "policy_complete": shapes.time_of(policy, "complete_time"),
        "info": {
            "server_version": info.server_version,
            "postgres_version": info.postgres_version,
            "schema": info.schema,
            "schema_version": info.schema_version,
            "latest_schema_version": info.latest_schema_version,
            "max_message_bytes": info.max_message_bytes,
        },
    }


async def overview(caller: Caller, _: Request) -> Shape:
    """How it is now: what is due, what failed, and what the queues have. Its cost is that of the
    backlog, not of the store."""
    now = datetime.now(UTC)
    due = workflow_pb2.CountWorkflowsRequest()
    due.filter.due_before.FromDatetime(now)
    recent = store_pb2.ListErrorsRequest(page_size=_MOST_ERRORS)
    recent.error_time_from.FromDatetime(now - timedelta(hours=1))
    backlog, first, failed, waiting = await asyncio.gather(
        caller.call(caller.stubs.workflows.CountWorkflows, due),
        caller.call(
            caller.stubs.workflows.GetRunnableInstances,
            workflow_pb2.GetRunnableInstancesRequest(page_size=1),
        ),
        caller.call(caller.stubs.store.ListErrors, recent),
        caller.call(
            caller.stubs.queues.GetQueueStats, queue_pb2.GetQueueStatsRequest(page_size=100)
        ),
    )
    oldest = None
    if first.instance_ids:
        try:
            found = await caller.call(
                caller.stubs.workflows.GetWorkflowInstance,
                workflow_pb2.GetWorkflowInstanceRequest(
                    id=first.instance_ids[0], view=workflow_pb2.WorkflowView.WORKFLOW_VIEW_HEADER
                ),
            )
            if found.instance.HasField("next_execution"):  # a host may have just run it
                oldest = shapes.header(found.instance)
        except Refusal as exc:
            if exc.status != HTTPStatus.NOT_FOUND:  # deleted meanwhile
                raise
    return {
        "at": now.timestamp() * 1000,
        "backlog": sum(shapes.counts(backlog.counts).values()),
        "oldest_due": oldest,
        "errors": len(failed.errors),
        "errors_are_more": bool(failed.next_page_token),
        "latest_errors": [shapes.error(one) for one in failed.errors[:5]],
        "queues": [shapes.queue(one) for one in waiting.queues],
        "queues_are_more": bool(waiting.next_page_token),
    }


async def throughput(caller: Caller, _: Request) -> Shape:
    """How many workflows there are, and how many have ended in each five minutes of the last two
    hours. It reads as many rows of an index as it counts, so it is asked for
    rarely."""
    now = datetime.now(UTC)
    bounds = [now - _BUCKET * n for n in range(_BUCKETS, -1, -1)]

    async def counted(since: str, until: str, at: int) -> int:
        asked = workflow_pb2.CountWorkflowsRequest()
        getattr(asked.filter, since).FromDatetime(bounds[at])
        getattr(asked.filter, until).FromDatetime(bounds[at + 1])
        found = await caller.call(caller.stubs.workflows.CountWorkflows, asked)
        return sum(one.count for one in found.counts)

    total = await caller.call(
        caller.stubs.workflows.CountWorkflows, workflow_pb2.CountWorkflowsRequest()
    )
    # One after the other: people who look leave the database to those who work.
    ended = [
        await counted("complete_time_from", "complete_time_before", at) for at in range(_BUCKETS)
    ]
    return {
        "counts": shapes.counts(total.counts),
        "ended": ended,
        "bucket_seconds": _BUCKET.total_seconds(),
        "until": now.timestamp() * 1000,
    }


READS: Final[dict[str, Read]] = {
    "overview": overview,
    "throughput": throughput,
    "workflows": workflows,
    "count": count,
    "workflow": workflow,
    "pointers": pointers,
    "pointer": pointer,
    "errors": errors,
    "events": events,
    "subscriptions": subscriptions,
    "commands": commands,
    "queues": queues,
    "queue-items": queue_items,
    "locks": locks,
    "namespaces": namespaces,
    "storage": storage,
}
"""By the path below `api/`."""
