"""What reads see of a database with replicas: what was written before, wherever they go."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

_SOURCES: Final = ("primary", "replica")
_POSITION_KEY: Final = "wfe-lsn"
_READ_KEY: Final = "wfe-read"

#: A position that no replica has.
_UNKNOWN: Final = "unknown"
_MAX_NAMESPACES: Final = 10_000


class Positions:
    """Up to where a provider has written, in each namespace: the highest position that the
    server has told. Reads are sent with it."""

    def __init__(self) -> None:
        # The one that was written last at the end.
        self._known: OrderedDict[str, str] = OrderedDict()
        #: Whether some were forgotten: then of no other namespace it is known that nothing was
        #: written there.
        self._forgets = False
        #: How often a position was lost.
        self.losses = 0

    def of(self, space: str) -> str | None:
        """What a read in a namespace relies on; None: nothing was written."""
        return self._known.get(space, _UNKNOWN if self._forgets else None)

    def written(self, space: str, metadata: Iterable[tuple[str, str | bytes]], losses: int) -> None:
        """A write has succeeded, with this metadata behind its answer. `losses`: how many there
        were when it was begun."""
        for key, value in metadata:
            if key == _POSITION_KEY:
                text = value if isinstance(value, str) else value.decode()
                before = self._known.get(space, "")
                # It says nothing of what was lost since it was begun. Those of one database are
                # in the order of their texts; others can't be compared.
                is_same = before.partition("/")[0] == text.partition("/")[0]
                if losses == self.losses if before == _UNKNOWN else not is_same or text > before:
                    self._keep(space, text)
                return
        # The server has no replicas. If others have, they may not have replayed this.
        if space in self._known:
            self.lost(space)

    def lost(self, space: str) -> None:
        """A write was made, or may have been, but nobody has said up to where."""
        self.losses += 1
        self._keep(space, _UNKNOWN)

    def _keep(self, space: str, position: str) -> None:
        self._known[space] = position
        self._known.move_to_end(space)
        if len(self._known) > _MAX_NAMESPACES:
            self._known.popitem(last=False)
            self._forgets = True


class Reading:
    """How the reads of a provider in one namespace are made."""

    def __init__(self, positions: Positions, space: str, source: str | None) -> None:
        if source is not None and source not in _SOURCES:
            raise ValueError(f"reads must be 'primary', 'replica' or None, not {source!r}")
        self._positions = positions
        self._space = space
        self.source = source

    def metadata(self) -> list[tuple[str, str]]:
        """What is sent with a read."""
        metadata: list[tuple[str, str]] = []
        if self.source is not None:
            metadata.append((_READ_KEY, self.source))
        position = self._positions.of(self._space)
        if position is not None:
            metadata.append((_POSITION_KEY, position))
        return metadata

    @property
    def losses(self) -> int:
        """See `Positions`."""
        return self._positions.losses

    def written(self, metadata: Iterable[tuple[str, str | bytes]] | None, losses: int) -> None:
        """See `Positions`."""
        self._positions.written(self._space, metadata or (), losses)

    def lost(self) -> None:
        """See `Positions`."""
        self._positions.lost(self._space)
