"""A server that listens to others, and whose own notifications are all lost."""

from __future__ import annotations

from wfe_persistence.cli import main
from wfe_persistence.store.neighbours import Neighbours


def _tell_nothing(self: Neighbours) -> list[str]:
    self._told.clear()
    return []


if __name__ == "__main__":
    setattr(Neighbours, "_take_told", _tell_nothing)  # noqa: B010
    main(prog_name="wfe-persistence")
