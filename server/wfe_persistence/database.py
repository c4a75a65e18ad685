"""The database that the settings describe."""

from __future__ import annotations

from wfe_persistence.settings import Settings
from wfe_persistence.store.postgres.database import Database


def database_from(settings: Settings) -> Database:
    """The connection pool for `settings.db_url`, with the limits of the settings; not yet open."""
    return Database(
        settings.db_url,
        pool_size=settings.pool_size,
        pool_timeout=settings.pool_timeout,
        prepare=settings.prepare,
        max_prepared_bytes=settings.max_prepared_mb * 1_000_000,
        max_waiting=settings.max_waiting,
    )
