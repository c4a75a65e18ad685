"""The calls of one client: with a deadline or none, recorded, repeated where that is safe."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from tests.faults.chaos.history import Recorder, may_be_made
from tests.support.api import Api
from tests.support.expect import read_failure

# A call that takes longer than any deadline allows is given up, and is a violation.
HUNG_SECONDS = 40.0


@dataclass
class Outcome:
    """How a call ended."""

    code: str
    reason: str = ""
    answer: Any = None

    @property
    def ok(self) -> bool:
        return self.code == "OK"


class Calls:
    """How a client calls the servers. `twice`: it sends every write twice at the same time."""

    def __init__(
        self, name: str, apis: list[Api], recorder: Recorder, random_: random.Random, *, twice: bool
    ) -> None:
        self.name = name
        self._apis = apis
        self._recorder = recorder
        self._random = random_
        self._twice = twice
        self._preferred = random_.randrange(len(apis))
        self.stopping = False

    def stop(self) -> None:
        """Begin nothing new."""
        self.stopping = True

    async def once(
        self,
        op: str,
        method: Callable[[Api], Any],
        request: Any,
        what: dict[str, Any],
        read: Callable[[Any], dict[str, Any]] = lambda _: {},
    ) -> Outcome:
        deadline = self._random.choice((None, 0.5, 2.0, 5.0))
        number = self._recorder.start(op, deadline, what)
        try:
            async with asyncio.timeout(HUNG_SECONDS):
                api = self._apis[self._preferred]
                outcome = Outcome("OK", answer=await method(api)(request, timeout=deadline))
        except grpc.aio.AioRpcError as exc:
            failure = read_failure(exc)
            assert failure.code is not None
            outcome = Outcome(failure.code.name, failure.reason)
            if failure.code == grpc.StatusCode.UNAVAILABLE:
                self._preferred = self._random.randrange(len(self._apis))
        except TimeoutError:
            outcome = Outcome("HUNG")
        self._recorder.end(
            number, outcome.code, outcome.reason, read(outcome.answer) if outcome.ok else {}
        )
        if not outcome.ok:
            await self.pace(0.02)
        return outcome

    async def write(self, *arguments: Any) -> list[Outcome]:
        """A write: once, or twice at the same time."""
        times = 2 if self._twice else 1
        return await asyncio.gather(*(self.once(*arguments) for _ in range(times)))

    async def write_until_known(self, *arguments: Any) -> Outcome:
        """A write that may be repeated: again while nobody knows whether it was made."""
        for attempt in range(20):
            outcomes = await self.write(*arguments)
            for outcome in outcomes:
                if outcome.ok:
                    return outcome
            unknown = [o for o in outcomes if may_be_made(o.code, o.reason)]
            if not unknown or (self.stopping and attempt > 3):
                break
            await self.pace(0.1)
        return (unknown or outcomes)[0]

    async def watch_lag(self) -> None:
        """Record when this process did not run, until cancelled."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.05)
            late = time.monotonic() - before - 0.05
            if late > 0.05:
                self._recorder.lag(before + 0.05, late)

    async def pace(self, seconds: float) -> None:
        """Wait for about so long."""
        await asyncio.sleep(seconds * self._random.uniform(0.5, 1.5))
