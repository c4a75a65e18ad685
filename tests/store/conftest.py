"""Fixtures: a store of the test's own, without a server in front."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from wfe_persistence.database import database_from
from wfe_persistence.settings import Settings
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.postgres.source import ConnectionSource
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A look into the database, and a hand in it."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def source(database_url: str) -> ConnectionSource:
    """What administration connects with."""
    return ConnectionSource(database_url)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An empty database with a pool on it."""
    async with database_from(
        Settings(db_url=database_url, pool_size=4, pool_timeout=1.0)
    ) as database:
        yield database


@pytest.fixture
async def store(database: Database) -> Store:
    """A migrated store."""
    schema = Schema()
    await migrate(database.source, schema)
    return Store(database, schema, "default")
