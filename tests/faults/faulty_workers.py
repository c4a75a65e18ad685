"""A server of several processes with the fault $FAULT in each of them, one of those below or of
`faulty_server`. `python -m tests.faults.faulty_workers serve …`; its workers are this module, too.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from tests.faults.faulty_server import FAULTS, SERVER_FAULTS
from wfe_persistence.cli import main, serving, worker
from wfe_persistence.processes import supervisor

HANGS: Final = signal.SIGUSR1
"""With the fault "hang": has the event loop of a worker hang."""

IMPATIENCE: Final = 1.0


def plant_hang() -> None:
    """An event loop hangs when it is told to, and nobody waits for long."""
    setattr(supervisor, "HUNG_SECONDS", IMPATIENCE)  # noqa: B010
    setattr(serving, "HUNG_SECONDS", IMPATIENCE)  # noqa: B010
    signal.signal(HANGS, lambda *_: time.sleep(600))


def plant() -> None:
    """$FAULT."""
    fault = os.environ["FAULT"]
    if fault == "hang":
        plant_hang()
    else:
        (FAULTS | SERVER_FAULTS)[fault][0]()


class Processes(supervisor.Processes):
    """Whose workers have the fault, too."""

    def __init__(self, settings: Any, shown: Any, manager: Any, command: Sequence[str]) -> None:
        super().__init__(settings, shown, manager, (*command[:2], "tests.faults.faulty_workers"))


if __name__ == "__main__":
    plant()
    if sys.argv[1].isdigit():
        worker.main()
    else:
        setattr(supervisor, "Processes", Processes)  # noqa: B010
        main(prog_name="wfe-persistence")
