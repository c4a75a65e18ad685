"""A worker on a queue of a namespace set."""

import asyncio
import copy

from wfe_persistence_client.worker import Settled, Work, Worker


class SetWorker(Worker):
    """Takes items from all members.

    What became of an item is told by a call of its own, to its member, while the slot takes the
    next one: as long as a member is away, the slots that had an item of it work for the others.
    """

    _telling: set[asyncio.Task[None]]

    async def run(self) -> None:
        """As of a single namespace."""
        self._telling = set()
        try:
            await super().run()
        except asyncio.CancelledError:
            for task in self._telling:
                task.cancel()
            raise
        finally:
            await asyncio.gather(*self._telling, return_exceptions=True)

    async def _take(self, settled: Settled) -> Work | None:
        if settled.acknowledge or settled.return_items:
            told = copy.copy(settled)
            # If no item can be taken, it is not told again.
            settled.work, settled.acknowledge, settled.return_items = None, [], []
            task = asyncio.create_task(self._settle(told))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        return await super()._take(Settled())
