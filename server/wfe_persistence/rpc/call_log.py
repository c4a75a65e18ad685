"""The log of calls: those that took long, as warnings; at the level debug, every one.

It says who called what, how it ended, and what the time went to, never what was sent.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
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

REQUEST_ID_KEY: Final = "x-request-id"
TRACE_KEY: Final = "traceparent"
"""Metadata by which callers and proxies name a call, and their trace (W3C Trace Context)."""

_TRACE: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

_MAX_BYTES: Final = 128

Context = grpc.aio.ServicerContext[Any, Any]


class CallLog:
    """Logs calls that took longer than `slow` seconds; 0: none for that."""

    def __init__(self, slow: float) -> None:
        self._slow = slow

    def ended(
        self, method: Method, names: Callable[[], Mapping[str, str]], entry: Entry, spent: TimeSpent
    ) -> None:
        """Log a call that has ended, if that is to be known of it. `names`: who and what it is."""
        # What the caller asked for, and streams that go on for ever, are not slow.
        seconds = spent.total - spent.waiting
        is_slow = 0 < self._slow < seconds and not method.lasts
        if not is_slow and not log.isEnabledFor(logging.DEBUG):
            return
        fields: dict[str, float | int | str] = {
            "rpc": method.name,
            "outcome": entry.outcome or "UNKNOWN",
            **names(),
            **spent.parts(),
        }
        if is_slow:
            slow_calls.warn(method.name, f"slow call: {_text(fields)}", fields)
            return
        if entry.error:
            fields["error"] = shortened(entry.error, 4 * _MAX_BYTES)
        log.debug("call: %s", _text(fields), extra={"fields": fields})


def _text(fields: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in fields.items())


def names_of(method: Method, context: Context, entry: Entry) -> dict[str, str]:
    """Who makes a call, and what callers and their traces name it, each in one printable word."""
    named = {}
    if not method.server_wide:
        named["namespace"] = _word(namespace_of(context))
    if entry.caller and entry.caller.principal:
        named["principal"] = shortened(entry.caller.principal, _MAX_BYTES)
    for key, value in context.invocation_metadata() or ():
        if not isinstance(value, str) or not value:
            continue
        if key == REQUEST_ID_KEY:
            named["request_id"] = _word(value)
        elif key == TRACE_KEY and (found := _TRACE.match(value)):
            named["trace_id"] = found[1]
    return named


def _word(text: str) -> str:
    return shortened("".join(c if c.isprintable() and c != " " else "?" for c in text), _MAX_BYTES)
