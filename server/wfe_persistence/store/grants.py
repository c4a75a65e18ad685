"""The privileges of a server that applies no migrations: rows, but no definitions.

A role that has only these can't create, alter, drop or truncate anything, and can't reach another
schema. (Who may connect to the database at all is for its administrator to grant.)
"""

from __future__ import annotations

import psycopg

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.administration import connect
from wfe_persistence.store.columns import sql_list
from wfe_persistence.store.postgres.reachability import why
from wfe_persistence.store.postgres.source import Connector
from wfe_persistence.store.schema import MAX_IDENTIFIER_BYTES, Schema
from wfe_persistence.store.tables import (
    MIGRATIONS_TABLE,
    PLACEMENTS_TABLE,
    SETS_TABLE,
    STORE_TABLE,
    TABLES,
)

# The triggers that keep revisions and epochs rising run with the privileges of whoever writes, so
# the role needs their functions and sequences: UPDATE is for setval, SELECT for the last value.
GRANTS = f"""
GRANT USAGE ON SCHEMA "{{schema}}" TO {{role}};
GRANT SELECT, INSERT, UPDATE, DELETE
    ON {sql_list(f"wfc.{table}" for table in (*TABLES, STORE_TABLE, PLACEMENTS_TABLE, SETS_TABLE))}
    TO {{role}};
GRANT SELECT ON wfc.{MIGRATIONS_TABLE} TO {{role}};
DO $grants$
DECLARE
    found text;
BEGIN
    FOR found IN
        SELECT format('GRANT USAGE, SELECT, UPDATE ON SEQUENCE %s', c.oid::regclass)
        FROM pg_class c
        WHERE c.relnamespace = '"{{schema}}"'::regnamespace AND c.relkind = 'S'
            AND starts_with(c.relname, '{{prefix}}')
        UNION ALL
        SELECT format('GRANT EXECUTE ON FUNCTION %s', p.oid::regprocedure)
        FROM pg_proc p
        WHERE p.pronamespace = '"{{schema}}"'::regnamespace AND starts_with(p.proname, '{{prefix}}')
    LOOP
        EXECUTE found || ' TO {{role_in_text}}';
    END LOOP;
END
$grants$;
"""


def grants(schema: Schema, role: str) -> str:
    """The SQL that gives a role what it needs in a store. Raises ValueError if there can be no such
    role."""
    if not 0 < len(role.encode()) <= MAX_IDENTIFIER_BYTES or "\0" in role or "$" in role:
        raise ValueError("must be the name of a role: 1 to 63 bytes, without $")
    quoted = '"' + role.replace('"', '""') + '"'
    return schema.qualify(GRANTS).format(
        schema=schema.name,
        prefix=schema.table_prefix,
        role=quoted,
        role_in_text=quoted.replace("'", "''"),
    )


async def grant(connector: Connector, schema: Schema, role: str) -> None:
    """Give a role what it needs in a store. Raises PersistenceError."""
    async with connect(connector) as connection:
        try:
            await connection.execute(grants(schema, role).encode())
        except psycopg.errors.UndefinedObject as exc:
            raise PersistenceError(
                ErrorReason.ERROR_REASON_INVALID_FIELD,
                "the database has no such role",
                detail=why(exc),
            ) from exc
