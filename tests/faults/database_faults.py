"""Faults in a service with several databases; see `faulty_server.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from wfe.persistence.v1.store_pb2 import Namespace
from wfe_persistence.store import learning, namespace_list, placement, readiness
from wfe_persistence.store.namespace import Namespaces

_TEST: Final = "test_databases.py::test_only_the_namespaces_of_a_database_that_is_away_fail"


def plant_home_is_needed() -> None:
    """The server is ready when its home is."""

    async def look(self: readiness.Service) -> readiness.State | None:
        state = await self._readiness.look()
        if state is not None:
            self.states[self._home] = state
        return state

    setattr(readiness.Service, "look", look)  # noqa: B010


def plant_nothing_learned() -> None:
    """Where a namespace is, is known only of those that were called."""

    async def _learn(namespaces: Namespaces) -> set[str]:
        return set()

    setattr(learning, "_learn", _learn)  # noqa: B010


def plant_list_without_what_is_away() -> None:
    """The namespaces of a database that is away are left out of the list."""
    original = namespace_list._describe_in

    async def describe(
        namespaces: Namespaces, database: str, chunks: list[list[placement.Placement]]
    ) -> dict[str, Namespace]:
        found = await original(namespaces, database, chunks)
        return {name: each for name, each in found.items() if not each.unavailable}

    setattr(namespace_list, "_describe_in", describe)  # noqa: B010


DATABASE_FAULTS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "a server that is ready only with its home": (
        plant_home_is_needed,
        f"{_TEST}[home-here-there-1]",
    ),
    "namespaces known only once they were called": (
        plant_nothing_learned,
        f"{_TEST}[home-here-there-1]",
    ),
    "a list without what is away": (
        plant_list_without_what_is_away,
        f"{_TEST}[far-there-here-1]",
    ),
}
