"""What the supervisor and a worker process tell each other: lines of JSON on a private socket.

The first line is the supervisor's, and has the worker's `Assignment`. Afterwards the supervisor
asks for metrics (`{"ask": "metrics"}`), and the worker says how it is (`{"state": …}`) whenever
that has changed, and at least once a second, so that silence means that it is hung.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from wfe_persistence.rpc.shared_listener import Shared
from wfe_persistence.settings import SETTINGS, NamedDatabase, Settings

# A page of metrics is some 500 kB.
_MAX_LINE_BYTES: Final = 64 * 1024 * 1024

STATE_SECONDS: Final = 1.0
"""How often a worker says how it is, at least."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker process is to do."""

    settings: Settings
    """Those of the server, with the address that it has and a database that runs."""
    shared: Shared

    def to_line(self) -> dict[str, Any]:
        """Itself, as the first line."""
        settings = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in ((name, getattr(self.settings, name)) for name in SETTINGS)
        }
        settings["databases"] = [each.to_json() for each in self.settings.databases]
        return {"settings": settings, "shared": asdict(self.shared)}

    @classmethod
    def from_line(cls, line: dict[str, Any]) -> Self:
        """What `to_line` has made a line of."""
        settings: dict[str, Any] = {
            name: _from_json(name, value) for name, value in line["settings"].items()
        }
        settings["databases"] = tuple(map(NamedDatabase.from_json, settings["databases"]))
        shared = line["shared"]
        sockets = tuple(shared["sockets"])
        return cls(Settings(**settings), Shared(**(shared | {"sockets": sockets})))


def _from_json(name: str, value: Any) -> Any:
    """The value of a setting that JSON has made a list or a string of."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and SETTINGS[name].type is Path:
        return Path(value)
    return value


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Self:
        """The channel on a connected socket."""
        end.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=end, limit=_MAX_LINE_BYTES))

    def send(self, line: dict[str, Any]) -> None:
        """Send a line, if the other side is still there."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    async def sent(self) -> None:
        """Wait until what was sent is on its way, if anybody takes it."""
        with suppress(OSError):
            await self._writer.drain()

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """What the other side says, until it has ended."""
        while True:
            try:
                line = await self._reader.readline()
            except OSError:  # it was killed
                return
            if not line.endswith(b"\n"):
                return
            yield json.loads(line)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()
