"""How a workflow is stored: as a patch against what is remembered, or as a whole.

What is remembered, and how a patch is made of it, is in `patches`; what a step stores
beside the workflow, in `step`.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc.aio

from wfe.persistence.v1 import store_pb2, workflow_pb2
from wfe_persistence_client import convert, patches
from wfe_persistence_client.calls import Deadline
from wfe_persistence_client.connection import Connection, new_id
from wfe_persistence_client.errors import (
    CommitOutcomeUnknown,
    PartialWorkflow,
    PersistenceError,
    PointerNotFound,
    RevisionMismatch,
    Unimplemented,
)
from wfe_persistence_client.model import CommittedWorkflow, WorkflowInstance, WorkflowView

#: Items in each list of a commit, at most.
_LARGEST_COMMIT: Final = 1000

#: Stores a workflow as a whole: its state, the revision it may replace, the deadline.
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
    """Stores workflows, and remembers what was stored or read last."""

    async def _save(
        self,
        instance: WorkflowInstance,
        effects: workflow_pb2.CommitWorkflowRequest,
        whole: Whole,
        expected_revision: int | None,
        strict: bool | None,
    ) -> CommittedWorkflow:
        """Stores a workflow with the effects of a step, as a patch if that is less.

        `whole` stores it as a whole, with the same effects.
        """
        deadline = self._calls.deadline()
        expected: int | None = None
        remembers = self._shared.memory.capacity > 0
        # Everything of the instance is read before the first await: another task may
        # change it during the call.
        message = convert.workflow_to_proto(instance)
        message.revision = 0
        new = patches.snapshot(message) if remembers else None
        base = self._remembered(instance.id, instance.view)
        answer = None
        if instance.view is not WorkflowView.FULL:
            patch = _patch_of_part(instance, message, base, new, expected_revision)
            answer = await self._commit_patch(patch, instance.revision, effects, deadline)
        else:
            expected = expected_revision
            if expected is None and (self._strict if strict is None else strict):
                expected = instance.revision or (base.revision if base is not None else 0)
                if not expected:
                    raise ValueError(
                        "the workflow's revision is not known: load it, or give expected_revision"
                    )
            if base is not None and new is not None:
                answer = await self._save_patch(message, base, new, effects, expected, deadline)
        if answer is None:
            # What was remembered need not be what this replaces.
            base = None
            answer = await whole(message, expected, deadline)
        if new is not None:
            self._remember(instance.id, new.stored(answer.revision, base), instance.view)
        instance.revision = answer.revision
        return answer

    async def _save_patch(
        self,
        message: workflow_pb2.WorkflowInstance,
        base: patches.Snapshot,
        new: patches.Snapshot,
        effects: workflow_pb2.CommitWorkflowRequest,
        expected: int | None,
        deadline: Deadline,
    ) -> CommittedWorkflow | None:
        """Stores a workflow as a patch; None: it is to be stored as a whole."""
        if (
            not self._shared.commits
            or expected not in (None, base.revision)
            or len(effects.create_subscriptions) > _LARGEST_COMMIT
            # Another workflow that had the same id before: its revisions mean nothing.
            or new.header["create_time"] != base.header["create_time"]
        ):
            return None
        patch = patches.patch(base, new, message)
        if patch is None or patch.ByteSize() >= message.ByteSize():
            return None
        try:
            return await self._commit_patch(patch, base.revision, effects, deadline)
        except Unimplemented:
            self._shared.commits = False
        except RevisionMismatch:
            if expected is not None:
                raise
        except PointerNotFound:
            # The memory is wrong, whatever the reason; the state as a whole is right.
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
        answer = await self._calls.unary(self._workflows.CommitWorkflow, request, deadline)
        return CommittedWorkflow(
            revision=answer.revision,
            subscription_ids=list(answer.subscription_ids),
            event_ids=list(answer.event_ids),
        )

    async def _persist(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_PersistT, _PersistedT],
        request: _PersistT,
        deadline: Deadline,
    ) -> _PersistedT:
        """Makes the call that stores a workflow as a whole."""
        try:
            return await self._calls.unary(method, request, deadline)
        except CommitOutcomeUnknown as unknown:
            mismatch = unknown.__cause__
            if not isinstance(mismatch, RevisionMismatch):
                raise
            # Refused after a lost answer. A server that knows request ids would have
            # known its own write again; an older one would not.
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
        # Without a revision nothing can be patched.
        if workflow_id and snapshot.revision:
            key = (self._space, workflow_id, view)
            self._shared.memory.put(key, snapshot)

    def _read(self, message: workflow_pb2.WorkflowInstance) -> WorkflowInstance:
        """Reads an answered workflow, and remembers it."""
        instance = convert.workflow_from_proto(message)
        if self._shared.memory.capacity:
            self._remember(instance.id, patches.snapshot(message, message.revision), instance.view)
        return instance


def check_whole(instance: WorkflowInstance) -> None:
    """Refuses a part of a workflow where only a whole one will do."""
    if instance.view is not WorkflowView.FULL:
        raise PartialWorkflow(
            f"this is a part of a workflow only (view {instance.view.name}): stored as a whole "
            "it would remove the rest"
        )


def _patch_of_part(
    instance: WorkflowInstance,
    message: workflow_pb2.WorkflowInstance,
    base: patches.Snapshot | None,
    new: patches.Snapshot | None,
    expected_revision: int | None,
) -> workflow_pb2.WorkflowPatch:
    """What changed in a part of a workflow since it was loaded.

    Only what that very part was at that very revision can tell what is gone from it.
    """
    if new is None or base is None or not instance.revision:
        raise PartialWorkflow(
            "the provider does not remember what it loaded of this workflow: load it anew"
        )
    if base.revision > instance.revision:
        raise RevisionMismatch(
            "this part of the workflow was written since it was loaded",
            reason="REVISION_MISMATCH",
            metadata={"revision": str(base.revision)},
        )
    if base.revision != instance.revision or expected_revision not in (None, base.revision):
        raise PartialWorkflow(
            "a part of a workflow can be stored to the revision only that it was loaded with"
        )
    patch = patches.patch(base, new, message)
    if patch is None:
        raise PartialWorkflow(
            "the pointers of a part of a workflow must stay in their order, new ones behind "
            "them, none twice"
        )
    return patch
