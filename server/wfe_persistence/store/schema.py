"""The schema of a store's tables: the only place that binds SQL to a schema.

All SQL in this package names the default schema, `wfc`, so that it can be pasted into psql
unchanged. A `Schema` rewrites each `wfc.NAME` to its own schema and table prefix.
"""

from __future__ import annotations

import re

from wfe_persistence.store.postgres.prepared import Statement
from wfe_persistence.store.statement_names import statement_name

MAX_IDENTIFIER_BYTES = 63
DEFAULT_SCHEMA = "wfc"
DEFAULT_NAMESPACE = "default"

HOME = "home"
"""The name of the database that has the namespace `default` and the placements of all others."""

# The longest name of a table, index, function or trigger that a migration gives. Longer ones that
# PostgreSQL makes up itself, it shortens so that they stay apart; nothing here names them.
LONGEST_NAME = "idx_scheduled_commands_execute_time"

# What the original crate allows, so that every store of it can be adopted. It quotes the schema,
# but creates tables without quotes and so with a prefix in lower case, in which it does not find
# them.
_SCHEMA = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PREFIX = re.compile(r"[a-z_][a-z0-9_]*")
_NAMESPACE = re.compile(r"[a-z][a-z0-9_]{0,39}")
_DATABASE = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_LABEL = re.compile(r"[A-Za-z0-9_./-]{1,63}=[A-Za-z0-9_./-]{1,63}")
_QUALIFIED = re.compile(r"\bwfc\.([a-z_]+)")


def is_namespace(name: str) -> bool:
    """Whether `name` is a valid name of a namespace: `[a-z][a-z0-9_]{0,39}`."""
    return _NAMESPACE.fullmatch(name) is not None


def is_database(name: str) -> bool:
    """Whether `name` is a valid name of a database of the service: `[a-z][a-z0-9_-]{0,39}`."""
    return _DATABASE.fullmatch(name) is not None


def is_label(text: str) -> bool:
    """Whether `text` is a valid label of a database: `KEY=VALUE`."""
    return _LABEL.fullmatch(text) is not None


MAX_MEMBERS = 256
"""How many members a namespace set may have."""


def is_namespace_set(name: str) -> bool:
    """Whether `name` is a valid name of a namespace set, to which `_255` can be added."""
    return is_namespace(name) and name != DEFAULT_NAMESPACE and len(name) <= 36


class Schema:
    """A PostgreSQL schema and a prefix for every name in it.

    Raises ValueError unless both are plain identifiers (`[A-Za-z_][A-Za-z0-9_]*`, the prefix in
    lower case), do not start with `pg_`, and fit into 63 bytes (PostgreSQL silently truncates
    longer names).

    `owner` and `namespace` say whose store it is: that of the servers with `--schema OWNER`, under
    this name. As given to the constructor, a schema is its own owner's default namespace.
    """

    def __init__(
        self,
        name: str = DEFAULT_SCHEMA,
        table_prefix: str = "",
        *,
        owner: str | None = None,
        namespace: str = DEFAULT_NAMESPACE,
    ) -> None:
        if not _SCHEMA.fullmatch(name):
            raise ValueError(f"schema {name!r}: must match [A-Za-z_][A-Za-z0-9_]*")
        if name.startswith("pg_") or name == "information_schema":
            raise ValueError(f"schema {name!r}: the name is reserved by PostgreSQL")
        if len(name) > MAX_IDENTIFIER_BYTES:
            raise ValueError(f"schema {name!r}: longer than {MAX_IDENTIFIER_BYTES} bytes")
        if table_prefix and not _PREFIX.fullmatch(table_prefix):
            raise ValueError(f"table prefix {table_prefix!r}: must match [a-z_][a-z0-9_]*")
        if table_prefix.startswith("pg_"):
            raise ValueError(f"table prefix {table_prefix!r}: pg_ is reserved by PostgreSQL")
        if len(table_prefix) + len(LONGEST_NAME) > MAX_IDENTIFIER_BYTES:
            raise ValueError(
                f"table prefix {table_prefix!r}: longer than "
                f"{MAX_IDENTIFIER_BYTES - len(LONGEST_NAME)} bytes; names would be truncated"
            )
        self.name = name
        self.table_prefix = table_prefix
        self.owner = name if owner is None else owner
        self.namespace = namespace
        self._bound: dict[str, Statement] = {}

    def for_namespace(self, namespace: str) -> Schema:
        """The schema of a namespace: this one for `default`, `<this>_<namespace>` for others."""
        if namespace == DEFAULT_NAMESPACE:
            return self
        name = self.name_for(namespace)
        return Schema(name, self.table_prefix, owner=self.name, namespace=namespace)

    def name_for(self, namespace: str) -> str:
        """The name of the schema of a namespace."""
        return self.name if namespace == DEFAULT_NAMESPACE else f"{self.name}_{namespace}"

    def bind(self, sql: str) -> Statement:
        """`sql`, written for `wfc`, as the statement for this schema."""
        bound = self._bound.get(sql)
        if bound is None:
            bound = self._bound[sql] = Statement.prepared(self.qualify(sql), statement_name(sql))
        return bound

    def constraint(self, name: str) -> str:
        """The name in this schema of a constraint that the migrations write as `{prefix}NAME`."""
        return self.table_prefix + name

    def qualify(self, sql: str) -> str:
        """`sql`, written for `wfc`, with the names of this schema."""
        return _QUALIFIED.sub(rf'"{self.name}"."{self.table_prefix}\1"', sql)
