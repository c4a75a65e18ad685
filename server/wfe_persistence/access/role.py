"""The roles. Each may do what the ones before it may, and more."""

from __future__ import annotations

from enum import IntEnum


class Role(IntEnum):
    """What a principal may do in a namespace; `rpc/services.py` has the role that each RPC takes.

    They are a ladder, because whoever may delete a namespace gains nothing from not being allowed
    to write to it, and because the one who repairs a store needs the RPCs of the engine.
    """

    MONITOR = 1
    """See the metrics and the version of the server, if it has the role in all namespaces; no
    data."""
    READER = 2
    """Get, list and count."""
    HOST = 3
    """What an engine does: create, persist, commit, claim."""
    OPERATOR = 4
    """Delete and purge; create and delete namespaces."""
    ADMIN = 5
    """Everything."""

    @property
    def label(self) -> str:
        """Its name in the policy file and in messages."""
        return self.name.lower()


ROLES = {role.label: role for role in Role}
"""By name."""
