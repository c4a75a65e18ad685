"""The exit statuses of the commands that call a server. They are stable: scripts rely on them."""

from __future__ import annotations

from typing import Final

FAILURE: Final = 1
"""Anything that has no status of its own."""
USAGE: Final = 2
"""The command line is wrong; nothing was sent."""
CONFLICT: Final = 3
"""The store is not as the command expects: somebody else was faster, or it has other records."""
NOT_FOUND: Final = 4
"""What the command is about does not exist: a workflow, a namespace, a context."""
UNREACHABLE: Final = 5
"""The server or its database did not answer in time."""
DENIED: Final = 6
"""The server does not know the caller, or the caller lacks the role."""
INTERRUPTED: Final = 130
"""Ctrl-C."""

EPILOG: Final = (
    "Exit status: 0 success, 1 failure, 2 invalid usage, 3 conflict, 4 not found, 5 unreachable, "
    "6 denied, 130 Ctrl-C."
)
