"""The rules for items of queues and their receipts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from wfe.persistence.v1.queue_item_pb2 import Acknowledgement, QueueItem
from wfe.persistence.v1.queue_pb2 import DequeueRequest, QueueItemState, ReturnedItem
from wfe_persistence.rpc.check.bounds import (
    MAX_BLOCKERS,
    MAX_DEQUEUED_QUEUES,
    MAX_PAYLOAD_BYTES,
)
from wfe_persistence.rpc.check.scalars import R, Scalars

_QUEUE: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}")


class QueueRules(Scalars):
    """The rules for the requests of QueueService."""

    __slots__ = ()

    def queue(self, path: str, field: str, value: str) -> None:
        """The name of a queue."""
        if not value:
            self.add(path, field, R.FIELD_VIOLATION_REASON_REQUIRED, "must not be empty")
        elif not _QUEUE.fullmatch(value):
            self.add(
                path,
                field,
                R.FIELD_VIOLATION_REASON_FORMAT,
                "must match [a-z][a-z0-9_.-]{0,63}",
            )

    def queue_items(
        self, field: str, items: Sequence[QueueItem], *, stands_for: str | None = None
    ) -> None:
        """Items to enqueue. `stands_for`: the id that an empty one stands for (empty: it will be
        chosen by the server); None: an id is required."""
        if items and self.at_most("", field, items):
            known: set[str] = set()
            keys: list[str] = []
            for n, item in enumerate(items):
                queue, id_ = item.queue, item.id
                keys.append(f"{queue} {id_ or stands_for}")
                # Most items are but an id, of a queue that has been seen already.
                if (
                    queue in known
                    and 0 < len(id_) <= 128
                    and not id_.isspace()
                    and not item.HasField("payload_json")
                    and not item.HasField("visible_time")
                    and not item.blocked_by
                ):
                    continue
                self.queue_item(item, f"{field}[{n}]", id_required=stands_for is None)
                if _QUEUE.fullmatch(queue):
                    known.add(queue)
            self.distinct("", field, "id", keys)

    def queue_item(self, i: QueueItem, path: str, *, id_required: bool = True) -> None:
        """An item to enqueue."""
        self.queue(path, "queue", i.queue)
        self.id(path, "id", i.id, required=id_required)
        if i.HasField("payload_json"):
            if len(i.payload_json.encode()) > MAX_PAYLOAD_BYTES:
                self.add(
                    path,
                    "payload_json",
                    R.FIELD_VIOLATION_REASON_TOO_LONG,
                    f"must be at most {MAX_PAYLOAD_BYTES} bytes",
                )
            else:
                self.json(path, "payload_json", i.payload_json)
        self.times(i, path, "visible_time")
        if self.at_most(path, "blocked_by", i.blocked_by, MAX_BLOCKERS):
            self.ids(path, "blocked_by", i.blocked_by)
            self.distinct(path, "blocked_by", "", i.blocked_by)

    def dequeue(self, request: DequeueRequest) -> None:
        """What to dequeue, and what to acknowledge and to return before."""
        if not request.queues:
            self.add("", "queues", R.FIELD_VIOLATION_REASON_REQUIRED, "must name a queue")
        self.queues(request.queues, MAX_DEQUEUED_QUEUES)
        self.key("", "worker_id", request.worker_id)
        if not (
            self.acknowledgements(request.acknowledge) and self.returned_items(request.return_items)
        ):
            return
        acknowledged = {each.receipt for each in request.acknowledge}
        for i, item in enumerate(request.return_items):
            if item.receipt in acknowledged:
                self.add(
                    "",
                    f"return_items[{i}].receipt",
                    R.FIELD_VIOLATION_REASON_DUPLICATE,
                    "is also in acknowledge",
                )

    def queues(self, names: Sequence[str], most: int) -> None:
        """Names of queues."""
        if self.at_most("", "queues", names, most):
            for i, name in enumerate(names):
                self.queue("", f"queues[{i}]", name)
            self.distinct("", "queues", "", names)

    def acknowledgements(self, values: Sequence[Acknowledgement]) -> bool:
        """Items that have been handled; returns whether they are few enough to be checked."""
        return self._receipts("acknowledge", [each.receipt for each in values])

    def returned_items(self, values: Sequence[ReturnedItem]) -> bool:
        """Items to be given back; returns whether they are few enough to be checked."""
        if not self._receipts("return_items", [each.receipt for each in values]):
            return False
        for i, item in enumerate(values):
            self.lease_ms(item, "delay", path=f"return_items[{i}]")
        return True

    def _receipts(self, field: str, receipts: Sequence[str]) -> bool:
        if not self.at_most("", field, receipts):
            return False
        for i, receipt in enumerate(receipts):
            if not 0 < len(receipt) <= 128 or receipt.isspace():
                self.id(f"{field}[{i}]", "receipt", receipt)
        self.distinct("", field, "receipt", receipts)
        return True

    def item_state(self, value: QueueItemState.ValueType) -> None:
        """A state of items to filter by; UNSPECIFIED means any."""
        if value not in QueueItemState.values():
            self.add("", "state", R.FIELD_VIOLATION_REASON_ENUM_VALUE, "must be a known value")
