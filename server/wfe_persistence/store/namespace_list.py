"""Which namespaces there are: the stores in the database that belong to this server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe.persistence.v1.store_pb2 import Namespace
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.owner import IDENTITY, read_identity
from wfe_persistence.store.paging import Cursor, Page
from wfe_persistence.store.placement import Placement
from wfe_persistence.store.postgres.database import MAX_ATTEMPTS
from wfe_persistence.store.rows import (
    Param,
    integer,
    read_bool,
    read_int4,
    read_int8,
    read_text,
    text,
    text_array,
    text_list,
)
from wfe_persistence.store.schema import DEFAULT_NAMESPACE, HOME, Schema, is_namespace
from wfe_persistence.store.tables import MIGRATIONS_TABLE, STORE_TABLE, TABLES, Store

if TYPE_CHECKING:
    from wfe_persistence.store.namespace import Namespaces

log = logging.getLogger(__name__)

# How many schemas one statement looks into. It locks four relations in each, and PostgreSQL has
# room for 6,400 locks unless it is configured for more.
_MAX_CHUNK: Final = 200
_MIN_CHUNK: Final = 20

# How long a database may take to describe its namespaces; then they are listed without.
_ANSWER_SECONDS: Final = 3.0

Visible = Callable[[str], bool]


def everything(_: str) -> bool:
    """Every namespace is visible."""
    return True


# A namespace is a schema with a table of migrations. The number of rows is PostgreSQL's estimate.
# The tables are looked up by their names ($6), as PostgreSQL has no index of what is in a schema:
# it would look at the tables of all namespaces for each of them.
LIST_NAMESPACES = """
SELECT n.nspname,
    (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c
        WHERE c.relnamespace = n.oid AND c.relname = ANY ($6::name[]) AND c.relkind = 'r'),
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


def _tables(base: Schema) -> Param:
    """The names of the tables whose rows are counted, as a parameter."""
    return text_array(base.table_prefix + table for table in TABLES)


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
            _tables(base),
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
    raise _deleted_meanwhile()


