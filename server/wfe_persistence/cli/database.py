"""Opening the database of a command: the one that is named, or the embedded one."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import click

from wfe_persistence.embedded import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    StartInterruptedError,
)
from wfe_persistence.settings import Settings
from wfe_persistence.supervisor import Supervisor

log = logging.getLogger(__name__)


class Interrupted(SystemExit):
    """SIGINT or SIGTERM, while the embedded PostgreSQL is started, or while a command uses it that
    does not handle them. What was started is stopped; the exit status is 128 plus the signal."""


@contextmanager
def open_database(settings: Settings) -> Iterator[Settings]:
    """The settings with a running database: the one that they name, or the embedded one.

    The embedded PostgreSQL is started, kept running, and stopped on exit. Raises UsageError for an
    invalid connection string before anything is started, and Interrupted.
    """
    from wfe_persistence.database import source_from

    try:
        source = source_from(settings)
        if not settings.uses_embedded_database:
            source.check()
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    if not settings.uses_embedded_database:
        yield settings
        return
    try:
        embedded = EmbeddedPostgres(settings.data_dir)
        log.info("starting the embedded PostgreSQL in %s", settings.data_dir)
        with _signals(embedded) as use, embedded as postgres, Supervisor(postgres), use():
            yield replace(settings, db_url=postgres.url)
    except (EmbeddedPostgresError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc


@contextmanager
def _signals(embedded: EmbeddedPostgres) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Neither SIGINT nor SIGTERM ends the process before PostgreSQL is in order.

    While it starts, they interrupt it. While it stops, it does already what they ask for. In
    between, in the context that this one returns, they raise Interrupted.
    """
    received: list[int] = []
    in_use = False

    def on_signal(number: int, _: object) -> None:
        received.append(number)
        embedded.interrupted.set()
        if in_use:
            raise Interrupted(128 + number)

    def handle() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)

    @contextmanager
    def use() -> Iterator[None]:
        nonlocal in_use
        in_use = True
        try:
            if received:
                raise Interrupted(128 + received[0])
            yield
        finally:
            in_use = False
            handle()  # the command may have had its own

    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    handle()
    try:
        yield use
    except StartInterruptedError:
        raise Interrupted(128 + received[0]) from None
    finally:
        for number, handler in before:
            signal.signal(number, handler)
