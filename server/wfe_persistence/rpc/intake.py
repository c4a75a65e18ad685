"""What the server takes on at a time: calls, and the bytes of their requests.

A request is received only once there is room for it. Until then its bytes stay with the client,
apart from the window of HTTP/2 (64 kB per call).

(Longer than 450 lines, as places for calls and room for bytes are given and given back together.)
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Final, NoReturn

import grpc

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.deadlines import Deadlines, Moments
from wfe_persistence.errors import PersistenceError, shutting_down, too_large
from wfe_persistence.rpc.calls import Calls, decrement, names_one_connection, too_many
from wfe_persistence.rpc.status import abort
from wfe_persistence.time_spent import measured

Context = grpc.aio.ServicerContext[Any, Any]

# Requests up to this size are limited by the number of calls alone.
_SMALL_BYTES: Final = 65_536

# A request that is still not complete after this time (seconds) is refused when others wait for
# its place, and sooner the more they are. A complete one is refused when there is no room to handle
# it for as long.
_PATIENCE_SECONDS: Final = 3.0
_MIN_PATIENCE_SECONDS: Final = 0.5

_MIN_SLOTS: Final = 4

# Of calls for health, which are not limited: requests that are being received, and how large they
# may be. (gRPC receives up to `largest` bytes before it says so.)
_MAX_HEALTH_READS: Final = 32
_MAX_HEALTH_BYTES: Final = 1024


class Intake:
    """Admits calls and receives their requests; one for the whole server.

    At most `max_calls` calls are in progress, of which at most `max_calls_per_connection` come over
    one connection; and as many streams that last, which do little but wait. Their requests take at
    most about `memory` bytes: half of it for those being received, each of which may have `largest`
    bytes, half for those being handled, each of at most `max_message_bytes`. One connection gets at
    most half of each. (Connections over a Unix socket can't be told apart, so none of that is per
    connection there.)
    """

    def __init__(
        self,
        *,
        max_calls: int,
        max_calls_per_connection: int,
        max_message_bytes: int,
        largest: int,
        memory: int,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._calls = Calls(max_calls, max_calls_per_connection)
        self._health_calls = Calls(max_calls, max_calls_per_connection)
        self._lasting_calls = Calls(max_calls, max_calls_per_connection)
        self._slot_count = slots = max(_MIN_SLOTS, memory // 2 // largest)
        self._slots = _Room(slots, slots // 2)
        self._max_waiting = slots // 2
        self._large = _Room(
            max(memory // 2, max_message_bytes), max(memory // 4, max_message_bytes)
        )
        self._reads: OrderedDict[_Read, None] = OrderedDict()  # in progress, the oldest first
        self._health_reads: OrderedDict[_Read, None] = OrderedDict()
        self._next_reads: OrderedDict[_Read, None] = OrderedDict()
        self._eviction: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._late = Moments()
        self.deadlines = Deadlines()
        """Of the calls in progress."""
        self.refuses = False
        """Whether calls are to be refused, because the server stops."""
        self.refused = 0
        """How many calls are being refused: their clients have not been told yet."""
        self._tell = asyncio.Event()
        self._last_refusal = 0.0

    def busy_peers(self) -> set[str]:
        """The peers, as gRPC names them, of all connections with calls in progress."""
        calls = self._calls
        return {*calls.by_peer, *calls.resting_by_peer, *self._lasting_calls.by_peer}

    def health_peers(self) -> set[str]:
        """Those of all connections with calls for health in progress."""
        return set(self._health_calls.by_peer)

    async def attend(self, context: Context, *, limited: bool) -> bytes:
        """Know of a call for health until its end. Returns the bytes of its request.

        A `limited` one is limited as other calls are, but apart from them. Anybody may ask, so a
        request must be small, and of those that have not come yet only the newest are waited for.
        Raises PersistenceError, or AbortError.
        """
        peer = context.peer()
        if limited:
            self._health_calls.require_room(peer)
        self._health_calls.enter(context, peer)
        if len(self._health_reads) >= _MAX_HEALTH_READS:
            oldest, _ = self._health_reads.popitem(last=False)
            self._end(oldest, _too_slow)
        read = _Read(self, context, monotonic())
        return await _receive(read, self._health_reads, _MAX_HEALTH_BYTES)

    @property
    def in_progress(self) -> int:
        """How many calls are in progress; those for health do not count."""
        resting = self._calls.resting_by_peer.total()
        return self._calls.total + resting + self._lasting_calls.total

    @property
    def quiet_for(self) -> float:
        """How long (seconds) no call has come since `refuse_calls`."""
        return asyncio.get_running_loop().time() - self._last_refusal

    def refuse_calls(self) -> None:
        """From now on refuse calls, except those for health, because the server stops."""
        self.refuses = True
        self._tell.set()
        self._last_refusal = asyncio.get_running_loop().time()

    def hold_refused(self) -> None:
        """From now on do not tell clients yet that calls are refused: so they send no others."""
        self._tell.clear()

    def tell_refused(self) -> None:
        """Tell the clients of the calls that were held."""
        self._tell.set()

    async def refuse(self, context: Context) -> NoReturn:
        """End a call that comes after `refuse_calls`, as `abort` does."""
        self._last_refusal = asyncio.get_running_loop().time()
        self.refused += 1
        try:
            await self._tell.wait()
            await abort(context, shutting_down())
        finally:
            # Not as a callback of gRPC's: those come before the status has been sent.
            self.refused -= 1

    def end_calls(self) -> None:
        """End the calls in progress, because the server stops."""
        self.deadlines.expire()
        for read in (*self._reads, *self._next_reads):
            self._end(read, shutting_down)

    def admit(self, context: Context, deadline: float, *, lasts: bool = False) -> Place:
        """Count a call until its end; `deadline` is on the event loop's clock. Those that last are
        counted apart, so that they take no room from the others.

        Raises PersistenceError if there are too many.
        """
        peer = context.peer()
        calls = self._lasting_calls if lasts else self._calls
        calls.require_room(peer)
        calls.enter(context, peer)
        return Place(self, context, peer, deadline)

    async def receive(self, place: Place) -> bytes:
        """The bytes of a call's request; `release` must be told of those that are `place.large`."""
        peer = place.peer
        with measured("receiving"):
            if not self._slots.try_take(peer, 1):
                self._evict_later()
                with self.deadlines.until(place.deadline):
                    await self._slots.take(peer, 1)
            read = _Read(self, place.context, monotonic())
            moment = self._late.add(place.deadline, read)
            try:
                if self._slots.waiting:
                    self._evict_later(read)
                data = await _receive(read, self._reads, self._max_message_bytes)
                if len(data) > _SMALL_BYTES:
                    moment.discard(read)
                    if not self._large.try_take(peer, len(data)):
                        await self._wait_for_room(peer, len(data), place.deadline)
                    place.large = len(data)
                return data
            finally:
                moment.discard(read)
                self._slots.give_back(peer, 1)

    async def receive_next(self, place: Place, patience: float, ends: float) -> bytes | None:
        """The bytes of the next request of a stream; None: the client sends no more. `release` must
        be told of those that are `place.large`.

        While it is received it takes no room of other calls: there are few such streams. Raises
        PersistenceError, or AbortError, also if nothing has come for so long (seconds), or until
        the call `ends` (on the event loop's clock), which its client may be told by us first.
        """
        loop = asyncio.get_running_loop()
        read = _Read(self, place.context, monotonic())
        deadline = min(ends, loop.time() + patience)
        timer = loop.call_at(deadline, self._end, read, _too_late if deadline == ends else _no_more)
        if self.deadlines.expired:
            self._end(read, shutting_down)
        try:
            data = await _receive_more(read, self._next_reads, self._max_message_bytes)
        finally:
            timer.cancel()
        if data is not None and len(data) > _SMALL_BYTES:
            if not self._large.try_take(place.peer, len(data)):
                await self._wait_for_room(place.peer, len(data), deadline)
            place.large = len(data)
        return data

    def rest(self, peer: str) -> bool:
        """One of this connection's calls does not count for the limits of calls any more, until
        `wake_up`; false: it still does, because very many do not already."""
        return self._calls.rest(peer)

    def wake_up(self, peer: str) -> None:
        """It counts again."""
        self._calls.wake_up(peer)

    def release(self, peer: str, large: int) -> None:
        """Take back the room of a request that has been handled."""
        self._large.give_back(peer, large)

    async def _wait_for_room(self, peer: str, large: int, deadline: float) -> None:
        """Wait in turn until a large request may be handled."""
        if self._large.waiting >= self._max_waiting:
            raise too_many("too many large requests are waiting already")
        loop = asyncio.get_running_loop()
        patience = loop.time() + _PATIENCE_SECONDS
        try:
            with self.deadlines.until(min(deadline, patience)):
                await self._large.take(peer, large)
        except TimeoutError as exc:
            if deadline <= patience or self.deadlines.expired:
                raise
            raise too_many("the large requests in progress take too long") from exc

    def _evict_later(self, newest: _Read | None = None) -> None:
        """Refuse, as soon as they have had their time, the requests that hold up others."""
        oldest = next(iter(self._reads), newest)
        if self._eviction is None and oldest is not None:
            self._eviction = asyncio.get_running_loop().call_at(
                oldest.since + self._patience(), self._evict
            )

    def _evict(self) -> None:
        self._eviction = None
        latest = monotonic() - self._patience()
        for read in list(self._reads)[: self._slots.waiting]:
            if read.since > latest:
                break
            del self._reads[read]
            self._end(read, _too_slow)
        if self._slots.waiting:
            self._evict_later()

    def _patience(self) -> float:
        rounds = 1 + self._slots.waiting / self._slot_count
        return max(_PATIENCE_SECONDS / rounds, _MIN_PATIENCE_SECONDS)

    def end_late(self, read: _Read) -> None:
        """End a call whose deadline has passed before its request was complete."""
        self._end(read, _too_late)

    def _end(self, read: _Read, error: Callable[[], PersistenceError]) -> None:
        """End a call from outside its handler, whose read then raises AbortError."""
        task = asyncio.get_running_loop().create_task(read.end(error()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass(slots=True, eq=False)
class _Read:
    """A request that is being received."""

    intake: Intake
    context: Context
    since: float
    ended: bool = False

    def expire(self) -> None:
        """The deadline of its call has passed."""
        self.intake.end_late(self)

    async def end(self, error: PersistenceError) -> None:
        """End its call, unless it is complete."""
        # AbortError is how abort() ends; any other one means that the call has ended already.
        with suppress(grpc.aio.BaseError):
            if not self.ended:
                await abort(self.context, error)


async def _receive(read: _Read, reads: OrderedDict[_Read, None], max_bytes: int) -> bytes:
    """The bytes of a request, which meanwhile is one of `reads`."""
    data = await _receive_more(read, reads, max_bytes)
    if data is None:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_MALFORMED_MESSAGE, "the call has no request message"
        )
    return data


async def _receive_more(
    read: _Read, reads: OrderedDict[_Read, None], max_bytes: int
) -> bytes | None:
    """The same; None: there is no more request."""
    reads[read] = None
    # It must not be cancelled: gRPC would go on writing to memory that is freed. So it is ended by
    # ending the call.
    try:
        data = await read.context.read()
    finally:
        read.ended = True
        reads.pop(read, None)
    if data is grpc.aio.EOF:
        return None
    assert isinstance(data, bytes)
    if len(data) > max_bytes:
        raise too_large(ErrorReason.ERROR_REASON_MESSAGE_TOO_LARGE, "request", len(data), max_bytes)
    return data


class Place:
    """One call that was admitted. As a context manager, it holds the room of the request."""

    __slots__ = ("_intake", "context", "deadline", "large", "peer")

    def __init__(self, intake: Intake, context: Context, peer: str, deadline: float) -> None:
        self._intake = intake
        self.context = context
        self.peer = peer
        self.deadline = deadline
        """When the call ends at the latest, on the event loop's clock."""
        self.large = 0
        """How many bytes of a large request are kept for it."""

    def receive(self) -> Awaitable[bytes]:
        """The bytes of the request. Raises PersistenceError, TimeoutError, or AbortError."""
        return self._intake.receive(self)

    def rest(self) -> bool:
        """From now on, until `wake_up`, the call only waits for what others do, and takes up no
        place of those that work: waiting ones must not keep others out, of which one may be what
        they wait for. False: it still does, because very many wait."""
        return self._intake.rest(self.peer)

    @property
    def refuses(self) -> bool:
        """Whether calls are refused, because the server stops."""
        return self._intake.refuses

    def wake_up(self) -> None:
        """The call that `rest` has let rest goes on."""
        self._intake.wake_up(self.peer)

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give back the room of the request, because it will not be looked at again."""
        if self.large:
            self._intake.release(self.peer, self.large)
            self.large = 0


class _Room:
    """An amount of something, shared out among connections in turn, each first in, first out.

    A connection gets at most its `share`, except that one request of any size is let in alone.
    """

    def __init__(self, amount: int, share: int) -> None:
        self._free = amount
        self._share = share
        self._taken: Counter[str] = Counter()
        # By connection, the one whose turn is next first.
        self._queues: OrderedDict[str, deque[tuple[asyncio.Future[None], int]]] = OrderedDict()
        self.waiting = 0
        """How many wait."""

    def try_take(self, peer: str, amount: int) -> bool:
        """Take an amount unless it, or its turn, must be waited for."""
        if peer in self._queues or not self._has_room(peer, amount):
            return False
        self._free -= amount
        self._taken[peer] += amount
        return True

    async def take(self, peer: str, amount: int) -> None:
        """Take an amount in turn."""
        turn = asyncio.get_running_loop().create_future()
        entry = (turn, amount)
        self._queues.setdefault(peer, deque()).append(entry)
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # granted at the same moment
                self.give_back(peer, amount)
            else:
                queue = self._queues[peer]
                queue.remove(entry)
                self.waiting -= 1
                if not queue:
                    del self._queues[peer]
                self._grant()  # it may have been in the way of another one
            raise

    def give_back(self, peer: str, amount: int) -> None:
        """Return an amount; those whose turn it is get it."""
        self._free += amount
        decrement(self._taken, peer, amount)
        if self._queues:
            self._grant()

    def _grant(self) -> None:
        """Let in, one of each connection in turn, all that there is room for."""
        granted = True
        while granted:
            granted = False
            for peer in list(self._queues):
                queue = self._queues[peer]
                turn, amount = queue[0]
                if turn.cancelled() or not self._has_room(peer, amount):
                    continue
                queue.popleft()
                self.waiting -= 1
                if queue:
                    self._queues.move_to_end(peer)
                else:
                    del self._queues[peer]
                self._free -= amount
                self._taken[peer] += amount
                turn.set_result(None)
                granted = True

    def _has_room(self, peer: str, amount: int) -> bool:
        if amount > self._free:
            return False
        taken = self._taken.get(peer, 0)
        return not taken or taken + amount <= self._share or not names_one_connection(peer)


def _too_slow() -> PersistenceError:
    return too_many("the request came too slowly while others were waiting")


def _no_more() -> PersistenceError:
    return too_many("the client has not sent on")


def _too_late() -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_DEADLINE_EXCEEDED,
        "the deadline passed before the request was complete",
        retry_after=0.1,
    )
