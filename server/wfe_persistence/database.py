"""The databases that the settings describe."""

from __future__ import annotations

from collections.abc import Sequence

from wfe_persistence.settings import NamedDatabase, Settings
from wfe_persistence.store.placement import Databases
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.postgres.source import ConnectionSource, SecretCommand, SecretFile
from wfe_persistence.store.schema import HOME


def source_from(settings: Settings) -> ConnectionSource:
    """How to connect to the home database of the settings. Raises ValueError for what can't
    work."""
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


def sources_from(settings: Settings) -> dict[str, ConnectionSource]:
    """How to connect to the databases besides the home, by name. Raises ValueError."""
    return {each.name: _source(each) for each in settings.other_databases}


def database_from(settings: Settings) -> Database:
    """The connection pool for the home database of the settings, with their limits; not yet
    open."""
    return _pool(settings, source_from(settings), settings.home, settings.pool_size)


def databases_from(settings: Settings) -> Databases:
    """All databases of the settings, the home first; not yet open."""
    others: Sequence[Database] = [
        _pool(settings, _source(each), each, each.pool_size or settings.pool_size)
        for each in settings.other_databases
    ]
    return Databases(database_from(settings), *others)


def _source(named: NamedDatabase) -> ConnectionSource:
    key = f"databases.{named.name}"
    url_file, password_file = named.url_file, named.password_file
    command = named.password_command
    return ConnectionSource(
        named.url,
        url_file=SecretFile(f"{key}.url-file", url_file) if url_file else None,
        password_file=SecretFile(f"{key}.password-file", password_file) if password_file else None,
        password_command=SecretCommand(f"{key}.password-command", command) if command else None,
        setting=f"{key}.url" if named.name != HOME else "db-url",
    )


def _pool(
    settings: Settings, source: ConnectionSource, named: NamedDatabase, pool_size: int
) -> Database:
    return Database(
        source,
        pool_size=pool_size,
        pool_timeout=settings.pool_timeout,
        prepare=settings.prepare,
        max_prepared_bytes=settings.max_prepared_mb * 1_000_000,
        max_waiting=settings.max_waiting,
        name=named.name,
        labels={"name": named.name, **named.labels},
        accepts_new=named.accepts_new,
    )
