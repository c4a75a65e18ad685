"""The server of the next release: this one, with the migrations in the directory $NEXT_MIGRATIONS
as well. `python -m tests.faults.next_release_server`
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from wfe_persistence.cli import main
from wfe_persistence.store import migrate
from wfe_persistence.store.migrate import Migration


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations of the next release in order."""
    return migrate.read_migrations(migrate.PACKAGED, Path(os.environ["NEXT_MIGRATIONS"]))


if __name__ == "__main__":
    migrate.migrations = migrations
    main(prog_name="wfe-persistence")
