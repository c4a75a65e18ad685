"""Faults in moves of namespaces; `test_move_edges.py` plants them in its own process, one after the
other, as each server with its two databases would take seconds to start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import pytest

from wfe_persistence.store.moving import guard, logical, switch
from wfe_persistence.store.moving.drive import Drive
from wfe_persistence.store.moving.sides import AsyncConnection, Side, sql


def plant_no_guard(patch: pytest.MonkeyPatch) -> None:
    """The copy that is being made can be used by whoever believes it to be the namespace."""

    async def close(*_: Any) -> None:
        pass

    patch.setattr(guard, "close", close)


def plant_no_hold(patch: pytest.MonkeyPatch) -> None:
    """Writes go on while the last ones are carried over."""

    async def hold_writes(connection: AsyncConnection, *_: Any) -> None:
        await connection.execute("BEGIN")

    patch.setattr(switch, "hold_writes", hold_writes)


def plant_no_catching_up(patch: pytest.MonkeyPatch) -> None:
    """The switch does not wait for the target to have everything."""

    async def wait_until_applied(*_: Any, **__: Any) -> bool:
        return True

    patch.setattr(logical, "wait_until_applied", wait_until_applied)


def plant_no_fence(patch: pytest.MonkeyPatch) -> None:
    """What the namespace leaves stays as it was."""
    read_sequences = switch.read_sequences

    async def fence(connection: AsyncConnection, source: Side, archive: str, move: str) -> None:
        await connection.execute(sql(f'DROP PUBLICATION "{logical.name_of(move)}"'))
        await connection.execute("COMMIT")

    async def read(connection: AsyncConnection, schema: str) -> Any:
        return await read_sequences(connection, schema.partition("__moved_")[0])

    patch.setattr(switch, "fence", fence)
    patch.setattr(switch, "read_sequences", read)


def plant_no_sequences(patch: pytest.MonkeyPatch) -> None:
    """Sequences begin anew."""

    async def read_sequences(*_: Any) -> list[switch.Sequence_]:
        return []

    patch.setattr(switch, "read_sequences", read_sequences)


def plant_no_end(patch: pytest.MonkeyPatch) -> None:
    """Who hangs up again does not wait for the switch."""

    async def end_of(_: Drive, task: asyncio.Task[Any]) -> None:
        await asyncio.wait({task})

    patch.setattr(Drive, "_end_of", end_of)


MOVE_FAULTS: Final[dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]]] = {
    "a copy without a guard": (plant_no_guard, "sleep"),
    "a switch while there are writes": (plant_no_hold, "carry"),
    "a switch before the target has all": (plant_no_catching_up, "carry"),
    "a switch without a fence": (plant_no_fence, "carry"),
    "sequences that begin anew": (plant_no_sequences, "carry"),
    "a switch that is left halfway": (plant_no_end, "hang_up"),
}
"""Each with the scenario of `test_move_edges.py` that must catch it."""
