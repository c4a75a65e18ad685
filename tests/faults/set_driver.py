"""Servers that create and delete namespace sets and die at a place: `set_driver HOME_URL B_URL`.

Reads lines `create|delete NAME PLACE`. Each is done by a process of its own, which sends itself
SIGKILL at the place. Answers `killed`, or how it ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from wfe_persistence.database import databases_from
from wfe_persistence.errors import PersistenceError
from wfe_persistence.settings import NamedDatabase, Settings
from wfe_persistence.store import namespace_set
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.namespace_creation import Creation
from wfe_persistence.store.placement import Placements
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store

MEMBERS: Final = 2

CREATING: Final = (
    "declared",
    "reserved",  # a place in the directory, but no store there yet
    "stored",  # the store is there, but nobody's yet
    "all made",
    "complete",
)
"""Where a creation may end, in their order."""

DELETING: Final = ("deleting", "dropped", "one deleted", "all deleted", "gone")
"""Where a deletion may end. `dropped`: the store of a member, but not its place."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def around(
    owner: Any, name: str, dies: Callable[..., bool], *, before: bool = False, calls: int = 1
) -> None:
    """Die before or behind that many calls of a method."""
    real: Callable[..., Awaitable[object]] = getattr(owner, name)
    done = 0

    async def call(*args: Any, **kwargs: Any) -> object:
        nonlocal done
        if before and dies(*args):
            die()
        result = await real(*args, **kwargs)
        if not before and dies(*args):
            done += 1
            if done == calls:
                die()
        return result

    setattr(owner, name, call)


def prepare(place: str) -> None:
    """Have this process die at a place."""

    def always(*_: object) -> bool:
        return True

    def writes(sql: str, *params: bytes) -> Callable[..., bool]:
        return lambda _store, given, *rest: given == sql and set(params) <= set(rest)

    phase = namespace_set.SET_PHASE
    match place:
        case "declared":
            around(Store, "write_once", writes(namespace_set.CREATE_NAMESPACE_SET))
        case "reserved":
            around(Creation, "check_target", always)
        case "stored":
            around(Creation, "finish", always, before=True)
        case "all made":
            around(Store, "write_once", writes(phase, b"complete"), before=True)
        case "complete":
            around(Store, "write_once", writes(phase, b"complete"))
        case "deleting":
            around(Store, "write_once", writes(phase, b"deleting"))
        case "dropped":
            around(Placements, "remove", always, before=True)
        case "one deleted":
            around(namespace_set, "_delete_member", always)
        case "all deleted":
            around(Store, "write_once", writes(namespace_set.DELETE_NAMESPACE_SET), before=True)
        case "gone":
            around(Store, "write_once", writes(namespace_set.DELETE_NAMESPACE_SET))
        case _:
            raise ValueError(place)


async def do(home_url: str, b_url: str, what: str, name: str) -> None:
    settings = Settings(
        db_url=home_url, databases=(NamedDatabase(name="b", url=b_url),), pool_size=2
    )
    async with databases_from(settings) as databases:
        namespaces = Namespaces(databases, Schema(), migrate_on_use=False, max_namespaces=1000)
        if what == "create":
            await namespace_set.create_namespace_set(namespaces, name, MEMBERS)
        else:
            await namespace_set.delete_namespace_set(namespaces, name, force=True)


def main(home_url: str, b_url: str) -> None:
    for line in sys.stdin:
        what, name, place = line.strip().split(" ", 2)
        # What a process needs is imported once.
        pid = os.fork()
        if pid == 0:
            try:
                prepare(place)
                asyncio.run(do(home_url, b_url, what, name))
            except PersistenceError as exc:
                print(exc.in_full, file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else f"ended with {status}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
