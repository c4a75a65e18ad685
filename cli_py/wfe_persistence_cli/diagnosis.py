"""Why a workflow does not go on, as far as the store can tell."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from wfe_persistence_cli import times
from wfe_persistence_cli.text import counted
from wfe_persistence_cli.times import ago, brief, from_ms, is_at_once, stamp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wfe_persistence_client import (
        Event,
        EventSubscription,
        ExecutionError,
        ListedCommand,
        ListedQueueItem,
        Lock,
        PersistenceProvider,
        WorkflowInstance,
    )

# Of a workflow with more, the rest is not looked at: what is known by then says enough.
_MOST: Final = 200
# For the events of so many subscriptions is looked.
_MOST_EVENTS: Final = 10


@dataclass(slots=True)
class Circumstances:
    """A workflow and what else the store has about it."""

    instance: WorkflowInstance
    errors: list[ExecutionError]
    """The latest first, at most 200."""
    subscriptions: list[EventSubscription]
    events: list[Event]
    """Unprocessed ones that these subscriptions wait for."""
    commands: list[ListedCommand]
    items: list[ListedQueueItem]
    """Its items in queues whose items stand for workflows."""
    locks: list[Lock]
    """Those on resources with its id."""
    is_stuck: bool
    """In the sense of `wfe_persistence_client.administration`."""

    @property
    def is_held(self) -> bool:
        """Whether somebody seems to be running it."""
        leases = [*(each.lease for each in self.items), *(each.lease for each in self.commands)]
        return bool(self.locks) or any(lease is not None for lease in leases)


async def look(provider: PersistenceProvider, instance: WorkflowInstance) -> Circumstances:
    """Find what concerns a workflow. What the server is too old for, or the caller may not read,
    there is none of."""
    from wfe_persistence_client import CommandName, QueueKind
    from wfe_persistence_client.administration import STUCK_AFTER, is_stuck

    id_ = instance.id
    items: list[Any] = []
    stats = await _or_none(provider.get_queue_stats())
    for queue in stats:
        if queue.kind is QueueKind.WORKFLOW or queue.queue == "workflow":
            items += await _or_none(provider.list_queue_items(queue.queue, item_id=id_))
    subscriptions: list[EventSubscription] = await first(
        provider.iter_all_subscriptions(workflow_id=id_, page_size=_MOST)
    )
    events: list[Event] = []
    for each in subscriptions[:_MOST_EVENTS]:
        events += await first(
            provider.iter_all_events(
                event_name=each.event_name,
                event_key=each.event_key,
                is_processed=False,
                event_time_from=each.subscribe_as_of,
                page_size=1,
            ),
            most=1,
        )
    command = provider.list_commands(command_name=CommandName.PROCESS_WORKFLOW, data=id_)
    return Circumstances(
        instance,
        errors=await first(provider.iter_errors(id_, page_size=_MOST)),
        subscriptions=subscriptions,
        events=events,
        commands=await _or_none(command),
        items=items,
        locks=[
            lock
            for prefix in (id_, f"workflow/{id_}")
            for lock in await first(provider.iter_locks(resource_prefix=prefix, page_size=_MOST))
            if lock.resource == prefix
        ],
        is_stuck=await is_stuck(provider, instance, times.now() - STUCK_AFTER),
    )


async def first(rows: Any, most: int = _MOST) -> list[Any]:
    """The first of a list; none if the server does not have such, or they are not to be read."""
    from wfe_persistence_client import PermissionDenied, Unimplemented

    found: list[Any] = []
    try:
        async for row in rows:
            found.append(row)
            if len(found) == most:
                break
    except (PermissionDenied, Unimplemented):
        return []
    return found


async def _or_none(rows: Any) -> list[Any]:
    from wfe_persistence_client import PermissionDenied, Unimplemented

    try:
        found: list[Any] = await rows
    except (PermissionDenied, Unimplemented):
        return []
    return found


def reasons(found: Circumstances, now: datetime | None = None) -> Iterator[tuple[str, str]]:
    """Why it does not go on, and what to do: sentences with their styles, the weightiest first."""
    now = now or times.now()
    instance = found.instance
    status = instance.status.name
    if status in ("COMPLETE", "TERMINATED"):
        return
    if status == "SUSPENDED":
        yield "It is suspended: nobody runs it until somebody resumes it.", "held"
    if status == "RUNNABLE":
        yield from _of_time(found, now)
    yield from _of_queues(found, now)
    yield from _of_events(found, now)
    if found.errors:
        latest = found.errors[0]
        number = counted(len(found.errors), "error") + ("+" if len(found.errors) == _MOST else "")
        yield (
            f"{number} logged, the latest {ago(latest.error_time, now)} ago: {latest.message}",
            "bad",
        )


def _of_time(found: Circumstances, now: datetime) -> Iterator[tuple[str, str]]:
    instance = found.instance
    if instance.next_execution is None:
        return
    at = from_ms(instance.next_execution)
    at_once = is_at_once(instance.next_execution)
    if found.is_stuck:
        due = f"was to be run {ago(at, now)} ago" if at and not at_once else "is to be run at once"
        if found.is_held:  # by whom is said below: one step may take a host long
            yield f"It is stuck: it {due}, and whoever has it has written nothing since.", "worst"
        else:
            yield (
                f"It is stuck: it {due}, and no host has. Are there hosts for "
                f"{instance.workflow_definition_id}?",
                "worst",
            )
    elif at_once:
        yield "It is to be run at once.", "running"
    elif at is None:
        return
    elif at > now:
        yield f"It is to be run in {brief(at - now)}, at {stamp(at)}.", "waiting"
    else:
        yield f"It has been due for {brief(now - at)}.", "running"


def _of_queues(found: Circumstances, now: datetime) -> Iterator[tuple[str, str]]:
    for listed in found.items:
        queue, state = listed.item.queue, listed.state.name
        if state == "DEAD":
            attempts = counted(listed.attempt, "attempt")
            yield (
                f"Its item in the queue {queue} is dead after {attempts}: "
                f"`requeue {queue} {listed.item.id}` has it tried again.",
                "worst",
            )
        elif state == "LEASED" and listed.lease is not None:
            yield (
                f"{listed.lease.worker_id or 'A worker without a name'} is running it, under a "
                f"lease that expires {ago(listed.lease.expiry, now)}. (If it is gone, "
                f"`release item {queue} {listed.item.id}` has another run it.)",
                "running",
            )
        else:
            yield f"Its item in the queue {queue} is {state.lower()}.", "waiting"
    for command in found.commands:
        if command.lease is not None:
            yield (
                f"{command.lease.worker_id or 'A worker without a name'} holds the command to "
                f"process it, under a lease that expires {ago(command.lease.expiry, now)}. (If it "
                f"is gone, `release command process_workflow {command.command.data}` has another "
                "process it.)",
                "running",
            )
    for lock in found.locks:
        yield (
            f"{lock.owner or 'Somebody without a name'} has held the lock {lock.resource} for "
            f"{ago(lock.acquire_time, now)}; it expires {ago(lock.expiry, now)}.",
            "running",
        )


def _of_events(found: Circumstances, now: datetime) -> Iterator[tuple[str, str]]:
    waited_for = {
        (pointer.event_name, pointer.event_key or "")
        for pointer in found.instance.execution_pointers
        if pointer.status.name == "WAITING_FOR_EVENT" and not pointer.event_published
    }
    for each in found.subscriptions:
        key = (each.event_name, each.event_key)
        waited_for.discard(key)
        since = f"since {stamp(each.subscribe_as_of)} ({ago(each.subscribe_as_of, now)})"
        awaited = f"{each.event_name} with the key {each.event_key!r}"
        yield f"It waits for the event {awaited}, {since}.", "waiting"
        if each.external_token is not None:
            yield from _of_holder(each, now)
    for event in found.events:
        yield (
            f"The event {event.id} that it waits for has been there for "
            f"{ago(event.event_time, now)}, and no host has processed it.",
            "worst",
        )
    for name, event_key in sorted(waited_for, key=str):
        yield (
            f"A step waits for the event {name} with the key {event_key!r}, but there is no "
            "subscription: the event will not reach it.",
            "worst",
        )


def _of_holder(each: EventSubscription, now: datetime) -> Iterator[tuple[str, str]]:
    worker = each.external_worker_id or "a worker without a name"
    expiry = each.external_token_expiry
    if expiry is not None and expiry <= now:
        return
    long_ = expiry is None or expiry - now > timedelta(hours=1)
    until = "until it is cleared" if expiry is None else f"until {stamp(expiry)}"
    yield (
        f"{worker} holds that subscription {until}"
        + (f"; if it is gone, `release subscription {each.id}` opens it again." if long_ else "."),
        "held",
    )
