"""Many creates over one stream: in batches, in order, resumed when it breaks."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar, cast

import grpc.aio
from google.protobuf.message import Message

from wfe.persistence.v1.item_error_pb2 import ItemError
from wfe_persistence_client.calls import Calls, passes
from wfe_persistence_client.errors import (
    DeadlineExceeded,
    PersistenceError,
    TooLarge,
    Unavailable,
    from_item_error,
)
from wfe_persistence_client.misfit import FieldTypeError, Misfit
from wfe_persistence_client.transport import ENDED_WHILE_SENDING

#: How much a request has.
_MOST_ITEMS: Final = 500
_MOST_BYTES: Final = 262_144
#: How many requests are sent ahead of their answers: one is handled while the next comes.
_AHEAD: Final = 2
#: After how many items others come in between.
_SLICE: Final = 50
#: How long is waited for more items, in seconds, before what there is is sent; and before a
#: stream on which nothing is sent is ended, because a server has only so many.
_LINGER: Final = 0.02
_IDLE: Final = 1.0
_LAST_ANSWER: Final = 5.0

_ItemT = TypeVar("_ItemT")
_MessageT = TypeVar("_MessageT", bound=Message)

#: What is created: in memory, or made while it is sent.
Source: TypeAlias = Iterable[_ItemT] | AsyncIterable[_ItemT]


@dataclass(frozen=True, slots=True)
class BulkResult(Generic[_ItemT]):
    """What became of one of many that were to be created."""

    #: What was given. Of a workflow, `id`, `name` and `revision` are set to what is stored.
    item: _ItemT
    #: Its id; empty if it was refused and had none.
    id: str
    #: Why it was refused, the same that a single create would raise; None: it is stored.
    error: PersistenceError | None = None


class _Result(Protocol):
    """What a response says of one item."""

    @property
    def error(self) -> ItemError: ...

    def HasField(self, field_name: Any) -> bool: ...  # noqa: N802


@dataclass(frozen=True, slots=True)
class BulkKind(Generic[_ItemT, _MessageT]):
    """How one kind of things is created."""

    #: The name of the argument that has the things, for errors.
    argument: str
    type: type[_ItemT]
    #: From a thing to the request of a single create, with an id.
    convert: Callable[[_ItemT], _MessageT]
    #: The stream, and its request with these items.
    method: Any
    request: Callable[[Sequence[_MessageT]], Any]
    #: The single create.
    alone: Any
    #: Notes what was answered, and returns the id.
    created: Callable[[_ItemT, Any], str]


@dataclass(slots=True)
class _Batch(Generic[_ItemT, _MessageT]):
    """The items of one request."""

    items: list[_ItemT]
    messages: list[_MessageT]

    def halves(self) -> tuple["_Batch[_ItemT, _MessageT]", "_Batch[_ItemT, _MessageT]"]:
        """Two batches instead of it."""
        half = len(self.items) // 2
        return (
            _Batch(self.items[:half], self.messages[:half]),
            _Batch(self.items[half:], self.messages[half:]),
        )


class _Gathering(Generic[_ItemT, _MessageT]):
    """Divides what is given into batches, one of them ahead of who takes them."""

    def __init__(self, kind: BulkKind[_ItemT, _MessageT], source: Source[_ItemT]) -> None:
        self._kind = kind
        self._batch: _Batch[_ItemT, _MessageT] = _Batch([], [])
        self._bytes = self._count = 0
        self._changed = asyncio.Condition()
        self._ended = self._is_full = False
        #: What was wrong with the source; to be raised when all before it has been answered.
        self.failure: Exception | None = None
        self._filling = asyncio.ensure_future(self._fill(source))

    def close(self) -> None:
        """Reads no more."""
        self._filling.cancel()

    @property
    def has_full(self) -> bool:
        """Whether there is a batch that will not become larger."""
        return self._is_full or (self._ended and bool(self._batch.items))

    async def take(self, wait: float | None = None) -> _Batch[_ItemT, _MessageT] | None:
        """The next batch; None: there are no more. Raises TimeoutError if nothing comes."""
        async with self._changed:
            async with asyncio.timeout(wait):
                await self._changed.wait_for(lambda: self._batch.items or self._ended)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LINGER):
                    await self._changed.wait_for(lambda: self._is_full or self._ended)
            batch, self._batch = self._batch, _Batch([], [])
            self._bytes, self._is_full = 0, False
            self._changed.notify_all()
        return batch if batch.items else None

    async def _fill(self, source: Source[_ItemT]) -> None:
        try:
            if isinstance(source, AsyncIterable):
                async for item in source:
                    await self._add(item)
            else:
                for item in source:
                    await self._add(item)
        except Exception as exc:  # of the caller's own source, or for what can't be sent
            self.failure = exc
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def _add(self, item: _ItemT) -> None:
        message = self._converted(item, self._count)
        self._count += 1
        size = message.ByteSize()
        if self._batch.items and self._bytes + size > _MOST_BYTES:
            self._is_full = True
        while self._is_full:
            async with self._changed:
                self._changed.notify_all()
                await self._changed.wait_for(lambda: not self._is_full)
        self._batch.items.append(item)
        self._batch.messages.append(message)
        self._bytes += size
        self._is_full = len(self._batch.items) >= _MOST_ITEMS
        if len(self._batch.items) % _SLICE == 1:
            # Others come in between, also if the source never waits.
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(0)

    def _converted(self, item: _ItemT, at: int) -> _MessageT:
        place = f"{self._kind.argument}[{at}]"
        if not isinstance(item, self._kind.type):
            given = type(item).__name__
            raise FieldTypeError(place, f"expected {self._kind.type.__name__}, not {given}")
        try:
            return self._kind.convert(item)
        except Misfit as exc:
            exc.enter(place)
            raise


class Bulk(Generic[_ItemT, _MessageT]):
    """One bulk create; `results` runs it."""

    def __init__(self, calls: Calls, kind: BulkKind[_ItemT, _MessageT]) -> None:
        self._calls = calls
        self._kind = kind
        #: What has no answer yet, and how many of that were sent.
        self._waiting: deque[_Batch[_ItemT, _MessageT]] = deque()
        self._sent = 0
        self._stream: Any = None
        #: Nothing is sent ahead, so that nothing is being sent when an answer comes.
        self._one_by_one = False

    async def results(self, source: Source[_ItemT]) -> AsyncGenerator[BulkResult[_ItemT], None]:
        """What becomes of each item, in their order."""
        batches = _Gathering(self._kind, source)
        try:
            while (batch := await self._next(batches)) is not None:
                self._waiting.append(batch)
                while self._waiting:
                    if len(self._waiting) < _AHEAD and batches.has_full:
                        break
                    for result in await self._answer():
                        yield result
            while self._waiting:
                for result in await self._answer():
                    yield result
            await self._end()
            if batches.failure is not None:
                raise batches.failure
        finally:
            batches.close()
            self._drop()

    async def _next(
        self, batches: _Gathering[_ItemT, _MessageT]
    ) -> _Batch[_ItemT, _MessageT] | None:
        """The next batch, for which the stream is not kept open long."""
        if self._stream is not None and not self._waiting:
            with suppress(TimeoutError):
                return await batches.take(_IDLE)
            await self._end()
        return await batches.take()

    async def _answer(self) -> list[BulkResult[_ItemT]]:
        """What became of the first batch that waits."""
        batch = self._waiting[0]
        try:
            response = await self._calls.repeated(
                self._kind.request(batch.messages[:1]), self._attempt
            )
        except TooLarge as exc:
            # So the server has a lower limit. What was sent ahead is sent again.
            self._drop()
            self._waiting.popleft()
            if len(batch.items) > 1:
                self._waiting.extendleft(reversed(batch.halves()))
                return []
            return [BulkResult(batch.items[0], "", exc)]
        except BaseException:
            self._drop()
            raise
        self._waiting.popleft()
        self._sent -= 1
        return [
            await self._result(item, message, result)
            for item, message, result in zip(
                batch.items, batch.messages, response.results, strict=True
            )
        ]

    async def _attempt(self, seconds: float, metadata: Any) -> Any:
        """Sends what has not been sent, and receives one answer."""
        try:
            async with asyncio.timeout(seconds):
                if self._stream is None:
                    self._stream = self._kind.method(metadata=metadata)
                    self._sent = 0
                # (If it has ended, reading says why.)
                with suppress(asyncio.InvalidStateError):
                    while self._sent < (1 if self._one_by_one else len(self._waiting)):
                        messages = self._waiting[self._sent].messages
                        await self._stream.write(self._kind.request(messages))
                        self._sent += 1
                response = await self._stream.read()
        except TimeoutError as exc:
            self._drop()
            raise DeadlineExceeded(
                "there was no answer in time", reason="DEADLINE_EXCEEDED", maybe_written=True
            ) from exc
        except grpc.aio.AioRpcError as exc:
            # What the first batch was refused for is not told while another one is being sent.
            self._one_by_one |= exc.details() == ENDED_WHILE_SENDING
            self._drop()
            raise
        except BaseException:
            self._drop()
            raise
        if response is grpc.aio.EOF:
            self._drop()
            raise Unavailable("the stream ended without an answer", maybe_written=True)
        # Up to where that is written, only the end of the stream says.
        self._calls.reading.lost()
        self._one_by_one = False
        return response

    async def _result(
        self, item: _ItemT, message: _MessageT, result: _Result
    ) -> BulkResult[_ItemT]:
        error: PersistenceError | None = None
        if not result.HasField("error"):
            answer = cast(Any, result).created
        else:
            error = from_item_error(result.error)
            if passes(error):
                # As a single create is tried again.
                try:
                    answer = await self._calls.unary(self._kind.alone, message)
                    error = None
                except PersistenceError as exc:
                    error = exc
        if error is not None:
            return BulkResult(item, cast(Any, item).id, error)
        return BulkResult(item, self._kind.created(item, answer))

    async def _end(self) -> None:
        """Ends the stream in order: all has been answered."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        # Nothing can go wrong any more.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(_LAST_ANSWER):
                await stream.done_writing()
                await stream.read()
                reading = self._calls.reading
                reading.written(await stream.trailing_metadata(), reading.losses)
        stream.cancel()

    def _drop(self) -> None:
        """Ends the stream at once; what waits is to be sent again."""
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
        self._sent = 0
