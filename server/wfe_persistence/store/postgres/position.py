"""Positions in the WAL of a database: what a write has reached, and whether a replica is there.

A position names its database, because those of two databases can't be compared, and its timeline,
because after a promotion numbers come again that mean something else. As a text it is
`DATABASE/TIMELINE/LSN`, the last two of fixed width, so that of two positions of one database the
greater text is the later one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from wfe_persistence.store.postgres.pipeline import Command, Exchange, PGresult
from wfe_persistence.store.postgres.prepared import Statement

_TRUE: Final = b"\x01"

_TEXT: Final = re.compile(r"([a-z0-9_-]{1,64}\.[0-9]{1,20})/([0-9A-F]{8})/([0-9A-F]{16})")


class Position(NamedTuple):
    """A place in the WAL of a database."""

    database: str
    """The name that servers give it, and the identifier of its cluster."""
    timeline: int
    lsn: int

    def __str__(self) -> str:
        return f"{self.database}/{self.timeline:08X}/{self.lsn:016X}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The position with this text; None: it is none, or one of another version."""
        if (found := _TEXT.fullmatch(text)) is None:
            return None
        return cls(found[1], int(found[2], 16), int(found[3], 16))

    @property
    def system(self) -> str:
        """The identifier of the cluster."""
        return self.database.rpartition(".")[2]


# Whoever commits waits until the WAL is flushed up to the commit, unless synchronous_commit is off.
# (What is inserted beyond that no replica gets before it is flushed, which may take a while.)
WRITTEN: Final = Statement.prepared(
    """
SELECT (SELECT system_identifier FROM pg_control_system()), pg_walfile_name(w.lsn), w.lsn
FROM (
    SELECT CASE current_setting('synchronous_commit')
        WHEN 'off' THEN pg_current_wal_insert_lsn()
        ELSE pg_current_wal_flush_lsn()
    END AS lsn
) w
""",
    "WRITTEN",
)
"""Where the WAL of a primary is: at the end, or behind it, of whatever was committed before."""


def send_write(exchange: Exchange, batch: Sequence[Command]) -> None:
    """Send a batch that writes, and ask where the WAL is after its commit."""
    exchange.send(batch, WRITTEN)


def read_written(name: str, rows: PGresult) -> Position:
    """The position of a result of `WRITTEN`; `name`: of the database."""
    get = rows.get_value
    timeline = int((get(0, 1) or b"")[:8], 16)
    return Position(_database(name, get(0, 0)), timeline, _number(get(0, 2)))


# No function says which timeline a standby replays. Each of these is at most that one: what it has
# made a restart point of, what it has written to disk, and what it receives, which it does not
# receive unless it is a continuation of what it has replayed. (Only monitors may see the last.)
_TIMELINE: Final = """greatest(
        (SELECT timeline_id FROM pg_control_checkpoint()),
        (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
        (SELECT received_tli FROM pg_stat_wal_receiver))"""

REPLAYED: Final = Statement.prepared(
    f"""
SELECT pg_is_in_recovery(),
    (SELECT system_identifier FROM pg_control_system()),
    {_TIMELINE},
    coalesce(pg_last_wal_replay_lsn(), '0/0'),
    current_setting('hot_standby_feedback')::boolean
""",
    "REPLAYED",
)
"""How far a standby is."""


class Replayed(NamedTuple):
    """How far a standby is."""

    position: Position
    keeps_rows: bool
    """Whether the primary keeps the rows that its statements see (hot_standby_feedback)."""


def read_replayed(name: str, rows: PGresult) -> Replayed | None:
    """What a result of `REPLAYED` says; None: it is no standby."""
    get = rows.get_value
    if get(0, 0) != _TRUE:
        return None
    database = _database(name, get(0, 1))
    position = Position(database, _number(get(0, 2)), _number(get(0, 3)))
    return Replayed(position, get(0, 4) == _TRUE)


def _database(name: str, system: bytes | None) -> str:
    return f"{name}.{_number(system)}"


def _number(value: bytes | None) -> int:
    """A number that is not negative; PostgreSQL has the identifiers of clusters with a sign."""
    assert value is not None
    return int.from_bytes(value)


# Behind a pooler or a balancer, what was seen of a replica may be true of another one. So a read
# that relies on a position asks on its own connection, in the same message, just before it. (In one
# transaction: what it asks must not be answered for another snapshot than that of the read.)
_HAS_REPLAYED: Final = Statement.prepared(
    f"""
SELECT pg_is_in_recovery()
    AND current_setting('transaction_isolation') = 'read committed'
    AND coalesce(pg_last_wal_replay_lsn() >= $3::pg_lsn, FALSE)
    AND (SELECT system_identifier FROM pg_control_system()) = $1::bigint
    AND {_TIMELINE} >= $2::bigint
""",
    "HAS_REPLAYED",
)


def has_replayed(position: Position) -> Command:
    """Ask a replica whether it has replayed everything up to a position: a boolean."""
    system = int(position.system)
    high, low = divmod(position.lsn, 2**32)
    return _HAS_REPLAYED, (
        b"%d" % (system - 2**64 if system >= 2**63 else system),
        b"%d" % position.timeline,
        b"%X/%X" % (high, low),
    )


class NotReplayedError(Exception):
    """A replica has not replayed what a read relies on."""


def require(has_replayed: PGresult) -> None:
    """Raise NotReplayedError unless this is a true boolean."""
    if has_replayed.get_value(0, 0) != _TRUE:
        raise NotReplayedError


# What was flushed may end within a record whose rest nobody flushes before the next commit; no
# replica can replay that. This is one, and changes nothing.
NUDGE: Final = Statement.unprepared(
    "SELECT pg_logical_emit_message(TRUE, 'wfe-persistence', '')", "NUDGE"
)
