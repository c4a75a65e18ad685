"""What the console changes, with `--console-write`: each is one call, on the state that was seen.

They do what the engine's host does for the same: see `WorkflowHost::suspend_workflow` and its
neighbours. Events of the lifecycle are published with them, in the same transaction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from wfe.persistence.v1 import subscription_pb2
from wfe_persistence_client import (
    HeaderChanges,
    LifecycleEvent,
    LifecycleEventType,
    PersistenceError,
    PersistenceProvider,
    QueueItem,
    QueueKind,
    SubscriptionClaim,
    WorkflowPatch,
    WorkflowStatus,
    WorkflowView,
)
from wfe_persistence_console.link import Caller, refusal
from wfe_persistence_console.shapes import Shape
from wfe_persistence_console.web import Refusal, Request

Action = Callable[[Caller, Request], Awaitable[Shape]]


def _number(request: Request, name: str) -> int:
    text = request.field(name)
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", f"{name}: is not a number")
    return int(text)


async def _change(
    caller: Caller,
    request: Request,
    possible: tuple[WorkflowStatus, ...],
    changes: HeaderChanges,
    what: LifecycleEventType,
) -> Shape:
    """Give the workflow another status, if it still is as it was seen."""
    provider = caller.provider()
    revision = _number(request, "revision")
    workflow = await provider.get_workflow_instance(request.field("id"), view=WorkflowView.HEADER)
    if workflow.status not in possible:
        raise Refusal(
            HTTPStatus.CONFLICT, "WRONG_STATUS", f"the workflow is {workflow.status.name} now"
        )
    committed = await provider.commit_workflow(
        WorkflowPatch(id=workflow.id, header=changes),
        expected_revision=revision,
        enqueue=await _items(provider, workflow.id) if what is LifecycleEventType.RESUMED else (),
        publish=[
            LifecycleEvent(
                type=what,
                workflow_id=workflow.id,
                workflow_definition_id=workflow.workflow_definition_id,
                version=workflow.version,
                reference=workflow.reference,
            )
        ],
    )
    return {"revision": str(committed.revision)}


async def _items(provider: PersistenceProvider, workflow_id: str) -> list[QueueItem]:
    """What has hosts look at a workflow: an item in every queue of workflows."""
    return [
        QueueItem(queue=queue.queue, id=workflow_id)
        for queue in await provider.get_queue_stats()
        if queue.kind is QueueKind.WORKFLOW
    ]


async def suspend(caller: Caller, request: Request) -> Shape:
    """A workflow that runs is not run on."""
    return await _change(
        caller,
        request,
        (WorkflowStatus.RUNNABLE,),
        {"status": WorkflowStatus.SUSPENDED},
        LifecycleEventType.SUSPENDED,
    )


async def resume(caller: Caller, request: Request) -> Shape:
    """A suspended workflow is run on."""
    return await _change(
        caller,
        request,
        (WorkflowStatus.SUSPENDED,),
        {"status": WorkflowStatus.RUNNABLE},
        LifecycleEventType.RESUMED,
    )


async def terminate(caller: Caller, request: Request) -> Shape:
    """A workflow that has not ended ends now."""
    return await _change(
        caller,
        request,
        (WorkflowStatus.RUNNABLE, WorkflowStatus.SUSPENDED),
        {"status": WorkflowStatus.TERMINATED, "complete_time": datetime.now(UTC)},
        LifecycleEventType.TERMINATED,
    )


async def delete(caller: Caller, request: Request) -> Shape:
    """A workflow is gone."""
    await caller.provider().delete_workflow(
        request.field("id"), expected_revision=_number(request, "revision")
    )
    return {}


async def release_subscription(caller: Caller, request: Request) -> Shape:
    """A claim on a subscription is taken from its worker, if it still is the one that was seen."""
    found = await caller.call(
        caller.stubs.subscriptions.GetSubscription,
        subscription_pb2.GetSubscriptionRequest(id=request.field("id")),
    )
    held = found.subscription
    epoch = _number(request, "epoch")
    if not held.HasField("external_token") or held.external_token_epoch != epoch:
        raise Refusal(HTTPStatus.CONFLICT, "NOT_HELD", "this claim is over already")
    await caller.provider().release_subscription(
        SubscriptionClaim(
            subscription_id=held.id, token=held.external_token, epoch=epoch if epoch else None
        )
    )
    return {}


async def break_lock(caller: Caller, request: Request) -> Shape:
    """A lock is taken from its holder, if it still is the one that was seen."""
    broken = await caller.provider().break_lock(
        request.field("resource"), epoch=_number(request, "epoch")
    )
    if broken is None:
        raise Refusal(HTTPStatus.CONFLICT, "NOT_HELD", "this lock is over already")
    return {}


ACTIONS: Final[dict[str, Action]] = {
    "suspend": suspend,
    "resume": resume,
    "terminate": terminate,
    "delete": delete,
    "release-subscription": release_subscription,
    "break-lock": break_lock,
}
"""By the path below `api/`."""


async def act(action: Action, caller: Caller, request: Request) -> Shape:
    """Do it. Raises Refusal."""
    try:
        return await action(caller, request)
    except PersistenceError as exc:
        raise refusal(exc) from exc
    except (TypeError, ValueError) as exc:  # the provider's: what can't be sent
        raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", str(exc)) from exc
