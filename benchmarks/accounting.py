"""The processor's time and the memory of a whole PostgreSQL: of all its processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil
import psycopg

from benchmarks.timing import cpu_seconds


@dataclass(frozen=True, slots=True)
class Memory:
    """Of several processes, in MB: what they share counts once in `pss`, not at all in `uss`."""

    processes: int
    pss: float
    uss: float


class Accounted:
    """A PostgreSQL whose processor's time is counted."""

    def __init__(self, postmaster: int) -> None:
        self._postmaster = psutil.Process(postmaster)

    @classmethod
    def at(cls, url: str) -> Self:
        """That of a connection string, on this machine."""
        with psycopg.connect(url) as connection:
            row = connection.execute(
                "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int"
            ).fetchone()
        assert row
        return cls(row[0])

    def cpu_seconds(self) -> float:
        """User and system, of its processes and of those that have ended."""
        ended = self._postmaster.cpu_times()
        total = ended.children_user + ended.children_system
        for process in self._processes():
            try:
                total += cpu_seconds(process)
            except (OSError, psutil.Error):
                continue  # it has ended meanwhile
        return total

    def memory(self) -> Memory:
        """Of all its processes, the shared buffers once."""
        found = []
        for process in self._processes():
            try:
                found.append(process.memory_full_info())
            except psutil.Error:
                continue
        return Memory(
            len(found), sum(each.pss for each in found) / 1e6, sum(each.uss for each in found) / 1e6
        )

    def give_way(self) -> None:
        """Let everything else on this machine go first, as if it were slow on a machine of its
        own. What it starts from now on does the same; there is no way back."""
        for process in self._processes():
            try:
                process.nice(19)
            except psutil.Error:
                continue
        # Where Linux shares the processor out among sessions first, each PostgreSQL is one.
        with suppress(OSError):
            Path(f"/proc/{self._postmaster.pid}/autogroup").write_text("19")

    def _processes(self) -> Iterator[psutil.Process]:
        yield self._postmaster
        yield from self._postmaster.children(recursive=True)
