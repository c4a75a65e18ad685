"""What watchers follow: the end of each namespace's feed, read once for all of them.

However many watch, one task per namespace asks the database for news, and only while somebody
watches. It keeps the newest events for a moment. A watcher has a position and nothing else: one
that is further behind reads from the database itself, a page at a time, so none of them can take
more memory by reading slowly. While a watcher waits, it holds no connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, Generic, TypeVar

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError, shutting_down
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.store.feed import (
    KEEP_SECONDS,
    PASSING,
    Cursor,
    Entry,
    Page,
    Position,
    Source,
    cursor_expired,
)
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.occupied import occupied_stores
from wfe_persistence.store.placement import side_by_side
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Kind, Line, Waiters

log = logging.getLogger(__name__)
warnings = RecurringWarnings(log)

T = TypeVar("T")

_PAGE: Final = 500
"""How many rows are read from the database at once."""

# What is kept of a feed's end.
_MAX_KEPT: Final = 5_000
_MAX_KEPT_BYTES: Final = 4 * 1024 * 1024

# How long (seconds) until the database is asked again: what this server has written is known of at
# once, what others write comes with the next look. It is soon while committed rows wait for older
# transactions to end. However much is written, looks have a pause between them.
_LOOK_SECONDS: Final = (0.2, 1.0)
_MIN_LOOK_SECONDS: Final = 0.02

# How long a look may take, and for how long looks may fail until the watchers are told.
_PATIENCE_SECONDS: Final = 5.0

# After this time (milliseconds) the log says that a transaction holds up the feed.
_HELD_UP_MS: Final = 30_000

_MAX_READERS: Final = 4
"""How many watchers of a namespace, at most, read from the database at the same time."""

# The sweep: how often at most, what it deletes in one transaction, and how long it pauses after
# each, so that it takes little of the database's time. All namespaces that have any rows, those too
# that no call has named, are swept every hour. (One that is recorded for nobody, and has no changes
# yet, has none to pay for either.)
_SWEEP_SECONDS: Final = 60.0
_SWEPT_ROWS: Final = 2_000
_SWEEP_PAUSE_SECONDS: Final = 0.05
_SWEEP_ALL_SECONDS: Final = 3600.0
_MAX_NOTED: Final = 10_000


class Feed(Generic[T]):
    """The end of one namespace's feed, while somebody follows it."""

    def __init__(self, source: Source[T], store: Store, keep_seconds: float) -> None:
        self._source = source
        self._store = store
        self._keep_seconds = keep_seconds
        self._kept: list[Entry[T]] = []
        self._kept_bytes = 0
        self._start = self._read_to = Position(0, 0)
        """All entries behind `_start`, up to `_read_to`, are kept."""
        self._feed_id = b""
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._wake = asyncio.Event()
        self._readers = asyncio.Semaphore(_MAX_READERS)
        self.followers = 0
        self._task = asyncio.get_running_loop().create_task(self._look_on())

    @property
    def is_broken(self) -> bool:
        """Whether it has failed or was closed; a new one may succeed."""
        return self._error is not None

    async def start(self, after: Cursor | None) -> Position:
        """Where a watcher begins; None: now. Raises CURSOR_EXPIRED."""
        while not self._feed_id:
            await self._changed()
        if after is None:
            return self._read_to
        position = after.position
        if after.feed_id == self._feed_id and self._start <= position <= self._read_to:
            return position
        # Some may have been deleted, and another server may have seen more than this one.
        page = await self._source.read(self._store, None, 0)
        if after.feed_id == page.feed_id and page.floor <= position <= page.horizon:
            return position
        raise cursor_expired(page.feed_id, page.floor)

    async def read(
        self, after: Position, seconds: float, *, from_replica: bool = False
    ) -> tuple[list[Entry[T]], Position]:
        """The next entries behind a position, and up to where they were looked at.

        Waits for some, at most so long. `from_replica`: what is no longer kept here may be read
        from a replica. Raises CURSOR_EXPIRED if some are gone already, and
        what has ended the feed.
        """
        if after < self._start:
            return await self._read_stored(after, from_replica)
        self._raise_error()
        if after >= self._read_to:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while after >= self._read_to:
                        await self._changed()
            if after < self._start:
                return await self._read_stored(after, from_replica)
        first = bisect_right(self._kept, after, key=lambda entry: entry.position)
        entries = self._kept[first : first + _PAGE]
        if first + len(entries) < len(self._kept):
            return entries, entries[-1].position
        return entries, max(self._read_to, after)

    async def _read_stored(
        self, after: Position, from_replica: bool
    ) -> tuple[list[Entry[T]], Position]:
        self._raise_error()
        start = self._start
        async with self._readers:
            page = await self._read_replica(after) if from_replica else None
            page = page or await self._source.read(self._store, after, _PAGE)
        if page.feed_id != self._feed_id or after < page.floor:
            raise cursor_expired(page.feed_id, page.floor)
        if page.end <= after:  # of the primary, and rows were deleted by hand
            return [], max(after, start)
        return page.entries, page.end

    async def _read_replica(self, after: Position) -> Page[T] | None:
        """A page from a replica; None: there is none, or the replica is not so far yet.

        Whether the feed is valid, only the primary knows, which is asked all the time.
        """
        replicas = self._store.database.replicas
        reads = replicas.reader("", self._store.found_at) if replicas else None
        if reads is None:
            return None
        page = await self._source.read_copy(self._store.read_from(reads), after, _PAGE)
        is_good = page is not None and page.feed_id == self._feed_id and page.end > after
        return page if reads.ended(in_vain=not is_good) and is_good else None

    async def _changed(self) -> None:
        self._raise_error()
        await self._news.wait()
        self._raise_error()

    def _raise_error(self) -> None:
        if isinstance(self._error, PersistenceError):
            # Each its own: what ends a call adds to it.
            error = self._error
            raise PersistenceError(
                error.reason,
                str(error),
                metadata=dict(error.metadata),
                retry_after=error.retry_after,
                detail=error.detail,
            )
        if self._error is not None:
            raise self._error

    def cursor(self, position: Position) -> str:
        """The text of a cursor."""
        return str(Cursor(self._feed_id, position))

    def wake(self) -> None:
        """Look now: there are news."""
        self._wake.set()

    def end(self, error: Exception) -> None:
        """End it for all followers."""
        if self._error is None:
            self._error = error
        self._announce()
        self._task.cancel()

    def _announce(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _look_on(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _MIN_LOOK_SECONDS
        looked = loop.time()
        kept = looked - self._keep_seconds
        while True:
            self._wake.clear()
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    page = await self._look()
                    if loop.time() - kept >= self._keep_seconds:
                        await self._source.keep(self._store)
                        kept = loop.time()
            except Exception as exc:
                passing = isinstance(exc, TimeoutError) or (
                    isinstance(exc, PersistenceError) and exc.reason in PASSING
                )
                if not passing or loop.time() - looked > _PATIENCE_SECONDS:
                    self._error = exc
                    self._announce()
                    return
                page = None
            else:
                looked = loop.time()
            if page is not None and page.is_full:
                continue
            if page is not None and page.pending_ms is not None:
                pause = _MIN_LOOK_SECONDS if page.entries else min(2 * pause, _LOOK_SECONDS[1])
                await asyncio.sleep(pause)
                continue
            pause = _MIN_LOOK_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(*_LOOK_SECONDS)):
                    await asyncio.sleep(_MIN_LOOK_SECONDS)
                    await self._wake.wait()

    async def _look(self) -> Page[T]:
        """Read what is new."""
        is_first = not self._feed_id
        page = await self._source.read(self._store, None if is_first else self._read_to, _PAGE)
        if is_first:
            self._feed_id = page.feed_id
            self._start = self._read_to = page.end
            self._announce()
            return page
        if page.feed_id != self._feed_id or page.horizon < self._read_to:
            raise cursor_expired(page.feed_id, page.floor)
        if page.pending_ms is not None and page.pending_ms > _HELD_UP_MS:
            name = self._store.namespace
            warnings.warn_each(
                "held up",
                name,
                f"{name}: watchers wait for {self._source.name} that were committed "
                f"{page.pending_ms // 1000} s ago: an older transaction has not ended yet; see "
                "backend_xid in pg_stat_activity, and pg_prepared_xacts",
            )
        self._keep(page.entries)
        if page.end > self._read_to:
            self._read_to = page.end
            if page.entries:
                self._announce()
        return page

    def _keep(self, entries: list[Entry[T]]) -> None:
        self._kept += entries
        self._kept_bytes += sum(entry.size for entry in entries)
        if len(self._kept) > _MAX_KEPT or self._kept_bytes > _MAX_KEPT_BYTES:
            half = (len(self._kept) + 1) // 2
            self._start = self._kept[half - 1].position
            del self._kept[:half]
            self._kept_bytes = sum(entry.size for entry in self._kept)


class Feeds(Generic[T]):
    """The feeds of all namespaces from one source, and the sweep that deletes what is too old.

    `retention`: for how long (seconds) rows are kept. `kind`: that of the lines in which they wait
    for what is written.
    """

    def __init__(
        self,
        source: Source[T],
        namespaces: Namespaces,
        retention: float,
        waiters: Waiters,
        kind: Kind,
    ) -> None:
        self._waiters = waiters
        self._kind = kind
        # By namespace: how to stop to listen to what is written.
        self._listening: dict[str, Callable[[], None]] = {}
        self._source = source
        self._namespaces = namespaces
        self._retention = retention
        self._feeds: dict[str, Feed[T]] = {}
        self._noted: dict[str, Store] = {}
        self._closed = False

    @contextmanager
    def follow(self, store: Store) -> Iterator[Feed[T]]:
        """A namespace's feed, as long as the context lasts. Raises SHUTTING_DOWN."""
        if self._closed:
            raise shutting_down()
        feed = self._feeds.get(store.namespace)
        if feed is None or feed.is_broken:
            feed = self._feeds[store.namespace] = Feed(
                self._source, store, min(KEEP_SECONDS, self._retention / 4)
            )
        feed.followers += 1
        if store.namespace not in self._listening:
            self._listening[store.namespace] = self._waiters.listen(
                store, self._line(store), partial(self._wake, store.namespace)
            )
        self._note(store)
        try:
            yield feed
        finally:
            feed.followers -= 1
            if not feed.followers:
                feed.end(shutting_down())
                if self._feeds.get(store.namespace) is feed:
                    del self._feeds[store.namespace]
                    self._listening.pop(store.namespace)()

    def published(self, store: Store) -> None:
        """Know that this server has written to it: those who watch get that at once."""
        self._note(store)
        self._waiters.wake_all(self._line(store))

    def _line(self, store: Store) -> Line:
        return Line(store.namespace, self._kind, "feed")

    def _wake(self, namespace: str) -> None:
        if feed := self._feeds.get(namespace):
            feed.wake()

    def close(self) -> None:
        """End all feeds: those who watch shall do so elsewhere."""
        self._closed = True
        for feed in list(self._feeds.values()):
            feed.end(shutting_down())

    def _note(self, store: Store) -> None:
        if len(self._noted) < _MAX_NOTED:
            self._noted[store.namespace] = store

    async def sweep(self) -> None:
        """Delete what is older than the retention, for as long as the server runs."""
        loop = asyncio.get_running_loop()
        interval = min(_SWEEP_SECONDS, max(0.1, self._retention / 10))
        swept_all = loop.time() + interval - _SWEEP_ALL_SECONDS
        while True:
            # With jitter: servers that are started together do not sweep together.
            await asyncio.sleep(interval * random.uniform(0.75, 1.25))
            due, self._noted = list(self._noted.values()), {}
            try:
                if loop.time() - swept_all >= _SWEEP_ALL_SECONDS:
                    due = await occupied_stores(self._namespaces, self._source.table)
                    swept_all = loop.time()
                await side_by_side(due, self._sweep)
            except Exception as exc:  # whatever it is, the next sweep may succeed
                warnings.warn(
                    f"sweep of {self._source.name}",
                    f"can't delete old {self._source.name}: {exc or repr(exc)}",
                )

    async def _sweep(self, store: Store) -> None:
        """Delete what is too old in one namespace."""
        try:
            deleted: int | None = _SWEPT_ROWS
            while deleted == _SWEPT_ROWS:
                deleted = await self._source.sweep(store, self._retention, _SWEPT_ROWS)
                await asyncio.sleep(_SWEEP_PAUSE_SECONDS)
        except PersistenceError as exc:
            # Deleted, or not migrated yet; or it is swept when it is used again.
            if exc.reason not in {
                ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
                *PASSING,
            }:
                raise
            return
        if deleted is not None:
            self._note(store)  # until nothing is left
