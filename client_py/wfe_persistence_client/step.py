"""One step of an engine, collected to be committed in one transaction.

A step is a workflow's new state and all effects of the step. It is stored in one
transaction when its `with` block ends without an exception, and not at all if the block
raises.
"""

import uuid
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from wfe.persistence.v1 import workflow_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.hints import checked_methods
from wfe_persistence_client.lock import Hold
from wfe_persistence_client.misfit import check_text
from wfe_persistence_client.model import (
    Acknowledgement,
    AcquiredLock,
    ClaimedCommand,
    CommittedWorkflow,
    DequeuedItem,
    Event,
    EventSubscription,
    ExecutionError,
    LifecycleEvent,
    QueueItem,
    ScheduledCommand,
    SubscriptionClaim,
    WorkflowInstance,
)


def _random_id() -> str:
    return str(uuid.uuid4())


@checked_methods
class StepBuilder:
    """Collects the effects of one step: everything but the workflow's own state.

    Nothing is sent before the end of the block, but every argument is converted
    immediately: later changes to it are not stored. An argument that cannot be sent
    raises ValueError or TypeError.
    """

    def __init__(self, workflow: WorkflowInstance) -> None:
        #: The workflow, stored in its state at the end of the block.
        self.workflow = workflow
        self._effects = workflow_pb2.CommitWorkflowRequest()
        self._committed: CommittedWorkflow | None = None
        self._ended = False
        #: Makes up the ids of what has none.
        self._new_id: Callable[[], str] = _random_id

    def create_subscription(self, subscription: EventSubscription) -> str:
        """Creates a subscription, and returns its id (a new UUID if it has none)."""
        message = convert.subscription_to_proto(subscription)
        message.id = message.id or self._new_id()
        self._open().create_subscriptions.append(message)
        return message.id

    def terminate_subscription(self, subscription_id: str) -> None:
        """Removes a subscription, open or held; it must exist."""
        self._open().terminate_subscription_ids.append(subscription_id)

    def create_event(self, event: Event) -> str:
        """Creates an event, and returns its id (a new UUID if it has none)."""
        message = convert.event_to_proto(event)
        message.id = message.id or self._new_id()
        self._open().create_events.append(message)
        return message.id

    def mark_event_processed(self, event_id: str) -> None:
        """Marks an event as processed; it must exist."""
        self._open().processed_event_ids.append(event_id)

    def log_error(self, error: ExecutionError) -> None:
        """Adds an error to the log."""
        self._open().errors.append(convert.error_to_proto(error))

    def schedule_command(self, command: ScheduledCommand) -> None:
        """Schedules a command (upsert: one with the same name and data gets the new time)."""
        self._open().schedule_commands.append(convert.command_to_proto(command))

    def complete(self, command: ClaimedCommand | str) -> None:
        """Removes a claimed command (or its lease token) that this step has handled.

        The step is stored only if the command is still claimed under this lease. If it
        was rescheduled, also by this step, it stays, with its new time.
        """
        token = command if isinstance(command, str) else convert.lease_token(command)
        self._open().complete_lease_tokens.append(token)

    def hold(self, claim: SubscriptionClaim | ClaimedCommand | AcquiredLock | Hold | str) -> None:
        """Makes the step conditional: it is stored only if this claim is still held.

        Args:
            claim: a claim on a subscription, a claimed command, the lease token of one,
                or a lock (what `lock` or `acquire_lock` returned).
        """
        if isinstance(claim, AcquiredLock | Hold):
            check_text("token", claim.token)
            self._open().held_lock_tokens.append(claim.token)
        elif isinstance(claim, ClaimedCommand):
            self._open().held_lease_tokens.append(convert.lease_token(claim))
        elif isinstance(claim, str):
            self._open().held_lease_tokens.append(claim)
        else:
            self._open().held_subscriptions.append(convert.claim_to_proto(claim))

    def enqueue(self, item: QueueItem) -> None:
        """Enqueues an item; an empty id stands for that of the workflow.

        If it is also acknowledged by this step, it comes again, at its `visible_time`: so
        a host goes on with a workflow later.
        """
        self._open().enqueue.append(convert.queue_item_to_proto(item))

    def acknowledge(self, item: DequeuedItem | str, *, confirmed: bool = False) -> None:
        """Removes a dequeued item (or its receipt) that this step has handled.

        The step is stored only if the item is still held.

        Args:
            item: the item, or its receipt.
            confirmed: whether it goes only if the store says that its work is done, by
                the state after this step; see `returned_receipts`.
        """
        receipt = item if isinstance(item, str) else item.receipt
        given = Acknowledgement(receipt=receipt, confirmed=confirmed)
        self._open().acknowledge.append(convert.acknowledgement_to_proto(given))

    def publish(self, event: LifecycleEvent) -> None:
        """Tells all who watch the lifecycle of workflows, in the order of these calls."""
        self._open().publish.append(convert.lifecycle_event_to_proto(event))

    @property
    def revision(self) -> int:
        """The workflow's revision after the step; raises RuntimeError before it is stored."""
        return self._result().revision

    @property
    def subscription_ids(self) -> list[str]:
        """The ids of the created subscriptions, in order; raises like `revision`."""
        return self._result().subscription_ids

    @property
    def event_ids(self) -> list[str]:
        """The ids of the created events, in order; raises like `revision`."""
        return self._result().event_ids

    @property
    def returned_receipts(self) -> list[str]:
        """The receipts of items that were not confirmed, and come back; raises like `revision`."""
        return self._result().returned_receipts

    def _result(self) -> CommittedWorkflow:
        if self._committed is None:
            raise RuntimeError("the step has not been stored")
        return self._committed

    def _open(self) -> workflow_pb2.CommitWorkflowRequest:
        if self._ended:
            raise RuntimeError("the step has ended")
        return self._effects


#: Stores a workflow together with the effects of a step.
Commit = Callable[
    [WorkflowInstance, workflow_pb2.CommitWorkflowRequest],
    Coroutine[Any, Any, CommittedWorkflow],
]


class Step(StepBuilder):
    """A step as an async context manager; `PersistenceProvider.step` creates one."""

    def __init__(self, workflow: WorkflowInstance, commit: Commit) -> None:
        super().__init__(workflow)
        self._commit = commit

    async def __aenter__(self) -> Self:
        """Returns the step; nothing is sent yet. Raises RuntimeError if it was used already."""
        self._open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stores the step, unless the block raised."""
        effects = self._open()
        self._ended = True
        if exc_type is None:
            self._committed = await self._commit(self.workflow, effects)
