"""Moves of a namespace from database to database under load, with kills where it matters.

Whatever is killed, the move is taken up again and ends; at no time two databases can be written,
and nothing that was acknowledged is lost. `./run moves` is the long form.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults.moves.callers import calling
from tests.faults.moves.load import Load
from tests.faults.moves.stage import NAMESPACE, PLACES, check, stage

_AROUND_THE_FENCE = ("held", "switching", "fenced", "activated")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("way", "victim", "places"),
    [
        ("logical", "mover", PLACES),
        ("copy", "mover", ("copied", *_AROUND_THE_FENCE)),
        ("logical", "source", ("subscribed", "held", "fenced")),
        ("logical", "target", ("subscribed", "switching", "activated")),
        ("copy", "source", ("switching", "fenced")),
        ("copy", "target", ("switching", "fenced")),
    ],
)
async def test_whoever_is_killed_the_move_ends_and_nothing_is_lost(
    data_dir: Path, way: str, victim: str, places: tuple[str, ...]
) -> None:
    async with stage(data_dir) as on:
        load = Load(on.routers, clients=2)
        async with load:
            for place in places:
                calls = load.calls
                await on.move(way, place, victim)
                # They may still be looking for it: it moves faster than connections are made anew.
                await load.goes_on(calls)
        await check(on, load)


@pytest.mark.timeout(600)
async def test_a_move_is_aborted_before_its_fence_and_not_behind_it(data_dir: Path) -> None:
    async with stage(data_dir) as on:
        load = Load(on.routers, clients=1)
        async with load:
            for place in ("target created", "subscribed", "copied", "held", "switching"):
                assert await on.begin_and_abort("logical", place), place
                assert on.left() == []
            for place in ("fenced", "activated", "switched"):
                assert not await on.begin_and_abort("logical", place), place
                await on.move("logical")
        await check(on, load)


@pytest.mark.timeout(600)
async def test_callers_of_servers_that_are_killed_lose_nothing(data_dir: Path) -> None:
    async with stage(data_dir, real=2) as on:
        addresses = [server.address for server in on.real]
        async with calling(addresses, NAMESPACE, writers=2) as callers:
            # One server dies while calls wait for the switch, and one while the other moves it.
            await on.move("logical", "fenced", "server")
            await on.move_by_server("logical", "server", 0.2)
            calls = callers.calls
            while callers.calls < calls + 50:
                await asyncio.sleep(0.01)
        found = [*await callers.judge(on.servers[on.at].url), *on.left()]
        assert not found, found
        assert callers.created
        assert callers.received
        assert callers.expired
