"""One of several processes that serve (`--workers`), as the supervisor starts it: `python -m
wfe_persistence.cli.worker DESCRIPTOR`, that of its channel. Nobody else does."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import socket
import sys
from typing import TYPE_CHECKING, Final

from wfe_persistence import collector
from wfe_persistence.cli.logs import log_to_stderr
from wfe_persistence.cli.serving import Serving
from wfe_persistence.cli.signals import Signals
from wfe_persistence.event_loop import run
from wfe_persistence.processes.channel import STATE_SECONDS, Assignment, Channel

if TYPE_CHECKING:
    from wfe_persistence.http.metrics import MetricsPage

log = logging.getLogger(__name__)

# How often it is looked whether there is anything new to say.
_LOOK_SECONDS: Final = 0.1


class _Worker:
    """A worker: a server whose manager is the supervisor."""

    def __init__(self, assignment: Assignment, channel: Channel) -> None:
        self._channel = channel
        self._counts = assignment.shared.counts
        self._serving = Serving(assignment.settings, shared=assignment.shared)
        self._said: list[list[object]] | None = None
        self._page: MetricsPage | None = None

    async def run(self, signals: Signals) -> int:
        """Serve until a signal comes, or the supervisor has gone; returns the exit status."""
        listen = asyncio.create_task(self._listen())
        try:
            return await self._serving.run(signals, self)
        finally:
            listen.cancel()
            if self._counts:  # those that came since it was last asked
                await self._send_metrics()
                await self._channel.sent()

    async def _listen(self) -> None:
        async for line in self._channel.lines():
            if line.get("ask") == "metrics":
                await self._send_metrics()
        log.error("the supervisor has ended: this process stops, too")
        self._serving.stop.hurry.set()
        self._serving.stop.begin()

    async def _send_metrics(self) -> None:
        # Loaded on use: without an admin port nobody asks for it.
        from wfe_persistence.http.metrics import MetricsPage
        from wfe_persistence.processes.merge import snapshot

        if self._page is None:
            self._page = MetricsPage()
        self._channel.send({"metrics": await self._page.read(snapshot)})

    def report(self, *, serving: bool, why: str) -> None:
        """Say so to the supervisor, with `keep_alive`."""

    def stopping(self) -> None:
        """As `report`."""

    async def keep_alive(self) -> None:
        """Say how the server is, whenever that has changed and at least once a second."""
        loop = asyncio.get_running_loop()
        due = 0.0
        while True:
            assert self._serving.server is not None
            checks: list[list[object]] = [
                [check.name, check.failure, check.is_needed]
                for check in self._serving.server.checks()
            ]
            if checks != self._said or loop.time() >= due:
                self._said = checks
                due = loop.time() + STATE_SECONDS
                self._channel.send({"state": checks})
            await asyncio.sleep(_LOOK_SECONDS)


async def _run(signals: Signals, end: socket.socket) -> int:
    channel = await Channel.open(end)
    async for line in channel.lines():
        assignment = Assignment.from_line(line)
        log_to_stderr(assignment.settings, assignment.shared.index)
        return await _Worker(assignment, channel).run(signals)
    return 0  # the supervisor has ended already


def main() -> None:
    """Be a worker, and exit."""
    collector.pause()
    with Signals.installed() as signals:
        status = run(_run(signals, socket.socket(fileno=int(sys.argv[1]))))
        faulthandler.cancel_dump_traceback_later()
    sys.exit(status)


if __name__ == "__main__":
    main()
