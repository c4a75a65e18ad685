"""The exports and imports of a server: how many there are at a time, and the snapshots of exports.

An export reads in one transaction that stays open, on a connection of its own. It exports its
snapshot, so that another transaction can read the same: when a stream has broken, this one stays
open for a while, and whoever resumes the stream, on any server, takes the snapshot over from it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.postgres.prepared import Statement
from wfe_persistence.store.postgres.replicas import Replica, Replicas
from wfe_persistence.store.postgres.session import Session
from wfe_persistence.store.postgres.sqlstate import UnexpectedDatabaseError
from wfe_persistence.store.rows import read_text, read_time
from wfe_persistence.store.tables import Store

log = logging.getLogger(__name__)

BEGIN_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"

# Whatever the role's settings are: between its statements an export waits for its client, and one
# of them may take long. Plans need not be compiled, and workers would be taken from others.
_SETTINGS: Final = (
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
    "SET LOCAL jit = off",
    "SET LOCAL max_parallel_workers_per_gather = 0",
)
_SNAPSHOT: Final = "SELECT pg_export_snapshot(), now()"
_STARTED: Final = """
SELECT to_hex((extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint)
"""
_AT: Final = "@"
"""Between the id of a snapshot on a replica and the server that it is from."""
_SNAPSHOT_ID: Final = re.compile(r"[0-9A-Fa-f-]{1,64}")


class Snapshot:
    """A moment of the database, for as long as its transaction lasts."""

    def __init__(self, session: Session, id_: str, time: Timestamp, ends: float) -> None:
        self.session = session
        self.id = id_
        self.time = time
        """When it was taken."""
        self.ends = ends
        """When it is given up at the latest, on the event loop's clock."""
        self.is_resumed = False
        """Whether another call has taken it over."""


class Transfers:
    """At most `most` exports, snapshots that are held included, and as many imports at a time.

    No snapshot is kept for longer than `seconds`.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._exports = 0
        self._imports = 0
        self._read: dict[str, Snapshot] = {}
        self._held: dict[str, tuple[Snapshot, asyncio.TimerHandle]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def in_progress(self) -> int:
        """How many exports and imports there are, snapshots that are held included."""
        return self._exports + self._imports

    async def close(self) -> None:
        """Give up the snapshots that are held."""
        for id_ in list(self._held):
            self._give_up(id_)
        if self._tasks:
            await asyncio.wait(self._tasks)

    @asynccontextmanager
    async def importing(self, store: Store) -> AsyncIterator[Session]:
        """A connection for an import. Raises ADMINISTRATION_BUSY."""
        if self._imports >= self._most:
            raise _busy("imports", self._most)
        self._imports += 1
        try:
            session = await Session.open(store.database)
            try:
                yield session
            finally:
                await _uninterrupted(session.close(), self._tasks)
        finally:
            self._imports -= 1

    @asynccontextmanager
    async def exporting(
        self, store: Store, resumed: str | None, hold: float, replica_at: str | None = None
    ) -> AsyncIterator[Snapshot]:
        """A snapshot: a new one, or that with the id `resumed`. If the block is left by an error,
        cancellation included, it is held for `hold` seconds.

        `replica_at`: the position that a replica must have (empty: any) for the new one to be
        taken there, if there is one on which it can last; None: it is taken on the primary.

        Raises ADMINISTRATION_BUSY, and CURSOR_EXPIRED.
        """
        # A call that resumes another one takes its place, also if that has not ended yet.
        is_here = resumed in self._held or resumed in self._read
        if self._exports - is_here >= self._most:
            raise _busy("exports", self._most)
        self._exports += 1
        session = None
        complete = False
        snapshot = None
        try:
            id_, _, server = (resumed or "").partition(_AT)
            replicas = store.database.replicas
            if server:
                session = await _open_on(replicas or (), server)
            elif resumed is None and replicas is not None and replica_at is not None:
                session, server = await _open_replica(replicas, replica_at, store.found_at)
            if session is None:
                session = await Session.open(store.database)
            snapshot = await self._begin(session, id_ or None, server)
            if resumed in self._read:
                self._read[resumed].is_resumed = True
            elif resumed in self._held:
                self._give_up(resumed)
            self._read[snapshot.id] = snapshot
            yield snapshot
            complete = True
        finally:
            if snapshot is not None and hold and not complete:
                await _uninterrupted(self._hold(snapshot, hold), self._tasks)
            elif session is not None:
                await _uninterrupted(self._end(session, snapshot), self._tasks)
            else:
                self._exports -= 1

    async def _begin(self, session: Session, resumed: str | None, server: str) -> Snapshot:
        begin = [BEGIN_SNAPSHOT]
        if resumed is not None:
            if not _SNAPSHOT_ID.fullmatch(resumed):
                raise snapshot_gone()
            begin.append(f"SET TRANSACTION SNAPSHOT '{resumed}'")
        batch = [*begin, *_SETTINGS, _SNAPSHOT, "SAVEPOINT begun"]
        try:
            results = await session.run([(Statement.unprepared(sql), ()) for sql in batch])
        except UnexpectedDatabaseError as exc:
            if resumed is None:
                raise
            raise snapshot_gone() from exc
        except PersistenceError as exc:
            if resumed is None or exc.reason != ErrorReason.ERROR_REASON_INVALID_FIELD:
                raise
            raise snapshot_gone() from exc
        row = results[-2]
        time = Timestamp()
        read_time(row.get_value(0, 1), time)
        ends = asyncio.get_running_loop().time() + self._seconds
        id_ = read_text(row.get_value(0, 0))
        return Snapshot(session, f"{id_}{_AT}{server}" if server else id_, time, ends)

    async def _hold(self, snapshot: Snapshot, seconds: float) -> None:
        """Stop reading, but keep the snapshot."""
        loop = asyncio.get_running_loop()
        until = min(loop.time() + seconds, snapshot.ends)
        try:
            await snapshot.session.interrupt()
            # What was cancelled has ended the transaction up to here.
            await snapshot.session.run([(Statement.unprepared("ROLLBACK TO SAVEPOINT begun"), ())])
        except Exception as exc:
            log.info("the snapshot of an export is lost: %s", exc)
            await self._end(snapshot.session, snapshot)
            return
        if snapshot.is_resumed:
            await self._end(snapshot.session, snapshot)
            return
        del self._read[snapshot.id]
        timer = loop.call_at(until, self._give_up, snapshot.id)
        self._held[snapshot.id] = snapshot, timer

    def _give_up(self, id_: str) -> None:
        snapshot, timer = self._held.pop(id_)
        timer.cancel()
        task = asyncio.get_running_loop().create_task(self._end(snapshot.session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, session: Session, snapshot: Snapshot | None = None) -> None:
        try:
            await session.close()
        finally:
            if snapshot is not None:
                self._read.pop(snapshot.id, None)
            self._exports -= 1


async def _open_replica(
    replicas: Replicas, position: str, since: float
) -> tuple[Session | None, str]:
    """A connection to a replica that has a position, and what was committed before a time, and
    which server that is; None: there is none that will do."""
    replica = replicas.choose(position, since, long=True)
    if replica is None:
        return None, ""
    try:
        session = await Session.open(replica.database)
    except PersistenceError:
        return None, ""
    try:
        if await replicas.has_replayed(replica, session.run, position):
            return session, await _server_of(session)
    except (PersistenceError, UnexpectedDatabaseError) as exc:
        log.info("no export from replica %s: %s", replica.label, exc)
    except BaseException:
        await session.close()
        raise
    await session.close()
    return None, ""


async def _open_on(replicas: Iterable[Replica], server: str) -> Session:
    """A connection to the replica on which a snapshot was taken. Raises CURSOR_EXPIRED."""
    for replica in replicas:
        with suppress(PersistenceError, UnexpectedDatabaseError):
            session = await Session.open(replica.database)
            try:
                if await _server_of(session) == server:
                    return session
            except BaseException:
                await session.close()
                raise
            await session.close()
    raise snapshot_gone()


async def _server_of(session: Session) -> str:
    """Which server it is: ids of snapshots are those of one, since it was started."""
    [row] = await session.run([(Statement.unprepared(_STARTED), ())])
    return read_text(row.get_value(0, 0))


async def _uninterrupted(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    """Do work to its end, even if the caller is cancelled, who does not wait then."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    with suppress(Exception):
        await asyncio.shield(task)


def snapshot_gone() -> PersistenceError:
    """The error of an export that can't be resumed."""
    return PersistenceError(
        ErrorReason.ERROR_REASON_CURSOR_EXPIRED,
        "the snapshot of this export is no longer held: begin anew",
    )


def _busy(what: str, most: int) -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_ADMINISTRATION_BUSY,
        f"there are {most} {what} at a time in this server already (--max-transfers)",
        retry_after=5.0,
    )
