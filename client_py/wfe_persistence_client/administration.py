"""What people do to workflows by hand, and what they call stuck: for tools such as the command line
and the console, so that the same word does the same thing in each.

    administration = Administration(provider, by="ops: jane")
    change = await administration.suspend("order-42")
    if change.changed:
        print(change.before.status, "->", change.status)

Each change is one transaction: a workflow is written as it was read (`expected_revision`), and not
while a host runs it, which would write back what it had read before. What happened is published in
the same transaction.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypedDict

from wfe_persistence_client.errors import Unimplemented
from wfe_persistence_client.model import (
    HeaderChanges,
    LifecycleEvent,
    LifecycleEventType,
    QueueItem,
    QueueKind,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowStatus,
    WorkflowView,
)
from wfe_persistence_client.provider import PersistenceProvider

__all__ = [
    "EXPLANATIONS",
    "STUCK_AFTER",
    "Administration",
    "Change",
    "HasEnded",
    "IsRun",
    "NotChanged",
    "is_stuck",
    "stuck_since",
]

STUCK_AFTER: Final = timedelta(minutes=5)
"""So long after its time has come, a workflow that nobody has written counts as stuck."""

EXPLANATIONS: Final = {
    "suspend": "No host runs it until it is resumed.",
    "resume": "Hosts go on with it: it is put into every queue of workflows, and is due now if it "
    "has no time to be run.",
    "terminate": "It ends at once, as it is: without its remaining steps and without compensation. "
    "What it waits for stays until it is deleted. It can't be undone.",
    "delete": "It is removed with its execution pointers, subscriptions and logged errors; "
    "workflows below it, events and commands stay. It can't be undone.",
}
"""What a change means, for whoever is asked about one."""

DEFAULT_WAIT: Final = timedelta(seconds=5)
"""How long a host that runs a workflow is waited for."""

# How long the lock on a workflow is held at most, if this process is killed.
_LOCK: Final = timedelta(seconds=30)
# How often it is looked whether a worker has ended.
_LOOK_SECONDS: Final = 0.2
_ENDED: Final = (WorkflowStatus.COMPLETE, WorkflowStatus.TERMINATED)


def _now() -> datetime:
    return datetime.now(UTC)


class StuckConditions(TypedDict):
    """The members of a `WorkflowFilter`, or of its message, that choose what is stuck."""

    due_before: datetime
    written_before: datetime


def stuck_since(moment: datetime) -> StuckConditions:
    """What has been stuck since a moment: it is RUNNABLE, its time (`next_execution`) had come by
    then, and nobody has written it since.

    Both, because an engine's next_execution of 0 means "at once": it says nothing of when.
    """
    return {"due_before": moment, "written_before": moment}


async def is_stuck(
    provider: PersistenceProvider, instance: WorkflowInstance, moment: datetime | None = None
) -> bool:
    """Whether a workflow, as it was read from the store, has been stuck since a moment; None:
    for `STUCK_AFTER`."""
    if instance.status is not WorkflowStatus.RUNNABLE or instance.next_execution is None:
        return False
    # What has its name and was created when it was is few, and found by an index.
    like_it = WorkflowFilter(
        name_prefix=instance.name,
        create_time_from=instance.create_time,
        create_time_before=instance.create_time + timedelta(microseconds=1),
        **stuck_since(_now() - STUCK_AFTER if moment is None else moment),
    )
    async for found in provider.iter_workflows(like_it):
        if found.id == instance.id:
            return True
    return False


class NotChanged(Exception):  # noqa: N818 — what has happened, as in `errors`
    """A workflow was not changed; the message, which begins behind its name, says why."""


class HasEnded(NotChanged):
    """It has ended, and stays as it is."""


class IsRun(NotChanged):
    """A host is running it."""


@dataclass(frozen=True, slots=True)
class Change:
    """What was done to a workflow."""

    before: WorkflowInstance
    """Its header as it was."""
    status: WorkflowStatus
    """What it is now."""
    revision: int
    """Its revision now."""

    @property
    def changed(self) -> bool:
        """False: it was so already, and nothing was written."""
        return self.before.status is not self.status


class Administration:
    """Changes workflows.

    `by`: who does it, for those who look at locks and lifecycle events. `wait`: how long a host
    that runs a workflow is waited for. With `force`, it is not: what the host writes next may undo
    the change. `now`: the clock by which things end and are due.
    """

    def __init__(
        self,
        provider: PersistenceProvider,
        *,
        by: str,
        wait: timedelta = DEFAULT_WAIT,
        force: bool = False,
        now: Callable[[], datetime] = _now,
    ) -> None:
        # A replica might not know yet who runs it.
        self._provider = provider.with_reads("primary")
        self._by = by
        self._wait = timedelta(0) if force else wait
        self._force = force
        self._now = now
        self._queues: list[str] | None = None

    async def suspend(self, workflow_id: str, *, expected_revision: int | None = None) -> Change:
        """Has no host run a workflow until it is resumed. See `change` for the rest."""
        return await self._change(
            workflow_id, expected_revision, {"status": WorkflowStatus.SUSPENDED}
        )

    async def resume(self, workflow_id: str, *, expected_revision: int | None = None) -> Change:
        """Has hosts go on with a suspended workflow.

        It is enqueued in every queue of workflows. One that has no time to be run is due now, so
        that hosts without queues look at it, too.
        """
        return await self._change(
            workflow_id, expected_revision, {"status": WorkflowStatus.RUNNABLE}
        )

    async def terminate(self, workflow_id: str, *, expected_revision: int | None = None) -> Change:
        """Ends a workflow for good, as it is, without compensation."""
        return await self._change(
            workflow_id, expected_revision, {"status": WorkflowStatus.TERMINATED}
        )

    async def delete(self, workflow_id: str, *, expected_revision: int | None = None) -> None:
        """Deletes a workflow, whatever its status.

        Args:
            workflow_id: its id.
            expected_revision: that of the workflow as it was seen; None: whatever it is.

        Raises:
            WorkflowNotFound: there is none.
            RevisionMismatch: it has another revision by now; it was not deleted.
            IsRun: a host is running it; it was not deleted.
        """
        async with self._nobody_runs(workflow_id):
            await self._provider.delete_workflow(workflow_id, expected_revision=expected_revision)

    async def _change(
        self, workflow_id: str, expected_revision: int | None, header: HeaderChanges
    ) -> Change:
        """Gives a workflow another status.

        Raises:
            WorkflowNotFound: there is none.
            RevisionMismatch: it has another revision than the one expected, or somebody has
                written it meanwhile; it was not changed.
            HasEnded: it can't have this status any more.
            IsRun: a host is running it; it was not changed.
        """
        status = header["status"]
        instance = await self._read(workflow_id)
        if (change := _needless(instance, status)) is not None:
            return change
        async with self._nobody_runs(workflow_id) as token:
            # Read again: a host may have gone on with it until it released the lock.
            instance = await self._read(workflow_id)
            if (change := _needless(instance, status)) is not None:
                return change
            now = self._now()
            items: list[QueueItem] = []
            if status is WorkflowStatus.TERMINATED:
                header["complete_time"] = now
            elif status is WorkflowStatus.RUNNABLE:
                items = [
                    QueueItem(queue=each, id=workflow_id) for each in await self._of_workflows()
                ]
                if instance.next_execution is None:
                    header["next_execution"] = int(now.timestamp() * 1000)
            committed = await self._provider.commit_workflow(
                WorkflowPatch(id=workflow_id, header=header),
                expected_revision=(
                    instance.revision if expected_revision is None else expected_revision
                ),
                held_lock_tokens=[token] if token else [],
                enqueue=items,
                publish=[self._happened(instance, status)],
            )
            return Change(instance, status, committed.revision)

    async def _read(self, workflow_id: str) -> WorkflowInstance:
        return await self._provider.get_workflow_instance(workflow_id, view=WorkflowView.HEADER)

    def _happened(self, instance: WorkflowInstance, status: WorkflowStatus) -> LifecycleEvent:
        return LifecycleEvent(
            type=_EVENTS[status],
            workflow_id=instance.id,
            workflow_definition_id=instance.workflow_definition_id,
            version=instance.version,
            reference=instance.reference,
            message=f"by {self._by}",
        )

    async def _of_workflows(self) -> list[str]:
        """The queues whose items stand for workflows. (What is counted there takes time, so
        once.)"""
        if self._queues is None:
            try:
                stats = await self._provider.get_queue_stats()
            except Unimplemented:  # a server without queues
                stats = []
            self._queues = [each.queue for each in stats if each.kind is QueueKind.WORKFLOW]
        return self._queues

    @asynccontextmanager
    async def _nobody_runs(self, workflow_id: str) -> AsyncIterator[str | None]:
        """Holds the lock on a workflow, as a host does that runs it; with `force`, only if it is
        free. The value is its token; None: it is not held.

        Hosts that take their work from the server's queues hold no lock while they run a workflow,
        but its item under a lease; so that has to have ended, too.
        """
        provider = self._provider
        until = time.monotonic() + self._wait.total_seconds()
        try:
            acquired = await provider.acquire_lock(
                workflow_id, owner=self._by, ttl=_LOCK + self._wait, wait=self._wait
            )
        except Unimplemented:  # a server without locks and queues
            yield None
            return
        if acquired is None:
            if not self._force:
                raise IsRun(
                    f"is being run: {await self._holder(workflow_id) or 'somebody'} holds the "
                    "lock on it. It was not changed"
                )
            yield None
            return
        try:
            if not self._force:
                await self._until_no_lease(workflow_id, until)
            yield acquired.token
        finally:
            await provider.release_lock(acquired.token)

    async def _holder(self, resource: str) -> str:
        async for lock in self._provider.iter_locks(resource_prefix=resource, page_size=1):
            return lock.owner if lock.resource == resource else ""
        return ""

    async def _until_no_lease(self, workflow_id: str, until: float) -> None:
        while (worker := await self._worker(workflow_id)) is not None:
            if time.monotonic() >= until:
                raise IsRun(
                    f"is being run: {worker or 'somebody'} holds its item of a queue. It was not "
                    "changed"
                )
            await asyncio.sleep(_LOOK_SECONDS)

    async def _worker(self, workflow_id: str) -> str | None:
        """Who holds an item that stands for it; None: nobody."""
        for queue in await self._of_workflows():
            for listed in await self._provider.list_queue_items(queue, item_id=workflow_id):
                if listed.lease is not None:
                    return listed.lease.worker_id
        return None


_EVENTS: Final = {
    WorkflowStatus.SUSPENDED: LifecycleEventType.SUSPENDED,
    WorkflowStatus.RUNNABLE: LifecycleEventType.RESUMED,
    WorkflowStatus.TERMINATED: LifecycleEventType.TERMINATED,
}
_VERBS: Final = {
    WorkflowStatus.SUSPENDED: "suspended",
    WorkflowStatus.RUNNABLE: "resumed",
    WorkflowStatus.TERMINATED: "terminated",
}


def _needless(instance: WorkflowInstance, status: WorkflowStatus) -> Change | None:
    """The change, if there is nothing to do. Raises HasEnded."""
    if instance.status is status:
        return Change(instance, status, instance.revision)
    if instance.status in _ENDED:
        raise HasEnded(f"is {instance.status.name}, and can't be {_VERBS[status]}")
    return None
