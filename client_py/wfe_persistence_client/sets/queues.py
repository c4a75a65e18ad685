"""Queues and locks of a namespace set.

An item that is enqueued alone is in the member of its id, so one that stands for a workflow is with
it; one that is enqueued with a workflow or an event is stored with that. A lock is in the member of
its resource. Receipts and tokens end with the index of their member.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from wfe.persistence.v1 import lock_pb2
from wfe_persistence_client.errors import WorkflowNotFound
from wfe_persistence_client.model import (
    Acknowledgement,
    Dequeued,
    DequeuedItem,
    ListedQueueItem,
    Lock,
    QueueItem,
    QueueItemState,
    QueueKind,
    QueueStats,
    ReturnedItem,
    WorkflowView,
)
from wfe_persistence_client.provider import PersistenceProvider
from wfe_persistence_client.sets.members import SetMembers, tagging
from wfe_persistence_client.sets.merging import all_of, together
from wfe_persistence_client.sets.racing import SetTaking, brief
from wfe_persistence_client.sets.routing import home_of, lock_home, member_of, tag, untag


class SetQueues(SetTaking):
    """The operations on queues of work."""

    async def enqueue(self, items: Iterable[QueueItem]) -> None:
        """As of a single namespace; all or nothing in each member. Repeating it is safe."""
        members = await self._members()
        of_member: dict[int, list[QueueItem]] = {}
        for item in items:
            of_member.setdefault(home_of(item.id, len(members)), []).append(item)
        await all_of([members[index].enqueue(some) for index, some in of_member.items()])

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
        """As of a single namespace. The members are asked in turn, each call beginning with another
        one, then all at the same time for as long as it waits; in order within each of them. What
        is acknowledged and returned is so before, in its own members."""
        returned = await self._settle_items(acknowledge, return_items)

        async def take(
            member: PersistenceProvider, index: int, most: int, wait: timedelta | None
        ) -> list[DequeuedItem]:
            answer = await member.dequeue(
                queues,
                max_items=most,
                lease_duration=brief(lease_duration, wait),
                worker_id=worker_id,
                include_workflow=include_workflow,
                view=view,
                wait=wait,
            )
            return [
                await self._with_workflow(
                    replace(item, receipt=tag(item.receipt, index)), index, include_workflow, view
                )
                for item in answer.items
            ]

        async def keep(item: DequeuedItem) -> DequeuedItem:
            expiry = await self.renew_items([item.receipt], lease_duration=lease_duration)
            return replace(item, lease_expiry=expiry or item.lease_expiry)

        items = await self._take(
            take,
            lambda items: self.return_items([item.receipt for item in items]),
            keep,
            max(max_items, 1),
            wait,
        )
        return Dequeued(items=items, returned_receipts=returned)

    async def _with_workflow(
        self, item: DequeuedItem, index: int, include_workflow: bool, view: WorkflowView
    ) -> DequeuedItem:
        """An item with its workflow, if that is in another member."""
        if not include_workflow or item.workflow is not None or item.workflow_omitted:
            return item
        members = await self._members()
        home = member_of(item.item.id, len(members))
        if home == index:
            return item
        with suppress(WorkflowNotFound):
            workflow = await members[home].get_workflow_instance(item.item.id, view=view)
            return replace(item, workflow=workflow)
        return item

    async def _settle_items(
        self, acknowledge: Iterable[Acknowledgement], return_items: Iterable[ReturnedItem]
    ) -> list[str]:
        """Acknowledges and returns items; the receipts that were not confirmed."""
        members = await self._members()
        settling: dict[int, tuple[list[Acknowledgement], list[ReturnedItem]]] = {}
        for at, done in enumerate(acknowledge):
            bare, index = self._bare(f"acknowledge[{at}].receipt", done.receipt, None, len(members))
            settling.setdefault(index, ([], []))[0].append(replace(done, receipt=bare))
        for at, given in enumerate(return_items):
            bare, index = self._bare(
                f"return_items[{at}].receipt", given.receipt, None, len(members)
            )
            settling.setdefault(index, ([], []))[1].append(replace(given, receipt=bare))

        async def settle(index: int) -> list[str]:
            done, given = settling[index]
            returned: list[str] = []
            for confirmed in (True, False):
                receipts = [a.receipt for a in done if a.confirmed is confirmed]
                if receipts:
                    returned += await tagging(
                        index, members[index].acknowledge(receipts, confirmed=confirmed)
                    )
            for item in given:
                await tagging(index, members[index].return_items([item.receipt], delay=item.delay))
            return [tag(receipt, index) for receipt in returned]

        return [receipt for some in await all_of(list(map(settle, settling))) for receipt in some]

    async def acknowledge(self, receipts: Iterable[str], *, confirmed: bool = False) -> list[str]:
        """As of a single namespace; all or nothing in each member."""
        parts = await self._by_member("receipts", receipts)
        answers = await all_of(
            [tagging(i, member.acknowledge(bare, confirmed=confirmed)) for i, member, bare in parts]
        )
        return [
            tag(receipt, i)
            for (i, _, _), some in zip(parts, answers, strict=True)
            for receipt in some
        ]

    async def return_items(
        self, receipts: Iterable[str], *, delay: timedelta | None = None
    ) -> None:
        """As of a single namespace; all or nothing in each member."""
        parts = await self._by_member("receipts", receipts)
        await all_of(
            [tagging(i, member.return_items(bare, delay=delay)) for i, member, bare in parts]
        )

    async def renew_items(
        self, receipts: Iterable[str], *, lease_duration: timedelta | None = None
    ) -> datetime | None:
        """As of a single namespace; all or nothing in each member. The first of their expiries."""
        parts = await self._by_member("receipts", receipts)
        expiries = await together(
            [
                tagging(i, member.renew_items(bare, lease_duration=lease_duration))
                for i, member, bare in parts
            ]
        )
        return min(filter(None, expiries), default=None)

    def iter_queue_items(
        self,
        queue: str,
        *,
        state: QueueItemState | None = None,
        item_id: str = "",
        page_size: int = 0,
    ) -> AsyncIterator[ListedQueueItem]:
        """As of a single namespace, in the order of all members, dead ones last."""
        return self._merged(
            lambda member: member.iter_queue_items(
                queue, state=state, item_id=item_id, page_size=page_size
            ),
            lambda listed: (listed.state is QueueItemState.DEAD, listed.item.visible_time),
        )

    async def get_queue_stats(self, queues: Sequence[str] = ()) -> list[QueueStats]:
        """As of a single namespace: the sums of all members."""
        total: dict[str, QueueStats] = {}
        for many in await self._each(lambda member: member.get_queue_stats(queues)):
            for stats in many:
                before = total.get(stats.queue)
                total[stats.queue] = stats if before is None else _sum(before, stats)
        return [total[name] for name in sorted(total)]

    async def requeue_items(
        self,
        queue: str,
        item_ids: Iterable[str] = (),
        *,
        max_dead: int = 0,
        break_leases: bool = False,
        break_epoch: int | None = None,
    ) -> int:
        """As of a single namespace."""
        ids = list(item_ids)
        requeued = 0
        for member in await self._members():
            some = await member.requeue_items(
                queue, ids, break_leases=break_leases, break_epoch=break_epoch
            )
            if (left := max_dead) > 0:
                dead = await member.requeue_items(queue, max_dead=left)
                max_dead -= dead
                some += dead
            requeued += some
        return requeued

    async def delete_items(
        self, queue: str, item_ids: Iterable[str] = (), *, max_dead: int = 0
    ) -> int:
        """As of a single namespace."""
        ids = list(item_ids)
        deleted = 0
        for member in await self._members():
            some = await member.delete_items(queue, ids)
            if (left := max_dead) > 0:
                dead = await member.delete_items(queue, max_dead=left)
                max_dead -= dead
                some += dead
            deleted += some
        return deleted

    async def configure_queue(
        self, queue: str, kind: QueueKind = QueueKind.PLAIN, *, max_attempts: int = 0
    ) -> None:
        """As of a single namespace, in all members."""
        await self._each(
            lambda member: member.configure_queue(queue, kind, max_attempts=max_attempts)
        )


def _sum(one: QueueStats, other: QueueStats) -> QueueStats:
    ages = [age for age in (one.oldest_waiting_age, other.oldest_waiting_age) if age is not None]
    return replace(
        one,
        waiting=one.waiting + other.waiting,
        delayed=one.delayed + other.delayed,
        leased=one.leased + other.leased,
        dead=one.dead + other.dead,
        oldest_waiting_age=max(ages, default=None),
    )


class SetLocks(SetMembers):
    """The operations on locks."""

    async def break_lock(self, resource: str, *, epoch: int | None = None) -> Lock | None:
        """As of a single namespace."""
        members = await self._members()
        index = lock_home(resource, len(members)) if isinstance(resource, str) else 0
        return await members[index].break_lock(resource, epoch=epoch)

    async def _acquire_lock(
        self,
        resource: str,
        *,
        owner: str,
        ttl: timedelta | None,
        wait: timedelta | None,
        request_id: str,
    ) -> lock_pb2.AcquireLockResponse:
        members = await self._members()
        index = lock_home(resource, len(members))
        response = await members[index]._acquire_lock(
            resource, owner=owner, ttl=ttl, wait=wait, request_id=request_id
        )
        if response.acquired:
            response.token = tag(response.token, index)
        return response

    async def renew_locks(
        self, tokens: Iterable[str], *, ttl: timedelta | None = None
    ) -> datetime | None:
        """As of a single namespace; all or nothing in each member. The first of their expiries."""
        parts = await self._by_member("tokens", tokens)
        expiries = await together(
            [tagging(i, member.renew_locks(bare, ttl=ttl)) for i, member, bare in parts]
        )
        return min(filter(None, expiries), default=None)

    async def release_lock(self, token: str) -> bool:
        """As of a single namespace."""
        members = await self._members()
        bare, index = untag(token, len(members))
        # One that nobody holds is no error.
        return await members[index or 0].release_lock(bare)

    def iter_locks(
        self, *, resource_prefix: str = "", owner: str = "", page_size: int = 0
    ) -> AsyncIterator[Lock]:
        """As of a single namespace, in the order of all members. Names that are being taken are
        locks, too: `wfe-set-name:…`."""
        return self._merged(
            lambda member: member.iter_locks(
                resource_prefix=resource_prefix, owner=owner, page_size=page_size
            ),
            lambda lock: lock.resource.encode(),
        )
