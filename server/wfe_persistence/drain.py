"""How a server stops: in order, and without a call that ends without a reason.

gRPC's own `stop` is not enough for that. It ends calls with CANCELLED, which no client retries:
those that arrive before their client has heard of it, and at the end of its grace period all that
are left. So here it comes last, when nobody is connected any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, Final

import grpc

from wfe_persistence.rpc.connections import Disconnection
from wfe_persistence.rpc.health import Health
from wfe_persistence.rpc.intake import Intake
from wfe_persistence.rpc.listener import Listener
from wfe_persistence.store.feeds import Feeds
from wfe_persistence.store.placement import Databases
from wfe_persistence.store.waiting import Waiters

log = logging.getLogger(__name__)

# How long no call may have come before the connections are closed: one that is on its way then ends
# without ErrorInfo. That there are none takes no longer than the round trip of a client: those that
# come at the end are answered together, right before. Clients that heed their RetryInfo are silent
# from then on, others for as long as they wait before they try again.
_QUIET_SECONDS: Final = 0.1
_MAX_QUIET_SECONDS: Final = 1.0

# How long calls have to end after their statements were cancelled, and then for their status to be
# sent.
_CALL_OFF_SECONDS: Final = 1.0

# How long gRPC has to notice that its connections are closed.
_MAX_CLOSE_SECONDS: Final = 0.5

_LOOK_SECONDS: Final = 0.001


class Drain:
    """The shutdown of one server.

    `delay`: how long it goes on answering, as NOT_SERVING, so that clients and load balancers leave
    it. `seconds`: how long calls under way then have to end. `hurry`, once set, means that neither
    is waited for any longer.
    """

    def __init__(
        self,
        health: Health,
        intake: Intake,
        waiters: Waiters,
        databases: Databases,
        listener: Listener,
        feeds: Iterable[Feeds[Any]],
        *,
        delay: float,
        seconds: float,
        hurry: asyncio.Event,
    ) -> None:
        self._health = health
        self._intake = intake
        self._waiters = waiters
        self._databases = databases
        self._listener = listener
        self._feeds = feeds
        self._delay = delay
        self._seconds = seconds
        self._hurry = hurry

    async def run(self, server: grpc.aio.Server) -> None:
        """Stop a server."""
        await self._health.enter_graceful_shutdown()
        await self._until(lambda: False, self._delay)

        self._intake.refuse_calls()
        self._waiters.close()  # another server can serve them
        for feeds in self._feeds:  # not before: who watches comes back at once
            feeds.close()
        if not await self._until(lambda: not self._intake.in_progress, self._seconds):
            await self._end_calls()

        self._intake.hold_refused()
        await self._wait(lambda: self._intake.quiet_for >= _QUIET_SECONDS, _MAX_QUIET_SECONDS)
        self._health.end_watches()
        await self._wait(lambda: not self._health.watches, _CALL_OFF_SECONDS)
        self._listener.stop_accepting()
        with closing(Disconnection(self._listener.local_name)) as clients:
            clients.close_listener()
            self._intake.tell_refused()
            await self._wait(lambda: not self._intake.refused, _CALL_OFF_SECONDS)
            await self._wait(lambda: not clients.close_connections(), _MAX_CLOSE_SECONDS)
            await server.stop(None)

    async def _end_calls(self) -> None:
        """End the calls under way, as UNAVAILABLE.

        First their statements are cancelled. So each call knows whether it has written anything:
        it has succeeded, or it fails with SHUTTING_DOWN. Only what PostgreSQL does not answer in
        time has an unknown outcome. What remains is waiting for something else, and ended there.
        """
        log.warning("%d calls are still under way: ending them", self._intake.in_progress)
        await self._databases.stop_statements(_CALL_OFF_SECONDS)
        self._intake.end_calls()
        await self._wait(lambda: not self._intake.in_progress, _CALL_OFF_SECONDS)

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait as `_wait` does, but not if there is hurry."""
        return (
            await self._wait(lambda: condition() or self._hurry.is_set(), seconds) and condition()
        )

    async def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait at most this long; returns whether the condition has come true."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not condition():
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        return True
