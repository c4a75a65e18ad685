"""Operations on queues: enqueue, dequeue, handle, acknowledge."""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime, timedelta

from wfe.persistence.v1 import queue_pb2
from wfe_persistence_client import convert
from wfe_persistence_client.calls import all_lost
from wfe_persistence_client.connection import LARGEST_PAGE
from wfe_persistence_client.deadline import Deadline
from wfe_persistence_client.errors import LeaseLost
from wfe_persistence_client.misfit import build
from wfe_persistence_client.model import (
    Acknowledgement,
    Dequeued,
    ListedQueueItem,
    QueueItem,
    QueueItemState,
    QueueKind,
    QueueStats,
    ReturnedItem,
    WorkflowView,
)
from wfe_persistence_client.saving import Saving


class Queues(Saving):
    """The operations on queues of work."""

    async def enqueue(self, items: Iterable[QueueItem]) -> None:
        """Puts items into queues, all or nothing, each by its id.

        A new item is added. One that is waiting or delayed keeps its place, and becomes
        visible at the earlier of the two times. One that is being handled comes once more
        after its acknowledgement. A dead one is revived. The payload and `blocked_by` become
        those given here.

        Args:
            items: of any queues; at most 1000, no item twice.
        """
        await self._calls.unary(
            self._queues.Enqueue,
            build(queue_pb2.EnqueueRequest, items=convert.queue_items_to_proto("items", items)),
        )

    async def dequeue(
        self,
        queues: Sequence[str],
        *,
        max_items: int = 0,
        lease_duration: timedelta | None = None,
        worker_id: str = "",
        acknowledge: Iterable[Acknowledgement] = (),
        return_items: Iterable[ReturnedItem] = (),
        include_workflow: bool = False,
        view: WorkflowView = WorkflowView.FULL,
        wait: timedelta | None = None,
    ) -> Dequeued:
        """Hands out items, in the order of their times and arrival, each to one worker.

        First it acknowledges and returns items handled before, in the same transaction. If
        the response is lost, the items are waiting again when their leases expire.

        Args:
            queues: their names, 1 to 10.
            max_items: maximum number of items, up to 1000; 0 means 1.
            lease_duration: how long the leases last, 1 ms to 24 h; None: 30 s.
            worker_id: the worker that asks, for information only.
            acknowledge: items that have been handled; at most 1000.
            return_items: items to give back; at most 1000.
            include_workflow: whether to return the workflow that has an item's id with it.
            view: how much of each workflow to return.
            wait: how long to wait if there is no item, up to 60 s, in addition to
                `timeout`; None: not at all.

        Raises:
            LeaseLost: some of the items are no longer held under their receipts; nothing was
                changed, and nothing handed out.
        """
        waiting = 0.0 if wait is None else max(wait.total_seconds(), 0.0)
        response = await self._calls.unary(
            self._queues.Dequeue,
            build(
                queue_pb2.DequeueRequest,
                queues=queues,
                max_items=max_items,
                lease_duration=convert.optional_duration(lease_duration),
                worker_id=worker_id,
                acknowledge=convert.acknowledgements_to_proto(acknowledge),
                return_items=convert.returned_items_to_proto(return_items),
                include_workflow=include_workflow,
                view=convert.view(view),
                wait=convert.optional_duration(wait),
            ),
            # The wait ends before the deadline, on which the server decides.
            Deadline(self._calls.timeout + waiting),
        )
        return convert.dequeued_from_proto(response, self._read)

    async def acknowledge(self, receipts: Iterable[str], *, confirmed: bool = False) -> list[str]:
        """Removes items that have been handled, all or nothing.

        One that was enqueued since it was handed out is kept, waiting.

        Args:
            receipts: those of the items; at most 1000, no duplicates.
            confirmed: whether an item goes only if the store says that its work is done,
                which depends on the kind of its queue; otherwise it comes back later.

        Returns:
            The receipts that were not confirmed.

        Raises:
            LeaseLost: some items are no longer held under their receipts; nothing was
                changed. If `maybe_written` is set, they may also be lost because this very
                call was applied: the server lists too few of them to decide.
        """
        given = [Acknowledgement(receipt=receipt, confirmed=confirmed) for receipt in receipts]
        request = build(
            queue_pb2.AcknowledgeRequest, acknowledge=convert.acknowledgements_to_proto(given)
        )
        try:
            response = await self._calls.unary(self._queues.Acknowledge, request)
        except LeaseLost as error:
            # Which were not confirmed is not known then, but they come back all the same.
            if error.maybe_written and all_lost([each.receipt for each in given])(error):
                return []
            raise
        return list(response.returned_receipts)

    async def return_items(
        self, receipts: Iterable[str], *, delay: timedelta | None = None
    ) -> None:
        """Gives back items unhandled, all or nothing.

        Args:
            receipts: those of the items; at most 1000, no duplicates.
            delay: how long they are withheld, 1 ms to 24 h; None: not at all.

        Raises:
            LeaseLost: as for `acknowledge`.
        """
        given = [ReturnedItem(receipt=receipt, delay=delay) for receipt in receipts]
        await self._calls.settle(
            self._queues.ReturnItems,
            build(
                queue_pb2.ReturnItemsRequest, return_items=convert.returned_items_to_proto(given)
            ),
            all_lost([each.receipt for each in given]),
        )

    async def renew_items(
        self, receipts: Iterable[str], *, lease_duration: timedelta | None = None
    ) -> datetime | None:
        """Renews the leases of items, all or nothing.

        Args:
            receipts: those of the items; at most 1000, no duplicates. They stay valid.
            lease_duration: how long the leases last from now, by the database's clock,
                1 ms to 24 h; None: 30 s.

        Returns:
            When all these leases expire, by the database's clock; None: no receipt was
            given.

        Raises:
            LeaseLost: some are no longer held, or have expired; nothing was changed.
        """
        response = await self._calls.unary(
            self._queues.RenewItems,
            build(
                queue_pb2.RenewItemsRequest,
                receipts=list(receipts),
                lease_duration=convert.optional_duration(lease_duration),
            ),
        )
        return convert.lease_expiry_from_proto(response)

    async def list_queue_items(
        self, queue: str, *, state: QueueItemState | None = None, item_id: str = ""
    ) -> list[ListedQueueItem]:
        """Returns the items of a queue in their order, dead ones last, without claiming them.

        Args:
            queue: its name.
            state: only items in this state; None: any.
            item_id: only the item with this id; empty: any.
        """
        pages = self._in_one_go().iter_queue_items(
            queue, state=state, item_id=item_id, page_size=LARGEST_PAGE
        )
        return [item async for item in pages]

    def iter_queue_items(
        self,
        queue: str,
        *,
        state: QueueItemState | None = None,
        item_id: str = "",
        page_size: int = 0,
    ) -> AsyncIterator[ListedQueueItem]:
        """`list_queue_items` as an async iterator that fetches pages on demand."""
        return self._calls.pages(
            self._queues.ListQueueItems,
            build(
                queue_pb2.ListQueueItemsRequest,
                queue=queue,
                state=convert.item_state_to_proto(state),
                id=item_id,
                page_size=page_size,
            ),
            lambda page: map(convert.listed_item_from_proto, page.items),
        )

    async def get_queue_stats(self, queues: Sequence[str] = ()) -> list[QueueStats]:
        """Returns how many items queues have and how they work, in the order of their names.

        Args:
            queues: their names, at most 1000; empty: all that have items or were configured.
        """
        return [
            stats
            async for stats in self._in_one_go()._calls.pages(
                self._queues.GetQueueStats,
                build(queue_pb2.GetQueueStatsRequest, queues=queues, page_size=LARGEST_PAGE),
                lambda page: map(convert.queue_stats_from_proto, page.queues),
            )
        ]

    async def requeue_items(
        self,
        queue: str,
        item_ids: Iterable[str] = (),
        *,
        max_dead: int = 0,
        break_leases: bool = False,
        break_epoch: int | None = None,
    ) -> int:
        """Makes dead and delayed items visible now, and returns how many.

        Args:
            queue: its name.
            item_ids: the ids of items, at most 1000.
            max_dead: at most how many dead items besides, up to 1000, whatever their ids.
            break_leases: those of `item_ids` that are under a lease, too: their worker is gone
                for good, or must be stopped; it gets `LeaseLost`. A repetition after a lost
                response would break the next worker's lease as well.
            break_epoch: the one item of `item_ids`, only if it is under a lease with this epoch,
                as `list_queue_items` tells: the next worker's is never broken. Not together with
                `break_leases`.
        """
        response = await self._calls.unary(
            self._queues.RequeueItems,
            build(
                queue_pb2.RequeueItemsRequest,
                queue=queue,
                ids=list(item_ids),
                max_dead=max_dead,
                break_leases=break_leases,
                break_epoch=break_epoch,
            ),
        )
        return response.requeued

    async def delete_items(
        self, queue: str, item_ids: Iterable[str] = (), *, max_dead: int = 0
    ) -> int:
        """Deletes items, whatever their state, and returns how many.

        Args:
            queue: its name.
            item_ids: the ids of items, at most 1000.
            max_dead: at most how many dead items besides, up to 1000, whatever their ids.
        """
        response = await self._calls.unary(
            self._queues.DeleteItems,
            build(queue_pb2.DeleteItemsRequest, queue=queue, ids=list(item_ids), max_dead=max_dead),
        )
        return response.deleted

    async def configure_queue(
        self, queue: str, kind: QueueKind = QueueKind.PLAIN, *, max_attempts: int = 0
    ) -> None:
        """Sets how a queue works, whether it has items or not.

        Args:
            queue: its name.
            kind: what its items stand for, which decides when one is confirmed.
            max_attempts: how often an item is handed out before it is dead; 0: without end.
        """
        await self._calls.unary(
            self._queues.ConfigureQueue,
            build(
                queue_pb2.ConfigureQueueRequest,
                queue=queue,
                kind=convert.queue_kind_to_proto(kind),
                max_attempts=max_attempts,
            ),
        )
