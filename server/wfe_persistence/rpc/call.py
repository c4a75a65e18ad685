"""What a handler knows of its call, beside the request."""

from __future__ import annotations

from dataclasses import dataclass

from wfe_persistence.rpc.check import Check
from wfe_persistence.store.tables import Store


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as the boundary passes it to a handler with the decoded request."""

    store: Store
    """The store of the namespace that the call is for."""
    check: Check
    """Collects the violations of the request; the handler adds to it and calls `done()`."""
    max_message_bytes: int
    """The maximum size of a request or response, in bytes."""
