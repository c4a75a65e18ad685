"""`wfe-persistence`, which says at its end what it has loaded, and whether it collects garbage."""

from __future__ import annotations

import atexit
import gc
import sys

from wfe_persistence.cli import main


def _say() -> None:
    print("collector:", gc.isenabled(), gc.get_freeze_count(), file=sys.stderr)
    print("loaded:", *sys.modules, file=sys.stderr)


if __name__ == "__main__":
    atexit.register(_say)
    main(prog_name="wfe-persistence")
