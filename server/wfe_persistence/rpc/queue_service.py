"""QueueService."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from wfe.persistence.v1 import queue_pb2 as pb
from wfe.persistence.v1.workflow_pb2 import WorkflowView
from wfe_persistence import offload
from wfe_persistence.rpc import paging
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.check import Check, R, read_back
from wfe_persistence.rpc.check.bounds import MAX_INT4, MAX_LIST_ITEMS
from wfe_persistence.store import dequeue, queue, queue_groups, queue_list, queue_settling
from wfe_persistence.store.paging import Wanted
from wfe_persistence.store.records import QUEUE_KIND
from wfe_persistence.store.tables import Store
from wfe_persistence.store.workflow import get_workflow_instances

# What an item's workflow takes in the answer beside its own bytes: tags and lengths.
_FRAMING_BYTES = 16


class QueueService:
    """Queues of work and the leases of their items."""

    async def Enqueue(self, request: pb.EnqueueRequest, call: Call) -> pb.EnqueueResponse:
        """Put items into queues."""
        await offload.run(_prepare_enqueue, request, call.check)
        await queue_groups.enqueue(call.store, request.items, call.env.waiters)
        return pb.EnqueueResponse()

    async def Dequeue(self, request: pb.DequeueRequest, call: Call) -> pb.DequeueResponse:
        """Hand out items, after those that were handed out before are settled."""
        check = call.check
        check.dequeue(request)
        max_items = check.count("max_items", request.max_items, default=1)
        lease_ms = check.lease_ms(request, "lease_duration")
        wait = check.wait_seconds(request)
        view = check.view(request.view)
        check.done()
        # All that the answer has besides items and workflows.
        receipts = sum(len(each.receipt) + 4 for each in request.acknowledge if each.confirmed)
        room = call.env.max_message_bytes - receipts
        include_workflow = request.include_workflow
        with call.waiting(wait) as until:
            dequeueing = dequeue.dequeue(
                call.store, request, max_items, lease_ms, room, until, call.env.waiters
            )
            del request  # ten thousand may wait here
            response = await dequeueing
        if include_workflow:
            room = call.env.max_message_bytes - response.ByteSize()
            await _add_workflows(call.store, response.items, view, room)
        return response

    async def Acknowledge(
        self, request: pb.AcknowledgeRequest, call: Call
    ) -> pb.AcknowledgeResponse:
        """Remove items that were handled."""
        check = call.check
        check.acknowledgements(request.acknowledge)
        check.done()
        returned = await queue_groups.acknowledge(call.store, request.acknowledge, call.env.waiters)
        return pb.AcknowledgeResponse(returned_receipts=returned)

    async def ReturnItems(
        self, request: pb.ReturnItemsRequest, call: Call
    ) -> pb.ReturnItemsResponse:
        """Give back items unhandled."""
        check = call.check
        check.returned_items(request.return_items)
        check.done()
        await queue_settling.return_items(call.store, request.return_items, call.env.waiters)
        return pb.ReturnItemsResponse()

    async def RenewItems(self, request: pb.RenewItemsRequest, call: Call) -> pb.RenewItemsResponse:
        """Extend leases."""
        check = call.check
        check.lease_tokens("receipts", request.receipts)
        lease_ms = check.lease_ms(request, "lease_duration")
        check.done()
        return await queue.renew_items(call.store, request.receipts, lease_ms)

    async def ListQueueItems(
        self, request: pb.ListQueueItemsRequest, call: Call
    ) -> pb.ListQueueItemsResponse:
        """Return items, whatever their state."""
        check = call.check
        check.queue("", "queue", request.queue)
        check.item_state(request.state)
        check.key("", "id", request.id)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await queue_list.list_queue_items(
            call.store, request, *call.page(request, page_size)
        )
        return pb.ListQueueItemsResponse(
            items=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def GetQueueStats(
        self, request: pb.GetQueueStatsRequest, call: Call
    ) -> pb.GetQueueStatsResponse:
        """Return how many items queues have."""
        check = call.check
        check.queues(request.queues, MAX_LIST_ITEMS)
        page_size = check.page_size(request.page_size)
        check.done()
        page = await queue_list.get_queue_stats(call.store, request, *call.page(request, page_size))
        return pb.GetQueueStatsResponse(
            queues=page.items, next_page_token=paging.encode(request, call.store, page.next)
        )

    async def RequeueItems(
        self, request: pb.RequeueItemsRequest, call: Call
    ) -> pb.RequeueItemsResponse:
        """Make dead and delayed items visible, and leased ones if asked to."""
        break_epoch = _check_break_epoch(request, call.check)
        max_dead = _check_chosen(request, call.check)
        requeued = await queue.requeue_items(
            call.store,
            request.queue,
            request.ids,
            max_dead,
            call.env.waiters,
            break_leases=request.break_leases,
            break_epoch=break_epoch,
        )
        return pb.RequeueItemsResponse(requeued=requeued)

    async def DeleteItems(
        self, request: pb.DeleteItemsRequest, call: Call
    ) -> pb.DeleteItemsResponse:
        """Delete items, whatever their state."""
        max_dead = _check_chosen(request, call.check)
        deleted = await queue.delete_items(call.store, request.queue, request.ids, max_dead)
        return pb.DeleteItemsResponse(deleted=deleted)

    async def ConfigureQueue(
        self, request: pb.ConfigureQueueRequest, call: Call
    ) -> pb.ConfigureQueueResponse:
        """Set how a queue works."""
        check = call.check
        check.queue("", "queue", request.queue)
        check.enum("", "kind", request.kind, QUEUE_KIND)
        check.number("", "max_attempts", request.max_attempts, 0, MAX_INT4)
        check.done()
        await queue.configure_queue(call.store, request)
        return pb.ConfigureQueueResponse()


def _prepare_enqueue(request: pb.EnqueueRequest, check: Check) -> None:
    check.queue_items("items", request.items)
    check.done()
    check.fits(read_back.queue_items(request.items))


def _check_break_epoch(request: pb.RequeueItemsRequest, check: Check) -> int | None:
    """The epoch of the one lease that is to be broken; None: another rule decides."""
    epoch = check.revision(request, "break_epoch")
    if epoch is None:
        return None
    if len(request.ids) != 1 or request.break_leases:
        check.add(
            "",
            "break_epoch",
            R.FIELD_VIOLATION_REASON_DUPLICATE,
            "must be set with exactly one of ids, and without break_leases",
        )
    return epoch


def _check_chosen(request: pb.RequeueItemsRequest | pb.DeleteItemsRequest, check: Check) -> int:
    """Which items to change: their ids, and at most how many dead ones besides."""
    check.queue("", "queue", request.queue)
    if check.at_most("", "ids", request.ids):
        check.ids("", "ids", request.ids)
        check.distinct("", "ids", "", request.ids)
    max_dead = check.count("max_dead", request.max_dead, default=0)
    check.done()
    return max_dead


async def _add_workflows(
    store: Store, items: Sequence[pb.DequeuedItem], view: WorkflowView.ValueType, room: int
) -> None:
    """Add to each item the workflow that has its id, as long as they fit into `room` bytes."""
    expected_view = 0 if view == WorkflowView.WORKFLOW_VIEW_FULL else view
    by_id: dict[str, list[pb.DequeuedItem]] = {}
    for item in items:
        by_id.setdefault(item.item.id, []).append(item)
        item.workflow_omitted = True
        room -= _FRAMING_BYTES
    wanted = Wanted(deque(by_id))
    while wanted.ids and room > 0:
        asked = list(wanted.ids)
        for instance in await get_workflow_instances(store, wanted, view, room):
            size = instance.ByteSize() + _FRAMING_BYTES
            reduced = instance.view != expected_view
            for item in by_id[instance.id]:
                if reduced or size > room:
                    return
                item.workflow.CopyFrom(instance)
                item.workflow_omitted = False
                room -= size
        for id_ in asked[: len(asked) - len(wanted.ids)]:
            for item in by_id[id_]:
                item.workflow_omitted = False
