"""When the directory had said where a namespace is: what its replicas must have."""

from __future__ import annotations

from time import monotonic
from types import SimpleNamespace
from typing import Any

from wfe_persistence.store.placement import Found


def store(namespace: str, database: str, generation: int) -> Any:
    return SimpleNamespace(
        namespace=namespace, database=SimpleNamespace(name=database), generation=generation
    )


def test_a_place_is_remembered_until_the_namespace_moves() -> None:
    found = Found(10)
    first = found.at(store("a", "west", 1))
    assert found.at(store("a", "west", 1)) == first
    # There and back again: it is not the store that it was.
    away, back = found.at(store("a", "east", 2)), found.at(store("a", "west", 3))
    assert first < away < back
    assert found.at(store("a", "west", 3)) == back


def test_at_home_and_of_what_was_forgotten_it_is_now() -> None:
    found = Found(1)
    for given in (store("a", "home", 0), store("a", "west", 1)):
        found.at(given)
        found.at(store("b", "west", 1))
        before = monotonic()
        assert found.at(given) >= before


def test_with_one_database_no_replica_must_have_anything() -> None:
    assert Found(0).at(store("a", "home", 0)) == float("-inf")
