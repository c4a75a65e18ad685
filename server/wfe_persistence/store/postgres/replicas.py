"""The replicas of a database: how far each of them is, and which one a call may read from.

How stale a replica is follows from the primary's own positions: of each position it is known since
when the WAL has been there, by the clock of this process, so whoever has replayed it has everything
that was committed before. A replica of which that was too long ago is left out, whether it lags,
has stopped, or can't be asked; so is one that has been promoted.

A read that relies on a position asks for it again, on its own connection (`position.py`): what is
known here only chooses a replica that is likely to have it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from time import monotonic
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence import metrics
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.postgres.pipeline import Command, Exchange, PGresult
from wfe_persistence.store.postgres.position import (
    NUDGE,
    REPLAYED,
    WRITTEN,
    NotReplayedError,
    Position,
    has_replayed,
    read_replayed,
    read_written,
    require,
)
from wfe_persistence.store.postgres.reads import Reads
from wfe_persistence.store.postgres.sqlstate import UnexpectedDatabaseError

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.25
"""How often the replicas are asked, and the primary if nothing is written."""
_ANSWER_SECONDS: Final = 1.0
_WAIT_LOOK_SECONDS: Final = 0.005
"""How often a replica is asked while calls wait for it."""

# The primary's positions are kept at this distance, for as long as a replica may lag and be known
# by how much.
_SAMPLE_SECONDS: Final = 0.05
_SAMPLES: Final = 1200


class Replica:
    """A standby of a database, and how far it is. `label`: what metrics call it."""

    def __init__(self, database: Database, label: str) -> None:
        self.database = database
        self.label = label
        self.position: Position | None = None
        """Up to where it has replayed, as last seen."""
        self.keeps_rows = False
        """Whether long reads are safe on it: the primary keeps the rows that they see."""
        self.has_all_since = float("-inf")
        """It has everything that was committed before this time, by `time.monotonic`."""
        self.why = "it has not been reached yet"
        """Why it is left out; empty: it is not."""
        self._waiting: list[tuple[Position, asyncio.Future[None]]] = []
        self._looking_on: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Ask it how far it is. Raises TimeoutError, or what `Database.run` does."""
        async with asyncio.timeout(_ANSWER_SECONDS):
            [rows] = await self.database.run("", [(REPLAYED, ())], write=False)
        found = read_replayed(self.database.name, rows)
        if found is None:
            self.position = None
            return
        self.position, self.keeps_rows = found
        for position, done in self._waiting:
            if self.has(position) and not done.done():
                done.set_result(None)

    def has(self, position: Position) -> bool:
        """Whether it has replayed this, as last seen."""
        return self.position is not None and _is_at(self.position, position)

    async def wait(self, position: Position, seconds: float) -> bool:
        """Wait until it has replayed this; whether it has within so many seconds."""
        done = asyncio.get_running_loop().create_future()
        waits = (position, done)
        self._waiting.append(waits)
        if self._looking_on is None:
            self._looking_on = asyncio.get_running_loop().create_task(self._look_on())
        try:
            async with asyncio.timeout(seconds):
                await done
        except TimeoutError:
            return False
        finally:
            self._waiting.remove(waits)
        return True

    def lag_seconds(self) -> float | None:
        """For how long it has not had everything; None: it never had."""
        lag = monotonic() - self.has_all_since
        return lag if lag < float("inf") else None

    def stop(self) -> None:
        """Look no more for those who wait."""
        if self._looking_on is not None:
            self._looking_on.cancel()

    async def _look_on(self) -> None:
        """Look often for as long as somebody waits."""
        try:
            while self._waiting:
                await self.look()
                await asyncio.sleep(_WAIT_LOOK_SECONDS)
        except (PersistenceError, UnexpectedDatabaseError, TimeoutError):
            pass  # they wait in vain
        finally:
            self._looking_on = None


