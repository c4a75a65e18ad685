"""Migrating the stores of all namespaces, wherever they are."""

from __future__ import annotations

import asyncio

from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import migrate, namespace_list
from wfe_persistence.store.migrate import Migrated
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.placement import away
from wfe_persistence.store.schema import DEFAULT_NAMESPACE
from wfe_persistence.store.tables import Store

Outcomes = dict[str, Migrated | PersistenceError]
"""By namespace: what was done, or the error."""


async def migrate_all(namespaces: Namespaces) -> Outcomes:
    """Migrate every namespace, a few at a time; returns the outcome of each.

    A namespace that has no owner is migrated without claiming it, because nobody has named it: it
    may be the store of other servers.
    """
    try:
        stores, missing = await namespace_list.all_namespaces(namespaces)
    except PersistenceError as exc:
        return {DEFAULT_NAMESPACE: exc}

    async def migrate_one(store: Store) -> Migrated | PersistenceError:
        async with store.database.lane.turn(store.schema.name, refuse=False):
            try:
                is_default = store is namespaces.default
                return await migrate.migrate(
                    store.database, store.schema, claim=is_default, must_exist=not is_default
                )
            except PersistenceError as exc:
                return exc

    results = await asyncio.gather(*map(migrate_one, stores))
    outcomes: Outcomes = {
        store.namespace: result for store, result in zip(stores, results, strict=True)
    }
    return outcomes | {
        name: away(database, namespaces.databases) for name, database in missing.items()
    }
