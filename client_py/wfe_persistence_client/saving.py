"""How a workflow is stored: as a patch against a remembered snapshot, or in full.

`patches` has the snapshots and computes patches; `step` collects a step's other
effects.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc.aio

from wfe.persistence.v1 import store_pb2, workflow_pb2
from wfe_persistence_client import convert, patches
from wfe_persistence_client.connection import Connection, new_id
from wfe_persistence_client.deadline import Deadline
from wfe_persistence_client.errors import (
    CommitOutcomeUnknown,
    PartialWorkflow,
    PersistenceError,
    PointerNotFound,
    RevisionMismatch,
    Unimplemented,
)
from wfe_persistence_client.model import CommittedWorkflow, WorkflowInstance, WorkflowView

#: Maximum number of items in each list of a commit.
_LARGEST_COMMIT: Final = 1000

#: Stores a workflow in full: its state, the expected revision, the deadline.
Whole = Callable[
    [workflow_pb2.WorkflowInstance, int | None, Deadline], Awaitable[CommittedWorkflow]
]

_PersistT = TypeVar(
    "_PersistT",
    workflow_pb2.PersistWorkflowRequest,
    workflow_pb2.PersistWorkflowWithSubscriptionsRequest,
)
_PersistedT = TypeVar(
    "_PersistedT",
    workflow_pb2.PersistWorkflowResponse,
    workflow_pb2.PersistWorkflowWithSubscriptionsResponse,
)


class Saving(Connection):
    """Stores workflows, and remembers what was last stored or read."""

    async def _save(
        self,
        instance: WorkflowInstance,
        effects: workflow_pb2.CommitWorkflowRequest,
        whole: Whole,
        expected_revision: int | None,
        strict: bool | None,
    ) -> CommittedWorkflow:
        """Stores a workflow with the effects of a step, as a patch if that is smaller.

        `whole` stores it in full, with the same effects.
        """
        deadline = self._calls.deadline()
        expected: int | None = None
        remembers = self._shared.memory.capacity > 0
        # The instance is converted before the first await: another task may change it
        # during the call.
        message = convert.workflow_to_proto(instance)
        message.revision = 0
        new = patches.snapshot(message) if remembers else None
        base = self._remembered(instance.id, instance.view)
        response = None
        if instance.view is not WorkflowView.FULL:
            patch = _patch_of_part(instance, message, base, new, expected_revision)
            response = await self._commit_patch(patch, instance.revision, effects, deadline)
        else:
            expected = expected_revision
            if expected is None and (self._strict if strict is None else strict):
                expected = instance.revision or (base.revision if base is not None else 0)
                if not expected:
                    raise ValueError(
                        "the workflow's revision is not known: load it, or pass expected_revision"
                    )
            if base is not None and new is not None:
                response = await self._save_patch(message, base, new, effects, expected, deadline)
        if response is None:
            # This may replace something else than the remembered state.
            base = None
            response = await whole(message, expected, deadline)
        if new is not None:
            self._remember(instance.id, new.stored(response.revision, base), instance.view)
        instance.revision = response.revision
        return response

    async def _save_patch(
        self,
        message: workflow_pb2.WorkflowInstance,
        base: patches.Snapshot,
        new: patches.Snapshot,
        effects: workflow_pb2.CommitWorkflowRequest,
        expected: int | None,
        deadline: Deadline,
    ) -> CommittedWorkflow | None:
        """Stores a workflow as a patch; returns None if it must be stored in full."""
        if (
            not self._shared.commits
            or expected not in (None, base.revision)
            or len(effects.create_subscriptions) > _LARGEST_COMMIT
        ):
            return None
        patch = patches.patch(base, new, message)
        if patch is None:
            return None
        # The full state would erase what newer software has stored.
        if not base.newer and patch.ByteSize() >= message.ByteSize():
            return None
        try:
            return await self._commit_patch(patch, base.revision, effects, deadline)
        except Unimplemented:
            self._shared.commits = False
        except RevisionMismatch:
            if expected is not None:
                raise
        except PointerNotFound:
            # The remembered state is wrong, for whatever reason; the full state is
            # right.
            pass
        return None

    async def _commit_patch(
        self,
        patch: workflow_pb2.WorkflowPatch,
        revision: int,
        effects: workflow_pb2.CommitWorkflowRequest,
        deadline: Deadline,
    ) -> CommittedWorkflow:
        request = workflow_pb2.CommitWorkflowRequest(patch=patch, expected_revision=revision)
        request.MergeFrom(effects)
        request.request_id = new_id()
        return await self._commit(request, deadline)

    async def _commit(
        self, request: workflow_pb2.CommitWorkflowRequest, deadline: Deadline | None = None
    ) -> CommittedWorkflow:
        response = await self._calls.unary(self._workflows.CommitWorkflow, request, deadline)
        return CommittedWorkflow(
            revision=response.revision,
            subscription_ids=list(response.subscription_ids),
            event_ids=list(response.event_ids),
            returned_receipts=list(response.returned_receipts),
        )

    async def _persist(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_PersistT, _PersistedT],
        request: _PersistT,
        deadline: Deadline,
    ) -> _PersistedT:
        """Makes the call that stores a workflow in full."""
        try:
            return await self._calls.unary(method, request, deadline)
        except CommitOutcomeUnknown as unknown:
            mismatch = unknown.__cause__
            if not isinstance(mismatch, RevisionMismatch):
                raise
            # Rejected after a lost response. A server that supports request ids would
            # have recognized a retry; an older one would not.
            if not await self._knows_requests(deadline):
                raise
        mismatch.maybe_written = False
        raise mismatch from mismatch.__cause__

    async def _knows_requests(self, deadline: Deadline) -> bool:
        try:
            info = await self._calls.unary(
                self._store.GetStoreInfo, store_pb2.GetStoreInfoRequest(), deadline
            )
        except PersistenceError:
            return False
        return info.HasField("request_retention")

    def _remembered(self, workflow_id: str, view: WorkflowView) -> patches.Snapshot | None:
        return self._shared.memory.get((self._space, workflow_id, view))

    def _remember(
        self,
        workflow_id: str,
        snapshot: patches.Snapshot,
        view: WorkflowView = WorkflowView.FULL,
    ) -> None:
        # Without a revision, no patch is possible.
        if workflow_id and snapshot.revision:
            key = (self._space, workflow_id, view)
            self._shared.memory.put(key, snapshot)

    def _read(self, message: workflow_pb2.WorkflowInstance) -> WorkflowInstance:
        """Converts a workflow from a response, and remembers it."""
        instance = convert.workflow_from_proto(message)
        if self._shared.memory.capacity:
            self._remember(instance.id, patches.received(message), instance.view)
        return instance


def check_whole(instance: WorkflowInstance) -> None:
    """Rejects a partially loaded workflow where a full one is required."""
    if instance.view is not WorkflowView.FULL:
        raise PartialWorkflow(
            f"this workflow was loaded partially (view {instance.view.name}): storing it in full "
            "would remove the rest"
        )


def _patch_of_part(
    instance: WorkflowInstance,
    message: workflow_pb2.WorkflowInstance,
    base: patches.Snapshot | None,
    new: patches.Snapshot | None,
    expected_revision: int | None,
) -> workflow_pb2.WorkflowPatch:
    """The changes to a partially loaded workflow since it was loaded.

    Only the snapshot of the same view at the same revision can tell what was removed.
    """
    if new is None or base is None or not instance.revision:
        raise PartialWorkflow(
            "the provider no longer remembers what it loaded of this workflow: load it again"
        )
    if base.revision > instance.revision:
        raise RevisionMismatch(
            "this workflow was written after it was loaded",
            reason="REVISION_MISMATCH",
            metadata={"revision": str(base.revision)},
        )
    if base.revision != instance.revision or expected_revision not in (None, base.revision):
        raise PartialWorkflow(
            "a partially loaded workflow can only be stored against the revision it was loaded with"
        )
    patch = patches.patch(base, new, message)
    if patch is None:
        raise PartialWorkflow(
            "the pointers of a partially loaded workflow must keep their order, with new ones "
            "at the end and no duplicate ids"
        )
    return patch
