"""Which namespaces there are: the stores in the database that belong to this server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.store_pb2 import Namespace
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.owner import Owner
from wfe_persistence.store.paging import Cursor, Page
from wfe_persistence.store.postgres.database import MAX_ATTEMPTS
from wfe_persistence.store.rows import integer, read_bool, read_int4, read_int8, read_text, text
from wfe_persistence.store.schema import DEFAULT_NAMESPACE, Schema, is_namespace
from wfe_persistence.store.tables import MIGRATIONS_TABLE, STORE_TABLE, Store

# How many schemas one statement looks into. It locks four relations in each, and PostgreSQL has
# room for 6,400 locks unless it is configured for more.
_MAX_CHUNK: Final = 200
_MIN_CHUNK: Final = 20

Visible = Callable[[str], bool]


def everything(_: str) -> bool:
    """Every namespace is visible."""
    return True


# A namespace is a schema with a table of migrations. The number of rows is PostgreSQL's estimate.
LIST_NAMESPACES = """
SELECT n.nspname,
    (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c
        WHERE c.relnamespace = n.oid AND c.relkind = 'r' AND c.relname NOT IN ($1, $2)),
    EXISTS (SELECT FROM pg_class o WHERE o.relnamespace = n.oid AND o.relname = $2)
FROM pg_namespace n JOIN pg_class m ON m.relnamespace = n.oid AND m.relname = $1
WHERE (n.nspname = $3 OR starts_with(n.nspname, $3 || '_')) AND n.nspname > $4
ORDER BY n.nspname
LIMIT $5
"""


async def list_namespaces(
    store: Store, after: Cursor | None, page_size: int, visible: Visible = everything
) -> Page[Namespace]:
    """The namespaces in the order of their schemas' names; `store` is the default one.

    Those that have no owner yet are among them, because they may be this server's. Those whose
    names are not `visible` are left out, before anything in them is read.
    """
    found: list[Namespace] = []
    last = "" if after is None else after[1]
    while True:
        # One more than the page has, to know whether there is another page.
        chunk, is_last = await _own_of_chunk(store, last, page_size + 1 - len(found), visible)
        found += chunk.own
        if len(found) > page_size:
            return Page(found[:page_size], (0, found[page_size - 1].schema))
        if is_last:
            return Page(found, None)
        last = chunk.last


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A part of the schemas that may be namespaces: the namespaces in it, and its last schema."""

    own: list[Namespace]
    last: str


async def _own_of_chunk(
    store: Store, after: str, wanted: int, visible: Visible = everything
) -> tuple[_Chunk, bool]:
    """The next chunk after a schema's name, and whether it is the last one."""
    base = store.schema
    size = min(max(wanted, _MIN_CHUNK), _MAX_CHUNK)
    for _ in range(MAX_ATTEMPTS):
        rows = await store.read(
            LIST_NAMESPACES,
            text(base.table_prefix + MIGRATIONS_TABLE),
            text(base.table_prefix + STORE_TABLE),
            text(base.name),
            text(after),
            integer(size + 1),
        )
        last = ""
        candidates: dict[str, tuple[Namespace, bool]] = {}
        for i in range(min(rows.ntuples, size)):
            last = read_text(rows.get_value(i, 0))
            name = last.removeprefix(base.name + "_") if last != base.name else DEFAULT_NAMESPACE
            # The namespace `default` is `base` itself, whatever else is called so.
            if (
                last == base.name or (is_namespace(name) and name != DEFAULT_NAMESPACE)
            ) and visible(name):
                candidates[name] = (
                    Namespace(
                        name=name, schema=last, estimated_rows=read_int8(rows.get_value(i, 1))
                    ),
                    read_bool(rows.get_value(i, 2)),
                )
        try:
            own = await _own(store, list(candidates.values()))
        except PersistenceError as exc:
            if exc.reason != ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
                raise
            continue  # one of them has been deleted meanwhile
        return _Chunk(own, last), rows.ntuples <= size
    raise PersistenceError(
        ErrorReason.ERROR_REASON_TRANSACTION_CONFLICT,
        "namespaces were deleted while they were being listed, repeatedly",
        retry_after=0.1,
    )


async def _own(store: Store, candidates: list[tuple[Namespace, bool]]) -> list[Namespace]:
    """Those that do not belong to other servers, with their schema versions. Both are in the
    schemas themselves, so a chunk needs its own statement."""
    if not candidates:
        return []
    rows = await store.read_once(
        " UNION ALL ".join(
            _describe(i, Schema(namespace.schema, store.schema.table_prefix), has_owner_table)
            for i, (namespace, has_owner_table) in enumerate(candidates)
        )
        + " ORDER BY 1"
    )
    own = []
    for i in range(rows.ntuples):
        namespace, _ = candidates[read_int4(rows.get_value(i, 0))]
        namespace.schema_version = read_int4(rows.get_value(i, 1))
        schema = rows.get_value(i, 2)
        if schema is None or Owner(read_text(schema), read_text(rows.get_value(i, 3))) == Owner(
            store.schema.name, namespace.name
        ):
            own.append(namespace)
    return own


def _describe(number: int, schema: Schema, has_owner_table: bool) -> str:
    """A statement that returns a schema's number, version, and owner and name if it has them."""
    version = "(SELECT coalesce(max(version), 0) FROM wfc.wfe_migrations)"
    if not has_owner_table:
        return schema.qualify(f"SELECT {number}, {version}, NULL::text, NULL::text")
    return schema.qualify(
        f"SELECT {number}, {version}, o.owner_schema, o.namespace"
        " FROM (SELECT) AS one LEFT JOIN wfc.wfe_store o ON TRUE"
    )


COUNT_NAMESPACES = """
SELECT count(*)::int
FROM pg_namespace n JOIN pg_class m ON m.relnamespace = n.oid AND m.relname = $1
WHERE starts_with(n.nspname, $2 || '_')
"""


async def count_at_most(store: Store, most: int) -> int:
    """The number of namespaces besides `default`, or `most` if there are more."""
    rows = await store.read(
        COUNT_NAMESPACES,
        text(store.schema.table_prefix + MIGRATIONS_TABLE),
        text(store.schema.name),
    )
    count = read_int4(rows.get_value(0, 0))
    if count < most:
        return count
    # Some of these may be other servers'.
    count, after = 0, store.schema.name
    while count < most:
        chunk, is_last = await _own_of_chunk(store, after, _MAX_CHUNK)
        count += len(chunk.own)
        if is_last:
            break
        after = chunk.last
    return min(count, most)


async def all_stores(default: Store) -> list[Store]:
    """The store of every namespace."""
    stores = [default]
    after = None
    while True:
        page = await list_namespaces(default, after, 1000)
        stores += [
            Store(default.database, default.schema.for_namespace(found.name), found.name)
            for found in page.items
            if found.name != default.namespace
        ]
        if page.next is None:
            return stores
        after = page.next
