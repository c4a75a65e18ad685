"""Namespace sets: stores that are spread over several namespaces, their members.

A set is a row in the default store, with the number of its members, which never changes, and its
phase. It is written before the first member is created, and says that it is complete after the last
one has been; so a creation that was interrupted is found and goes on where it was, and nobody
routes by a set that is not whole.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store import namespace_drop
from wfe_persistence.store.administration import INDEPENDENT, connect
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.rows import integer, read_int4, read_text, text
from wfe_persistence.store.schema import HOME
from wfe_persistence.store.tables import Store

_MEMBER: Final = re.compile(r"([a-z][a-z0-9_]{0,35})_(0|[1-9][0-9]{0,2})")

_CREATING: Final = "creating"
_COMPLETE: Final = "complete"
_DELETING: Final = "deleting"

# As many members are made at a time as the lane of administrative work has turns.
_AT_ONCE: Final = 2
_LOCK_PAUSE: Final = 0.2

_ABSENT: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_SCHEMA_OUTDATED,
        ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND,
    }
)


@dataclass(frozen=True, slots=True)
class NamespaceSet:
    """A set: its name and how many members it has."""

    name: str
    size: int
    phase: str

    @property
    def members(self) -> list[str]:
        """The namespaces that it consists of."""
        return members_of(self.name, self.size)


def members_of(name: str, size: int) -> list[str]:
    """The names of the members of a set."""
    return [f"{name}_{index}" for index in range(size)]


CREATE_NAMESPACE_SET = """
INSERT INTO wfc.namespace_sets (name, members) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING
"""

SET_PHASE = "UPDATE wfc.namespace_sets SET phase = $2 WHERE name = $1"

DELETE_NAMESPACE_SET = "DELETE FROM wfc.namespace_sets WHERE name = $1"

# One at a time works on a set. The transaction writes nothing, so it holds up no feed.
TRY_SET_LOCK = """
SELECT pg_try_advisory_xact_lock(
    hashtextextended('wfe-persistence set ' || current_database() || %s, 0))
