"""`wfe-persistence serve`."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys

import click

from wfe_persistence import collector
from wfe_persistence.cli.database import Interrupted, open_database
from wfe_persistence.cli.logs import log_to_stderr
from wfe_persistence.cli.options import SettingsCommand, settings_options, sources
from wfe_persistence.cli.serving import Serving
from wfe_persistence.service_manager import ServiceManager
from wfe_persistence.settings import Settings

log = logging.getLogger(__name__)


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
            if settings.worker_count > 1:
                from wfe_persistence.processes.supervisor import Processes

                command = (sys.executable, "-m", "wfe_persistence.cli.worker")
                collector.resume()
                processes = Processes(database.settings, shown, manager, command)
                status = asyncio.run(processes.run(database.signals.handled))
            else:
                server = Serving(database.settings, shown)
                status = run(server.run(database.signals, manager))
            faulthandler.cancel_dump_traceback_later()
    except Interrupted:
        log.info("stopped before it had started")
        status = 0
    sys.exit(status)
