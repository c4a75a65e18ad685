"""The supervisor of worker processes: it binds the address, starts them and starts them again, and
is to the outside what they are together: one admin port, one answer to whether the server is ready,
one process to send signals to.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from wfe_persistence import metrics
from wfe_persistence.access.role import Role
from wfe_persistence.errors import CannotServeError
from wfe_persistence.processes.channel import STATE_SECONDS, Assignment, Channel
from wfe_persistence.processes.merge import Merged, Snapshot, lasting, merged, snapshot
from wfe_persistence.rpc.listener import Listener
from wfe_persistence.rpc.shared_listener import Board, Shared, SharedSockets
from wfe_persistence.service_manager import ServiceManager
from wfe_persistence.settings import Settings
from wfe_persistence.stopping import HUNG_SECONDS, Stop
from wfe_persistence.versions import versions

if TYPE_CHECKING:
    from wfe_persistence.tls import Certificates

log = logging.getLogger(__name__)

# As with the embedded PostgreSQL: the pause before a start doubles up to the longest one, and is
# the shortest again after a process that has run for that long.
_SHORTEST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
_STABLE_SECONDS: Final = 60.0

# A worker that has said nothing for so long is hung.
_SILENT_SECONDS: Final = 10 * STATE_SECONDS

# How old what a worker has counted is at most, when it is killed.
_COUNT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 5.0

_LOOK_SECONDS: Final = 0.1

# The exit status of a worker that can't serve: another one could not either.
_CAN_NOT_SERVE: Final = 1


@dataclass(slots=True, eq=False)
class _Worker:
    """One of the workers; it may be another process from time to time."""

    index: int
    process: Process | None = None
    channel: Channel | None = None
    checks: list[tuple[str, str, bool]] | None = None
    """What its readiness consists of; None: it has not started."""
    heard: float = 0.0
    """When it last said something."""
    counted: Snapshot = field(default_factory=dict)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def failure(self, now: float) -> str:
        """Why it is not ready; empty: it is."""
        if self.process is None:
            return "it has ended and is about to be started again"
        if self.checks is None:
            return "it has not started yet"
        if hung := self.hung(now):
            return hung
        return next((f"{name}: {why}" for name, why, needed in self.checks if why and needed), "")

    def hung(self, now: float) -> str:
        """Why it is taken for hung; empty: it is not."""
        silent = now - self.heard
        if self.process is None or self.checks is None or silent < _SILENT_SECONDS:
            return ""
        return f"it has said nothing for {silent:.0f} s"


class Processes:
    """The workers of a server with these settings. `command` starts one; it takes the descriptor of
    its channel as its last argument."""

    def __init__(
        self,
        settings: Settings,
        shown: dict[str, Any],
        manager: ServiceManager,
        command: Sequence[str],
    ) -> None:
        self._settings = settings
        self._shown = shown
        self._manager = manager
        self._command = command
        self._workers = [_Worker(index) for index in range(settings.worker_count)]
        self._sockets = SharedSockets()
        self._listener = Listener(settings.listen, settings.socket_permissions)
        self._ended: Snapshot = {}
        """What was counted by workers that have ended."""
        self._serving: bool | None = None
        self._why = ""
        self._said_listening = False
        self._stop: Stop
        self._board: Board
        self._failed: asyncio.Event
        """Set once a worker can't serve."""

    async def run(
        self,
        signals: Callable[[Callable[[signal.Signals], None]], AbstractContextManager[None]],
    ) -> int:
        """Serve until a signal comes; returns the exit status. `signals` gives SIGTERM and SIGINT
        to a handler, while the context is entered."""
        self._stop = Stop(self._manager.stopping)
        self._failed = asyncio.Event()
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(signals(self._stop.on_signal))
                await asyncio.sleep(0)  # for those that have come already
                if self._stop.asked.done():
                    log.info("stopped before it had started")
                    return 0
                self._listener.open(self._sockets.bind)
                stack.callback(self._listener.close)
                stack.callback(self._sockets.close)
                self._board = Board()
                stack.callback(self._board.close)
                await self._open_admin_port(stack)
                return await self._supervise(stack)
        except CannotServeError as exc:
            log.error("can't serve: %s", exc)  # noqa: TRY400 — the message says it all
            return 1

    async def _supervise(self, stack: AsyncExitStack) -> int:
        if self._settings.audit_log:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        keeping = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        others = [
            asyncio.create_task(work)
            for work in (self._watch(), self._count(), self._manager.keep_alive())
        ]
        stack.callback(lambda: [task.cancel() for task in others])
        stack.push_async_callback(self._end, keeping)
        await self._stop.asked
        self._sockets.close()  # now they are those of the workers only
        clean = await self._drain(keeping)
        if self._failed.is_set():
            return 1
        log.info("stopped")
        return 0 if clean else 1

    async def _drain(self, keeping: Sequence[asyncio.Task[int]]) -> bool:
        """Have all workers drain; whether all have done so, with the exit status 0."""
        self._pass_on(signal.SIGTERM)
        settings = self._settings
        hurrying = asyncio.create_task(self._hurry())
        seconds = settings.seconds_before_drain + settings.drain_seconds + HUNG_SECONDS + 5
        _, hung = await asyncio.wait(keeping, timeout=seconds)
        hurrying.cancel()
        if hung:
            log.error("%d workers have not stopped after %g s: killing them", len(hung), seconds)
        return not hung and not any(task.result() for task in keeping)

    async def _hurry(self) -> None:
        await self._stop.hurry.wait()
        self._pass_on(signal.SIGTERM)

    async def _end(self, keeping: Sequence[asyncio.Task[int]]) -> None:
        """Leave no process behind, whatever has happened."""
        self._pass_on(signal.SIGKILL)
        for task in keeping:
            task.cancel()
        await asyncio.wait(keeping)

    def _pass_on(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker.process is not None:
                with suppress(ProcessLookupError):
                    worker.process.send_signal(number)

    # ----- one worker -----

    async def _keep(self, worker: _Worker) -> int:
        """Have a worker run until the server stops; returns its last exit status."""
        loop = asyncio.get_running_loop()
        pause = _SHORTEST_PAUSE
        complained = ""
        while True:
            began = loop.time()
            status = await self._run(worker)
            if self._stop.asked.done():
                return status
            if status == _CAN_NOT_SERVE:
                self._failed.set()
                self._stop.begin()
                return status
            if loop.time() - began >= _STABLE_SECONDS:
                pause, complained = _SHORTEST_PAUSE, ""
            why = _ending(status)
            if why != complained:
                complained = why
                log.error(
                    "worker %d %s after %.0f s: starting another in %g s",
                    worker.index,
                    why,
                    loop.time() - began,
                    pause,
                )
            metrics.WORKER_RESTARTS.add()
            await asyncio.wait([self._stop.asked], timeout=pause)
            if self._stop.asked.done():
                return 0
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run(self, worker: _Worker) -> int:
        """Start a process, and wait for its end; returns its exit status, or the negative number
        of the signal that has ended it."""
        ours, theirs = socket.socketpair()
        sockets = tuple(shared.fileno() for shared in self._sockets.sockets)
        board = self._board.descriptor
        with theirs:
            process = worker.process = await asyncio.create_subprocess_exec(
                *self._command, str(theirs.fileno()), pass_fds=(theirs.fileno(), board, *sockets)
            )
        try:
            channel = worker.channel = await Channel.open(ours)
            settings = replace(
                self._settings,
                listen=self._listener.address,
                admin_listen="",
                console=False,
                console_write=False,
                workers="1",
            )
            counts = bool(self._settings.admin_listen)
            channel.send(
                Assignment(settings, Shared(worker.index, sockets, counts, board)).to_line()
            )
            worker.heard = asyncio.get_running_loop().time()
            async for line in channel.lines():
                self._heard(worker, line)
            channel.close()
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._ended = merged([self._ended, lasting(worker.counted)])
            self._board.write(worker.index, None)
            worker.process = worker.channel = worker.checks = None
            worker.counted = {}
            worker.answered.set()

    def _heard(self, worker: _Worker, line: dict[str, Any]) -> None:
        worker.heard = asyncio.get_running_loop().time()
        if (checks := line.get("state")) is not None:
            worker.checks = [(name, why, needed) for name, why, needed in checks]
        if (counted := line.get("metrics")) is not None:
            worker.counted = counted
            worker.answered.set()

    # ----- all of them -----

    def _checks(self) -> list[tuple[str, str]]:
        """What readiness consists of, and why it is not so."""
        now = asyncio.get_running_loop().time()
        draining = "the server drains" if self._stop.asked.done() else ""
        return [
            ("shutdown", draining),
            *((f"worker-{worker.index}", worker.failure(now)) for worker in self._workers),
        ]

    async def _watch(self) -> None:
        """Say how the server is, whenever that has changed."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._said_listening and all(w.checks is not None for w in self._workers):
                self._said_listening = True
                log.info(
                    "wfe-persistence %s listens on %s (%s) with %d workers",
                    version("wfe-persistence"),
                    self._listener.address,
                    self._settings.protection,
                    len(self._workers),
                )
            failures = [f"{name}: {why}" for name, why in self._checks() if why]
            why = failures[0] if failures else ""
            if not self._stop.asked.done() and (not failures, why) != (self._serving, self._why):
                self._manager.report(serving=not failures, why=why)
                if not failures:
                    log.info("all workers are serving on %s", self._listener.address)
                self._serving, self._why = not failures, why
            hung = [worker.index for worker in self._workers if worker.hung(loop.time())]
            self._manager.is_alive = not hung
            await asyncio.sleep(_LOOK_SECONDS)

    async def _count(self) -> None:
        """Ask what was counted, so that little is lost when a worker is killed."""
        while self._settings.admin_listen:
            await asyncio.sleep(_COUNT_SECONDS)
            await self._ask()

    async def _ask(self) -> None:
        """Have all workers say what they have counted."""
        asked = []
        for worker in self._workers:
            if worker.channel is not None and worker.checks is not None:
                worker.answered.clear()
                worker.channel.send({"ask": "metrics"})
                asked.append(worker.answered.wait())
        with suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_SECONDS):
                await asyncio.gather(*asked)

    async def _open_admin_port(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        if not settings.admin_listen:
            return
        from wfe_persistence.access.access import Access, watched_policy
        from wfe_persistence.http.admin import Admin, CheckResult, json_response
        from wfe_persistence.http.metrics import MetricsPage, encoded
        from wfe_persistence.http.server import HttpServer, Request, Response

        access: Access | None = None
        certificates: Certificates | None = None
        if settings.authentication and (policy := watched_policy(settings)):
            access = Access(settings, policy)
            stack.callback(asyncio.create_task(policy.watch()).cancel)
            stack.callback(asyncio.create_task(access.watch()).cancel)
        if settings.tls_cert:  # loads gRPC
            from wfe_persistence.tls import certificates_of

            certificates = certificates_of(settings)
        page = MetricsPage(own=(metrics.WORKERS, metrics.WORKER_MEMORY, metrics.WORKER_RESTARTS))
        now = asyncio.get_running_loop().time
        metrics.WORKERS.read = self._states
        metrics.WORKER_MEMORY.read = self._memory

        async def show_metrics(request: Request) -> Response:
            await self._ask()
            own = await page.read(snapshot)
            counted = [worker.counted for worker in self._workers]
            return await asyncio.to_thread(
                lambda: encoded(request, Merged(merged([self._ended, *counted, own])))
            )

        async def show_configuration(_: Request) -> Response:
            return json_response(self._shown)

        admin = Admin(
            access,
            lambda: [CheckResult(*check) for check in self._checks()],
            versions,
            lambda: [
                CheckResult("ping", ""),
                *(CheckResult(f"worker-{w.index}", w.hung(now())) for w in self._workers),
            ],
        )
        admin.add("/metrics", Role.MONITOR, show_metrics)
        admin.add("/config", Role.OPERATOR, show_configuration)
        posts = ""
        if settings.console:
            from wfe_persistence.http.console import CONSOLE_PATH, ConsolePages

            pages = ConsolePages(settings, lambda: self._listener.address)
            admin.mount(posts := CONSOLE_PATH, pages.answer)
            stack.push_async_callback(pages.close)
        port = HttpServer(
            settings.admin_listen,
            admin.answer,
            certificates.context if certificates else None,
            posts,
        )
        await port.open()
        stack.push_async_callback(port.close)
        log.info("admin port: %s://%s", "https" if certificates else "http", port.address)
        if certificates:
            stack.callback(asyncio.create_task(certificates.watch()).cancel)

    def _states(self) -> list[tuple[metrics.Labels, float]]:
        now = asyncio.get_running_loop().time()
        ready = sum(not worker.failure(now) for worker in self._workers)
        return [(("ready",), ready), (("not_ready",), len(self._workers) - ready)]

    def _memory(self) -> list[tuple[metrics.Labels, float]]:
        return [
            ((str(worker.index),), float(sample[2]))
            for worker in self._workers
            for sample in worker.counted.get("process_resident_memory_bytes", {}).get("samples", ())
        ]


def _ending(status: int) -> str:
    """How a process has ended."""
    if status >= 0:
        return f"has ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
