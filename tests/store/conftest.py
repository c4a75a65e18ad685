"""Fixtures: a store of the test's own, without a server in front."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from wfe_persistence.database import database_from
from wfe_persistence.settings import Settings
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store


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
