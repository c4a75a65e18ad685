"""Who watches the workflows through it all, by whichever server is there, and resumes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from tests.faults.chaos.check import TROUBLE, Stored
from tests.faults.chaos.stage import Stage
from tests.support.api import Api, connect
from tests.support.expect import read_failure
from wfe.persistence.v1.workflow_pb2 import WatchWorkflowsRequest

_HEARTBEAT = Duration(seconds=1)
_SILENT_SECONDS = 4.0
_CATCH_UP_SECONDS = 30.0


class Watcher:
    """Invariant I7: who watches sees the last state of every workflow."""

    def __init__(self, stage: Stage, namespace: str) -> None:
        self._stage = stage
        self._namespace = namespace
        self._cursor = ""
        self._seen: dict[str, int] = {}
        """Workflow → revision."""
        self._task: asyncio.Task[None] | None = None
        self.violations: list[str] = []

    async def start(self) -> None:
        """Watch everything that is written from now on."""
        self._task = asyncio.create_task(self._run())
        async with asyncio.timeout(_CATCH_UP_SECONDS):
            while not self._cursor:
                await asyncio.sleep(0.02)

    async def _run(self) -> None:
        for address in itertools.cycle(self._stage.addresses):
            async with connect(address, namespace=self._namespace) as channel:
                call: Any = Api(channel).workflows.WatchWorkflows(
                    WatchWorkflowsRequest(after=self._cursor, heartbeat=_HEARTBEAT)
                )
                try:
                    await self._read(call)
                except grpc.aio.AioRpcError as exc:
                    failure = read_failure(exc)
                    assert failure.code is not None
                    if failure.reason not in TROUBLE.get(failure.code.name, ()):
                        self.violations.append(f"I7 watching failed with {failure}")
                        return
                except TimeoutError:
                    pass
                finally:
                    call.cancel()
            await asyncio.sleep(0.1)

    async def _read(self, call: Any) -> None:
        while True:
            async with asyncio.timeout(_SILENT_SECONDS):
                response = await call.read()
            if response is grpc.aio.EOF:
                return
            for change in response.changes:
                self._seen[change.instance.id] = change.instance.revision
            self._cursor = response.cursor

    async def check(self, stored: Stored) -> list[str]:
        """The violations, when everything has come that is to come."""

        def missed() -> list[str]:
            return [
                f"I7 a watcher saw revision {self._seen.get(id_)} of {id_}, which has {revision}"
                for id_, (revision, _) in stored.workflows.items()
                if self._seen.get(id_) != revision
            ]

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                while missed() and not self.violations:
                    await asyncio.sleep(0.05)
        return self.violations + missed()[:20]

    async def stop(self) -> None:
        """Watch no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
