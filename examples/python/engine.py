"""A small workflow engine that keeps all its state in the persistence server.

Any number of engines may work on one store, and any of them may die at any moment.

- The workflow's row says what is to be done. A worker changes it only with
  `step(..., strict=True)`: what a worker decides on an outdated state is refused. With
  the state the step stores all that came about with it, in one transaction:
  subscriptions, errors, the end of a wait.
- A scheduled command is the turn to do it: one for each workflow and each event,
  and claiming it gives the turn to one worker for the time of a lease. A step is
  started only if it must end (by timeout) before the lease does. So two workers
  never run a step at the same time, unless one is frozen for longer than its lease;
  then the lease that the step must hold, or the revision, keeps its late result out.

What a crash between any two calls leaves behind:

- before a step's result is persisted: the old state. When the lease ends, another
  worker claims the command and runs the step again. So steps run *at least once*;
  for effects outside, each has a key (workflow id / pointer id) that stays the same,
  and whoever performs the effect does so once for each key.
- after it is persisted: a command that others claim again, to find the new state.
- between "wait for an event" and the look for events that came before: the same
  command; who claims it finds the step waiting and looks again.
- while an event is being delivered: a subscription held by nobody alive. Its token
  ends with the lease of the event's command, so who claims that next finds it open.
  The workflow has the event if and only if the subscription is gone.
- between finding work and scheduling it: nothing. The next poll finds it again.
"""

