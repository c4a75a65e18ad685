"""Faults in reads from replicas, for `faulty_server`, and the test that must catch each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wfe_persistence.rpc import reading
from wfe_persistence.store import admin
from wfe_persistence.store.postgres import position, reads, replicas
from wfe_persistence.store.postgres.position import Position
from wfe_persistence.store.postgres.prepared import Statement


def in_statement(name: str, old: str, new: str) -> Callable[[], None]:
    """A fault in a statement of `position.py`."""

    def plant() -> None:
        statement: Statement = getattr(position, name)
        sql = statement.sql.decode()
        assert old in sql, f"{name} has changed: plant the fault anew"
        planted = Statement.prepared(sql.replace(old, new))
        for module in (position, replicas):
            if hasattr(module, name):
                setattr(module, name, planted)

    return plant


def plant_positions_ignored() -> None:
    """Whatever a read relies on, any replica will do."""
    original = reading.Wish.__init__

    def init(self: reading.Wish, *arguments: Any) -> None:
        original(self, *arguments)
        self.position = ""

    setattr(reading.Wish, "__init__", init)  # noqa: B010


def plant_timelines_ignored() -> None:
    """A number is a number, whatever happened before."""

    def is_at(there: Position, of: Position) -> bool:
        return there.database == of.database and there.lsn >= of.lsn

    setattr(replicas, "_is_at", is_at)  # noqa: B010
    setattr(reads, "has_replayed", lambda of: position.has_replayed(of._replace(timeline=0)))  # noqa: B010


def plant_databases_ignored() -> None:
    """All positions are taken for those of the database that is read."""

    def of_this_database(self: replicas.Replicas, text: str) -> Position | None:
        found = Position.parse(text)
        if found is None or self.position is None:
            return None
        return found._replace(database=self.position.database)

    setattr(replicas.Replicas, "_of_this_database", of_this_database)  # noqa: B010


def plant_lag_ignored() -> None:
    """A replica is used as long as it answers."""
    setattr(replicas.Replicas, "_is_fresh", lambda *_: True)  # noqa: B010


def plant_rows_that_go() -> None:
    """Any replica will do for an export."""
    original = replicas.Replicas.choose

    def choose(self: replicas.Replicas, text: str, since: float, *, long: bool = False) -> Any:
        return original(self, text, since)

    setattr(replicas.Replicas, "choose", choose)  # noqa: B010


def plant_standby_that_serves() -> None:
    """Health does not ask whether the database takes writes."""

    async def why_read_only(_: object) -> str:
        return ""

    setattr(admin, "why_read_only", why_read_only)  # noqa: B010


_LAGS = "test_replicas.py::test_a_read_with_a_position_contains_what_was_written"

REPLICA_FAULTS: dict[str, tuple[Callable[[], None], str]] = {
    "positions that reads send are ignored": (plant_positions_ignored, _LAGS),
    "the position of a write is one before it": (
        in_statement("WRITTEN", "w.lsn\n", "w.lsn - 100000\n"),
        _LAGS,
    ),
    "any replica says that it has replayed everything": (
        in_statement("_HAS_REPLAYED", "pg_last_wal_replay_lsn() >= $3::pg_lsn", "TRUE OR $3 = ''"),
        _LAGS,
    ),
    "timelines of positions are ignored": (
        plant_timelines_ignored,
        "test_replica_promotion.py::test_a_replica_of_an_older_timeline_lacks_what_is_on_the_new",
    ),
    "databases of positions are ignored": (
        plant_databases_ignored,
        "test_replicas.py::test_what_a_position_does_not_tell",
    ),
    "a replica that lags is used": (
        plant_lag_ignored,
        "test_replicas.py::test_a_replica_that_lags_is_left_out",
    ),
    "an export from a replica whose rows may go": (
        plant_rows_that_go,
        "test_replicas.py::test_an_export_needs_a_replica_whose_rows_stay",
    ),
    "a server on a standby is serving": (
        plant_standby_that_serves,
        "test_replica_promotion.py::test_a_server_that_has_only_a_standby_is_not_serving",
    ),
}
