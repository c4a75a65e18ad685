"""Opening the database of a command: the one that is named, or the embedded one."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import click

from wfe_persistence.cli.signals import Signals
from wfe_persistence.embedded import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    StartInterruptedError,
)
from wfe_persistence.settings import Settings
from wfe_persistence.supervisor import Supervisor

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Interrupted(SystemExit):
    """SIGINT or SIGTERM before the work was done. What was started for it is stopped; the exit
    status is 128 plus the signal."""


@dataclass(frozen=True)
class OpenDatabase:
    """A running database: the settings with its address, and the signals that may end its use."""

    settings: Settings
    signals: Signals


@contextmanager
def open_database(settings: Settings) -> Iterator[OpenDatabase]:
    """The database that the settings name, or the embedded one.

    The embedded PostgreSQL is started, kept running, and stopped on exit. SIGINT and SIGTERM
    interrupt its start; while it stops, it does already what they ask for; in between, whoever
    uses it handles them, as `run` does. Raises UsageError for an
    invalid connection string before anything is started, and Interrupted.
    """
    from wfe_persistence.database import source_from

    try:
        source = source_from(settings)
        if not settings.uses_embedded_database:
            source.check()
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    with Signals.installed() as signals:
        if not settings.uses_embedded_database:
            yield OpenDatabase(settings, signals)
            return
        try:
            embedded = EmbeddedPostgres(settings.data_dir)
            log.info("starting the embedded PostgreSQL in %s", settings.data_dir)
            with (
                signals.handled(lambda _: embedded.interrupt()),
                embedded as postgres,
                Supervisor(postgres),
            ):
                yield OpenDatabase(replace(settings, db_url=postgres.url), signals)
        except StartInterruptedError:
            raise Interrupted(128 + signals.received[0]) from None
        except (EmbeddedPostgresError, OSError) as exc:
            raise click.ClickException(str(exc)) from exc


def run(database: OpenDatabase, main: Coroutine[Any, Any, _T]) -> _T:
    """What `main` returns. A signal cancels it, and raises Interrupted."""

    async def cancelled_by_signals() -> _T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(main)

        def cancel(_: signal.Signals) -> None:
            loop.call_soon_threadsafe(task.cancel)

        with database.signals.handled(cancel):
            return await task

    try:
        return asyncio.run(cancelled_by_signals())
    except asyncio.CancelledError:
        raise Interrupted(128 + database.signals.received[0]) from None
