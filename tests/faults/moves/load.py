"""What uses a namespace while it is moved, as servers would that know of nothing, and what must be
true of it afterwards.

A `Router` is to a store what a server is: it remembers where the namespace is, and looks again when
its statements fail. To its callers nothing may be seen of a move but that some calls take longer,
and what can be seen of a database that has been killed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.support import make
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.event_pb2 import Event
from wfe.persistence.v1.lock_pb2 import AcquireLockRequest, AcquireLockResponse
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import event, lock, workflow
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.rows import integer, read_int8, text
from wfe_persistence.store.tables import Store
from wfe_persistence.store.waiting import Waiters

T = TypeVar("T")

_PASSING = {
    ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE,
    ErrorReason.ERROR_REASON_COMMIT_OUTCOME_UNKNOWN,
    ErrorReason.ERROR_REASON_POOL_EXHAUSTED,
    ErrorReason.ERROR_REASON_NAMESPACE_BUSY,
    ErrorReason.ERROR_REASON_ROW_LOCKED,
    ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
}
_PAUSE_SECONDS = 0.02

# Again after an answer was lost, it changes nothing; a trigger would count up what stays the same.
STEP = """
WITH step AS (
    UPDATE wfc.workflows SET revision = $2::bigint + 1
    WHERE id = $1 AND revision = $2::bigint RETURNING revision
)
SELECT coalesce((SELECT revision FROM step), (SELECT revision FROM wfc.workflows WHERE id = $1))
"""
READ_REVISION = "SELECT revision FROM wfc.workflows WHERE id = $1"


class Router:
    """Calls in a namespace, as a server makes them: wherever it is."""

    def __init__(self, namespaces: Namespaces, namespace: str) -> None:
        self._namespaces = namespaces
        self._namespace = namespace
        self.refused: Counter[str] = Counter()
        """How often calls failed, by reason, and were made again."""

    async def __call__(self, work: Callable[[Store], Awaitable[T]]) -> T:
        """Do it, again and again until it is done."""
        while True:
            try:
                return await work(await self._namespaces.get(self._namespace))
            except PersistenceError as exc:
                if exc.reason not in _PASSING:
                    raise
                self.refused[ErrorReason.Name(exc.reason)] += 1
                await asyncio.sleep(_PAUSE_SECONDS)


class Load:
    """Clients that write, read and claim all the time. As a context manager they do it inside.

    `found` has what they saw that must not be.
    """

    def __init__(self, routers: list[Router], clients: int) -> None:
        self._routers = routers
        self._clients = clients
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.events: set[str] = set()
        """The ids of those whose creation was acknowledged."""
        self.revisions: dict[str, int] = {}
        """By workflow, the one that was acknowledged last."""
        self.epoch = 0
        """The highest one that was given out."""
        self.found: list[str] = []
        self.calls = 0
        self.longest = 0.0
        """The longest time between a call and its answer (seconds), since it was last set to 0."""

    async def __aenter__(self) -> Load:
        for n in range(self._clients):
            router = self._routers[n % len(self._routers)]
            for kind in (self._create, self._step, self._claim):
                self._tasks.append(asyncio.create_task(kind(router, n)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    def check_alive(self) -> None:
        """Raise what has ended a client."""
        for task in self._tasks:
            if task.done() and not self._stopping:
                task.result()

    async def goes_on(self, calls: int) -> None:
        """Wait until there have been more calls than so many. Raises what has ended a client."""
        async with asyncio.timeout(60):
            while self.calls <= calls:
                self.check_alive()
                await asyncio.sleep(0.01)
        self.check_alive()

    async def _timed(self, router: Router, work: Callable[[Store], Awaitable[T]]) -> T:
        loop = asyncio.get_running_loop()
        began = loop.time()
        done = await router(work)
        self.longest = max(self.longest, loop.time() - began)
        self.calls += 1
        return done

    async def _create(self, router: Router, _: int) -> None:
        while not self._stopping:
            created = make.event()

            async def create(store: Store, created: Event = created) -> None:
                await event.create_event(store, created)

            await self._timed(router, create)
            self.events.add(created.id)
            await asyncio.sleep(0.005)

    async def _step(self, router: Router, n: int) -> None:
        """One workflow, which this client alone writes: each revision follows the one before."""
        instance = make.instance(id=f"workflow-{n}", name=f"workflow-{n}")
        at = await self._timed(router, lambda store: workflow.create_new_workflow(store, instance))
        self.revisions[instance.id] = at
        others = itertools.cycle(self._routers)
        while not self._stopping:

            async def step(store: Store, at: int = at) -> int:
                while True:
                    rows = await store.write(STEP, text(instance.id), integer(at))
                    written = read_int8(rows.get_value(0, 0)) if rows.ntuples else 0
                    # It may have waited for a step whose answer was lost, which its snapshot does
                    # not show.
                    if written != at:
                        return written

            at += 1
            if (written := await self._timed(router, step)) != at:
                self.found.append(
                    f"{instance.id}: {at - 1} was acknowledged, then it was {written}"
                )
                return
            self.revisions[instance.id] = at

            async def read(store: Store) -> int:
                rows = await store.read(READ_REVISION, text(instance.id))
                return read_int8(rows.get_value(0, 0)) if rows.ntuples else 0

            seen = await self._timed(next(others), read)
            if seen != at:
                self.found.append(f"{instance.id}: read {seen} after {at} was acknowledged")
            await asyncio.sleep(0.005)

    async def _claim(self, router: Router, n: int) -> None:
        waiters = Waiters()
        for claim in itertools.count():
            if self._stopping:
                return
            before = self.epoch
            resource = f"{n}-{claim}"

            async def acquire(store: Store, resource: str = resource) -> AcquireLockResponse:
                request = AcquireLockRequest(resource=resource, owner="load")
                return await lock.acquire_lock(store, request, 60_000, 0.0, waiters)

            taken = await self._timed(router, acquire)
            if taken.acquired:
                if taken.epoch <= before:
                    self.found.append(f"epoch {taken.epoch} after {before}")
                self.epoch = max(self.epoch, taken.epoch)
            await asyncio.sleep(0.01)

    async def judge(self, router: Router) -> list[str]:
        """What must not be, now or in the end."""
        self.check_alive()
        found = list(self.found)
        events, revisions = set(self.events), dict(self.revisions)

        async def stored(store: Store) -> set[str]:
            rows = await store.read_once("SELECT id FROM wfc.events")
            return {(rows.get_value(i, 0) or b"").decode() for i in range(rows.ntuples)}

        if missing := events - await router(stored):
            found.append(f"{len(missing)} of {len(events)} acknowledged events are lost")
        for id_, at in revisions.items():

            async def read(store: Store, id_: str = id_) -> int:
                rows = await store.read(READ_REVISION, text(id_))
                return read_int8(rows.get_value(0, 0)) if rows.ntuples else 0

            seen = await router(read)
            if seen < at or (self._stopping and seen != at):
                found.append(f"{id_} has revision {seen}, {at} was acknowledged")
        return found
