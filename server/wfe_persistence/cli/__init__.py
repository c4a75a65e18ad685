"""The command line: `wfe-persistence COMMAND`; `group` has the commands. Those that call a server
are in `wfe_persistence_cli`.

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

SERVER_COMMANDS = ("serve", "config", "migrate", "token", "policy", "version")
"""The commands that need it."""


def main(args: Sequence[str] | None = None, prog_name: str | None = None) -> NoReturn:
    """Run the command line with `args` (default: those of the process) and exit.

    If the server is not installed, it has only the commands that call one; without the extra `cli`
    none. Says then how to install what is missing, and exits 1.
    """
    if missing := [name for name in _SERVER_MODULES if find_spec(name) is None]:
        _without_server(missing, sys.argv[1:] if args is None else args, prog_name)
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


def _without_server(missing: Sequence[str], args: Sequence[str], prog_name: str | None) -> NoReturn:
    server = (
        f"the server is not installed (missing: {', '.join(missing)}); "
        "install it with: pip install 'wfe-persistence[server,embedded]'"
    )
    if "click" in missing:
        sys.exit(f"wfe-persistence: {server}, or, to call one, 'wfe-persistence[cli,rich]'")
    from wfe_persistence_cli import program

    if args and args[0] in SERVER_COMMANDS:
        sys.exit(f"wfe-persistence: {server}")
    if lacking := program.missing_modules():
        sys.exit(
            f"wfe-persistence: the commands that call a server lack {', '.join(lacking)}; "
            "install them with: pip install 'wfe-persistence[cli,rich]'"
        )
    try:
        program.run(args, prog_name)
    except Exception:
        sys.exit(redacted(traceback.format_exc()).rstrip())
