"""Listing namespaces in a database that has other schemas as well."""

from __future__ import annotations

import psycopg

from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.namespace import list_namespaces
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store


async def test_schemas_that_are_no_namespaces_do_not_end_the_list(store: Store) -> None:
    conninfo = store.database.conninfo
    await migrate(conninfo, Schema("wfc_a"))
    async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
        await connection.execute('CREATE SCHEMA "wfc_0"')  # a namespace starts with a letter
        await connection.execute('CREATE TABLE "wfc_0".wfe_migrations (version int)')
    names: list[str] = []
    page = await list_namespaces(store, (0, ""), 1)
    names += [n.name for n in page.items]
    while page.next:
        page = await list_namespaces(store, page.next, 1)
        names += [n.name for n in page.items]
    assert names == ["default", "a"]
