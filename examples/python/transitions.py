"""How a step's result or failure changes a workflow: its state only, persisted by the engine."""

import uuid
from datetime import datetime

from examples.python.definition import Definition, Next, Sleep, StepResult, WaitFor, millis, now
from wfe_persistence_client import (
    ABSENT,
    EventSubscription,
    ExecutionPointer,
    PointerStatus,
    WorkflowInstance,
    WorkflowStatus,
)

#: The extension attribute with the id of the subscription that a pointer waits on.
_SUBSCRIPTION = "subscription"


def new_pointer(step_id: int, definition: Definition) -> ExecutionPointer:
    """The execution pointer of a step that has not run yet."""
    return ExecutionPointer(
        id=str(step_id + 1),
        step_id=step_id,
        step_name=definition.steps[step_id][0],
        active=True,
        predecessor_id=str(step_id) if step_id else None,
    )


def advance(
    definition: Definition,
    workflow: WorkflowInstance,
    pointer: ExecutionPointer,
    result: StepResult,
) -> list[EventSubscription]:
    """Applies the result of a step. Returns the subscriptions to persist with it."""
    pointer.sleep_until = None
    match result:
        case Next(outcome):
            pointer.outcome = outcome
            _end(pointer, PointerStatus.COMPLETE)
            following = pointer.step_id + 1
            if following < len(definition.steps):
                workflow.execution_pointers.append(new_pointer(following, definition))
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


def fail(definition: Definition, workflow: WorkflowInstance, pointer: ExecutionPointer) -> None:
    """Applies the failure of a step: schedules a retry, or terminates the workflow."""
    if pointer.retry_count >= definition.max_retries:
        _end(pointer, PointerStatus.FAILED)
        _end_workflow(workflow, WorkflowStatus.TERMINATED)
    else:
        _sleep(workflow, pointer, now() + definition.backoff * 2**pointer.retry_count)
        pointer.retry_count += 1


def waiting_pointer(
    workflow: WorkflowInstance, subscription: EventSubscription
) -> ExecutionPointer | None:
    """The pointer that waits on this subscription, if it still does."""
    for pointer in workflow.execution_pointers:
        if (
            pointer.id == subscription.execution_pointer_id
            and pointer.status is PointerStatus.WAITING_FOR_EVENT
            and pointer.extension_attributes.get(_SUBSCRIPTION) == subscription.id
        ):
            return pointer
    return None


def describe(result: StepResult) -> str:
    """A result as text for the log."""
    match result:
        case Sleep(until):
            return f"sleeps until {until:%H:%M:%S.%f}"
        case WaitFor(event_name):
            return f"waits for {event_name}"
    return "done"


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