"""


GET_NAMESPACE_SET = "SELECT members, phase FROM wfc.namespace_sets WHERE name = $1"


async def get_namespace_set(store: Store, name: str) -> NamespaceSet:
    """A set that can be used."""
    found = await read_set(store, name)
    if found is None:
        raise _not_found(name)
    if found.phase != _COMPLETE:
        raise _incomplete(found)
    return found


async def read_set(store: Store, name: str) -> NamespaceSet | None:
    """A set in whatever phase; `store` is the default one."""
    rows = await store.read_once(GET_NAMESPACE_SET, text(name))
    if not rows.ntuples:
        return None
    return NamespaceSet(name, read_int4(rows.get_value(0, 0)), read_text(rows.get_value(0, 1)))


async def create_namespace_set(
    namespaces: Namespaces, name: str, size: int, databases: Sequence[str] = ()
) -> NamespaceSet:
    """Create a set or finish its creation. New members are spread over these databases, or over all
    that take new namespaces."""
    store = namespaces.default
    wanted = NamespaceSet(name, size, _COMPLETE)
    found = await read_set(store, name)
    _check_same(found, wanted)
    if found is not None and found.phase == _COMPLETE:
        return found
    async with _only_one(store, name):
        await store.write_once(CREATE_NAMESPACE_SET, text(name), integer(size))
        found = await read_set(store, name)
        _check_same(found, wanted)
        if found is None or found.phase == _DELETING:
            raise _incomplete(found or replace(wanted, phase=_DELETING))
        if found.phase == _CREATING:
            turns = cycle(databases or _all_databases(namespaces))
            places = dict(zip(wanted.members, turns, strict=False))
            await _each(
                wanted.members, lambda member: _create_member(namespaces, member, places[member])
            )
            await store.write_once(SET_PHASE, text(name), text(_COMPLETE))
    return wanted


def _all_databases(namespaces: Namespaces) -> list[str]:
    """Those that take new namespaces; none: the one that CreateNamespace would choose."""
    found = namespaces.databases.with_labels({})
    return [database.name for database in found if database.accepts_new] or [""]


async def _create_member(namespaces: Namespaces, name: str, database: str) -> None:
    try:
        await namespaces.create_namespace(name, database)
    except PersistenceError as exc:
        if exc.reason != ErrorReason.ERROR_REASON_NAMESPACE_IN_OTHER_DATABASE:
            raise
        # By an attempt with other databases, or it was there before; it stays where it is.
        await namespaces.create_namespace(name)
    if not await _is_empty(namespaces, name):
        # What is in it was not routed there.
        raise _not_empty(name)


async def _is_empty(namespaces: Namespaces, name: str) -> bool:
    store = await namespaces.find(name)
    async with connect(store.database) as connection:
        return await namespace_drop.is_empty(connection, store)


async def delete_namespace_set(namespaces: Namespaces, name: str, *, force: bool) -> list[str]:
    """Delete a set with its members, or finish its deletion; returns their names."""
    store = namespaces.default
    async with _only_one(store, name):
        found = await read_set(store, name)
        if found is None:
            raise _not_found(name)
        if not force and found.phase != _DELETING:
            await _each(found.members, lambda member: _check_empty(namespaces, member))
        await store.write_once(SET_PHASE, text(name), text(_DELETING))
        were_in: dict[str, str] = {}

        async def delete(member: str) -> None:
            placement = await namespaces.placements.read(member)
            await _delete_member(
                namespaces, member, force=force, is_reserved=found.phase != _COMPLETE
            )
            were_in[member] = HOME if placement is None else placement.database

        try:
            await _each(found.members, delete)
        except PersistenceError as exc:
            if exc.reason == ErrorReason.ERROR_REASON_NAMESPACE_NOT_EMPTY and (
                found.phase != _DELETING
            ):
                # Somebody has written to a member since. The others were empty, and are again.
                await _each(
                    list(were_in), lambda each: _create_member(namespaces, each, were_in[each])
                )
                await store.write_once(SET_PHASE, text(name), text(found.phase))
            raise
        await store.write_once(DELETE_NAMESPACE_SET, text(name))
    return found.members


async def _check_empty(namespaces: Namespaces, name: str) -> None:
    try:
        if await _is_empty(namespaces, name):
            return
    except PersistenceError as exc:
        if exc.reason not in _ABSENT:
            raise
        return  # it has not been created yet
    raise _not_empty(name)


async def _delete_member(
    namespaces: Namespaces, name: str, *, force: bool, is_reserved: bool
) -> None:
    try:
        await namespaces.delete_namespace(name, force=force, is_reserved=is_reserved)
    except PersistenceError as exc:
        if exc.reason != ErrorReason.ERROR_REASON_NAMESPACE_NOT_FOUND:
            raise


async def check_in_no_set(store: Store, name: str) -> None:
    """Raise NAMESPACE_IN_SET for a namespace that must not be deleted alone."""
    match = _MEMBER.fullmatch(name)
    found = await read_set(store, match[1]) if match else None
    if match and found is not None and int(match[2]) < found.size:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_NAMESPACE_IN_SET,
            f"the namespace is a member of the set {found.name}, which is deleted as a whole",
            metadata={"namespace": name, "namespace_set": found.name},
        )


async def _each(names: list[str], work: Callable[[str], Awaitable[object]]) -> None:
    """Have work done for each member, a few at a time; the first error ends it."""
    todo = iter(names)

    async def some() -> None:
        for name in todo:
            await work(name)

    tasks = [asyncio.ensure_future(some()) for _ in range(_AT_ONCE)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        # None of them goes on behind the caller's back.
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _only_one(store: Store, name: str) -> AsyncIterator[None]:
    """Nobody else, on any server, creates or deletes this set meanwhile."""
    async with connect(store.database) as connection, connection.transaction():
        await connection.execute(INDEPENDENT)
        key = f"{store.schema.name}.{store.schema.table_prefix}{name}"
        while True:
            cursor = await connection.execute(TRY_SET_LOCK, [key])
            [(locked,)] = await cursor.fetchall()
            if locked:
                break
            await asyncio.sleep(_LOCK_PAUSE)
        yield


def _check_same(found: NamespaceSet | None, wanted: NamespaceSet) -> None:
    if found is not None and found.size != wanted.size:
        raise PersistenceError(
            ErrorReason.ERROR_REASON_NAMESPACE_SET_EXISTS,
            f"the set exists with {found.size} members, and their number never changes",
            metadata={"namespace_set": found.name, "members": str(found.size)},
        )


def _incomplete(of: NamespaceSet) -> PersistenceError:
    begun = "being deleted" if of.phase == _DELETING else "being created"
    finishes = "DeleteNamespaceSet" if of.phase == _DELETING else "CreateNamespaceSet"
    return PersistenceError(
        ErrorReason.ERROR_REASON_NAMESPACE_SET_INCOMPLETE,
        f"the set is {begun}, or that was interrupted: then the same {finishes} again finishes it",
        metadata={"namespace_set": of.name, "phase": of.phase},
    )


def _not_found(name: str) -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_NAMESPACE_SET_NOT_FOUND,
        "the namespace set does not exist",
        metadata={"namespace_set": name},
    )


def _not_empty(name: str) -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_NAMESPACE_NOT_EMPTY,
        f"the namespace {name} has data",
        metadata={"namespace": name},
    )
