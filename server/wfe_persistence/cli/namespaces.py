"""The namespaces of a service, for the commands that go through all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from wfe_persistence.database import databases_from
from wfe_persistence.settings import Settings
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.namespace_list import all_namespaces
from wfe_persistence.store.placement import away
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Namespaces]:
    """The namespaces in all databases of the settings, each with one connection."""
    databases = tuple(
        replace(each, pool_size=1) if each.name != settings.home.name else each
        for each in settings.databases
    )
    async with databases_from(replace(settings, pool_size=1, databases=databases)) as opened:
        schema = Schema(settings.schema, settings.table_prefix)
        yield Namespaces(opened, schema, migrate_on_use=False, max_namespaces=0)


async def all_stores(settings: Settings) -> list[Store]:
    """The stores of all namespaces. Raises PersistenceError if one of them can't be reached."""
    async with opened(settings) as namespaces:
        stores, missing = await all_namespaces(namespaces)
        for database in missing.values():
            raise away(database, namespaces.databases)
        return stores
