"""The databases that the settings describe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wfe_persistence.settings import NamedDatabase, Settings
from wfe_persistence.store.placement import Databases
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.postgres.replicas import Replicas
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


def read_sources_from(settings: Settings) -> list[ConnectionSource]:
    """How to connect to the replicas of all databases. Raises ValueError."""
    sources = {HOME: source_from(settings), **sources_from(settings)}
    named = {HOME: settings.home, **{each.name: each for each in settings.other_databases}}
    return [
        replica
        for name, source in sources.items()
        for replica in _replicas(settings, source, named[name])
    ]


def database_from(settings: Settings) -> Database:
    """The connection pools for the home database of the settings, with their limits; not yet
    open."""
    return _database(settings, source_from(settings), settings.home)


def databases_from(settings: Settings) -> Databases:
    """All databases of the settings, the home first; not yet open."""
    others: Sequence[Database] = [
        _database(settings, _source(each), each) for each in settings.other_databases
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


def _replicas(
    settings: Settings, source: ConnectionSource, named: NamedDatabase
) -> list[ConnectionSource]:
    """How to connect to the replicas of a database: with its password, where that is apart."""
    key = f"databases.{named.name}.read-url"
    urls = [(f"{key}s", url) for url in named.read_urls]
    files = [(f"{key}-files", path) for path in named.read_url_files]
    if named.name == HOME:
        urls += [("db-read-url", url) for url in settings.db_read_url]
        files += [("db-read-url-file", Path(path)) for path in settings.db_read_url_file]
    return [
        *(replace(source, url=url, url_file=None, setting=name) for name, url in urls),
        *(
            replace(source, url="", url_file=SecretFile(name, path), setting=name)
            for name, path in files
        ),
    ]


def _database(settings: Settings, source: ConnectionSource, named: NamedDatabase) -> Database:
    """A database with its replicas."""
    database = _pool(settings, source, named)
    if replicas := _replicas(settings, source, named):
        database.replicas = Replicas(
            database,
            [
                _pool(settings, replica, named, f"{named.name}/{number}")
                for number, replica in enumerate(replicas, 1)
            ],
            max_lag=settings.replica_max_lag,
            wait=settings.replica_wait,
        )
    return database


def _pool(
    settings: Settings, source: ConnectionSource, named: NamedDatabase, replica: str = ""
) -> Database:
    return Database(
        source,
        pool_size=named.pool_size or settings.pool_size,
        pool_timeout=settings.pool_timeout,
        prepare=settings.prepare,
        max_prepared_bytes=settings.max_prepared_mb * 1_000_000,
        max_waiting=settings.max_waiting,
        name=named.name,
        labels={"name": named.name, **named.labels},
        accepts_new=named.accepts_new,
        replica=replica,
    )
