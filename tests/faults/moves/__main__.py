"""`./run moves`: move a namespace to and fro under load, and kill somebody at each move.

The load is callers of two servers, over gRPC, and what uses the namespace in this process. Four of
five moves are driven by a process that stops at a place which is drawn, the fifth by a server, at
any moment: there and then that one, the PostgreSQL of the source or of the target, or a server that
is called meanwhile is killed. Every fourth move is by COPY, the others by logical replication, and
every tenth is aborted first. After each move nothing that was acknowledged may be missing. Exit
status: 0, or 1 with what is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from tests.faults.moves.callers import Callers, calling
from tests.faults.moves.load import Load
from tests.faults.moves.stage import (
    NAMESPACE,
    PLACES,
    PLACES_OF_COPY,
    VICTIMS,
    Moved,
    Stage,
    check,
    stage,
)

_WRITERS = 3
_LONGEST_SECONDS = 3.0
"""Somebody is killed at most so long after a server was told to move."""

Figures = dict[str, Any]


async def run(directory: Path, moves: int, seed: int, ends: float) -> Figures:
    """Make the moves, unless it gets too late."""
    drawn = random.Random(seed)
    figures: Figures = {"seed": seed, "machine": platform.platform(), "moves": []}
    async with stage(directory, real=2) as on:
        load = Load(on.routers, clients=1)
        addresses = [server.address for server in on.real]
        async with load, calling(addresses, NAMESPACE, _WRITERS) as callers:
            began = time.monotonic()
            for number in range(1, moves + 1):
                if time.monotonic() > ends:
                    break
                figures["moves"].append(await _one(on, load, callers, number, drawn))
            figures["seconds"] = round(time.monotonic() - began)
        await check(on, load)
        found = await callers.judge(on.servers[on.at].url)
        assert not found, found
        figures |= {
            "calls": callers.calls,
            "calls_in_process": load.calls,
            "acknowledged_events": callers.created + len(load.events),
            "events_watched": callers.received,
            "watchers_told_to_begin_anew": callers.expired,
            "repeated_calls": dict(callers.refused),
        }
    return figures


async def _one(
    on: Stage, load: Load, callers: Callers, number: int, drawn: random.Random
) -> Figures:
    way = "copy" if number % 4 == 0 else "logical"
    place = drawn.choice(PLACES if way == "logical" else PLACES_OF_COPY)
    victim = drawn.choice(VICTIMS)
    after = drawn.uniform(0.0, _LONGEST_SECONDS)
    calls, began = callers.calls, time.monotonic()
    load.longest = callers.longest = 0.0
    aborted = number % 10 == 0 and await on.begin_and_abort(way, place)
    moved: Moved
    if number % 5 == 1:
        moved, place = await on.move_by_server(way, victim, after), f"{after:.2f} s, a server"
    else:
        moved = await on.move(way, place, victim)
    found = [
        *await load.judge(on.routers[0]),
        *await callers.judge(on.servers[on.at].url),
        *on.left(),
    ]
    assert not found, (found, on.said)
    figures = {
        "number": number,
        "to": on.at,
        "way": way,
        "killed": victim,
        "at": place,
        "aborted_first": aborted,
        "attempts": moved.attempts,
        "seconds": round(time.monotonic() - began, 1),
        "writes_held": moved.pause,
        "calls": callers.calls - calls,
        "longest_call": round(max(load.longest, callers.longest), 2),
    }
    print(json.dumps(figures), flush=True)
    return figures


def table(figures: Figures) -> str:
    """What is said in the end."""
    moves = figures["moves"]
    killed = Counter(each["killed"] for each in moves)
    lines = [
        f"seed {figures['seed']}: {len(moves)} moves in {figures['seconds']} s: whole",
        f"{figures['calls']} calls over gRPC, {figures['acknowledged_events']} events acknowledged",
        "killed: " + ", ".join(f"{who} {n} times" for who, n in sorted(killed.items())),
        f"watched: {figures['events_watched']} events, without a gap",
        f"told to begin anew: {figures['watchers_told_to_begin_anew']} times",
    ]
    for way in ("logical", "copy"):
        held = [each["writes_held"] for each in moves if each["way"] == way]
        held = [seconds for seconds in held if seconds is not None]
        if held:
            lines.append(
                f"{way}: writes held for {statistics.median(held):.3f} s in the median, at most "
                f"{max(held):.3f} s, of {len(held)}"
            )
    return "\n".join(lines)


def main() -> int:
    """Run as the arguments say."""
    parser = argparse.ArgumentParser(prog="./run moves", description=__doc__)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no move after that")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to a file")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="wfe-moves-") as path:
        Path(path).chmod(0o711)
        try:
            figures = asyncio.run(run(Path(path), options.moves, seed, ends))
        except AssertionError as exc:
            print(f"seed {seed}: {exc}", flush=True)
            return 1
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
