"""Positions that a provider keeps of what it has written."""

from __future__ import annotations

import pytest

from wfe_persistence_client import positions
from wfe_persistence_client.positions import Positions, Reading

DATABASE = "home.7437223450117823451"


def at(lsn: int, timeline: int = 1, database: str = DATABASE) -> str:
    return f"{database}/{timeline:08X}/{lsn:016X}"


def told(position: str) -> list[tuple[str, str | bytes]]:
    return [("other", "x"), ("wfe-lsn", position)]


def test_the_highest_of_a_namespace_is_kept() -> None:
    known = Positions()
    assert known.of("a") is None
    for lsn in (5, 300, 20):
        known.written("a", told(at(lsn)), 0)
    known.written("b", told(at(7)), 0)
    assert (known.of("a"), known.of("b"), known.of("c")) == (at(300), at(7), None)


def test_a_later_timeline_is_higher_and_another_database_replaces() -> None:
    known = Positions()
    known.written("a", told(at(300)), 0)
    known.written("a", told(at(20, timeline=2)), 0)
    assert known.of("a") == at(20, timeline=2)
    known.written("a", told(at(1, database="west.1")), 0)
    assert known.of("a") == at(1, database="west.1")


def test_what_is_lost_is_known_again_only_from_a_write_that_was_begun_later() -> None:
    known = Positions()
    known.written("a", told(at(5)), known.losses)
    begun_before = known.losses
    known.lost("a")
    known.written("a", told(at(9)), begun_before)
    assert known.of("a") == "unknown"
    known.written("a", told(at(10)), known.losses)
    assert known.of("a") == at(10)


def test_a_server_that_tells_none_is_not_trusted_where_others_do() -> None:
    known = Positions()
    known.written("a", [], 0)
    assert known.of("a") is None
    known.written("a", told(at(5)), 0)
    known.written("a", [], 0)
    assert known.of("a") == "unknown"


def test_what_was_forgotten_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "_MAX_NAMESPACES", 2)
    known = Positions()
    for name in "abc":
        known.written(name, told(at(5)), 0)
    assert [known.of(name) for name in "abcd"] == ["unknown", at(5), at(5), "unknown"]


def test_what_reads_send() -> None:
    known = Positions()
    assert Reading(known, "a", None).metadata() == []
    assert Reading(known, "a", "replica").metadata() == [("wfe-read", "replica")]
    Reading(known, "a", None).written(told(at(5)), 0)
    assert Reading(known, "a", "primary").metadata() == [
        ("wfe-read", "primary"),
        ("wfe-lsn", at(5)),
    ]
    with pytest.raises(ValueError, match="'primary', 'replica' or None"):
        Reading(known, "a", "both")
