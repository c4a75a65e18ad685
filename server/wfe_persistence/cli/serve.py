"""`wfe-persistence serve`."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
import sys
from typing import Any, Final

import click

from wfe_persistence.cli.database import Interrupted, Signals, open_database
from wfe_persistence.cli.logs import log_to_stderr
from wfe_persistence.cli.options import SettingsCommand, settings_options, sources
from wfe_persistence.service_manager import ServiceManager
from wfe_persistence.settings import Settings

log = logging.getLogger(__name__)

# Supervisors, and terminals together with them, often send a signal twice.
_SAME_SIGNAL_SECONDS: Final = 1.0

# How much longer than its settings say a stop may take (5 s are normal). As the process has taken
# SIGTERM over, one that hangs would be deaf to it, and never say why.
_HUNG_SECONDS: Final = 20.0


@click.command(cls=SettingsCommand)
@settings_options()
def serve(settings: Settings) -> None:
    """Run the server until SIGTERM or Ctrl-C.

    It then drains: it reports NOT_SERVING, goes on for --drain-delay, refuses new calls, finishes
    those in progress within --drain-seconds, and exits with status 0. A second signal, a second or
    more after the first, ends the calls in progress at once.

    `wfe-persistence config show` says which settings are in force, and where they are from.

    \b
    Examples:
      wfe-persistence serve
      wfe-persistence serve --db-url postgresql://wfe@db.example/wfe --listen 127.0.0.1:50052
      WFE_PERSISTENCE_DB_URL=postgresql://… wfe-persistence serve
    """
    from wfe_persistence.configuration import configuration
    from wfe_persistence.event_loop import run

    try:
        settings.require_protection()
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    log_to_stderr(settings)
    manager = ServiceManager()
    manager.starting("opening the database")
    try:
        with open_database(settings) as database:
            # Of the settings as they were given: those of `database` name the embedded one.
            shown = configuration(settings, sources(click.get_current_context()))
            status = run(_serve(database.settings, database.signals, shown, manager))
            faulthandler.cancel_dump_traceback_later()
    except Interrupted:
        log.info("stopped before it had started")
        status = 0
    sys.exit(status)


async def _serve(
    settings: Settings, signals: Signals, shown: dict[str, Any], manager: ServiceManager
) -> int:
    from wfe_persistence.app import VERSION, Server
    from wfe_persistence.errors import CannotServeError
    from wfe_persistence.rpc.connections import raise_descriptor_limit

    raise_descriptor_limit()
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[Any] = loop.create_future()
    hurry = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if not stop.done():
            log.info("%s: draining", number.name)
            manager.stopping()
            stop.set_result(loop.time())
            _end_if_hung(settings.seconds_before_drain + settings.drain_seconds + _HUNG_SECONDS)
        elif loop.time() - stop.result() >= _SAME_SIGNAL_SECONDS and not hurry.is_set():
            log.info("%s again: ending the calls in progress", number.name)
            hurry.set()

    def in_loop(number: signal.Signals) -> None:
        loop.call_soon_threadsafe(on_signal, number)

    try:
        with signals.handled(in_loop):
            await asyncio.sleep(0)  # for those that have come already
            if stop.done():
                log.info("stopped before it had started")
                return 0
            async with Server(settings, hurry, shown) as server:
                if settings.audit_log:

                    def on_hangup(*_: object) -> None:
                        if not loop.is_closed():
                            loop.call_soon_threadsafe(server.reopen_audit_log)

                    signal.signal(signal.SIGHUP, on_hangup)
                log.info(
                    "wfe-persistence %s listens on %s (%s)",
                    VERSION,
                    server.address,
                    settings.protection,
                )
                watch = loop.create_task(server.watch(manager))
                alive = loop.create_task(manager.keep_alive())
                await asyncio.wait([stop, watch], return_when=asyncio.FIRST_COMPLETED)
                if watch.done():
                    watch.result()
                watch.cancel()
            alive.cancel()
    except CannotServeError as exc:
        log.error("can't serve: %s", exc)  # noqa: TRY400 — the message says it all
        return 1
    log.info("stopped")
    return 0


def _end_if_hung(seconds: float) -> None:
    """If the stop is not done by then, say what it waits for, and exit with status 1."""

    def say() -> None:
        tasks = sorted({task.get_coro().__qualname__ for task in asyncio.all_tasks()})  # type: ignore[union-attr]
        log.error("not stopped after %g s, giving up; unfinished: %s", seconds, ", ".join(tasks))

    asyncio.get_running_loop().call_later(seconds, say)
    # In a thread of its own that needs no GIL: it writes what each thread is doing, and exits.
    faulthandler.dump_traceback_later(seconds + 1, exit=True)
