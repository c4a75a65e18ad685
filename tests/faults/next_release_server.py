"""The server of the next release: this one, with the migrations in the directory $NEXT_MIGRATIONS
as well. `python -m tests.faults.next_release_server`
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from wfe_persistence.cli import main
from wfe_persistence.store import migration_files
from wfe_persistence.store.migration_files import Migration


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations of the next release in order."""
    return migration_files.read_migrations(
        migration_files.PACKAGED, Path(os.environ["NEXT_MIGRATIONS"])
    )


if __name__ == "__main__":
    migration_files.migrations = migrations
    main(prog_name="wfe-persistence")
