"""What `wfe-persistence migrate plan` shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from wfe_persistence.cli.namespaces import all_stores
from wfe_persistence.settings import Settings
from wfe_persistence.store import migration_history, migration_plan
from wfe_persistence.store.administration import connect
from wfe_persistence.store.migration_files import latest_version
from wfe_persistence.store.migration_plan import Plan, PlannedMigration

Plans = Mapping[str, Plan]
"""By namespace."""


async def reckon_all(settings: Settings) -> Plans:
    """The plan of every namespace. Raises PersistenceError."""
    plans = {}
    for store in await all_stores(settings):
        source, own, name = store.database.source, store.schema, store.namespace
        applied = await migration_history.applied_migrations(source, own)
        migration_history.check(applied)
        async with connect(source) as connection:
            plan = await migration_plan.reckon(connection, own, len(applied))
        plans[name] = replace(plan, is_held=bool(applied and applied[-1].is_held))
    return plans


def as_json(plans: Plans, most: float) -> str:
    """For programs."""
    shown = {
        "latest_version": latest_version(),
        "migrate_seconds": most,
        "namespaces": [
            {
                "namespace": name,
                "version": plan.version,
                "seconds": round(plan.seconds, 3),
                "locked_seconds": round(plan.locked_seconds, 3),
                "applied_by_servers": _by_servers(plan, most),
                "migrations": [_as_dict(migration) for migration in plan.migrations],
            }
            for name, plan in plans.items()
        ],
    }
    return json.dumps(shown, indent=2)


def _as_dict(migration: PlannedMigration) -> dict[str, Any]:
    shown = asdict(migration)
    shown["seconds"] = round(migration.seconds, 3)
    for index in shown["online"]:
        index["seconds"] = round(index["seconds"], 3)
    for lock, planned in zip(shown["locks"], migration.locks, strict=True):
        lock["holds_up"] = planned.holds_up
    return shown


def as_text(plans: Plans, most: float) -> str:
    """For people."""
    return "\n".join(line for name, plan in plans.items() for line in _lines(name, plan, most))


def _lines(name: str, plan: Plan, most: float) -> Iterator[str]:
    latest = latest_version()
    if plan.version > latest:
        yield f"{name}: version {plan.version}, newer than this release (version {latest})"
        return
    if not plan.migrations:
        yield f"{name}: version {plan.version}, nothing to do"
        return
    yield (
        f"{name}: version {plan.version} to {latest}, about {_seconds(plan.seconds)}, for "
        f"{_seconds(plan.locked_seconds)} of which tables are locked; {_who(plan, most)}"
    )
    for migration in plan.migrations:
        yield (
            f"  {migration.name}: about {_seconds(migration.seconds)}; servers of version "
            f"{migration.oldest_server} and newer go on"
        )
        for index in migration.online:
            yield (
                f"    before it, the index {index.name} of {index.table} ({_size(index)}): holds "
                f"up nobody, about {_seconds(index.seconds)}"
            )
        for lock in migration.locks:
            yield f"    {lock.table} ({_size(lock)}): {lock.mode}, holds up {lock.holds_up}"


def _by_servers(plan: Plan, most: float) -> bool:
    return not plan.is_held and plan.seconds <= most


def _who(plan: Plan, most: float) -> str:
    if plan.is_held:
        return "was taken back, so only `migrate up` applies it"
    if plan.seconds > most:
        return f"more than {most:g} s, so only `migrate up` applies it"
    return "a server applies it by itself"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.2f} s"


def _size(sized: Any) -> str:
    return f"{sized.bytes / 1e6:.0f} MB, {sized.rows} rows"
