"""WaitForWorkflow: a call waits until a workflow has one of some statuses, whoever writes it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Final

from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    PersistWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
    WorkflowInstance,
    WorkflowStatus,
    WorkflowView,
)
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import workflow
from wfe_persistence.store.records import WORKFLOW_STATUS
from wfe_persistence.store.rows import read_text, text, text_array
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import ALL, Ahead, Kind, Line, Waiters, is_passing

Write = CommitWorkflowRequest | PersistWorkflowRequest | PersistWorkflowWithSubscriptionsRequest

# $1 ids, $2 a status: which of these workflows have another one.
LOOK_AT_WORKFLOWS = """
SELECT w.id FROM unnest($1::text[]) AS g(id), LATERAL (
    SELECT id, status FROM wfc.workflows WHERE id = g.id LIMIT 1
) w
WHERE w.status <> $2
"""


async def look_at_workflows(
    status: WorkflowStatus.ValueType, store: Store, ids: Sequence[str]
) -> Iterable[Ahead]:
    """Which of these workflows have a status, or are gone."""
    rows = await store.read(LOOK_AT_WORKFLOWS, text_array(ids), text(WORKFLOW_STATUS[status]))
    others = {read_text(rows.get_value(i, 0)) for i in range(rows.ntuples)}
    return [Ahead(id_, ALL) for id_ in ids if id_ not in others]


# A kind for each status: so nobody is woken by steps of a workflow that do not change its status,
# and servers on which nobody waits for, say, RUNNABLE are not told of them.
STATUS_KIND: Final[dict[WorkflowStatus.ValueType, Kind]] = {
    status: Kind(f"workflow.{name}", partial(look_at_workflows, status))
    for status, name in WORKFLOW_STATUS.items()
}


_HEADER: Final = WorkflowView.WORKFLOW_VIEW_HEADER
WAIT_FOR_WORKFLOW = workflow.GET_WORKFLOW_INSTANCE[_HEADER]


async def wait_for_workflow(
    store: Store,
    id_: str,
    statuses: Collection[WorkflowStatus.ValueType],
    until: float,
    waiters: Waiters,
) -> WorkflowInstance:
    """The header of a workflow as soon as it has one of these statuses, or at this time of the
    event loop. Raises WORKFLOW_NOT_FOUND, also if it is deleted meanwhile."""
    if until <= asyncio.get_running_loop().time():
        return await workflow.get_workflow_instance(store, id_, _HEADER)
    lines = (Line(store.namespace, STATUS_KIND[status], id_) for status in statuses)
    is_last = False
    with waiters.join(store, *lines) as waiter:
        instance = await workflow.get_workflow_instance(store, id_, _HEADER)
        while not (instance.status in statuses or is_last):
            is_last = not await waiter.pause(until)
            try:
                instance = await workflow.get_workflow_instance(store, id_, _HEADER)
            except PersistenceError as exc:
                if not is_passing(exc) or is_last:
                    raise
    return instance


def wake_written(store: Store, message: Write, waiters: Waiters) -> None:
    """Wake who waits for the status that a workflow has now, after a write of its state."""
    if isinstance(message, CommitWorkflowRequest) and message.HasField("patch"):
        id_, status = message.patch.id, message.patch.header.status
    else:
        id_, status = message.instance.id, message.instance.status
    if (kind := STATUS_KIND.get(status)) is not None:
        waiters.wake_all(Line(store.namespace, kind, id_))


def wake_deleted(store: Store, id_: str, waiters: Waiters) -> None:
    """Wake who waits for a workflow, after it was deleted."""
    for kind in STATUS_KIND.values():
        waiters.wake_all(Line(store.namespace, kind, id_))


def stir_purged(store: Store, waiters: Waiters) -> None:
    """Have those looked at who wait for workflows, after some were deleted."""
    waiters.stir_all(store.namespace, *STATUS_KIND.values())
