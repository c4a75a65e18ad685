"""What is remembered of a line in which calls wait; see `waiting.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wfe_persistence.store.tables import Store
    from wfe_persistence.store.waiting import Line, Waiter


class Place:
    """A line's waiters, in the order of their arrival."""

    __slots__ = ("alarm", "behind", "looked", "not_before", "store", "vain", "waiters")

    def __init__(self, store: Store) -> None:
        self.store = store
        # The values are not used: it is an ordered set.
        self.waiters: dict[Waiter, None] = {}
        self.alarm: asyncio.TimerHandle | None = None
        """When the lookout looks again."""
        self.looked = float("-inf")
        """When the lookout has looked, by the event loop's clock."""
        self.behind: Sequence[Line] = ()
        self.vain = 0
        self.not_before = 0.0
        """How often, one after the other, those that the lookout has woken have found nothing; and
        so, when it wakes the next one at the earliest, by the event loop's clock."""
