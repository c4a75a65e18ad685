"""Every language sends a key to the same member."""

import json
from pathlib import Path

import pytest

from wfe_persistence_client.sets.routing import home_of, jump, lock_home, member_of, tag, untag

_GIVEN = json.loads(
    (Path(__file__).parents[3] / "protos/wfe/persistence/v1/namespace_sets.json").read_text()
)
VECTORS = _GIVEN["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: ascii(vector["key"][:20]))
def test_the_vectors(vector: dict[str, object]) -> None:
    key, members = vector["key"], vector["members"]
    assert isinstance(key, str)
    assert isinstance(members, dict)
    assert {count: member_of(key, int(count)) for count in members} == members


@pytest.mark.parametrize("vector", _GIVEN["locks"], ids=lambda vector: ascii(vector["resource"]))
def test_the_vectors_of_locks(vector: dict[str, object]) -> None:
    resource, members = vector["resource"], vector["members"]
    assert isinstance(resource, str)
    assert isinstance(members, dict)
    assert {count: lock_home(resource, int(count)) for count in members} == members


def test_locks_of_a_workflow_are_where_it_is() -> None:
    """A host in Rust takes these, and an operator may have to break them."""
    for id_ in ("order-1", "order-2", "a@3"):
        home = member_of(id_, 64)
        assert lock_home(id_, 64) == lock_home(f"workflow-execution.{id_}", 64) == home
        # What it starts is withheld where that is.
        assert lock_home(f"children.{id_}@7", 64) == 7
    assert lock_home("children.x", 4) == member_of("children.x", 4)


def test_jump_as_published() -> None:
    """The values of the authors' own function (arXiv:1406.2294), as other implementations test."""
    assert [jump(key, 1) for key in (0, 1, 0xDEAD10CC)] == [0, 0, 0]
    assert jump(0xDEAD10CC, 666) == 361
    assert jump(256, 1024) == 520
    assert jump(10863919174838991, 11) == 6
    assert jump(0, 100001) == 0


def test_keys_spread_evenly() -> None:
    members = 64
    counts = [0] * members
    for number in range(64_000):
        counts[member_of(f"workflow-{number}", members)] += 1
    # 1000 each; the standard deviation is 31.
    assert min(counts) > 850
    assert max(counts) < 1150


def test_with_one_more_member_only_its_share_moves() -> None:
    moved = [
        after
        for number in range(10_000)
        if (after := member_of(f"{number}", 65)) != member_of(f"{number}", 64)
    ]
    assert set(moved) == {64}
    assert 100 < len(moved) < 220


@pytest.mark.parametrize("value", ["", "a", "a@b", "7@3", "a@-1", "a@03", "a@²"])
@pytest.mark.parametrize("index", [0, 3])
def test_tags_come_off_again(value: str, index: int) -> None:
    assert untag(tag(value, index), 4) == (value, index)
    assert home_of(tag(value, index), 4) == index


@pytest.mark.parametrize(
    "value", ["", "a", "@", "a@", "a@4", "a@03", "a@-1", "a@²", "a@1 ", "a@1000"]
)
def test_what_has_no_tag(value: str) -> None:
    assert untag(value, 4) == (value, None)
    assert home_of(value, 4) == member_of(value, 4)
