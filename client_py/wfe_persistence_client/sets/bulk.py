"""Many creates in a namespace set: a stream for each member that has some, the results in order."""

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing, suppress
from typing import Any, Final, Generic, TypeVar

from wfe_persistence_client.bulk import BulkResult
from wfe_persistence_client.misfit import FieldTypeError, Misfit

_T = TypeVar("_T")

#: How many are under way.
_AHEAD: Final = 1000


class SetBulk(Generic[_T]):
    """One bulk create in a set."""

    def __init__(
        self,
        argument: str,
        kind: type[_T],
        place: Callable[[_T], int | None],
        open_: Callable[[int, AsyncIterable[_T]], AsyncIterator[BulkResult[_T]]],
        alone: Callable[[_T], Any],
    ) -> None:
        self._argument = argument
        self._kind = kind
        #: The member of an item; None: it is created by itself.
        self._place = place
        self._open = open_
        self._alone = alone
        self._queues: dict[int, asyncio.Queue[_T | None]] = {}
        #: Of each member, the results that it still owes, with the numbers of the items.
        self._owed: dict[int, deque[tuple[int, asyncio.Future[BulkResult[_T]]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._order: asyncio.Queue[asyncio.Future[BulkResult[_T]] | None] = asyncio.Queue(_AHEAD)
        self._failure: Exception | None = None

    async def results(
        self, source: Iterable[_T] | AsyncIterable[_T]
    ) -> AsyncGenerator[BulkResult[_T], None]:
        """What becomes of each item, in their order."""
        self._start(self._fill(source))
        try:
            while (future := await self._order.get()) is not None:
                yield await future
            if self._failure is not None:
                raise self._failure
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for owed in self._owed.values():
                for _, future in owed:
                    future.cancel()

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fill(self, source: Iterable[_T] | AsyncIterable[_T]) -> None:
        number = 0
        try:
            if isinstance(source, AsyncIterable):
                async for item in source:
                    await self._add(number, item)
                    number += 1
            else:
                for item in source:
                    await self._add(number, item)
                    number += 1
        except Exception as exc:  # of the caller's own source, or for what can't be sent
            self._failure = exc
        for queue in self._queues.values():
            queue.put_nowait(None)
        await self._order.put(None)

    async def _add(self, number: int, item: _T) -> None:
        if not isinstance(item, self._kind):
            given = type(item).__name__
            raise FieldTypeError(
                f"{self._argument}[{number}]", f"expected {self._kind.__name__}, not {given}"
            )
        index = self._place(item)
        future: asyncio.Future[BulkResult[_T]] = asyncio.get_running_loop().create_future()
        await self._order.put(future)
        if index is None:
            self._start(self._create_alone(number, item, future))
            return
        if index not in self._queues:
            self._queues[index] = asyncio.Queue()
            self._owed[index] = deque()
            self._start(self._serve(index))
        self._owed[index].append((number, future))
        self._queues[index].put_nowait(item)

    async def _create_alone(
        self, number: int, item: _T, future: "asyncio.Future[BulkResult[_T]]"
    ) -> None:
        try:
            future.set_result(await self._alone(item))
        except Exception as exc:
            future.set_exception(self._placed(exc, number))

    async def _serve(self, index: int) -> None:
        """The stream of one member."""
        queue, owed = self._queues[index], self._owed[index]

        async def items() -> AsyncGenerator[_T, None]:
            while (item := await queue.get()) is not None:
                yield item

        try:
            stream: Any = self._open(index, items())
            async with aclosing(stream):
                async for result in stream:
                    _, future = owed.popleft()
                    if not future.done():
                        future.set_result(result)
        except Exception as exc:
            # What comes behind it was not sent, or nobody knows.
            while owed:
                number, future = owed.popleft()
                if not future.done():
                    future.set_exception(self._placed(exc, number))
                    # It may never be asked for, if one before raises.
                    with suppress(Exception):
                        future.exception()

    def _placed(self, exc: Exception, number: int) -> Exception:
        """The error with the number that the item has among all."""
        if isinstance(exc, Misfit):
            place = f"{self._argument}[{number}]"
            exc.path = re.sub(rf"^{self._argument}\[\d+\]", place, exc.path)
            exc.args = (exc.path, exc.problem)
        return exc
