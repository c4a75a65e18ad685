"""The command line: `wfe-persistence COMMAND`; `group` has the commands.

A file per command; `options` derives the options from `settings`. Exit status: 0 success, 1 failure
(including a server that is not installed), 2 invalid usage.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

from wfe_persistence import collector
from wfe_persistence.redaction import redacted

# Before gRPC is loaded: PostgreSQL is started as a child process, and gRPC's fork handlers would
# only log complaints about it. Anybody could fill the log with what gRPC itself says of bad calls,
# line by line; what of it matters, errors and our own log tell.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# As in older versions of gRPC: who polls for a call also reads its bytes, instead of being
# woken by a thread that has. (A version that does not know the name does as it does.)
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

# The top-level modules of the extra `server`. The package without it is the client, but brings the
# same console script.
_SERVER_MODULES = (
    "click",
    "psycopg",
    "psycopg_pool",
    "grpc_health",
    "grpc_reflection",
    "jwt",
    "uvloop",
)


def main(args: Sequence[str] | None = None, prog_name: str | None = None) -> NoReturn:
    """Run the command line with `args` (default: those of the process) and exit.

    If only the client is installed, says how to install the server and exits 1.
    """
    if missing := [name for name in _SERVER_MODULES if find_spec(name) is None]:
        sys.exit(
            "wfe-persistence: the server is not installed "
            f"(missing: {', '.join(missing)}); "
            "install it with: pip install 'wfe-persistence[server,embedded]'"
        )
    if os.getpid() == 1:
        from wfe_persistence.cli.pid1 import become_init

        become_init()
    collector.pause()
    from wfe_persistence.cli.group import commands

    try:
        commands.main(args, prog_name)
    except Exception:
        # A bug: its traceback must not show a password either.
        sys.exit(redacted(traceback.format_exc()).rstrip())