import asyncio
import copy
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from wfe_persistence_client import (
    ABSENT,
    JSON,
    Absent,
    CommandName,
    CommitOutcomeUnknown,
    Event,
    EventAlreadyExists,
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


@dataclass(frozen=True)
class Next:
    """The step is done; on to the next one."""

    outcome: JSON | Absent = ABSENT


@dataclass(frozen=True)
class Sleep:
    """Run the step again at that time; it finds `remember` in `Context.memory`."""

    until: datetime
    remember: JSON


@dataclass(frozen=True)
class WaitFor:
    """Run the step again when the event has come; it finds it in `Context.event_data`.

    Events since the workflow began count, also those that came before the wait.
    """

    event_name: str
    event_key: str


StepResult = Next | Sleep | WaitFor


@dataclass(frozen=True)
class Lease:
    """One worker's turn on one workflow or event."""

    worker: str
    token: str
    #: When it ends by the database's clock, and by ours, which is never later.
    expiry: datetime
    ends: float

    def remaining(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()


@dataclass
class Context:
    """What a step gets to see."""

    workflow_id: str
    step_name: str
    #: The same each time this step of this workflow runs, and no other's.
    key: str
    #: How often the step has failed so far.
    attempt: int
    #: The workflow's data. Changes are kept if the step does not fail.
    data: dict[str, JSON]
    #: What the step's last `Sleep` said to remember.
    memory: JSON | Absent
    #: The content of the event the step waited for.
    event_data: JSON | Absent
    lease: Lease
    store: PersistenceProvider

    async def publish(self, event_name: str, event_key: str, data: JSON, delay: timedelta) -> None:
        """Publishes an event in a while. The step run again publishes no second one."""
        when = now() + delay
        event = Event(
            id=self.key,
            event_name=event_name,
            event_key=event_key,
            event_data=data,
            event_time=when,
        )
        with suppress(EventAlreadyExists):  # with the time of an earlier run
            await self.store.create_event(event)
        await self.store.schedule_command(
            ScheduledCommand(
                command_name=CommandName.PROCESS_EVENT, data=event.id, execute_time=millis(when)
            )
        )


#: Does the step's work. What it raises is put on record, and the step run again later.
StepFunction = Callable[[Context], Awaitable[StepResult]]

#: Takes an event that the host itself reacts to; may be handed the same one again,
#: even at the same time if it takes longer than a lease.
Listener = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True)
class Definition:
    """A workflow: named steps, one after the other."""

    id: str
    version: int
    steps: Sequence[tuple[str, StepFunction]]
    #: How often a step may fail and be run again; one failure more terminates.
    max_retries: int = 3
    #: The wait before the first retry; it doubles with each.
    backoff: timedelta = timedelta(milliseconds=100)


async def start_workflow(
    store: PersistenceProvider, definition: Definition, workflow_id: str, data: JSON
) -> bool:
    """Starts a workflow; false if there is one of that id already."""
    workflow = WorkflowInstance(
        id=workflow_id,
        workflow_definition_id=definition.id,
        version=definition.version,
        data=data,
        execution_pointers=[_pointer(0, definition)],
        next_execution=millis(now()),
    )
    try:
        await store.create_new_workflow(workflow)
    except WorkflowAlreadyExists:
        return False
    return True


class Engine:
    """Runs the workflows of some definitions, and delivers events."""

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
        # A step may take half a lease; none is started in a lease's second half.
        self._step_timeout = lease.total_seconds() / 2
        self._poll = poll
        self._claimed: set[str] = set()

    async def run(self, workers: int, stop: asyncio.Event) -> None:
        """Works until `stop`; then the workers finish what they have claimed."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self._find_work, stop))
            for number in range(1, workers + 1):
                worker = f"{self._name}/{number}"
                tasks.create_task(self._repeat(partial(self._work, worker), stop))

    async def drain(self) -> None:
        """Works off the commands that are due now, without looking for new work."""
        while await self._work(self._name):
            pass

    async def _repeat(self, turn: Callable[[], Awaitable[bool]], stop: asyncio.Event) -> None:
        """Takes turns until `stop`; rests after one that found nothing to do or failed."""
        while not stop.is_set():
            try:
                rest = not await turn()
            except PersistenceError as error:
                log.warning("the store: %s", error)
                rest = True
            except Exception:
                log.exception("a turn failed; what it claimed is left to the end of its lease")
                rest = True
            if rest:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._poll)

    async def _find_work(self) -> bool:
        """Schedules a command for all that is due.

        One that is scheduled already stays one. One that somebody works on stays his,
        and is looked at once more after that.
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
        """Claims a command and does what it says; false if there is none."""
        # Read before the claim is sent: our end of the lease is never after the real one.
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
            # Only now: after any failure above, the command is due again in a while.
            with suppress(LeaseLost):
                await self._store.complete_commands([claim.lease_token])
        return bool(claims)

    # Workflows

    async def _run_workflow(self, workflow_id: str, lease: Lease) -> None:
        """Runs the workflow's steps as long as there is something to do and time."""
        while True:
            workflow = await self._store.get_workflow_instance(workflow_id)
            if workflow.status is not WorkflowStatus.RUNNABLE:
                return
            pointer = next((p for p in workflow.execution_pointers if p.active), None)
            if pointer is None:
                log.warning("%s: runnable, but no step of it is active; not ours?", workflow_id)
                return
            if pointer.status is PointerStatus.WAITING_FOR_EVENT:
                await self._find_earlier_events(workflow, pointer)
                return
            if (workflow.next_execution or 0) > millis(now()):
                return
            if lease.remaining() < self._step_timeout:
                return  # it stays runnable: the next poll finds it
            try:
                await self._run_step(workflow, pointer, lease)
            except LeaseLost as error:
                log.info("%s: dropped, it is somebody else's turn: %s", workflow_id, error.reason)
                return
            except (RevisionMismatch, CommitOutcomeUnknown) as error:
                # Somebody was faster, or it was us: what is stored counts.
                log.info("%s: dropped and loaded anew: %s", workflow_id, error.reason)

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
            raise  # the store's trouble, not the step's
        except Exception as error:
            said = f"attempt {pointer.retry_count + 1}: {type(error).__name__}: {error}"
            errors = [
                ExecutionError(
                    workflow_id=workflow.id, execution_pointer_id=pointer.id, message=said
                )
            ]
            _fail(definition, workflow, pointer)
        else:
            said = _said(result)
            workflow.data = context.data
            subscriptions = _advance(definition, workflow, pointer, result)
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
        """Has events delivered that may have come before the subscription was stored.

        A delivery under way, which may have looked for subscriptions too early, is not
        disturbed: a command scheduled while it is claimed is due again after that.
        """
        for event_id in await self._store.get_events(
            pointer.event_name or "", pointer.event_key or ""
        ):
            event = await self._store.get_event(event_id)
            if event.event_time >= workflow.create_time:
                await self._schedule(CommandName.PROCESS_EVENT, event_id)

    # Events

    async def _deliver(self, event_id: str, lease: Lease) -> None:
        """Gives an event to the host's listener and to all who wait for it."""
        event = await self._store.get_event(event_id)
        if listener := self._listeners.get(event.event_name):
            await listener(event)
        delivered = 0
        for subscription in await self._store.get_subscriptions(
            event.event_name, event.event_key, event.event_time
        ):
            # Held as long as the event's command, and not a moment longer.
            with suppress(SubscriptionNotFound):
                if await self._store.set_subscription_token(
                    subscription.id, lease.token, lease.worker, lease.expiry
                ):
                    await self._wake(subscription, event, lease)
                    delivered += 1
        await self._store.mark_event_processed(event_id)
        log.info("%s  %s  delivered to %d waiting", lease.worker, event_id, delivered)

    async def _wake(self, subscription: EventSubscription, event: Event, lease: Lease) -> None:
        """Puts the event into the workflow that waits, and ends the wait."""
        while True:
            try:
                workflow = await self._store.get_workflow_instance(subscription.workflow_id)
            except WorkflowNotFound:
                pointer = None
            else:
                pointer = _waiting(workflow, subscription)
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


# What becomes of a workflow: changes of its state only, to be persisted as one.


def _pointer(step_id: int, definition: Definition) -> ExecutionPointer:
    return ExecutionPointer(
        id=str(step_id + 1),
        step_id=step_id,
        step_name=definition.steps[step_id][0],
        active=True,
        predecessor_id=str(step_id) if step_id else None,
    )


def _advance(
    definition: Definition,
    workflow: WorkflowInstance,
    pointer: ExecutionPointer,
    result: StepResult,
) -> list[EventSubscription]:
    """After a step that ended well. Answers the subscription to persist with it, if any."""
    pointer.sleep_until = None
    match result:
        case Next(outcome):
            pointer.outcome = outcome
            _end(pointer, PointerStatus.COMPLETE)
            following = pointer.step_id + 1
            if following < len(definition.steps):
                workflow.execution_pointers.append(_pointer(following, definition))
                workflow.next_execution = millis(now())
            else:
                _end_workflow(workflow, WorkflowStatus.COMPLETE)
        case Sleep(until, remember):
            pointer.persistence_data = remember
            _sleep(workflow, pointer, until)
        case WaitFor(event_name, event_key):
            subscription = EventSubscription(
                id=str(uuid.uuid4()),
                workflow_id=workflow.id,
                step_id=pointer.step_id,
                execution_pointer_id=pointer.id,
                event_name=event_name,
                event_key=event_key,
                subscribe_as_of=workflow.create_time,
            )
            pointer.status = PointerStatus.WAITING_FOR_EVENT
            pointer.event_name, pointer.event_key = event_name, event_key
            pointer.event_published, pointer.event_data = False, ABSENT
            pointer.extension_attributes[_SUBSCRIPTION] = subscription.id
            workflow.next_execution = None
            return [subscription]
    return []


def _fail(definition: Definition, workflow: WorkflowInstance, pointer: ExecutionPointer) -> None:
    """After a step that failed: again later, or the end of the workflow."""
    if pointer.retry_count >= definition.max_retries:
        _end(pointer, PointerStatus.FAILED)
        _end_workflow(workflow, WorkflowStatus.TERMINATED)
    else:
        _sleep(workflow, pointer, now() + definition.backoff * 2**pointer.retry_count)
        pointer.retry_count += 1


def _sleep(workflow: WorkflowInstance, pointer: ExecutionPointer, until: datetime) -> None:
    pointer.status = PointerStatus.SLEEPING
    pointer.sleep_until = until
    workflow.next_execution = millis(until)


def _end(pointer: ExecutionPointer, status: PointerStatus) -> None:
    pointer.status = status
    pointer.active = False
    pointer.sleep_until = None
    pointer.end_time = now()


def _end_workflow(workflow: WorkflowInstance, status: WorkflowStatus) -> None:
    workflow.status = status
    workflow.next_execution = None
    workflow.complete_time = now()


#: The extension attribute with the id of the subscription a pointer waits with.
_SUBSCRIPTION = "subscription"


def _waiting(
    workflow: WorkflowInstance, subscription: EventSubscription
) -> ExecutionPointer | None:
    """The pointer that waits with this very subscription, if it still does."""
    for pointer in workflow.execution_pointers:
        if (
            pointer.id == subscription.execution_pointer_id
            and pointer.status is PointerStatus.WAITING_FOR_EVENT
            and pointer.extension_attributes.get(_SUBSCRIPTION) == subscription.id
        ):
            return pointer
    return None


def _said(result: StepResult) -> str:
    match result:
        case Sleep(until):
            return f"sleeps until {until:%H:%M:%S.%f}"
        case WaitFor(event_name):
            return f"waits for {event_name}"
    return "done"


def now() -> datetime:
    """This host's time."""
    return datetime.now(UTC)


def millis(when: datetime) -> int:
    """Milliseconds since 1970, not before `when`."""
    return math.ceil(when.timestamp() * 1000)
