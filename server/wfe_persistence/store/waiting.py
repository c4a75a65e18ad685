"""Calls that wait for what other calls do, without the database: a place in a line each, in memory.

Whoever changes what others wait for calls `wake` (or `stir`) after the commit. That wakes who waits
here at once, and unless enough wait here, it tells the other servers (`neighbours.py`), which look
whether it concerns one of theirs. A waiter that is woken looks for itself: that it is woken
promises nothing. What nobody tells of, because a time comes or another program writes the tables,
the `Lookout` finds out for all lines of the server together; it needs neither the waiters nor the
neighbours for it.

What the kinds of lines wait for, and how a lookout looks for it, stands beside the statements of
each: `queue.QUEUE`, `lock.LOCK_FREE`, and so on. To add one:

    NEWS = Kind("news")                       # or Kind("news", look)
    waiters.wake_all(Line(store.namespace, NEWS, name))         # after a commit
    with waiters.join(store, Line(store.namespace, NEWS, name)) as waiter:
        while not (news := await look()):
            await waiter.pause(until)         # woken, by whatever server, or the time is over
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self, TypeVar

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence import metrics
from wfe_persistence.deadlines import Moments
from wfe_persistence.errors import PersistenceError, shutting_down
from wfe_persistence.store.place import Place

if TYPE_CHECKING:
    from wfe_persistence.store.tables import Store

T = TypeVar("T")

_PASSING: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
        ErrorReason.ERROR_REASON_POOL_EXHAUSTED,
        ErrorReason.ERROR_REASON_NAMESPACE_BUSY,
        ErrorReason.ERROR_REASON_DATABASE_FULL,
        ErrorReason.ERROR_REASON_ROW_LOCKED,
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
    }
)

# What a look has found may be out of reach: an item, for example, that is ready but locked by
# another transaction. When whom it has woken finds nothing, the pause (seconds) until the next one
# is woken, which is doubled up to this.
_BACKOFF_SECONDS: Final = 0.05
_MOST_BACKOFF_SECONDS: Final = 1.0

# The lookout looks at a line for whoever begins to wait in it: after this time (seconds), because
# most are woken before; and not so soon (seconds) after it has looked while somebody waits there,
# because what is written meanwhile is told.
_LOOK_SECONDS: Final = 0.02
_LOOKED_SECONDS: Final = 0.25

ALL: Final = -1
"""How many waiters of a line to wake: all."""


def is_passing(error: PersistenceError) -> bool:
    """Whether whoever waits may go on waiting after this error: nothing was written, and it does
    not last."""
    return error.reason in _PASSING


class Ahead(NamedTuple):
    """What a look found out about one line."""

    name: str
    ready: int = 0
    """How many waiters may find something now; ALL: all of them."""
    seconds: float | None = None
    """In how many seconds it is worth another look; None: not before somebody writes."""
    behind: Sequence[Line] = ()
    """Other lines: when they are woken, this one is, too."""


Look = Callable[["Store", Sequence[str]], Awaitable[Iterable[Ahead]]]
"""Looks at lines of one kind by their names, without changing anything. It may leave out those of
which there is nothing to tell."""


@dataclass(frozen=True, eq=False, repr=False)
class Kind:
    """What the lines of one kind wait for. `name`: the same on all servers. `look`: how a lookout
    looks at them; None: those who wait do."""

    name: str
    look: Look | None = None


class Line(NamedTuple):
    """What is waited for."""

    namespace: str
    kind: Kind
    name: str
    """Empty: all lines of this kind. (Nobody waits there, but other servers are told so.)"""


class Teller(Protocol):
    """Tells other servers."""

    def tell(self, line: Line) -> None:
        """Something has been committed that concerns this line, or all lines of a kind."""

    def wants(self, line: Line) -> None:
        """Somebody here waits in a line that nobody was in."""

    def unwants(self, line: Line) -> None:
        """Nobody does any more."""


class Waiters:
    """All that wait on this server."""

    def __init__(self) -> None:
        self._places: Final[dict[Line, Place]] = {}
        self._of_kind: Final[Counter[Kind]] = Counter()
        # Lines that are woken when another one is.
        self._dependents: Final[dict[Line, set[Line]]] = {}
        self.moments: Final = Moments()  # when pauses end
        self.look: Callable[[Line], None] = lambda _: None
        """Have the lookout look at a line soon."""
        self.teller: Teller | None = None
        self.closed = False
        self.count = 0
        """How many wait."""
        metrics.WAITERS.read = lambda: [((), self.count)]

    def join(self, store: Store, *lines: Line) -> Waiter:
        """A place at the end of each of these lines, as a context manager: leaving it gives them
        up."""
        return Waiter(self, store, lines)

    async def take(
        self,
        store: Store,
        lines: Iterable[Line],
        claim: Callable[[], Awaitable[list[T]]],
        until: float,
    ) -> list[T]:
        """What `claim` finds, now or as soon as there is something in these lines, until this time
        of the event loop; nothing: in vain, or the server stops.

        Errors of the first claim are raised, those of later ones only if they do not pass: the
        database may be away for a moment.
        """
        now = asyncio.get_running_loop().time
        if until <= now():
            return await claim()
        waiter = self.join(store, *lines)
        del lines  # ten thousand may wait here
        with waiter:
            found = await claim()
            while not found and until > now():
                try:
                    if await waiter.pause(until) or waiter.is_first:
                        found = await claim()
                except PersistenceError as exc:
                    if self.closed:
                        break
                    # (What a lost answer has claimed, comes back when its lease expires.)
                    lost = exc.reason == ErrorReason.ERROR_REASON_COMMIT_OUTCOME_UNKNOWN
                    if not (lost or is_passing(exc)):
                        raise
                except asyncio.CancelledError:
                    waiter.woken = True  # what it was woken for is still there
                    raise
        return found

    def listen(self, store: Store, line: Line, call: Callable[[], None]) -> Callable[[], None]:
        """Call a function whenever a line is woken, which then must wake all; returns how to stop
        that."""
        listener = _Listener(self, store, (line,), call)
        self.enter(listener, store, line)
        return lambda: self.leave(listener, line)

    def wake(self, line: Line, count: int = 1, *, is_ready: bool = True) -> None:
        """Something was committed for up to `count` waiters of a line: wake the first ones here. If
        there are fewer, or it can't be had before a later time (`is_ready`), tell other servers."""
        woken = self.wake_here(line, count)
        if self.teller is not None and (count == ALL or woken < count or not is_ready):
            self.teller.tell(line)

    def wake_all(self, line: Line) -> None:
        """Something was committed for all waiters of a line, here and elsewhere."""
        self.wake(line, ALL)

    def stir(self, line: Line) -> None:
        """Something was committed that may concern a line, or all of a kind if it has no name:
        look here, and tell other servers."""
        self.stir_here(line)
        if self.teller is not None:
            self.teller.tell(line)

    def stir_all(self, namespace: str, *kinds: Kind) -> None:
        """The same for all lines of these kinds in a namespace."""
        for kind in kinds:
            self.stir(Line(namespace, kind, ""))

    def wake_here(self, line: Line, count: int) -> int:
        """Wake the first waiters of a line that have not been woken yet, up to `count`, and those
        of the lines behind it; returns how many there were."""
        woken = 0
        if place := self._places.get(line):
            place.vain, place.not_before = 0, 0.0
            sleeping = (waiter for waiter in place.waiters if not waiter.woken)
            for waiter in islice(sleeping, None if count == ALL else count):
                waiter.wake()
                woken += 1
        for dependent in self._dependents.get(line, ()):
            self.wake_here(dependent, 1)
        return woken

    def look_soon(self, line: Line) -> None:
        """Have the lookout look at a line for somebody who begins to wait in it, unless that is
        woken before."""
        place = self._places[line]
        loop = asyncio.get_running_loop()
        at = max(loop.time() + _LOOK_SECONDS, place.looked + _LOOKED_SECONDS)
        if place.alarm is not None:
            if place.alarm.when() <= at:
                return
            place.alarm.cancel()
        place.alarm = loop.call_at(at, self.look, line)

    def call(self, line: Line, count: int) -> None:
        """The lookout wakes the first waiters of a line, up to `count`, but not too often in
        vain."""
        for waiter in islice(self._places[line].waiters, None if count == ALL else count):
            waiter.called = True
            waiter.wake()

    def was_in_vain(self, line: Line, now: float) -> None:
        """Whom the lookout has woken has found nothing."""
        place = self._places[line]
        place.looked = float("-inf")
        doubled = _BACKOFF_SECONDS * 2 ** min(place.vain, 10)
        place.not_before = now + min(doubled, _MOST_BACKOFF_SECONDS)
        place.vain += 1

    def stir_here(self, line: Line) -> None:
        """Look at a line, or have those look who wait in it."""
        if not line.name:
            if line.kind in self._of_kind:
                for each in [each for each in self._places if each[:2] == line[:2]]:
                    self.stir_here(each)
            return
        if line in self._places:
            place = self._places[line]
            place.vain, place.not_before = 0, 0.0
            if line.kind.look is None:
                self.wake_here(line, ALL)
            else:
                self.look(line)
        for dependent in self._dependents.get(line, ()):
            self.look(dependent)

    def stir_everything(self) -> None:
        """Look at all lines: anything may have happened."""
        for line in list(self._places):
            self.stir_here(line)

    def lines(self) -> Iterator[tuple[Line, Place]]:
        """All lines in which somebody waits."""
        return iter(self._places.items())

    def place(self, line: Line) -> Place | None:
        """A line's waiters; None: there are none."""
        return self._places.get(line)

    def kinds(self) -> Iterable[Kind]:
        """The kinds of all lines in which somebody waits."""
        return self._of_kind

    def __len__(self) -> int:
        """How many lines there are."""
        return len(self._places)

    def close(self) -> None:
        """Have everybody who waits, or comes later, raise SHUTTING_DOWN: the server stops."""
        self.closed = True
        for place in self._places.values():
            for waiter in place.waiters:
                waiter.wake()

    def set_behind(self, line: Line, place: Place, behind: Sequence[Line]) -> None:
        """From now on wake a line when one of these is, and no others as before."""
        if behind == place.behind:
            return
        for other in place.behind:
            self._dependents[other].discard(line)
            if not self._dependents[other]:
                del self._dependents[other]
                if self.teller is not None and other not in self._places:
                    self.teller.unwants(other)
        for other in behind:
            if other not in self._dependents:
                self._dependents[other] = set()
                if self.teller is not None and other not in self._places:
                    self.teller.wants(other)
            self._dependents[other].add(line)
        place.behind = behind

    def enter(self, waiter: Waiter, store: Store, line: Line) -> None:
        """Put a waiter at the end of a line."""
        place = self._places.get(line)
        if place is None:
            place = self._places[line] = Place(store)
            self._of_kind[line.kind] += 1
            if self.teller is not None and line not in self._dependents:
                self.teller.wants(line)
        place.store = store
        place.waiters[waiter] = None

    def leave(self, waiter: Waiter, line: Line) -> None:
        """Take a waiter out of a line. If it is woken but can no longer look, the first one of the
        rest is woken in its place, or if there is none, other servers are told."""
        place = self._places[line]
        del place.waiters[waiter]
        if waiter.woken:
            following = next((each for each in place.waiters if not each.woken), None)
            if following is not None:
                following.wake()
            elif self.teller is not None:
                self.teller.tell(line)
        if place.waiters:
            return
        del self._places[line]
        self._of_kind[line.kind] -= 1
        if not self._of_kind[line.kind]:
            del self._of_kind[line.kind]
        if place.alarm is not None:
            place.alarm.cancel()
        if self.teller is not None:
            if place.behind:
                self.teller.tell(line)  # what was withheld from who waited here
            if line not in self._dependents:
                self.teller.unwants(line)
        self.set_behind(line, place, ())

    def is_first(self, waiter: Waiter, line: Line) -> bool:
        """Whether a waiter is the first of a line."""
        return next(iter(self._places[line].waiters)) is waiter


