"""`./run moves`: move a namespace to and fro under load, and kill somebody at each move.

Each move is by logical replication or, every fourth, by COPY; at a place that is drawn the one who
drives it, the PostgreSQL of the source or that of the target is killed, and every sixth is aborted
first. Afterwards nothing that was acknowledged may be missing. Exit status: 0, or 1 with what is.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from tests.faults.moves.load import Load
from tests.faults.moves.stage import PLACES, PLACES_OF_COPY, VICTIMS, check, stage


async def run(directory: Path, moves: int, seed: int, ends: float) -> int:
    """Make the moves, unless it gets too late; returns the exit status."""
    drawn = random.Random(seed)
    pauses: dict[str, list[float]] = {"logical": [], "copy": []}
    async with stage(directory) as on:
        load = Load(on.routers, clients=2)
        async with load:
            for number in range(1, moves + 1):
                if time.monotonic() > ends:
                    moves = number - 1
                    break
                way = "copy" if number % 4 == 0 else "logical"
                place = drawn.choice(PLACES if way == "logical" else PLACES_OF_COPY)
                victim = drawn.choice(VICTIMS)
                calls, load.longest, began = load.calls, 0.0, time.monotonic()
                aborted = number % 6 == 0 and await on.begin_and_abort(way, place)
                moved = await on.move(way, place, victim)
                found = [*await load.judge(on.routers[0]), *on.left()]
                assert not found, found
                if moved.pause is not None:
                    pauses[way].append(moved.pause)
                pause = "-" if moved.pause is None else f"{moved.pause:.3f} s"
                print(
                    f"{number:4} to {on.at:5} {way:8} {victim:7} at {place:18} "
                    f"{'aborted, ' if aborted else ''}attempts {moved.attempts}, "
                    f"{time.monotonic() - began:5.1f} s, pause {pause:8}, "
                    f"{load.calls - calls} calls, longest {load.longest:.2f} s",
                    flush=True,
                )
        await check(on, load)
        print(f"seed {seed}: {moves} moves, {load.calls} calls, {len(load.events)} events: whole")
        for way, held in pauses.items():
            if held:
                print(
                    f"{way}: pause median {statistics.median(held):.3f} s, "
                    f"longest {max(held):.3f} s, of {len(held)}"
                )
    return 0


def main() -> int:
    """Run as the arguments say."""
    parser = argparse.ArgumentParser(prog="./run moves", description=__doc__)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no move after that")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="wfe-moves-") as path:
        Path(path).chmod(0o711)
        try:
            return asyncio.run(run(Path(path), options.moves, seed, ends))
        except AssertionError as exc:
            print(f"seed {seed}: {exc}", flush=True)
            return 1


if __name__ == "__main__":
    sys.exit(main())
