"""The audit log: a JSON object a line for every write and for every call that was refused to its
caller. No payloads, no credentials.

Lines are written by a thread, so that no call waits for a disk. They are not synced to the disk,
and those that can't be written are lost: serving goes on. How many were lost is logged, and stands
in the audit log as soon as that can be written again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import CannotServeError
from wfe_persistence.rpc.guard import Caller
from wfe_persistence.rpc.services import Method
from wfe_persistence.rpc.status import shortened

log = logging.getLogger(__name__)

STDOUT: Final = "-"

ID_FIELDS: Final = {
    "WorkflowInstance": ("id",),
    "WorkflowPatch": ("id",),
    "EventSubscription": ("id", "workflow_id"),
    "SubscriptionClaim": ("subscription_id",),
    "Event": ("id",),
    "ScheduledCommand": ("data",),
    "ExecutionError": ("workflow_id",),
    "LifecycleEvent": ("workflow_id",),
    "CommitWorkflowRequest": ("terminate_subscription_ids", "processed_event_ids"),
    "DeleteWorkflowRequest": ("id",),
    "PurgeWorkflowsRequest": ("workflow_definition_id",),
    "NextDefinitionSequenceRequest": ("definition_id",),
    "MarkEventProcessedRequest": ("id",),
    "MarkEventUnprocessedRequest": ("id",),
    "PurgeEventsRequest": ("event_name",),
    "TerminateSubscriptionRequest": ("id",),
    "SetSubscriptionTokenRequest": ("id", "worker_id"),
    "ClearSubscriptionTokenRequest": ("id",),
    "RenewSubscriptionTokenRequest": ("id",),
    "ClaimCommandsRequest": ("worker_id",),
    "BreakCommandLeaseRequest": ("data",),
    "AcquireLockRequest": ("resource", "owner"),
    "BreakLockRequest": ("resource",),
    "QueueItem": ("queue", "id"),
    "DequeueRequest": ("queues", "worker_id"),
    "RequeueItemsRequest": ("queue", "ids"),
    "DeleteItemsRequest": ("queue", "ids"),
    "ConfigureQueueRequest": ("queue",),
    "CreateNamespaceRequest": ("name",),
    "DeleteNamespaceRequest": ("name",),
    "CreateNamespaceSetRequest": ("name",),
    "DeleteNamespaceSetRequest": ("name",),
    "SetNameHolderRequest": ("name", "workflow_id"),
    "MoveNamespaceRequest": ("name", "database"),
    "AbortMoveNamespaceRequest": ("name",),
    "WorkflowRetention": ("workflow_definition_id",),
    "ExecutionPointersRecord": ("workflow_id",),
    "QueueRecord": ("name",),
    "DefinitionSequenceRecord": ("definition_id",),
    "NameHolderRecord": ("name", "workflow_id"),
    # What the server has chosen or found.
    "CreateNewWorkflowResponse": ("id",),
    "PersistWorkflowWithSubscriptionsResponse": ("subscription_ids",),
    "CommitWorkflowResponse": ("subscription_ids", "event_ids"),
    "CreateEventResponse": ("id",),
    "CreateEventSubscriptionResponse": ("id",),
}
"""The fields that name what a call is about, by message. No other field gets into the log."""

LEASE_FIELDS: Final = {
    "CommitWorkflowRequest": (
        "held_lease_tokens",
        "complete_lease_tokens",
        "held_lock_tokens",
    ),
    "CreateNewWorkflowRequest": ("held_lock_tokens",),
    "CompleteCommandsRequest": ("lease_tokens",),
    "ReleaseCommandsRequest": ("lease_tokens",),
    "RenewCommandsRequest": ("lease_tokens",),
    "ClaimedCommand": ("lease_token",),
    "AcquireLockResponse": ("token",),
    "PersistWorkflowRequest": ("held_lock_tokens",),
    "PersistWorkflowWithSubscriptionsRequest": ("held_lock_tokens",),
    "RenewLocksRequest": ("tokens",),
    "ReleaseLockRequest": ("token",),
    "Acknowledgement": ("receipt",),
    "ReturnedItem": ("receipt",),
    "RenewItemsRequest": ("receipts",),
    "DequeuedItem": ("receipt",),
}
"""The same, but who knows them may act: the log has only the beginning of their hash, by which a
claim and its completion can be matched."""

REFUSALS: Final = frozenset(
    {
        ErrorReason.ERROR_REASON_CREDENTIALS_REQUIRED,
        ErrorReason.ERROR_REASON_CREDENTIALS_INVALID,
        ErrorReason.ERROR_REASON_CREDENTIALS_EXPIRED,
        ErrorReason.ERROR_REASON_ACCESS_DENIED,
        ErrorReason.ERROR_REASON_CALLER_LIMITED,
        ErrorReason.ERROR_REASON_NAMESPACE_FULL,
    }
)
"""The reasons for which reads are logged, too."""

# Of one call.
MAX_IDS: Final = 32
MAX_ID_BYTES: Final = 128

# How many lines may wait to be written: at most some 20 MB.
_MAX_WAITING: Final = 20_000

_LOOK_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 5.0
_COMPLAIN_SECONDS: Final = 60.0

IdPath = tuple[tuple[str, ...], bool]
"""The names of the fields that lead to an id, and whether it is one of LEASE_FIELDS."""


def _id_paths(message: Descriptor) -> Iterator[IdPath]:
    for name in ID_FIELDS.get(message.name, ()):
        yield (name,), False
    for name in LEASE_FIELDS.get(message.name, ()):
        yield (name,), True
    for field in message.fields:
        nested = field.message_type  # (no message has itself in it)
        if nested is not None and not nested.GetOptions().map_entry:
            for path, is_lease in _id_paths(nested):
                yield (field.name, *path), is_lease


_NO_IDS: Final[dict[str, list[str]]] = {}
_NONE_SEEN: Final[set[str]] = set()


class Entry:
    """What the log says about one call; nobody needs to know whether there is a log."""

    __slots__ = (
        "_audit", "_ids", "_method", "_request_id", "_seen",
        "caller", "error", "is_dry_run", "is_truncated", "namespace", "outcome", "peer", "reason",
    )  # fmt: skip

    def __init__(self, audit: Audit | None, method: Method, peer: str, namespace: str) -> None:
        self._audit = audit
        self._method = method
        # (Without a log there are none, and ten thousand calls may wait.)
        self._ids: dict[str, list[str]] = {} if audit else _NO_IDS
        self._seen: set[str] = set() if audit else _NONE_SEEN
        self._request_id = ""
        self.peer = peer
        self.namespace = namespace
        self.caller: Caller | None = None
        self.is_dry_run = False
        self.is_truncated = False
        self.outcome = ""
        """`OK`, a reason, `CANCELLED` or `NOT_RECEIVED`; empty: the call has not ended."""
        self.reason: ErrorReason.ValueType | None = None
        self.error = ""
        """The message of the error that the call ended with; not for the audit log."""

    def names(self, message: Message) -> None:
        """Note the ids in the request or the response, each once. Nothing of the message is kept
        besides, so that it can be freed."""
        if self._audit is None or not self._method.is_write:
            return
        self._request_id = self._request_id or getattr(message, "request_id", "")
        self.is_dry_run = self.is_dry_run or getattr(message, "dry_run", False)
        for path, is_lease in self._audit.paths(message):
            for value in _values(message, path):
                if len(self._seen) == MAX_IDS:
                    self.is_truncated = True
                    return
                shown = _hashed(value) if is_lease else shortened(value, MAX_ID_BYTES)
                if shown not in self._seen:
                    self._seen.add(shown)
                    self._ids.setdefault(".".join(path), []).append(shown)

    def ended(self, outcome: str, reason: ErrorReason.ValueType | None = None) -> None:
        """Log the call, once, unless it is a read that was not refused."""
        if self.outcome:
            return
        self.outcome, self.reason = outcome, reason
        if self._audit is None:
            return
        if self._method.is_write or reason in REFUSALS:
            self._audit.write(self._line(outcome))

    def _line(self, outcome: str) -> str:
        principal = self.caller.principal if self.caller else ""
        entry: dict[str, Any] = {
            "time": _now(),
            "principal": principal or None,
            "authenticated_by": principal.partition(":")[0] or None,
            "peer": shortened(self.peer, MAX_ID_BYTES),
            "namespace": shortened(self.namespace, MAX_ID_BYTES) or None,
            "rpc": self._method.name,
            "ids": self._ids,
            "request_id": shortened(self._request_id, MAX_ID_BYTES),
            "outcome": outcome,
        }
        if self.is_truncated:
            entry["more_ids"] = True
        if self.is_dry_run:
            entry["dry_run"] = True
        return _json(entry)


def _values(message: Any, path: tuple[str, ...]) -> Iterator[str]:
    """The texts at a path that are not empty."""
    name, *rest = path
    value = getattr(message, name)
    if not rest:
        yield from filter(None, (value,) if isinstance(value, str) else value)
        return
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.is_repeated:
        for item in value:
            yield from _values(item, tuple(rest))
    elif message.HasField(name):
        yield from _values(value, tuple(rest))


def _hashed(token: str) -> str:
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()[:16]}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(entry: dict[str, Any]) -> str:
    """One line. Whatever is not printable ASCII is escaped."""
    return json.dumps(entry, separators=(",", ":")).replace("\x7f", "\\u007f") + "\n"


class Audit:
    """The log in a file, which is made if it does not exist and read by its owner only; or on
    stdout. Raises CannotServeError if it can't be opened."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._paths: dict[type[Message], tuple[IdPath, ...]] = {}
        self._lines: deque[str] = deque()
        # Lines that were lost: for want of room, for want of a disk, and as told in the log. The
        # first is counted by the event loop, the others by the thread.
        self._dropped = self._failed = self._told = 0
        self._stopping = False
        self._reopen = False
        self._is_whole = True  # whether the last line in the file is
        self._complained = -_COMPLAIN_SECONDS
        try:
            self._fd = self._open()
        except OSError as exc:
            raise CannotServeError(f"audit-log: {target}: {exc.strerror}") from exc
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def paths(self, message: Message) -> tuple[IdPath, ...]:
        """Where messages of this type have ids."""
        kind = type(message)
        paths = self._paths.get(kind)
        if paths is None:
            descriptor: Any = kind.DESCRIPTOR
            paths = self._paths[kind] = tuple(_id_paths(descriptor))
        return paths

    def write(self, line: str) -> None:
        """Have a line written soon, or lose it if there are too many."""
        if len(self._lines) >= _MAX_WAITING:
            self._dropped += 1
        else:
            self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def reopen(self) -> None:
        """Open the file anew, because it was renamed: what logrotate sends SIGHUP for."""
        self._reopen = True
        self._wake.set()

    def close(self) -> None:
        """Write what is waiting, for as long as a stop may wait for that."""
        self._stopping = True
        self._wake.set()
        self._thread.join(_STOP_SECONDS)

    def _open(self) -> int:
        if self._target == STDOUT:
            return os.dup(1)
        # O_NONBLOCK: a pipe that nobody reads fails instead of holding up the start.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self._target, flags, 0o600)

    def _run(self) -> None:
        looked = time.monotonic()
        while not (self._stopping and not self._lines):
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()
            now = time.monotonic()
            if self._reopen or now - looked >= _LOOK_SECONDS:
                looked = now
                self._follow()
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            lost = self._dropped + self._failed - self._told
            if lost:
                lines.append(_json({"time": _now(), "lost": lost}))
            if lines:
                self._append(lines, lost)
        os.close(self._fd)

    def _append(self, lines: list[str], lost: int) -> None:
        """Write lines, the last of which tells of `lost` ones if there are any."""
        end_of_line = b"" if self._is_whole else b"\n"
        data = end_of_line + "".join(lines).encode()
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
            self._is_whole = True
            self._told += lost
        except OSError as exc:
            if written:
                self._is_whole = data[written - 1 : written] == b"\n"
            unwritten = data[max(written, len(end_of_line)) :].count(b"\n")
            self._failed += unwritten - (1 if lost else 0)
            self._complain(f"{exc.strerror}; lines are lost")

    def _follow(self) -> None:
        """Open the file anew if it was renamed or deleted."""
        reopen, self._reopen = self._reopen, False
        if self._target == STDOUT:
            return
        try:
            if not reopen and self._is_in_place():
                return
            fd = self._open()
        except OSError as exc:
            self._complain(f"{exc.strerror}; the old file is written on")
            return
        os.close(self._fd)
        self._fd = fd
        self._is_whole = True

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._target))
        except FileNotFoundError:
            return False

    def _complain(self, why: str) -> None:
        """Log, at most once a minute, what is wrong."""
        now = time.monotonic()
        if now - self._complained >= _COMPLAIN_SECONDS:
            self._complained = now
            log.error("audit log %s: %s", self._target, why)
