"""Which namespaces may have something in a table, without a look into any of them.

A table to which nothing was ever written has no page, and PostgreSQL knows that without reading it.
So what servers do for all namespaces now and then takes one statement in each database, and no more
for those that have nothing of the kind: of many namespaces, most.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.postgres.database import Database
from wfe_persistence.store.rows import read_text, text
from wfe_persistence.store.schema import DEFAULT_NAMESPACE, is_namespace
from wfe_persistence.store.tables import Store

log = logging.getLogger(__name__)

# What looks like a namespace, and is not: the store of others, or a copy that was left behind.
_NOT_THERE: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND,
        ErrorReason.ERROR_REASON_STORE_NOT_OWNED,
        ErrorReason.ERROR_REASON_DATABASE_NOT_CONFIGURED,
    }
)

# $1 the table, $2 the schema of the default namespace.
OCCUPIED_NAMESPACES: Final = """
SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = $1 AND c.relkind = 'r' AND pg_relation_size(c.oid) > 0
    AND (n.nspname = $2 OR starts_with(n.nspname, $2 || '_'))
"""


async def occupied_stores(namespaces: Namespaces, table: str) -> list[Store]:
    """The stores of those namespaces. Raises PersistenceError if none of the databases answers."""
    databases = list(namespaces.databases)
    found = await asyncio.gather(
        *(_in_database(namespaces, each, table) for each in databases), return_exceptions=True
    )
    errors = [each for each in found if isinstance(each, BaseException)]
    for error in errors:
        if not isinstance(error, PersistenceError) or len(errors) == len(databases):
            raise error
        log.debug("can't see which namespaces have %s: %s", table, error)
    return [store for each in found if isinstance(each, list) for store in each]


async def _in_database(namespaces: Namespaces, database: Database, table: str) -> list[Store]:
    base = namespaces.default.schema
    rows = await Store(database, base, DEFAULT_NAMESPACE).read_once(
        OCCUPIED_NAMESPACES, text(base.table_prefix + table), text(base.name)
    )
    stores = []
    for row in range(rows.ntuples):
        schema = read_text(rows.get_value(row, 0))
        name = DEFAULT_NAMESPACE if schema == base.name else schema.removeprefix(base.name + "_")
        is_default = database is namespaces.databases.home and schema == base.name
        if not is_namespace(name) or (name == DEFAULT_NAMESPACE) != is_default:
            continue
        try:
            store = await namespaces.get(name)
        except PersistenceError as exc:
            if exc.reason in _NOT_THERE:
                log.debug("the schema %s is passed by: %s", schema, exc)
                continue
            if exc.reason == ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE:
                raise
            # Why it can't be used, whoever does something there is told again.
            store = namespaces.store_in(name, database.name)
        if store.database is database:
            stores.append(store)
    return stores
