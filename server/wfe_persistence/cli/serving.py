"""A process that serves, from its start to the end of its drain."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import TYPE_CHECKING, Any, Final

from wfe_persistence import collector
from wfe_persistence.cli.signals import Signals
from wfe_persistence.service_manager import Manager
from wfe_persistence.settings import Settings
from wfe_persistence.stopping import HUNG_SECONDS, Stop, end_if_hung

if TYPE_CHECKING:
    from wfe_persistence.app import Server
    from wfe_persistence.rpc.shared_listener import Shared

log = logging.getLogger(__name__)

CAN_NOT_SERVE: Final = 1
"""The exit status of a process that can't serve as it was started; others can't either."""


class Serving:
    """A server with these settings, which shows the configuration. `shared`: it is one of several
    processes."""

    def __init__(
        self, settings: Settings, shown: dict[str, Any] | None = None, shared: Shared | None = None
    ) -> None:
        self._settings = settings
        self._shown = shown
        self._shared = shared
        self.stop: Stop
        """From `run` on."""
        self.server: Server | None = None
        """Once it listens."""

    async def run(self, signals: Signals, manager: Manager) -> int:
        """Serve until a signal comes; returns the exit status."""
        from wfe_persistence.app import Server
        from wfe_persistence.errors import CannotServeError
        from wfe_persistence.rpc.connections import raise_descriptor_limit

        raise_descriptor_limit()
        settings = self._settings

        def begin() -> None:
            manager.stopping()
            end_if_hung(settings.seconds_before_drain + settings.drain_seconds + HUNG_SECONDS)

        self.stop = stop = Stop(begin)
        try:
            with signals.handled(stop.on_signal):
                await asyncio.sleep(0)  # for those that have come already
                if stop.asked.done():
                    log.info("stopped before it had started")
                    return 0
                async with Server(settings, stop.hurry, self._shown, self._shared) as server:
                    self._listens(server)
                    watch = asyncio.create_task(server.watch(manager))
                    alive = asyncio.create_task(manager.keep_alive())
                    await asyncio.wait([stop.asked, watch], return_when=asyncio.FIRST_COMPLETED)
                    if watch.done():
                        watch.result()
                    watch.cancel()
                alive.cancel()
        except CannotServeError as exc:
            log.error("can't serve: %s", exc)  # noqa: TRY400 — the message says it all
        else:
            log.info("stopped")
            return 0
        collector.resume_after_failure()
        return CAN_NOT_SERVE

    def _listens(self, server: Server) -> None:
        collector.resume()
        from wfe_persistence.app import VERSION

        loop = asyncio.get_running_loop()
        if self._settings.audit_log:

            def on_hangup(*_: object) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(server.reopen_audit_log)

            signal.signal(signal.SIGHUP, on_hangup)
        if self._shared is None:  # else the supervisor says so, for all of them
            log.info(
                "wfe-persistence %s listens on %s (%s)",
                VERSION,
                server.address,
                self._settings.protection,
            )
        self.server = server
