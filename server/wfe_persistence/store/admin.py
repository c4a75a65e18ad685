"""The store as a whole: is the database fit, which store belongs to a namespace, empty it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.db import Database, Store
from wfe_persistence.store.rows import read_bool, read_int4, read_text
from wfe_persistence.store.schema import DEFAULT_NAMESPACE, Schema, is_namespace

OLDEST_POSTGRES = 14


@dataclass(frozen=True, slots=True)
class DatabaseInfo:
    """What matters of a PostgreSQL server."""

    version: str
    version_number: int
    encoding: str
    durable: bool

    def objections(self) -> list[str]:
        """Why this server can't use it: what would break, and what would lose acknowledged data."""
        found = []
        if self.version_number < OLDEST_POSTGRES * 10_000:
            found.append(f"PostgreSQL {self.version} is older than {OLDEST_POSTGRES}")
        if self.encoding != "UTF8":
            found.append(f"the database's encoding is {self.encoding}, it must be UTF8")
        return found


DATABASE_INFO = """
SELECT current_setting('server_version'), current_setting('server_version_num')::int,
    current_setting('server_encoding'),
    current_setting('fsync') = 'on' AND current_setting('synchronous_commit') <> 'off'
"""


async def database_info(store: Store) -> DatabaseInfo:
    """Ask the database what it is."""
    row = await store.read(DATABASE_INFO)
    return DatabaseInfo(
        read_text(row.get_value(0, 0)).split()[0],
        read_int4(row.get_value(0, 1)),
        read_text(row.get_value(0, 2)),
        read_bool(row.get_value(0, 3)),
    )


TRUNCATE_ALL = """
TRUNCATE wfc.execution_errors, wfc.execution_pointers, wfc.event_subscriptions, wfc.events,
    wfc.scheduled_commands, wfc.definition_sequences, wfc.workflows CASCADE
"""


async def truncate_all(store: Store) -> None:
    """Empty every table of the store."""
    await store.write(TRUNCATE_ALL)


NAMESPACE_EXISTS = """
SELECT to_regclass('wfc.wfe_migrations') IS NOT NULL
"""


class Namespaces:
    """The stores of one database, by namespace."""

    def __init__(self, database: Database, schema: Schema) -> None:
        self.default = Store(database, schema, DEFAULT_NAMESPACE)
        self._known: OrderedDict[str, Store] = OrderedDict()

    # A store keeps the SQL bound to its schema, some 100 kB: enough for the busy ones.
    _MOST_KNOWN = 200

    async def get(self, namespace: str) -> Store:
        """The store of a namespace. Raises if there is none; nothing is created."""
        if namespace in ("", DEFAULT_NAMESPACE):
            return self.default
        store = self._known.get(namespace)
        if store is not None:
            self._known.move_to_end(namespace)
            return store
        if not is_namespace(namespace):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_INVALID_NAMESPACE,
                "a namespace must match [a-z][a-z0-9_]{0,39}",
            )
        store = Store(
            self.default.database, self.default.schema.for_namespace(namespace), namespace
        )
        row = await store.read(NAMESPACE_EXISTS)
        if not read_bool(row.get_value(0, 0)):
            raise PersistenceError(
                ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND,
                "the namespace does not exist",
                metadata={"namespace": namespace},
            )
        self._known[namespace] = store
        if len(self._known) > self._MOST_KNOWN:
            self._known.popitem(last=False)
        return store
