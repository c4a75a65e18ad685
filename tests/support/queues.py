"""A queue of one test's own, in a store that others use too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api, pages
from tests.support.expect import eventually
from wfe.persistence.v1.queue_item_pb2 import QueueItem
from wfe.persistence.v1.queue_pb2 import (
    DequeuedItem,
    ListedQueueItem,
    QueueItemState,
    QueueKind,
    QueueStats,
)

WAITING = QueueItemState.QUEUE_ITEM_STATE_WAITING
DELAYED = QueueItemState.QUEUE_ITEM_STATE_DELAYED
LEASED = QueueItemState.QUEUE_ITEM_STATE_LEASED
DEAD = QueueItemState.QUEUE_ITEM_STATE_DEAD


def receipts(claims: Iterable[DequeuedItem]) -> list[str]:
    return [claim.receipt for claim in claims]


def ids(claims: Iterable[DequeuedItem | ListedQueueItem]) -> list[str]:
    return [claim.item.id for claim in claims]


class OwnQueue:
    """A queue with a new name; `clear` leaves nothing behind."""

    def __init__(self, api: Api, name: str = "") -> None:
        self.api = api
        self.name = name or make.queue()

    async def enqueue(self, id_: str = "", **fields: Any) -> QueueItem:
        """Enqueue one item, by default a new one."""
        item = make.item(self.name, **({"id": id_} if id_ else {}), **fields)
        await self.api.enqueue(item)
        return item

    async def dequeue(self, max_items: int = 1000, **fields: Any) -> list[DequeuedItem]:
        """Claim what is visible."""
        return list(
            (await self.api.dequeue(queues=[self.name], max_items=max_items, **fields)).items
        )

    async def take(self, **fields: Any) -> DequeuedItem:
        """Claim one item, which must be there."""
        [claim] = await self.dequeue(1, **fields)
        return claim

    async def taken(self, id_: str = "", **fields: Any) -> DequeuedItem:
        """Enqueue a new item and claim it."""
        item = await self.enqueue(id_)
        claim = await self.take(**fields)
        assert claim.item.id == item.id
        return claim

    async def retake(self, **fields: Any) -> DequeuedItem:
        """Claim the one item that is about to become visible."""
        claims: list[DequeuedItem] = []

        async def claimed() -> bool:
            claims.extend(await self.dequeue(**fields))
            return bool(claims)

        await eventually(claimed)
        [claim] = claims
        return claim

    async def items(self, **fields: Any) -> list[ListedQueueItem]:
        """What is in it."""
        answers = await pages(self.api.list_queue_items, queue=self.name, **fields)
        return [item for answer in answers for item in answer.items]

    async def states(self) -> dict[str, QueueItemState.ValueType]:
        """The states of its items, by their ids."""
        return {listed.item.id: listed.state for listed in await self.items()}

    async def stats(self) -> QueueStats:
        """Its statistics."""
        [stats] = (await self.api.get_queue_stats(queues=[self.name])).queues
        return stats

    async def configure(
        self,
        kind: QueueKind.ValueType = QueueKind.QUEUE_KIND_PLAIN,
        max_attempts: int = 0,
    ) -> None:
        """Set how it works."""
        await self.api.configure_queue(self.name, kind, max_attempts)

    async def clear(self) -> None:
        """Delete all of its items."""
        while found := (await self.api.list_queue_items(queue=self.name, page_size=1000)).items:
            await self.api.delete_items(queue=self.name, ids=ids(found))


SHORT = Duration(nanos=50_000_000)
"""The lease of a worker that is lost at once."""
