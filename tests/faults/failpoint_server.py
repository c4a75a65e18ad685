"""The server that dies at one point of a commit, named by $FAILPOINT: before it is sent to the
database, or after it was committed and before the answer. `python -m tests.faults.failpoint_server`

It dies once: where the file $FAILPOINT_PASSED exists, it lives on.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from wfe_persistence.cli import main
from wfe_persistence.store import commit
from wfe_persistence.store.commit_parts import Outcome
from wfe_persistence.store.rows import Param
from wfe_persistence.store.tables import Store

POINTS = ("before commit", "after commit")

_write = commit._write


def die_once(point: str) -> None:
    """SIGKILL, if this is the point."""
    passed = Path(os.environ["FAILPOINT_PASSED"])
    if os.environ["FAILPOINT"] == point and not passed.exists():
        passed.touch()
        os.kill(os.getpid(), signal.SIGKILL)


async def write(
    store: Store, id_: bytes, sql: str, params: Sequence[Param], *, name_field: str
) -> Outcome:
    """A commit's statement, with death before and behind it."""
    die_once("before commit")
    outcome = await _write(store, id_, sql, params, name_field=name_field)
    die_once("after commit")
    return outcome


if __name__ == "__main__":
    commit._write = write
    main(prog_name="wfe-persistence")
