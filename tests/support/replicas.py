"""A PostgreSQL with streaming replicas, for the length of a test file."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import psycopg

from tests.support.binaries import Program
from tests.support.postgres import PostgresServer
from tests.support.waiting import wait_for

_ACCESS = "local replication all trust\n"
_FAST = {
    "max_wal_senders": "10",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "100ms",
    "shared_buffers": "32MB",
}


class Member(PostgresServer):
    """A primary, or one that can become one; it runs inside the context."""

    def __init__(
        self,
        program: Program,
        directory: Path,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(program, directory, _FAST | dict(settings), _ACCESS)

    def execute(self, sql: str) -> Any:
        """Run a statement as the superuser; the first value of its first row, if it has any."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None

    def crash(self) -> None:
        """End it at once, as if the machine had lost power."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(60)

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            super().__exit__()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It does nothing, but its connections stay open, and the system accepts new ones."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        pids = [self.pid, *map(int, children)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


class Standby(Member):
    """A streaming replica of a primary; it runs inside the context."""

    def __init__(
        self,
        primary: Member,
        directory: Path,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(primary._installed, directory, settings)
        self._primary = primary

    def _make(self, data: Path) -> None:
        primary = f"host={self._primary.directory} user=postgres application_name={self.name}"
        subprocess.run(
            [self._program.path.with_name("pg_basebackup"), "--pgdata", data, "--dbname", primary,
             "--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, **self._as,
        )  # fmt: skip
        # (Not an option of its start, which nothing could change.)
        with (data / "postgresql.conf").open("a") as file:
            file.write("hot_standby_feedback = on\n")

    @property
    def name(self) -> str:
        """What it is called in `synchronous_standby_names`."""
        return self.directory.name

    def __enter__(self) -> Self:
        super().__enter__()
        wait_for(lambda: self.execute("SELECT count(*) FROM pg_stat_wal_receiver") == 1)
        return self

    @contextmanager
    def paused(self) -> Iterator[None]:
        """It goes on receiving, but does not replay."""
        self.execute("SELECT pg_wal_replay_pause()")
        wait_for(lambda: self.execute("SELECT pg_get_wal_replay_pause_state()") == "paused")
        try:
            yield
        finally:
            self.execute("SELECT pg_wal_replay_resume()")

    def promote(self) -> None:
        """Make it a primary."""
        assert self.execute("SELECT pg_promote(TRUE, 60)")
