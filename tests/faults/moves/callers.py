"""Callers of real servers while a namespace is moved, and what must be true for them.

Each call is repeated, at the next server, after whatever the killing of a server or a database may
be seen as; everything else that a caller is told is found to be wrong.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from bisect import bisect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import grpc
import psycopg

from tests.support import make
from tests.support.api import Api
from tests.support.expect import read_failure
from wfe.persistence.v1.event_pb2 import CreateEventRequest
from wfe.persistence.v1.lock_pb2 import AcquireLockRequest
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    CreateNewWorkflowRequest,
    GetWorkflowInstanceRequest,
    NextDefinitionSequenceRequest,
    WorkflowView,
)

T = TypeVar("T")

_PASSING: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_PASSING_REASONS: Final = {"TRANSACTION_CONFLICT", "ROW_LOCKED", "SHUTTING_DOWN"}
_CALL_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.05
# Between two calls: the processor is for the move, too. All together make some hundred a second.
_REST_SECONDS: Final = 0.02
_DEFINITION: Final = "moved"
# A watcher may be sent what was published just before it began: while an older transaction is
# still going on, what has been committed since waits for its end.
_OLD_SECONDS: Final = 5.0
_QUICKLY: Final = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


@asynccontextmanager
async def calling(addresses: Sequence[str], namespace: str, writers: int) -> AsyncIterator[Callers]:
    """Callers that are at work inside. `writers`: how many write events."""
    channels = [grpc.aio.insecure_channel(address, options=_QUICKLY) for address in addresses]
    callers = Callers([Api(channel) for channel in channels], namespace)
    try:
        async with callers.working(writers):
            yield callers
    finally:
        for channel in channels:
            await channel.close()


class Callers:
    """What callers have been told, in `acknowledged…`; `found` has what must not be."""

    def __init__(self, apis: Sequence[Api], namespace: str) -> None:
        self._apis = apis
        self._inside: Final = (("wfe-namespace", namespace),)
        self._schema = f"wfc_{namespace}"
        self._turns = itertools.count()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self.found: list[str] = []
        self.refused: Counter[str] = Counter()
        """How often calls failed, by status and reason, and were made again."""
        self.calls = 0
        self.longest = 0.0
        """The longest time between a call and its answer (seconds), since it was last set to 0."""
        self.expired = 0
        """How often a watcher was told to begin anew."""
        self.received = 0
        """How many events watchers have received."""
        self._events: set[str] = set()
        self._revisions: dict[str, int] = {}
        self._numbers: list[int] = []
        self._epoch = 0
        self._published_at: list[float] = []

    @asynccontextmanager
    async def working(self, writers: int) -> AsyncIterator[None]:
        """They are at work inside."""
        work: list[Callable[[], Awaitable[None]]] = [self._create] * writers
        work += [self._step, self._step, self._count, self._claim, self._publish, self._watch]
        self._tasks = [asyncio.create_task(self._until_stopped(each)) for each in work]
        try:
            yield
        finally:
            self._stopping = True
            for task in self._tasks[-1:]:
                task.cancel()  # the watcher waits
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _until_stopped(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as exc:
            failure = read_failure(exc) if isinstance(exc, grpc.aio.AioRpcError) else exc
            self.found.append(f"{getattr(work, '__name__', work)} has ended: {failure!r}")

    async def _call(self, work: Callable[[Api], Awaitable[T]]) -> T:
        """Do it, again and again until it is done."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            api = self._apis[next(self._turns) % len(self._apis)]
            try:
                done = await work(api)
            except grpc.aio.AioRpcError as exc:
                self._refuse(exc)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            self.longest = max(self.longest, loop.time() - began)
            self.calls += 1
            return done

    def _refuse(self, exc: grpc.aio.AioRpcError) -> None:
        failure = read_failure(exc)
        assert failure.code is not None
        if failure.code not in _PASSING and failure.reason not in _PASSING_REASONS:
            raise exc
        self.refused[f"{failure.code.name} {failure.reason}".strip()] += 1

    def _options(self) -> dict[str, Any]:
        return {"metadata": self._inside, "timeout": _CALL_SECONDS}

    @property
    def created(self) -> int:
        """How many events were acknowledged."""
        return len(self._events)

    # What they do

    async def _create(self) -> None:
        while not self._stopping:
            request = CreateEventRequest(event=make.event())

            async def create(api: Api, request: CreateEventRequest = request) -> None:
                await api.events.CreateEvent(request, **self._options())

            await self._call(create)
            self._events.add(request.event.id)
            await asyncio.sleep(_REST_SECONDS)

    async def _step(self) -> None:
        """One workflow, which this one alone writes: each revision follows the one before."""
        instance = make.instance()

        async def create(api: Api) -> int:
            request = CreateNewWorkflowRequest(instance=instance)
            return (await api.workflows.CreateNewWorkflow(request, **self._options())).revision

        at = self._revisions[instance.id] = await self._call(create)
        while not self._stopping:
            request = CommitWorkflowRequest(
                patch=make.patch(instance.id, description=f"after {at}"),
                expected_revision=at,
                request_id=make.request_id(),
            )

            async def commit(api: Api, request: CommitWorkflowRequest = request) -> int:
                return (await api.workflows.CommitWorkflow(request, **self._options())).revision

            at = self._revisions[instance.id] = await self._call(commit)

            async def read(api: Api) -> int:
                request = GetWorkflowInstanceRequest(
                    id=instance.id, view=WorkflowView.WORKFLOW_VIEW_HEADER
                )
                got = await api.workflows.GetWorkflowInstance(request, **self._options())
                return got.instance.revision

            if (seen := await self._call(read)) != at:
                self.found.append(f"{instance.id}: read {seen} after {at} was acknowledged")
            await asyncio.sleep(_REST_SECONDS)

    async def _count(self) -> None:
        while not self._stopping:

            async def count(api: Api) -> int:
                request = NextDefinitionSequenceRequest(definition_id=_DEFINITION)
                answer = await api.workflows.NextDefinitionSequence(request, **self._options())
                return answer.number

            number = await self._call(count)
            if self._numbers and number <= self._numbers[-1]:
                self.found.append(f"the number {number} after {self._numbers[-1]}")
            self._numbers.append(number)
            await asyncio.sleep(_REST_SECONDS)

    async def _claim(self) -> None:
        while not self._stopping:
            request = AcquireLockRequest(resource=make.new_id(), owner="load")

            async def acquire(api: Api, request: AcquireLockRequest = request) -> int:
                taken = await api.locks.AcquireLock(request, **self._options())
                return taken.epoch if taken.acquired else 0

            epoch = await self._call(acquire)
            if epoch and epoch <= self._epoch:
                self.found.append(f"epoch {epoch} after {self._epoch}")
            self._epoch = max(self._epoch, epoch)
            await asyncio.sleep(_REST_SECONDS)

    async def _publish(self) -> None:
        """Lifecycle events with numbers that follow each other."""
        for number in itertools.count(1):
            if self._stopping:
                return
            event = make.lifecycle_event(workflow_definition_id=_DEFINITION, message=str(number))
            await self._call(lambda api, event=event: api.publish(event, metadata=self._inside))  # type: ignore[misc]
            self._published_at.append(time.monotonic())
            await asyncio.sleep(_REST_SECONDS)

    async def _watch(self) -> None:
        """The numbers come without a gap. Where the cursor has expired, they begin anew, with what
        is published behind the first response; what was acknowledged long before does not come."""
        cursor, last, highest, old = "", 0, 0, 0
        while not self._stopping:
            api = self._apis[next(self._turns) % len(self._apis)]
            try:
                if not cursor:
                    old = bisect(self._published_at, time.monotonic() - _OLD_SECONDS)
                async with api.watch(
                    after=cursor, workflow_definition_id=_DEFINITION, metadata=self._inside
                ) as responses:
                    async for response in responses:
                        if not cursor:
                            # One may have been called by then, and not answered yet.
                            last, highest = 0, len(self._published_at) + 2
                        cursor = response.cursor
                        for each in response.events:
                            number = int(each.event.message)
                            if number > highest:
                                self.found.append(f"number {number} came, after {last}")
                            if number <= old:
                                self.found.append(f"number {number} came, watched from {old} on")
                            last = max(last, number)
                            highest = last + 1
                            self.received += 1
            except grpc.aio.AioRpcError as exc:
                if read_failure(exc).reason == "CURSOR_EXPIRED":
                    self.expired += 1
                    cursor = ""
                    continue
                self._refuse(exc)
                await asyncio.sleep(_PAUSE_SECONDS)

    # What must be true

    async def judge(self, url: str) -> list[str]:
        """What must not be, of what was acknowledged by now; `url` of the database."""
        events, revisions = set(self._events), dict(self._revisions)
        numbers = list(self._numbers)
        return self.found + await asyncio.to_thread(self._missing, url, events, revisions, numbers)

    def _missing(
        self, url: str, events: set[str], revisions: dict[str, int], numbers: list[int]
    ) -> list[str]:
        found = []
        with psycopg.connect(url) as connection:

            def rows(query: str) -> list[tuple[Any, ...]]:
                return connection.execute(
                    query.replace("wfc.", f"{self._schema}.").encode()
                ).fetchall()

            stored = {id_ for (id_,) in rows("SELECT id FROM wfc.events")}
            if missing := events - stored:
                found.append(f"{len(missing)} of {len(events)} acknowledged events are lost")
            at = dict(rows("SELECT id, revision FROM wfc.workflows"))
            found += [
                f"{id_} has revision {at.get(id_)}, {revision} was acknowledged"
                for id_, revision in revisions.items()
                if at.get(id_, 0) < revision
            ]
            highest = dict(rows("SELECT definition_id, next_num FROM wfc.definition_sequences"))
            if numbers and highest.get(_DEFINITION, 0) < numbers[-1]:
                found.append(f"number {numbers[-1]} was given out, stored is {highest}")
        if len(set(numbers)) < len(numbers):
            found.append("a number was given out twice")
        return found
