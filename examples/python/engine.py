"""A small workflow engine that stores all its state in the persistence server.

Any number of engines may work on one store, and any of them may crash at any time.

- The stored workflow says what to do next. A worker changes it only with `step(...,
  strict=True)`, so a decision based on outdated state is rejected. The step stores the
  new state and all its effects in one transaction: subscriptions, errors, the end of a
  wait.
- A scheduled command is the right to do it: there is one per workflow and per event,
  and a claim gives it to one worker for the duration of a lease. A step starts only if
  its timeout ends before the lease does. So two workers never run a step at the same
  time, unless one is frozen for longer than its lease; its late result is then rejected
  because the lease is lost or the revision has changed.

What a crash between any two calls leaves behind:

- Before a step's result is persisted: the old state. When the lease expires, another
  worker claims the command and runs the step again. So steps run *at least once*; each
  has a stable idempotency key (workflow id / pointer id) with which external systems
  apply its effects once.
- After it is persisted: a command that others claim again, and then find the new state.
- Between storing a wait for an event and the check for earlier events: the same
  command; its next claimer finds the step waiting and repeats the check.
- While an event is being delivered: a subscription held by a dead worker. Its token
  expires with the lease of the event's command, so the next claimer finds it open. The
  workflow has the event if and only if the subscription has been removed.
- Between finding work and scheduling it: nothing. The next poll finds it again.
"""

import asyncio
import copy
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial

from examples.python.definition import (
    Context,
    Definition,
    Lease,
    Listener,
    millis,
    now,
)
from examples.python.transitions import advance, describe, fail, new_pointer, waiting_pointer
from wfe_persistence_client import (
    JSON,
    CommandName,
    CommitOutcomeUnknown,
    Event,
    EventNotFound,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    LeaseLost,
    PersistenceError,
    PersistenceProvider,
    PointerStatus,
    RevisionMismatch,
    ScheduledCommand,
    SubscriptionClaim,
    SubscriptionNotFound,
    WorkflowAlreadyExists,
    WorkflowInstance,
    WorkflowNotFound,
    WorkflowStatus,
)

log = logging.getLogger("host")


async def start_workflow(
    store: PersistenceProvider, definition: Definition, workflow_id: str, data: JSON
) -> bool:
    """Starts a workflow; returns False if there is one with that id already."""
    workflow = WorkflowInstance(
        id=workflow_id,
        workflow_definition_id=definition.id,
        version=definition.version,
        data=data,
        execution_pointers=[new_pointer(0, definition)],
        next_execution=millis(now()),
    )
    try:
        await store.create_new_workflow(workflow)
    except WorkflowAlreadyExists:
        return False
    return True


