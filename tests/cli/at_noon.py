"""`wfe-persistence`, where it is noon of 5 January 2026: `python -m tests.cli.at_noon COMMAND`."""

from __future__ import annotations

from datetime import timedelta

from tests.cli.scene import NOON
from wfe_persistence.cli import main
from wfe_persistence_cli import times


def _noon() -> object:
    return NOON


if __name__ == "__main__":
    assert timedelta(0) < times.now() - NOON
    times.now = _noon  # type: ignore[assignment]
    main(prog_name="wfe-persistence")
