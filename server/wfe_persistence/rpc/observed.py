"""A call in the metrics, in the logs and in its trace."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc

from wfe_persistence import metrics
from wfe_persistence.rpc.audit import Audit, Entry
from wfe_persistence.rpc.call_log import CallLog, names_of
from wfe_persistence.rpc.guard import namespace_of
from wfe_persistence.rpc.services import Method
from wfe_persistence.rpc.status import STATUS_OF, reason_name
from wfe_persistence.time_spent import CURRENT, TimeSpent

if TYPE_CHECKING:
    from wfe_persistence.rpc.traces import Traces

# As gRPC has them in a context.
_CODES: Final[dict[Any, str]] = {
    key: code.name for code in grpc.StatusCode for key in (code, code.value[0])
}

Context = grpc.aio.ServicerContext[Any, Any]


class Observed:
    """As a context manager, it gives the call's entry in the audit log. The call stands in the
    metrics, logs and traces in any case after this. (No generator: ten thousand calls may be
    inside.)"""

    __slots__ = ("_call_log", "_context", "_entry", "_method", "_span", "_spent", "_token")

    def __init__(
        self,
        audit: Audit | None,
        call_log: CallLog,
        traces: Traces | None,
        method: Method,
        context: Context,
    ) -> None:
        self._call_log = call_log
        self._span = traces.begin(method, context) if traces else None
        self._context = context
        self._method = method
        self._spent = TimeSpent(call=self)
        self._token = CURRENT.set(self._spent)
        metrics.CALLS_IN_PROGRESS.add(method.labels)
        if audit is None:
            self._entry = Entry(None, method, "", "")
        else:
            namespace = "" if method.server_wide else namespace_of(context)
            self._entry = Entry(audit, method, context.peer(), namespace)

    def __enter__(self) -> Entry:
        return self._entry

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        method, entry, spent = self._method, self._entry, self._spent
        if isinstance(exc, asyncio.CancelledError):
            # The client has hung up, or its deadline has passed on its side first. What it wrote
            # may be committed.
            entry.ended("CANCELLED")
        elif isinstance(exc, grpc.aio.AbortError):
            entry.ended("NOT_RECEIVED")  # unless it has ended with an error of its own
        metrics.CALLS_IN_PROGRESS.add(method.labels, -1)
        CURRENT.reset(self._token)
        spent.call = None  # tasks that the call has begun may go on
        metrics.CALL_SECONDS.observe(spent.total, method.labels)
        code = _code(entry, self._context)
        metrics.CALLS.add((*method.labels, code))
        self._call_log.ended(method, self.names, entry, spent)
        if self._span:
            reason = "" if entry.reason is None else reason_name(entry.reason)
            self._span.ended(code, reason, entry.error, self.names(), spent)

    def names(self) -> dict[str, str]:
        """Who makes the call, and what it is called."""
        names = names_of(self._method, self._context, self._entry)
        return names | self._span.names() if self._span else names


def _code(entry: Entry, context: Context) -> str:
    """The name of the status code that a call has ended with."""
    if entry.reason is not None:
        return STATUS_OF[entry.reason].name
    if entry.outcome == "NOT_RECEIVED":
        return _CODES.get(context.code(), "UNKNOWN")
    return entry.outcome or "UNKNOWN"
