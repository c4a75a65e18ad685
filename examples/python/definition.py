"""What a workflow is made of: its steps, what they get, and what they return."""

import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from wfe_persistence_client import (
    ABSENT,
    JSON,
    Absent,
    Event,
    EventAlreadyExists,
    PersistenceProvider,
    QueueItem,
)


@dataclass(frozen=True)
class Next:
    """The step is done; continue with the next one."""

    outcome: JSON | Absent = ABSENT


@dataclass(frozen=True)
class Sleep:
    """Run the step again at that time, with `remember` in `Context.memory`."""

    until: datetime
    remember: JSON


@dataclass(frozen=True)
class WaitFor:
    """Run the step again when the event arrives, with its payload in
    `Context.event_data`.

    Events since the workflow's creation match, including those before the wait.
    """

    event_name: str
    event_key: str


StepResult = Next | Sleep | WaitFor


#: The queues: of workflows to run, and of events to deliver. An item's id is theirs.
WORKFLOWS = "orders.workflows"
EVENTS = "orders.events"


@dataclass
class Context:
    """The input of a step."""

    workflow_id: str
    step_name: str
    #: The idempotency key: the same for every run of this step of this workflow.
    key: str
    #: The number of failed attempts so far.
    attempt: int
    #: The workflow's data. Changes are kept if the step does not fail.
    data: dict[str, JSON]
    #: `remember` of the step's last `Sleep`.
    memory: JSON | Absent
    #: The payload of the event that the step waited for.
    event_data: JSON | Absent
    #: Who runs the step, and the fencing token of its lease on the workflow.
    worker: str
    epoch: int
    store: PersistenceProvider

    async def publish(self, event_name: str, event_key: str, data: JSON, delay: timedelta) -> None:
        """Publishes an event after a delay. Idempotent: running the step again publishes no second
        one."""
        when = now() + delay
        event = Event(
            id=self.key,
            event_name=event_name,
            event_key=event_key,
            event_data=data,
            event_time=when,
        )
        with suppress(EventAlreadyExists):  # it has the time of an earlier run
            due = QueueItem(queue=EVENTS, id=event.id, visible_time=when)
            await self.store.create_event(event, enqueue=[due])


#: Does the step's work. If it raises, the error is logged and the step is retried
#: later.
StepFunction = Callable[[Context], Awaitable[StepResult]]


#: Handles an event on the host. It may get the same event again, even concurrently if
#: it takes longer than a lease.
Listener = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True)
class Definition:
    """A workflow definition: named steps, run in sequence."""

    id: str
    version: int
    steps: Sequence[tuple[str, StepFunction]]
    #: Maximum number of retries of a step; one more failure terminates the workflow.
    max_retries: int = 3
    #: The backoff before the first retry; it doubles with each one.
    backoff: timedelta = timedelta(milliseconds=100)


def now() -> datetime:
    """The host's current time."""
    return datetime.now(UTC)


def millis(when: datetime) -> int:
    """Milliseconds since 1970-01-01T00:00:00Z, rounded up."""
    return math.ceil(when.timestamp() * 1000)
