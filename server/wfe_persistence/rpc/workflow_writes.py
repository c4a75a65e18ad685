"""What surrounds the writes of workflows: what is checked and filled in before the store has them,
which takes long for a large workflow; and what is told afterwards, to the caller and to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from wfe.persistence.v1 import workflow_pb2 as pb
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check, read_back
from wfe_persistence.rpc.check.bounds import MAX_REVISION
from wfe_persistence.store import commit, workflow_waiting
from wfe_persistence.store.documents import HeaderRoom
from wfe_persistence.store.request_key import RequestKey, random_id

Answer = TypeVar("Answer", pb.PersistWorkflowWithSubscriptionsResponse, pb.CommitWorkflowResponse)


def prepare_create(
    request: pb.CreateNewWorkflowRequest, check: Check, new_id: Callable[[], str] = random_id
) -> None:
    """Check a creation, and give what has no id one."""
    check.required(request, "instance", check.new_instance)
    check.queue_items("enqueue", request.enqueue, stands_for=request.instance.id)
    check.lease_tokens("held_lock_tokens", request.held_lock_tokens)
    check.done()
    instance = request.instance
    instance.id = instance.id or new_id()
    instance.name = instance.name or instance.id
    _set_ids(request.enqueue, instance.id)
    check.fits(read_back.create(instance, request.enqueue))


def fill_in_created(
    answer: pb.CreateNewWorkflowResponse, request: pb.CreateNewWorkflowRequest, revision: int | None
) -> None:
    """The answer to a creation; no revision: room for any."""
    answer.id = request.instance.id
    answer.name = request.instance.name
    answer.revision = MAX_REVISION if revision is None else revision


def prepare_persist(request: pb.PersistWorkflowRequest, check: Check) -> RequestKey:
    """Check a write of a whole state, and give its items ids."""
    check.revision(request)
    check.request_id(request.request_id)
    check.required(request, "instance", check.instance)
    check.step(request, request.instance.id)
    check.done()
    key = RequestKey(request)
    _set_ids(request.enqueue, request.instance.id)
    check.fits(read_back.create(request.instance, request.enqueue))
    return key


def prepare_persist_with_subscriptions(
    request: pb.PersistWorkflowWithSubscriptionsRequest, check: Check
) -> tuple[RequestKey, pb.PersistWorkflowWithSubscriptionsResponse]:
    """The same with subscriptions, and the answer, which is measured before anything is written."""
    check.revision(request)
    check.request_id(request.request_id)
    check.required(request, "instance", check.instance)
    check.each("subscriptions", request.subscriptions, check.subscription)
    check.distinct("", "subscriptions", "id", [s.id for s in request.subscriptions])
    check.step(request, request.instance.id)
    check.done()
    key = RequestKey(request)
    for i, subscription in enumerate(request.subscriptions):
        subscription.id = subscription.id or key.new_id("subscription", i)
    _set_ids(request.enqueue, request.instance.id)
    check.fits(read_back.persist(request))
    answer = pb.PersistWorkflowWithSubscriptionsResponse(
        revision=MAX_REVISION,
        subscription_ids=[s.id for s in request.subscriptions],
        returned_receipts=_returnable(request),
    )
    check.answer_fits(answer)
    return key, answer


def prepare_commit(
    request: pb.CommitWorkflowRequest, check: Check
) -> tuple[RequestKey, pb.CommitWorkflowResponse, HeaderRoom | None]:
    """Check a step, give what it creates ids, and measure the answer; and the room that a patch
    leaves to the header."""
    check.commit(request)
    check.done()
    key = RequestKey(request)
    for i, subscription in enumerate(request.create_subscriptions):
        subscription.id = subscription.id or key.new_id("subscription", i)
    for i, event in enumerate(request.create_events):
        event.id = event.id or key.new_id("event", i)
    _set_ids(request.enqueue, request.patch.id or request.instance.id)
    check.fits(read_back.commit(request))
    answer = pb.CommitWorkflowResponse(
        revision=MAX_REVISION,
        subscription_ids=[s.id for s in request.create_subscriptions],
        event_ids=[e.id for e in request.create_events],
        returned_receipts=_returnable(request),
    )
    check.answer_fits(answer)
    return key, answer, check.header_room(request.patch)


def _set_ids(items: Iterable[QueueItem], id_: str) -> None:
    """An item without an id is that of what is written."""
    for item in items:
        item.id = item.id or id_


def _returnable(
    request: pb.PersistWorkflowWithSubscriptionsRequest | pb.CommitWorkflowRequest,
) -> list[str]:
    """All receipts that the answer may have to return."""
    return [each.receipt for each in request.acknowledge if each.confirmed]


def answered(answer: Answer, written: commit.Written) -> Answer:
    """The answer that was measured, now with what became of the write."""
    answer.revision = written.revision
    answer.returned_receipts[:] = written.returned_receipts
    return answer


def tell(
    call: Call,
    request: pb.PersistWorkflowRequest
    | pb.PersistWorkflowWithSubscriptionsRequest
    | pb.CommitWorkflowRequest,
    written: commit.Written,
) -> None:
    """Tell all who wait or watch what a write has changed for them."""
    call.env.changes.published(call.store)
    workflow_waiting.wake_written(call.store, request, call.env.waiters)
    enqueued: Iterable[QueueItem] = request.enqueue
    if written.unawaited:
        enqueued = [item for item in enqueued if item.id not in written.unawaited]
    call.written(enqueued, written.returned_to, published=bool(request.publish))
