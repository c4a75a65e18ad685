"""Opening the database of a command: the one that is named, or the embedded one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import click

from wfe_persistence.embedded import EmbeddedPostgres, EmbeddedPostgresError
from wfe_persistence.settings import Settings

log = logging.getLogger(__name__)


@contextmanager
def open_database(settings: Settings) -> Iterator[Settings]:
    """The settings with a running database: the one that they name, or the embedded one.

    The embedded PostgreSQL is started, and stopped on exit. Raises UsageError for an invalid
    connection string before anything is started.
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
        with embedded as postgres:
            yield replace(settings, db_url=postgres.url)
    except (EmbeddedPostgresError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc
