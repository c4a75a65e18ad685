"""One who drives a move, in a process of its own: `driver HOME_URL B_URL NAMESPACE`.

It waits for a line with `TO WAY PLACE`, as to start takes longer than most moves. At PLACE it says
`at PLACE` and waits for a line, before which it may be killed. In the end it says `done PAUSE`, or
why not. TO may be `abort` or `finish`.
"""

from __future__ import annotations

import asyncio
import sys

from wfe_persistence.database import databases_from
from wfe_persistence.errors import PersistenceError
from wfe_persistence.settings import NamedDatabase, Settings
from wfe_persistence.store.moving.directory import Directory
from wfe_persistence.store.moving.mover import Mover
from wfe_persistence.store.moving.prerequisites import Way
from wfe_persistence.store.placement import Databases
from wfe_persistence.store.schema import Schema
from wfe_persistence.store.tables import Store


def directory_of(databases: Databases) -> Directory:
    """The directory of a service. Whoever drives a move and dies is given up after a moment."""
    return Directory(Store(databases.home, Schema(), "default"), stale_seconds=0.4)


async def main(home_url: str, b_url: str, namespace: str, to: str, way: str, place: str) -> str:
    waited = False

    async def at(here: str) -> None:
        nonlocal waited
        if here == place and not waited:
            waited = True
            print(f"at {here}", flush=True)
            await asyncio.to_thread(sys.stdin.readline)

    settings = Settings(
        db_url=home_url, databases=(NamedDatabase(name="b", url=b_url),), pool_size=2
    )
    async with databases_from(settings) as databases:
        mover = Mover(directory_of(databases), databases, grace=0.0, at=at)
        try:
            if to == "abort":
                return f"done {await mover.abort(namespace)}"
            if to == "finish":
                await mover.finish()
                return "done"
            pause = 0.0
            async for progress in mover.move(namespace, to, Way(way)):
                pause = progress.pause_seconds
        except PersistenceError as exc:
            return f"failed {exc.in_full}"
        return f"done {pause:.4f}"


if __name__ == "__main__":
    to, way, place = sys.stdin.readline().rstrip("\n").split("\t")
    home_url, b_url, namespace = sys.argv[1:]
    print(asyncio.run(main(home_url, b_url, namespace, to, way, place)), flush=True)