def _deleted_meanwhile() -> PersistenceError:
    return PersistenceError(
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
        namespace.database = store.database.name
        its = Store(store.database, store.schema.for_namespace(namespace.name), namespace.name)
        if (
            namespace.database == HOME
            if rows.get_value(i, 2) is None
            else read_identity(rows, i, 2).is_of(its)
        ):
            own.append(namespace)
    return own


def _describe(number: int, schema: Schema, has_owner_table: bool) -> str:
    """A statement that returns a schema's number, version, and owner and name if it has them."""
    version = "(SELECT coalesce(max(version), 0) FROM wfc.wfe_migrations)"
    if not has_owner_table:
        nothing = "NULL::text, NULL::text, NULL::text, NULL::bigint, NULL::text"
        return schema.qualify(f"SELECT {number}, {version}, {nothing}")
    return schema.qualify(
        f"SELECT {number}, {version}, {IDENTITY}"
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


# The same of schemas whose names are given.
DESCRIBE_NAMESPACES = """
SELECT n.nspname,
    (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class c
        WHERE c.relnamespace = n.oid AND c.relname = ANY ($1::name[]) AND c.relkind = 'r')
FROM pg_namespace n JOIN pg_class m ON m.relnamespace = n.oid AND m.relname = $2
WHERE n.nspname IN (SELECT jsonb_array_elements_text($3::jsonb))
"""


async def list_all(
    namespaces: Namespaces, after: Cursor | None, page_size: int, visible: Visible = everything
) -> Page[Namespace]:
    """The namespaces in all databases, in the order of their schemas' names.

    The directory says which are in others than the home, also while those can't be reached.
    """
    default = namespaces.default
    at_home = await list_namespaces(default, after, page_size, visible)
    if len(namespaces.databases) == 1:
        return at_home
    placed, is_all = await _placed_after(namespaces, after, page_size, visible)
    elsewhere = {placement.namespace for placement in placed}
    merged: list[Namespace | Placement] = sorted(
        (*(each for each in at_home.items if each.name not in elsewhere), *placed),
        key=lambda each: _schema_name(default, each),
    )
    page = merged[:page_size]
    described = await _describe_placed(
        namespaces, [each for each in page if isinstance(each, Placement)]
    )
    items = [
        each if isinstance(each, Namespace) else described[each.namespace]
        for each in page
        if isinstance(each, Namespace) or each.namespace in described
    ]
    if at_home.next is None and is_all and len(merged) <= page_size:
        return Page(items, None)
    return Page(items, (0, _schema_name(default, page[-1])))


def _schema_name(default: Store, each: Namespace | Placement) -> str:
    if isinstance(each, Namespace):
        return each.schema
    return default.schema.name_for(each.namespace)


async def _placed_after(
    namespaces: Namespaces, after: Cursor | None, most: int, visible: Visible
) -> tuple[list[Placement], bool]:
    """The next namespaces in other databases than the home, and whether those are all."""
    base = namespaces.default.schema.name
    last = "" if after is None or after[1] == base else after[1].removeprefix(base + "_")
    found: list[Placement] = []
    while page := await namespaces.placements.page(last, _MAX_CHUNK):
        found += (
            each
            for each in page
            if each.is_there and each.database != HOME and visible(each.namespace)
        )
        if len(found) > most:
            return found[:most], False
        last = page[-1].namespace
    return found, True


async def _describe_placed(namespaces: Namespaces, placed: list[Placement]) -> dict[str, Namespace]:
    """What a list says of namespaces in other databases than the home, by name."""
    chunks: dict[str, list[list[Placement]]] = {}
    for placement in placed:
        of_database = chunks.setdefault(placement.database, [[]])
        if len(of_database[-1]) == _MAX_CHUNK:
            of_database.append([])
        of_database[-1].append(placement)
    described: dict[str, Namespace] = {}
    for parts in await asyncio.gather(
        *(_describe_in(namespaces, name, parts) for name, parts in chunks.items())
    ):
        described |= parts
    return described


async def _describe_in(
    namespaces: Namespaces, database: str, chunks: list[list[Placement]]
) -> dict[str, Namespace]:
    """The same of those in one database."""
    schema = namespaces.default.schema
    described: dict[str, Namespace] = {}
    try:
        store = Store(namespaces.databases.named(database), schema, DEFAULT_NAMESPACE)
        async with asyncio.timeout(_ANSWER_SECONDS):
            for chunk in chunks:
                for namespace in await _described(store, [each.namespace for each in chunk]):
                    described[namespace.name] = namespace
    except (PersistenceError, TimeoutError) as exc:
        log.debug("can't list the namespaces in %s: %s", database, exc)
        return {
            placement.namespace: Namespace(
                name=placement.namespace,
                schema=schema.name_for(placement.namespace),
                database=database,
                unavailable=True,
            )
            for chunk in chunks
            for placement in chunk
        }
    return described


async def _described(store: Store, names: list[str]) -> list[Namespace]:
    base = store.schema
    by_schema = {base.name_for(name): name for name in names}
    for _ in range(MAX_ATTEMPTS):
        rows = await store.read_once(
            DESCRIBE_NAMESPACES,
            _tables(base),
            text(base.table_prefix + STORE_TABLE),
            text_list(by_schema),
        )
        candidates = [
            (
                Namespace(
                    name=by_schema[schema],
                    schema=schema,
                    estimated_rows=read_int8(rows.get_value(row, 1)),
                ),
                True,
            )
            for row in range(rows.ntuples)
            for schema in (read_text(rows.get_value(row, 0)),)
        ]
        try:
            return await _own(store, candidates)
        except PersistenceError as exc:
            if exc.reason != ErrorReason.ERROR_REASON_SCHEMA_OUTDATED:
                raise
    raise _deleted_meanwhile()


async def list_every(namespaces: Namespaces) -> list[Namespace]:
    """All namespaces, in all databases."""
    found: list[Namespace] = []
    after = None
    while True:
        page = await list_all(namespaces, after, 1000)
        found += page.items
        if page.next is None:
            return found
        after = page.next


async def all_namespaces(namespaces: Namespaces) -> tuple[list[Store], dict[str, str]]:
    """The stores of all namespaces that can be reached, the default one first, whether it is there
    or not; and of the others, the names of their databases."""
    default = namespaces.default
    stores = [default]
    away: dict[str, str] = {}
    for found in await list_every(namespaces):
        if found.unavailable:
            away[found.name] = found.database
        elif found.name != default.namespace:
            stores.append(namespaces.store_in(found.name, found.database))
    return stores, away