class Replicas:
    """The replicas of a database, which are open as long as that is.

    `max_lag`: how stale (seconds) what is read from one may be; it is left out beyond. `wait`: for
    how long a read waits until one has replayed what it relies on.
    """

    def __init__(
        self, primary: Database, databases: Sequence[Database], *, max_lag: float, wait: float
    ) -> None:
        self._primary = primary
        self._replicas = [
            Replica(database, f"{primary.name}/{number}")
            for number, database in enumerate(databases, 1)
        ]
        self._max_lag = max_lag
        self._wait = wait
        self.position: Position | None = None
        """Where the primary's WAL is: at the end of whatever was written here, or behind it."""
        # Positions, with a time at or before which the WAL was not behind them; the newest last.
        self._samples: deque[tuple[float, Position]] = deque(maxlen=_SAMPLES)
        self._sampled = float("-inf")
        self._nudged: Position | None = None
        self._nudging: asyncio.Task[None] | None = None
        self._turn = 0
        self._stack = AsyncExitStack()

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas)

    async def open(self) -> None:
        """Begin to connect, and to look at them."""
        loop = asyncio.get_running_loop()
        for replica in self._replicas:
            await self._stack.enter_async_context(replica.database)
            self._stack.callback(loop.create_task(self._watch(replica)).cancel)
        self._stack.callback(loop.create_task(self._watch_primary()).cancel)
        _OPEN.add(self)
        for replica in self._replicas:
            for outcome in OUTCOMES:
                metrics.REPLICA_READS.add((replica.label, outcome), 0)

    async def close(self) -> None:
        """Close them."""
        _OPEN.discard(self)
        for replica in self._replicas:
            replica.stop()
        if self._nudging is not None:
            self._nudging.cancel()
        await self._stack.aclose()

    # ----- what the primary has written -----

    def take_position(self, exchange: Exchange, statements: int) -> bool:
        """Take the position that was asked for behind so many statements out of the results of a
        write; whether it is there."""
        if len(exchange.results) == statements:
            return False
        position = read_written(self._primary.name, exchange.results.pop())
        self._note(position, exchange.asked)
        return True

    async def find_position(self) -> None:
        """Learn the position of a write that is committed, but whose connection broke before it
        said so. Raises COMMIT_OUTCOME_UNKNOWN: a repetition will know."""
        try:
            await self.look()
        except PersistenceError as exc:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_COMMIT_OUTCOME_UNKNOWN,
                "the database connection broke before the write's position was known",
                retry_after=0.1,
            ) from exc

    async def look(self) -> Position:
        """Where the primary's WAL is now. Raises PersistenceError."""
        asked = monotonic()
        try:
            [rows] = await self._primary.run("", [(WRITTEN, ())], write=False)
        except UnexpectedDatabaseError as exc:  # a standby has taken its place
            raise self._primary.reachability.unavailable() from exc
        position = read_written(self._primary.name, rows)
        self._note(position, asked)
        return position

    def _note(self, position: Position, since: float) -> None:
        last = self.position
        if last is None or last.database != position.database:
            self._samples.clear()
        elif position < last:
            return  # it was asked before the other one
        self.position = position
        self._sampled = since = max(since, self._sampled)
        if not self._samples or since >= self._samples[-1][0] + _SAMPLE_SECONDS:
            self._samples.append((since, position))

    # ----- how far the replicas are -----

    async def _watch_primary(self) -> None:
        while True:
            if monotonic() - self._sampled >= _LOOK_SECONDS:
                try:
                    await self.look()
                except PersistenceError:
                    pass  # that is logged already; meanwhile no replica is known to have all
                except Exception:
                    log.exception("bug: the watch of the primary failed")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _watch(self, replica: Replica) -> None:
        while True:
            try:
                await self._look_at(replica)
            except Exception:
                log.exception("bug: the watch of a replica failed")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look_at(self, replica: Replica) -> None:
        why = ""
        try:
            await replica.look()
        except TimeoutError:
            why = "it has not answered in time"
        except (PersistenceError, UnexpectedDatabaseError) as exc:
            why = exc.in_full if isinstance(exc, PersistenceError) else str(exc)
        else:
            if replica.position is None:
                why = "it is no standby (any more)"
            elif self.position is not None:
                if replica.position.database != self.position.database:
                    why = "it is a replica of another database"
                else:
                    self._judge(replica, replica.position)
        if not why and not self._is_fresh(replica):
            why = f"it lags by more than {self._max_lag:g} s"
        if why != replica.why:
            if not why:
                log.info("replica %s: reads may use it", replica.label)
            elif not replica.why or replica.position is None:
                log.warning("replica %s is left out: %s", replica.label, why)
            replica.why = why

    def _judge(self, replica: Replica, at: Position) -> None:
        """Since when it has everything, given where it is."""
        for since, position in reversed(self._samples):
            if _is_at(at, position):
                replica.has_all_since = max(replica.has_all_since, since)
                break
        newest = self.position
        if newest is not None and _is_at(at, newest):
            replica.has_all_since = max(replica.has_all_since, self._sampled)
        elif newest is not None and newest != self._nudged and self._is_idle(newest):
            self._nudged = newest
            if self._nudging is None or self._nudging.done():
                self._nudging = asyncio.get_running_loop().create_task(self._nudge())

    def _is_idle(self, newest: Position) -> bool:
        """Whether the WAL has not grown for some looks."""
        before = self._sampled - 2 * _LOOK_SECONDS
        return any(since <= before and at == newest for since, at in self._samples)

    async def _nudge(self) -> None:
        try:
            await self._primary.run("", [(NUDGE, ())], write=False)
        except (PersistenceError, UnexpectedDatabaseError) as exc:
            log.debug("the primary's WAL could not be completed: %s", exc)

    def _is_fresh(self, replica: Replica) -> bool:
        return monotonic() - replica.has_all_since <= self._max_lag

    # ----- who reads from which -----

    def lag_bytes(self, replica: Replica) -> int | None:
        """How far a replica is behind the primary, as last seen."""
        if self.position is None or replica.position is None:
            return None
        return max(0, self.position.lsn - replica.position.lsn)

    def is_usable(self, replica: Replica) -> bool:
        """Whether reads may use a replica."""
        return not replica.why and self._is_fresh(replica)

    def choose(self, position: str, since: float, *, long: bool = False) -> Replica | None:
        """A replica for a call that relies on a position, a text of `Position`; empty: on none.
        None: there is none that is known to be good enough. `since`: it must have everything that
        was committed before this time, by `time.monotonic`. `long`: for a read that takes long."""
        usable = [
            replica
            for replica in self._replicas
            if self.is_usable(replica)
            and replica.has_all_since >= since
            and (replica.keeps_rows or not long)
        ]
        if not usable:
            return None
        at = self._of_this_database(position)
        if position and at is None:
            return None
        if at is not None:
            having = [replica for replica in usable if replica.has(at)]
            if not having:
                return max(usable, key=lambda replica: replica.position or at)
            usable = having
        # The one that has the least to do; of several, they take turns.
        self._turn += 1
        first = self._turn % len(usable)
        return min(usable[first:] + usable[:first], key=lambda replica: replica.database.in_use)

    def reader(self, position: str, since: float) -> Reads | None:
        """What a call reads from that relies on a position, and on what was committed before a
        time; None: from the primary."""
        replica = self.choose(position, since)
        if replica is None:
            metrics.REPLICA_READS.add((self._primary.name, "none"))
            return None
        return Reads(self._primary, replica, self._of_this_database(position), self._wait)

    async def has_replayed(
        self,
        replica: Replica,
        run: Callable[[Sequence[Command]], Awaitable[Sequence[PGresult]]],
        text: str,
    ) -> bool:
        """Whether a replica has a position, a text of `Position` (empty: any), according to a
        connection to it; it is waited for if need be."""
        position = self._of_this_database(text)
        if position is None:
            return not text
        for wait in (self._wait, 0.0):
            [has] = await run([has_replayed(position)])
            with suppress(NotReplayedError):
                require(has)
                return True
            if not (wait and await replica.wait(position, wait)):
                break
        return False

    def _of_this_database(self, text: str) -> Position | None:
        """The position with this text; None: it is none of this database."""
        position = Position.parse(text)
        if position is None or self.position is None:
            return None
        return position if position.database == self.position.database else None


OUTCOMES: Final = ("replica", "behind", "failed")
"""What became of a call that was to read from a replica: it did; or read from the primary because
the replica had not replayed in time what it relies on, or because the replica failed."""

_OPEN: Final[set[Replicas]] = set()


def _shown(read: Callable[[Replicas, Replica], float | None]) -> Callable[[], list[_Shown]]:
    """What a gauge reads: a number of each replica, unless it is None."""
    return lambda: [
        ((replica.label,), number)
        for replicas in _OPEN
        for replica in replicas
        if (number := read(replicas, replica)) is not None
    ]


_Shown = tuple[metrics.Labels, float]

metrics.REPLICA_LAG_BYTES.read = _shown(Replicas.lag_bytes)
metrics.REPLICA_LAG_SECONDS.read = _shown(lambda _, replica: replica.lag_seconds())
metrics.REPLICA_USABLE.read = _shown(lambda replicas, replica: replicas.is_usable(replica))


def _is_at(there: Position, position: Position) -> bool:
    """Whether whoever is there has everything up to a position."""
    return (
        there.database == position.database
        and there.timeline >= position.timeline
        and there.lsn >= position.lsn
    )
