"""Fair queuing: which call may use a database connection next, when all are busy."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError


class FairGate:
    """`slots` slots, granted round-robin: one namespace after the other, each first in, first out.

    A namespace that floods the server delays only itself; another one's call waits for at most one
    call of each namespace ahead of it. With `max_waiting` calls of its namespace in the queue
    already, a call is rejected (NAMESPACE_BUSY).

    A gate `within` another one has a part of its slots: a call takes one of both.
    """

    def __init__(self, slots: int, max_waiting: int, *, within: FairGate | None = None) -> None:
        self._slots = self._free = slots
        self._max_waiting = max_waiting
        self._within = within
        # By namespace, the one whose turn is next first.
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many calls wait for a slot."""
        return sum(map(len, self._queues.values()))

    @property
    def taken(self) -> int:
        """How many slots are in use."""
        return self._slots - self._free

    @property
    def is_short(self) -> bool:
        """Whether calls wait for a slot."""
        return bool(self._queues)

    def try_acquire(self) -> bool:
        """Take a slot unless it must be waited for."""
        if not self._free or not (self._within is None or self._within.try_acquire()):
            return False
        self._free -= 1
        return True

    async def acquire(self, namespace: str) -> None:
        """Take a slot, now or in turn. Raises PersistenceError."""
        await self._take(namespace)
        if self._within is not None:
            try:
                await self._within.acquire(namespace)
            except BaseException:
                self._pass_on()
                raise

    def release(self) -> None:
        """Return a slot; the call whose turn it is gets it, if any waits."""
        if self._within is not None:
            self._within.release()
        self._pass_on()

    async def _take(self, namespace: str) -> None:
        if self._free:
            self._free -= 1
            return
        queue = self._queues.setdefault(namespace, deque())
        if len(queue) >= self._max_waiting:
            raise namespace_busy(len(queue))
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # granted at the same moment: pass the slot on
                self._pass_on()
            elif turn in queue:  # _pass_on() may have removed it already
                queue.remove(turn)
                if not queue:
                    del self._queues[namespace]
            raise

    def _pass_on(self) -> None:
        while self._queues:
            namespace, queue = self._queues.popitem(last=False)
            turn = queue.popleft()
            # A call that was cancelled a moment ago is still in the queue: skip it.
            while turn.cancelled() and queue:
                turn = queue.popleft()
            if queue:
                self._queues[namespace] = queue
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1


def namespace_busy(waiting: int) -> PersistenceError:
    """The error of a call that may not wait, because so many of its namespace do."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_NAMESPACE_BUSY,
        f"{waiting} calls of this namespace are waiting already",
        retry_after=0.5,
    )
