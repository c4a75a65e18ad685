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
    """The settings with the connection string of a running database in `db_url`.

    Without a `db_url`, starts the embedded PostgreSQL, and stops it on exit. Raises UsageError for
    an invalid connection string before anything is started.
    """
    from wfe_persistence.store.postgres.database import conninfo_with_defaults

    try:
        conninfo = conninfo_with_defaults(settings.db_url)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    if settings.db_url:
        yield replace(settings, db_url=conninfo)
        return
    try:
        embedded = EmbeddedPostgres(settings.data_dir)
        log.info("starting the embedded PostgreSQL in %s", settings.data_dir)
        with embedded as postgres:
            yield replace(settings, db_url=conninfo_with_defaults(postgres.url))
    except (EmbeddedPostgresError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc
