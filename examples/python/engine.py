"""A small workflow engine that stores all its state in the persistence server.

Any number of engines may work on one store, and any of them may crash at any time.

- The stored workflow says what to do next. A worker changes it only against the revision
  that it read, so a decision based on outdated state is rejected. The step stores the new
  state and all its effects in one transaction: subscriptions, errors, the end of a wait, the
  end of the item that was handled, and the item for the next step.
- An item of a queue is the right to do it: there is one per workflow and per event, and it
  is given to one worker at a time, under a lease that the provider's worker renews. So two
  workers never run a step at the same time, unless one is frozen for longer than its lease;
  its late result is then rejected.

So a step is two calls: one brings the item and its workflow, the other one stores the step.

What a crash leaves behind:

- Before a step's result is stored: the old state, and the item under a lease. When it
  expires, another worker runs the step again. So steps run *at least once*; each has a
  stable idempotency key (workflow id / pointer id) with which external systems apply its
  effects once.
- After it is stored: the new state, and the item for the next step. A workflow that waits
  for an event has an item too, for the check for earlier events.
- While an event is being delivered: its item, under a lease. The next worker delivers it to
  the subscriptions that are left: a workflow has the event if and only if its subscription
  has been removed.
"""

import asyncio
import copy
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from examples.python.definition import (
    EVENTS,
    WORKFLOWS,
    Context,
    Definition,
    Listener,
    millis,
    now,
)
from examples.python.transitions import advance, describe, fail, new_pointer, waiting_pointer
from wfe_persistence_client import (
    JSON,
    Event,
    EventNotFound,
    EventSubscription,
    ExecutionError,
    ExecutionPointer,
    PersistenceError,
    PersistenceProvider,
    PointerStatus,
    QueueItem,
    RevisionMismatch,
    SubscriptionNotFound,
    Work,
    Worker,
    WorkerHooks,
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
        await store.create_new_workflow(workflow, enqueue=[QueueItem(queue=WORKFLOWS, id="")])
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
        wait: timedelta = timedelta(seconds=1),
    ) -> None:
        self._store = store
        self._definitions = {(d.id, d.version): d for d in definitions}
        self._listeners = listeners
        self._name = name
        self._lease = lease
        self._wait = wait
        self._hooks = WorkerHooks(
            on_error=self._failed,
            on_lost=lambda work: log.info("%s: discarded, the lease is lost", work.item.item.id),
            on_outage=lambda error: log.warning("store: %s", error),
        )

    async def run(self, workers: int, stop: asyncio.Event) -> None:
        """Runs until `stop` is set; then the workers finish what they have."""
        running = [self._workflows(workers), self._events(workers)]
        async with asyncio.TaskGroup() as tasks:
            for worker in running:
                tasks.create_task(worker.run())
            await stop.wait()
            for worker in running:
                worker.stop()

    def _workflows(self, workers: int) -> Worker:
        return self._store.worker(
            WORKFLOWS,
            self._run_workflow,
            concurrency=workers,
            lease_duration=self._lease,
            wait=self._wait,
            worker_id=self._name,
            hooks=self._hooks,
        )

    def _events(self, workers: int) -> Worker:
        return self._store.worker(
            EVENTS,
            self._deliver,
            concurrency=workers,
            lease_duration=self._lease,
            wait=self._wait,
            include_workflow=False,
            worker_id=self._name,
            hooks=self._hooks,
        )

    def _failed(self, work: Work, error: Exception) -> None:
        """Not a step that failed, which is retried by its own rules, but the engine."""
        if isinstance(error, PersistenceError):
            log.warning("%s: again later: %s", work.item.item.id, error)
        else:
            log.error("%s: again later", work.item.item.id, exc_info=error)

    # Workflows

    async def _run_workflow(self, work: Work) -> None:
        """Takes the workflow's next step."""
        workflow = work.workflow
        if workflow is None or workflow.status is not WorkflowStatus.RUNNABLE:
            return
        pointer = next((p for p in workflow.execution_pointers if p.active), None)
        if pointer is None:
            log.warning(
                "%s: runnable, but has no active step; does it belong to another engine?",
                workflow.id,
            )
        elif pointer.status is PointerStatus.WAITING_FOR_EVENT:
            await self._find_earlier_events(workflow, pointer)
        elif (workflow.next_execution or 0) > millis(now()):
            # Too early. It comes once more after this item has been acknowledged.
            await self._store.enqueue([_next_item(workflow)])
        else:
            await self._run_step(work, workflow, pointer)

    async def _run_step(
        self, work: Work, workflow: WorkflowInstance, pointer: ExecutionPointer
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
            worker=self._name,
            epoch=work.item.epoch,
            store=self._store,
        )
        pointer.start_time = pointer.start_time or now()
        subscriptions: list[EventSubscription] = []
        errors: list[ExecutionError] = []
        try:
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
        async with work.commit() as stored:
            for subscription in subscriptions:
                stored.create_subscription(subscription)
            for logged in errors:
                stored.log_error(logged)
            if workflow.status is WorkflowStatus.RUNNABLE:
                stored.enqueue(_next_item(workflow))
        log.info("%s  %s  %s: %s", self._name, workflow.id, name, said)

    async def _find_earlier_events(
        self, workflow: WorkflowInstance, pointer: ExecutionPointer
    ) -> None:
        """Has events delivered that may have arrived before the subscription was stored.

        A delivery in progress, which may have looked for subscriptions too early, is not
        disturbed: an item that is enqueued while it is handled comes once more afterwards.
        """
        for event_id in await self._store.get_events(
            pointer.event_name or "", pointer.event_key or ""
        ):
            event = await self._store.get_event(event_id)
            if event.event_time >= workflow.create_time:
                await self._store.enqueue([QueueItem(queue=EVENTS, id=event_id)])

    # Events

    async def _deliver(self, work: Work) -> None:
        """Delivers an event to the host's listener and to all workflows that wait for it."""
        event_id = work.item.item.id
        try:
            event = await self._store.get_event(event_id)
        except EventNotFound as error:
            log.warning("%s: %s", event_id, error)
            return
        if listener := self._listeners.get(event.event_name):
            await listener(event)
        delivered = 0
        for subscription in await self._store.get_subscriptions(
            event.event_name, event.event_key, event.event_time
        ):
            delivered += await self._wake(subscription, event)
        await self._store.mark_event_processed(event_id)
        log.info("%s  %s  delivered to %d waiting", self._name, event_id, delivered)

    async def _wake(self, subscription: EventSubscription, event: Event) -> bool:
        """Stores the event in the waiting workflow, and ends the wait."""
        while True:
            try:
                workflow = await self._store.get_workflow_instance(subscription.workflow_id)
            except WorkflowNotFound:
                pointer = None
            else:
                pointer = waiting_pointer(workflow, subscription)
            try:
                if pointer is None:
                    await self._store.terminate_subscription(subscription.id)
                    return False
                pointer.status = PointerStatus.PENDING
                pointer.event_published = True
                pointer.event_data = event.event_data
                workflow.next_execution = millis(now())
                async with self._store.step(workflow, strict=True) as stored:
                    stored.terminate_subscription(subscription.id)
                    stored.enqueue(_next_item(workflow))
            except SubscriptionNotFound:
                return False  # another event has ended the wait
            except RevisionMismatch:
                continue
            return True


def _next_item(workflow: WorkflowInstance) -> QueueItem:
    """The workflow's item at the time of its next step; at once if it waits for an event."""
    item = QueueItem(queue=WORKFLOWS, id=workflow.id)
    if workflow.next_execution is not None:
        item.visible_time = datetime.fromtimestamp(workflow.next_execution / 1000, UTC)
    return item