class Engine:
    """Runs workflows of the given definitions, and delivers events."""

    def __init__(
        self,
        store: PersistenceProvider,
        definitions: Iterable[Definition],
        listeners: Mapping[str, Listener],
        *,
        name: str,
        lease: timedelta = timedelta(seconds=10),
        poll: float = 0.1,
    ) -> None:
        self._store = store
        self._definitions = {(d.id, d.version): d for d in definitions}
        self._listeners = listeners
        self._name = name
        self._lease = lease
        # A step may take half a lease; none is started in the second half of a lease.
        self._step_timeout = lease.total_seconds() / 2
        self._poll = poll
        self._claimed: set[str] = set()

    async def run(self, workers: int, stop: asyncio.Event) -> None:
        """Runs until `stop` is set; then the workers finish what they have claimed."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self._find_work, stop))
            for number in range(1, workers + 1):
                worker = f"{self._name}/{number}"
                tasks.create_task(self._repeat(partial(self._work, worker), stop))

    async def drain(self) -> None:
        """Handles the commands that are due now, without looking for new work."""
        while await self._work(self._name):
            pass

    async def _repeat(self, turn: Callable[[], Awaitable[bool]], stop: asyncio.Event) -> None:
        """Repeats `turn` until `stop` is set; pauses after one that did nothing or failed."""
        while not stop.is_set():
            try:
                rest = not await turn()
            except PersistenceError as error:
                log.warning("store: %s", error)
                rest = True
            except Exception:
                log.exception(
                    "a turn failed; what it claimed stays claimed until its lease expires"
                )
                rest = True
            if rest:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._poll)

    async def _find_work(self) -> bool:
        """Schedules a command for everything that is due.

        A command that is scheduled already is not duplicated. One that a worker holds
        stays with it, and is due again afterwards.
        """
        due = [
            (CommandName.PROCESS_WORKFLOW, await self._store.get_runnable_instances()),
            (CommandName.PROCESS_EVENT, await self._store.get_runnable_events()),
        ]
        for command_name, ids in due:
            for id_ in ids:
                if id_ not in self._claimed:
                    await self._schedule(command_name, id_)
        return False

    async def _schedule(self, command_name: CommandName, id_: str) -> None:
        await self._store.schedule_command(
            ScheduledCommand(command_name=command_name, data=id_, execute_time=millis(now()))
        )

    async def _work(self, worker: str) -> bool:
        """Claims and handles a command; returns False if there is none."""
        # Read before the claim is sent, so our end of the lease is never after the
        # actual one.
        begin = time.monotonic()
        claims = await self._store.claim_commands(
            limit=1, lease_duration=self._lease, worker_id=worker
        )
        for claim in claims:
            ends = begin + self._lease.total_seconds()
            lease = Lease(worker, claim.lease_token, claim.lease_expiry, ends)
            id_ = claim.command.data
            self._claimed.add(id_)
            try:
                if claim.command.command_name is CommandName.PROCESS_WORKFLOW:
                    await self._run_workflow(id_, lease)
                else:
                    await self._deliver(id_, lease)
            except (WorkflowNotFound, EventNotFound) as error:
                log.warning("%s: %s", id_, error)
            finally:
                self._claimed.discard(id_)
            # Only now: after any failure above, the command becomes due again when the
            # lease expires.
            with suppress(LeaseLost):
                await self._store.complete_commands([claim.lease_token])
        return bool(claims)

    # Workflows

    async def _run_workflow(self, workflow_id: str, lease: Lease) -> None:
        """Runs the workflow's steps while there are any to run and the lease lasts."""
        while True:
            workflow = await self._store.get_workflow_instance(workflow_id)
            if workflow.status is not WorkflowStatus.RUNNABLE:
                return
            pointer = next((p for p in workflow.execution_pointers if p.active), None)
            if pointer is None:
                log.warning(
                    "%s: runnable, but has no active step; does it belong to another engine?",
                    workflow_id,
                )
                return
            if pointer.status is PointerStatus.WAITING_FOR_EVENT:
                await self._find_earlier_events(workflow, pointer)
                return
            if (workflow.next_execution or 0) > millis(now()):
                return
            if lease.remaining() < self._step_timeout:
                return  # it stays runnable, and the next poll finds it
            try:
                await self._run_step(workflow, pointer, lease)
            except LeaseLost as error:
                log.info(
                    "%s: discarded, another worker has the lease: %s", workflow_id, error.reason
                )
                return
            except (RevisionMismatch, CommitOutcomeUnknown) as error:
                # Another worker was faster, or it was us: the stored state is
                # authoritative.
                log.info("%s: discarded and loaded again: %s", workflow_id, error.reason)

    async def _run_step(
        self, workflow: WorkflowInstance, pointer: ExecutionPointer, lease: Lease
    ) -> None:
        definition = self._definitions[workflow.workflow_definition_id, workflow.version]
        name, step = definition.steps[pointer.step_id]
        assert isinstance(workflow.data, Mapping)
        context = Context(
            workflow_id=workflow.id,
            step_name=name,
            key=f"{workflow.id}/{pointer.id}",
            attempt=pointer.retry_count,
            data=copy.deepcopy(dict(workflow.data)),
            memory=pointer.persistence_data,
            event_data=pointer.event_data,
            lease=lease,
            store=self._store,
        )
        pointer.start_time = pointer.start_time or now()
        subscriptions: list[EventSubscription] = []
        errors: list[ExecutionError] = []
        try:
            async with asyncio.timeout(self._step_timeout):
                result = await step(context)
        except PersistenceError:
            raise  # an error of the store, not of the step
        except Exception as error:
            said = f"attempt {pointer.retry_count + 1}: {type(error).__name__}: {error}"
            errors = [
                ExecutionError(
                    workflow_id=workflow.id, execution_pointer_id=pointer.id, message=said
                )
            ]
            fail(definition, workflow, pointer)
        else:
            said = describe(result)
            workflow.data = context.data
            subscriptions = advance(definition, workflow, pointer, result)
        async with self._store.step(workflow, strict=True) as stored:
            stored.hold(lease.token)
            for subscription in subscriptions:
                stored.create_subscription(subscription)
            for logged in errors:
                stored.log_error(logged)
        log.info("%s  %s  %s: %s", lease.worker, workflow.id, name, said)

    async def _find_earlier_events(
        self, workflow: WorkflowInstance, pointer: ExecutionPointer
    ) -> None:
        """Schedules delivery of events that may have arrived before the subscription
        was stored.

        A delivery in progress, which may have looked for subscriptions too early, is
        not disturbed: a command scheduled while it is claimed becomes due again
        afterwards.
        """
        for event_id in await self._store.get_events(
            pointer.event_name or "", pointer.event_key or ""
        ):
            event = await self._store.get_event(event_id)
            if event.event_time >= workflow.create_time:
                await self._schedule(CommandName.PROCESS_EVENT, event_id)

    # Events

    async def _deliver(self, event_id: str, lease: Lease) -> None:
        """Delivers an event to the host's listener and to all workflows that wait for it."""
        event = await self._store.get_event(event_id)
        if listener := self._listeners.get(event.event_name):
            await listener(event)
        delivered = 0
        for subscription in await self._store.get_subscriptions(
            event.event_name, event.event_key, event.event_time
        ):
            # Held exactly as long as the event's command.
            with suppress(SubscriptionNotFound):
                if await self._store.set_subscription_token(
                    subscription.id, lease.token, lease.worker, lease.expiry
                ):
                    await self._wake(subscription, event, lease)
                    delivered += 1
        await self._store.mark_event_processed(event_id)
        log.info("%s  %s  delivered to %d waiting", lease.worker, event_id, delivered)

    async def _wake(self, subscription: EventSubscription, event: Event, lease: Lease) -> None:
        """Stores the event in the waiting workflow, and ends the wait."""
        while True:
            try:
                workflow = await self._store.get_workflow_instance(subscription.workflow_id)
            except WorkflowNotFound:
                pointer = None
            else:
                pointer = waiting_pointer(workflow, subscription)
            if pointer is None:
                await self._store.terminate_subscription(subscription.id)
                return
            pointer.status = PointerStatus.PENDING
            pointer.event_published = True
            pointer.event_data = event.event_data
            workflow.next_execution = millis(now())
            claim = SubscriptionClaim(subscription_id=subscription.id, token=lease.token)
            try:
                async with self._store.step(workflow, strict=True) as stored:
                    stored.hold(claim)
                    stored.terminate_subscription(subscription.id)
            except RevisionMismatch:
                continue
            return
