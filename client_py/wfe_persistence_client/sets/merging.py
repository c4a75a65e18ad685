"""Lists of the members of a namespace set, merged into one."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class _Head(Generic[_T]):
    """The next item of one list."""

    __slots__ = ("at", "descending", "item", "key", "source")

    def __init__(
        self, item: _T, key: Any, source: AsyncIterator[_T], at: int, descending: bool
    ) -> None:
        self.item = item
        self.key = key
        self.source = source
        self.at = at
        self.descending = descending

    def __lt__(self, other: "_Head[_T]") -> bool:
        if self.key == other.key:
            return self.at < other.at
        return bool(other.key < self.key if self.descending else self.key < other.key)


def by_time(time: Callable[[Any], datetime]) -> Callable[[Any], tuple[datetime, bytes]]:
    """The key of lists by a time of theirs; at the same time by id, as the servers compare ids."""
    return lambda item: (time(item), item.id.encode())


def by_number(keyed: tuple[int, str]) -> tuple[int, bytes]:
    """The key of ids with the numbers that the servers list them by."""
    return keyed[0], keyed[1].encode()


async def merged(
    sources: Sequence[AsyncIterator[_T]], key: Callable[[_T], Any], *, descending: bool = False
) -> AsyncGenerator[_T, None]:
    """The items of lists that are in the order of `key`, in that order.

    Each list is read as it is needed: at first of all of them, at once, then of the one whose item
    was taken.
    """
    async with AsyncExitStack() as stack:
        for source in sources:
            if (close := getattr(source, "aclose", None)) is not None:
                stack.push_async_callback(close)
        heads: list[_Head[_T]] = []
        for at, (source, first) in enumerate(
            zip(sources, await together([_following(s) for s in sources]), strict=True)
        ):
            heads += (_Head(item, key(item), source, at, descending) for item in first)
        heapify(heads)
        while heads:
            head = heappop(heads)
            yield head.item
            for item in await _following(head.source):
                heappush(heads, _Head(item, key(item), head.source, head.at, descending))


async def _following(source: AsyncIterator[_T]) -> list[_T]:
    with suppress(StopAsyncIteration):
        return [await anext(source)]
    return []


async def together(calls: Sequence[Any]) -> list[Any]:
    """The results of calls that are made at the same time, in their order.

    The first error is raised, after all have ended: the others are cancelled.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def all_of(calls: Sequence[Any]) -> list[Any]:
    """The same, but none is cancelled for the error of another one: each is done or has failed."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.wait(tasks) if tasks else None
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
