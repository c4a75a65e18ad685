"""JSON of hosts, as people see it in a table or under a heading: folded to one line."""

from __future__ import annotations

from typing import Any


def folded(value: Any) -> str:
    """A document on one line; what was left out, or is absent, in a word."""
    from wfe_persistence_cli.data import one_line
    from wfe_persistence_client import ABSENT, LEFT_OUT

    if value is ABSENT:
        return "-"
    return "(too large to be listed)" if value is LEFT_OUT else one_line(value)
