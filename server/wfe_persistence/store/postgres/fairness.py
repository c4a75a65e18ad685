"""Who may use a database connection next, when all are busy."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError


class FairGate:
    """So many slots, given out in turns: one namespace after the other, each in its own order.

    A namespace that floods the server waits for itself; another one's call waits for at most one
    call of each namespace in front of it. Who has `max_waiting` calls in its queue already is
    refused (NAMESPACE_BUSY).
    """

    def __init__(self, slots: int, max_waiting: int) -> None:
        self._free = slots
        self._max_waiting = max_waiting
        # The namespaces that wait, the next one first.
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def acquire(self, namespace: str) -> None:
        """Take a slot, now or in turn."""
        if self._free:
            self._free -= 1
            return
        queue = self._queues.setdefault(namespace, deque())
        if len(queue) >= self._max_waiting:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_NAMESPACE_BUSY,
                f"{len(queue)} calls of this namespace are waiting already",
                retry_after=0.5,
            )
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came in the same moment, and is somebody else's now
                self.release()
            elif turn in queue:  # release() may have come across it already
                queue.remove(turn)
                if not queue:
                    del self._queues[namespace]
            raise

    def release(self) -> None:
        """Give a slot back: to the next one in turn, if anybody waits."""
        while self._queues:
            namespace, queue = self._queues.popitem(last=False)
            turn = queue.popleft()
            # Whose call was cancelled a moment ago has not left the queue yet.
            while turn.cancelled() and queue:
                turn = queue.popleft()
            if queue:
                self._queues[namespace] = queue
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1
