"""The database that the settings describe."""

from __future__ import annotations

from wfe_persistence.settings import Settings
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.postgres.source import ConnectionSource, SecretCommand, SecretFile


def source_from(settings: Settings) -> ConnectionSource:
    """How to connect to the database of the settings. Raises ValueError for what can't work."""
    url_file, password_file = settings.db_url_file, settings.db_password_file
    command = settings.db_password_command
    if settings.uses_embedded_database and (password_file or command):
        raise ValueError("db-password-file and db-password-command: need db-url or db-url-file")
    return ConnectionSource(
        settings.db_url,
        url_file=SecretFile("db-url-file", url_file) if url_file else None,
        password_file=SecretFile("db-password-file", password_file) if password_file else None,
        password_command=SecretCommand("db-password-command", command) if command else None,
    )


def database_from(settings: Settings) -> Database:
    """The connection pool for the database of the settings, with their limits; not yet open."""
    return Database(
        source_from(settings),
        pool_size=settings.pool_size,
        pool_timeout=settings.pool_timeout,
        prepare=settings.prepare,
        max_prepared_bytes=settings.max_prepared_mb * 1_000_000,
        max_waiting=settings.max_waiting,
    )
