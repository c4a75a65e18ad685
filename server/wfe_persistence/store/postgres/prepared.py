"""Statements, and which of them are prepared on a connection: an LRU, bounded by memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final, NamedTuple, Self

# The memory that PostgreSQL keeps for a prepared statement, on each connection: about this much,
# plus this for each byte of its SQL (measured on 18; tests/store/test_prepared.py).
_KEPT_BYTES: Final = 8_192
_KEPT_BYTES_PER_BYTE: Final = 110

_NOTHING: Final = ((), ())


OTHER: Final = "OTHER"
"""The label of statements that have no name of their own."""


class Statement(NamedTuple):
    """SQL as it is sent, and the name it is prepared under; empty: it is not prepared."""

    sql: bytes
    name: bytes
    label: str = OTHER
    """What it is called in metrics."""

    @classmethod
    def prepared(cls, sql: str, label: str = OTHER) -> Self:
        """A statement that is prepared, under a name that follows from its SQL."""
        encoded = sql.encode()
        return cls(encoded, b"wfe_" + blake2b(encoded, digest_size=12).hexdigest().encode(), label)

    @classmethod
    def unprepared(cls, sql: str, label: str = OTHER) -> Self:
        """A statement that is planned each time it is run."""
        return cls(sql.encode(), b"", label)

    def as_unprepared(self) -> Self:
        """The same SQL, planned as it is run: it can't fail for what was prepared before, on
        whichever connection."""
        return self._replace(name=b"")


def kept_bytes(statement: Statement) -> int:
    """About how much memory PostgreSQL keeps for a prepared statement, on each connection."""
    return _KEPT_BYTES + _KEPT_BYTES_PER_BYTE * len(statement.sql)


class PreparedStatements:
    """What is prepared on one connection.

    `max_bytes` bounds the memory that PostgreSQL keeps for it; None: nothing is ever prepared. A
    statement that exceeds the bound by itself is prepared all the same.

    `make_room` says what has to be sent; `add` and `remove` are told what of it succeeded.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        # The memory of each by its name, in bytes; the least recently used one first.
        self._kept: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def wants(self, statement: Statement) -> bool:
        """Whether a statement is run prepared."""
        return self._max_bytes is not None and bool(statement.name)

    def make_room(
        self, statements: Sequence[Statement]
    ) -> tuple[Sequence[bytes], Sequence[Statement]]:
        """What to close, by name, and what to prepare, before these statements are run."""
        if self._max_bytes is None:
            return _NOTHING
        new: dict[bytes, Statement] = {}
        for statement in statements:
            if statement.name in self._kept:
                self._kept.move_to_end(statement.name)
            elif statement.name:
                new[statement.name] = statement
        if not new:
            return _NOTHING
        excess = sum(self._kept.values()) + sum(map(kept_bytes, new.values())) - self._max_bytes
        in_use = {statement.name for statement in statements}
        close = []
        for name, kept in self._kept.items():
            if excess <= 0 or name in in_use:
                break
            close.append(name)
            excess -= kept
        return close, list(new.values())

    def add(self, statement: Statement) -> None:
        """It was prepared."""
        self._kept[statement.name] = kept_bytes(statement)

    def remove(self, name: bytes) -> None:
        """It was closed."""
        self._kept.pop(name, None)
