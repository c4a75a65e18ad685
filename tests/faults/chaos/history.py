"""The record of each call and its return, one JSON object a line, appended to a file.

A line is written by one system call before the call is sent and one after it has returned, so that
a killed client loses nothing: a call without a return may have been made or not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# "Nothing was written", says error_reason.proto.
NOTHING_WRITTEN = {
    "DATABASE_UNAVAILABLE",
    "POOL_EXHAUSTED",
    "DATABASE_FULL",
    "NAMESPACE_BUSY",
    "TOO_MANY_CALLS",
    "TRANSACTION_CONFLICT",
    "ROW_LOCKED",
}


@dataclass(slots=True)
class Call:
    """One call. Times are in seconds: `start` and `end` of the monotonic clock, which all processes
    of a machine share, `wall` and `wall_end` since 1970."""

    op: str
    start: float
    wall: float
    deadline: float | None
    """The client's own, in seconds; None: it left the deadline to the server."""
    what: dict[str, Any]
    """What was asked for, or written."""
    end: float | None = None
    wall_end: float | None = None
    code: str = ""
    """The name of the gRPC status; empty: the call never returned."""
    reason: str = ""
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """It was acknowledged."""
        return self.code == "OK"

    @property
    def maybe(self) -> bool:
        """It may have been made, or may yet be."""
        return may_be_made(self.code, self.reason)


def may_be_made(code: str, reason: str) -> bool:
    """Whether a write that returned so may have been made although it was not acknowledged."""
    if code in ("", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "UNKNOWN"):
        return reason not in NOTHING_WRITTEN
    return False


class Recorder:
    """Writes a history."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._number = 0

    def start(self, op: str, deadline: float | None, what: dict[str, Any]) -> int:
        """A call is about to be sent; its number."""
        self._number += 1
        self._write(
            {"n": self._number, "op": op, "at": time.monotonic(), "wall": time.time(),
             "deadline": deadline, "what": what}
        )  # fmt: skip
        return self._number

    def end(self, number: int, code: str, reason: str, answer: dict[str, Any]) -> None:
        """A call has returned."""
        self._write(
            {"n": number, "at": time.monotonic(), "wall": time.time(), "code": code,
             "reason": reason, "answer": answer}
        )  # fmt: skip

    def lag(self, since: float, seconds: float) -> None:
        """The client itself did not run for so long: a delay that is not the server's."""
        self._write({"lag": seconds, "at": since})

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")


class History:
    """The history of one client, read while it is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._open: dict[int, Call] = {}
        self.calls: list[Call] = []
        self.lags: list[tuple[float, float]] = []
        """From when on the client did not run, and how long."""

    def read_on(self) -> Iterator[Call]:
        """The calls that have returned since the last time."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read()
        # The last line may be incomplete.
        lines = lines[: lines.rfind(b"\n") + 1]
        self._read += len(lines)
        for line in lines.splitlines():
            record = json.loads(line)
            if "lag" in record:
                self.lags.append((record["at"], record["lag"]))
            elif "op" in record:
                call = Call(
                    record["op"], record["at"], record["wall"], record["deadline"], record["what"]
                )
                self._open[record["n"]] = call
                self.calls.append(call)
            else:
                call = self._open.pop(record["n"])
                call.end, call.wall_end = record["at"], record["wall"]
                call.code, call.reason = record["code"], record["reason"]
                call.answer = record["answer"]
                yield call

    def lag_during(self, call: Call) -> float:
        """For how long in all the client did not run during a call."""
        assert call.end is not None
        return sum(
            max(0.0, min(call.end, since + seconds) - max(call.start, since))
            for since, seconds in self.lags
        )