class Waiter:
    """One call that waits; see `Waiters.join`. There may be ten thousand of them, so each has only
    what it needs."""

    __slots__ = ("_lines", "_paused", "_store", "_waiters", "called", "woken")

    def __init__(self, waiters: Waiters, store: Store, lines: tuple[Line, ...]) -> None:
        self._waiters = waiters
        self._store = store
        self._lines = lines
        self._paused: asyncio.Future[None] | None = None
        self.woken = False
        """Whether it was woken and has not looked since."""
        self.called = False
        """Whether the lookout was who woke it."""

    def __enter__(self) -> Self:
        self._waiters.count += 1
        for line in self._lines:
            self._waiters.enter(self, self._store, line)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._waiters.count -= 1
        for line in self._lines:
            self._waiters.leave(self, line)

    @property
    def is_first(self) -> bool:
        """Whether it is the first in one of its lines."""
        return any(self._waiters.is_first(self, line) for line in self._lines)

    def wake(self) -> None:
        """End the pause, or the next one."""
        self.woken = True
        _end(self._paused)

    def expire(self) -> None:
        """The time of the pause is over."""
        _end(self._paused)

    async def pause(self, until: float) -> bool:
        """Wait until woken, at most until this time of the event loop; returns whether it was.
        Raises SHUTTING_DOWN if the server stops.

        The lookout looks at its lines soon: what came after the waiter's own look, and what is to
        be expected when.
        """
        loop = asyncio.get_running_loop()
        if self.called:
            self.called = False
            for line in self._lines:
                self._waiters.was_in_vain(line, loop.time())
        if not self.woken and not self._waiters.closed:
            for line in self._lines:
                if line.kind.look is not None:
                    self._waiters.look_soon(line)
            self._paused = loop.create_future()
            moment = self._waiters.moments.add(until, self)
            try:
                await self._paused
            finally:
                moment.discard(self)
                self._paused = None
        woken, self.woken = self.woken, False
        if self._waiters.closed:
            raise shutting_down()
        return woken


class _Listener(Waiter):
    """Something that looks by itself when it is called; see `Waiters.listen`."""

    __slots__ = ("_call",)

    def __init__(
        self, waiters: Waiters, store: Store, lines: tuple[Line, ...], call: Callable[[], None]
    ) -> None:
        super().__init__(waiters, store, lines)
        self._call = call

    def wake(self) -> None:
        """Call it."""
        self._call()


def _end(pause: asyncio.Future[None] | None) -> None:
    if pause is not None and not pause.done():
        pause.set_result(None)
