"""Whose store it is: the servers with one `--schema` and the namespace that it has there.

`--schema app` has its namespace `test` in the schema `app_test`, which may as well be the store of
other servers, with `--schema app_test`. So each store says in a row whose it is. The row is written
in the transaction that creates its table: for a new store at its creation. A store that is older
than the table (schema version 3 and before) has no owner until a server claims it, by being started
on it or when a call names the namespace; the first one keeps it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final, NoReturn

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.rows import PGresult, read_int8, read_text
from wfe_persistence.store.schema import HOME, Schema
from wfe_persistence.store.tables import Store

log = logging.getLogger(__name__)

FIRST_VERSION: Final = 4
"""The schema version that the table of the owner came with."""


ACTIVE: Final = "active"
"""The state of a store that is used. Another one is a copy that is being made, or was left."""


@dataclass(frozen=True, slots=True)
class Owner:
    """What a store says about whose it is, and which: its identity."""

    schema: str
    """`--schema` of its servers."""
    namespace: str
    """Its name as a namespace of these servers."""
    database: str = field(default=HOME, compare=False)
    """The name that the database in which it is has among these servers."""
    generation: int = field(default=0, compare=False)
    """How often the namespace was created or moved there; see `placement.py`."""
    state: str = field(default=ACTIVE, compare=False)
    """ACTIVE, or why it must not be used."""

    def is_of(self, store: Store) -> bool:
        """Whether it is that of this store, in this database, and may be used."""
        return (
            self == Owner.of(store.schema)
            and self.database == store.database.name
            and self.state == ACTIVE
        )

    @classmethod
    def of(cls, schema: Schema) -> Owner:
        """The owner that a schema must have for a server that looks at it under this name."""
        return cls(schema.owner, schema.namespace)


# Read through JSON because these columns came later than the table.
IDENTITY: Final = """o.owner_schema, o.namespace, coalesce(to_jsonb(o) ->> 'database', 'home'),
    coalesce((to_jsonb(o) ->> 'generation')::bigint, 0),
    coalesce(to_jsonb(o) ->> 'state', 'active')"""

READ_OWNER = f"SELECT {IDENTITY} FROM wfc.wfe_store AS o"

CLAIM_STORE = """
INSERT INTO wfc.wfe_store (owner_schema, namespace) VALUES (%s, %s) ON CONFLICT DO NOTHING
"""


def claim_statement(schema: Schema) -> str:
    """The statement that claims a store without an owner. It has no parameters, so that scripts can
    use it; names of schemas and namespaces contain nothing that must be quoted."""
    return schema.qualify(CLAIM_STORE) % (f"'{schema.owner}'", f"'{schema.namespace}'")


async def read_owner(store: Store, version: int) -> Owner | None:
    """Whose store it is, given its schema version; None: nobody's yet."""
    if version < FIRST_VERSION:
        return None
    row = await store.read_if_there(READ_OWNER)
    if row is None or row.ntuples == 0:
        return None
    return read_identity(row, 0, 0)


def read_identity(rows: PGresult, row: int, first: int) -> Owner:
    """What IDENTITY has selected, from a column on."""
    schema, namespace, database = (read_text(rows.get_value(row, first + n)) for n in range(3))
    generation = read_int8(rows.get_value(row, first + 3))
    return Owner(schema, namespace, database, generation, read_text(rows.get_value(row, first + 4)))


async def claim(store: Store) -> Owner | None:
    """Claim a store of the current version for this server unless it is somebody's already; returns
    whose it is."""
    claimed = await store.write_once(claim_statement(store.schema))
    if claimed.command_tuples:
        log_claim(store.schema)
    return await read_owner(store, FIRST_VERSION)


def log_claim(schema: Schema) -> None:
    """Log that a server takes a store that had no owner."""
    log.info(
        "schema %s had no recorded owner: from now on it is the namespace %s of servers with "
        "--schema %s",
        schema.name, schema.namespace, schema.owner,
    )  # fmt: skip


def raise_foreign(schema: Schema, owner: Owner | None) -> NoReturn:
    """Raise the error of a store that is not this server's."""
    if owner is None:
        message = (
            f"schema {schema.name} is older than the record of its owner, so it may be another "
            "server's; CreateNamespace claims it"
        )
    else:
        message = (
            f"schema {schema.name} is the namespace {owner.namespace} of servers with "
            f"--schema {owner.schema}"
        )
    raise PersistenceError(
        ErrorReason.ERROR_REASON_STORE_NOT_OWNED, message, metadata={"namespace": schema.namespace}
    )
