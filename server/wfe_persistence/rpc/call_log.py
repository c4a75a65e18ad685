"""The log of calls: those that took long, as warnings; at the level debug, every one.

It says who called what, how it ended, and what the time went to, never what was sent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

import grpc

from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.rpc.audit import Entry
from wfe_persistence.rpc.guard import namespace_of
from wfe_persistence.rpc.services import Method
from wfe_persistence.rpc.status import shortened
from wfe_persistence.time_spent import TimeSpent

log = logging.getLogger(__name__)
slow_calls = RecurringWarnings(log)

REQUEST_ID_KEYS: Final = ("x-request-id", "traceparent")
"""Metadata by which callers and proxies name a call."""

_MAX_BYTES: Final = 128

Context = grpc.aio.ServicerContext[Any, Any]


class CallLog:
    """Logs calls that took longer than `slow` seconds; 0: none for that."""

    def __init__(self, slow: float) -> None:
        self._slow = slow

    def ended(self, method: Method, context: Context, entry: Entry, spent: TimeSpent) -> None:
        """Log a call that has ended, if that is to be known of it."""
        # What the caller asked for, and streams that go on for ever, are not slow.
        seconds = spent.total - spent.waiting
        is_slow = 0 < self._slow < seconds and not method.lasts
        if not is_slow and not log.isEnabledFor(logging.DEBUG):
            return
        fields = _fields(method, context, entry, spent)
        if is_slow:
            slow_calls.warn(method.name, f"slow call: {_text(fields)}", fields)
            return
        if entry.error:
            fields["error"] = shortened(entry.error, 4 * _MAX_BYTES)
        log.debug("call: %s", _text(fields), extra={"fields": fields})


def _text(fields: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())


def _fields(
    method: Method, context: Context, entry: Entry, spent: TimeSpent
) -> dict[str, float | int | str]:
    named: dict[str, float | int | str] = {
        "rpc": method.name,
        "outcome": entry.outcome or "UNKNOWN",
    }
    if not method.server_wide:
        named["namespace"] = shortened(namespace_of(context), _MAX_BYTES)
    if entry.caller and entry.caller.principal:
        named["principal"] = shortened(entry.caller.principal, _MAX_BYTES)
    if request_id := _request_id(context.invocation_metadata() or ()):
        named["request_id"] = request_id
    return named | spent.parts()


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """What the caller names the call, in one printable word."""
    found = dict(metadata)
    for key in REQUEST_ID_KEYS:
        value = found.get(key)
        if isinstance(value, str) and value:
            return shortened("".join(c if c.isprintable() and c != " " else "?" for c in value),
                             _MAX_BYTES)  # fmt: skip
    return ""
