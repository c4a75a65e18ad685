"""A PostgreSQL of a given version, and a PgBouncer in front of it, for the length of a run."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import psycopg

from tests.support.binaries import Program

_POOLER_PORT = 6432
_START_SECONDS = 60
_STOP_SECONDS = 60


class _Daemon:
    """A child process that listens on a Unix socket in `directory`, which it makes and owns.

    It refuses to run as root, so root runs it as nobody: a copy of it, because nobody may not be
    able to reach the original.
    """

    _stop_signal: signal.Signals
    """What ends it at once, whoever is connected."""

    def __init__(self, program: Program, directory: Path) -> None:
        self.directory = directory
        """Where its socket is."""
        directory.mkdir()
        self._installed = program
        self._as: dict[str, Any] = {"cwd": directory}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(directory, nobody.pw_uid, nobody.pw_gid)
            self._as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            program = program.copied_to(directory / "program")
        self._as["env"] = program.env
        self._program = program
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes]
        self.url: str
        """The connection string of its maintenance database."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(self._stop_signal)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def _start(self, arguments: Sequence[str | Path]) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._program.command, *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._as,
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.url).close()
            except psycopg.OperationalError as exc:
                if self._process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                self.__exit__()
                raise AssertionError(f"{exc}\n{self._log.read_text()}") from exc
            return


class PostgresServer(_Daemon):
    """A PostgreSQL server; it runs inside the context.

    `settings`: settings of its own. `access`: what its pg_hba.conf says of connections that do not
    come through its socket.
    """

    _stop_signal = signal.SIGINT

    def __init__(
        self,
        program: Program,
        directory: Path,
        settings: Mapping[str, str] = MappingProxyType({}),
        access: str = "",
    ) -> None:
        super().__init__(program, directory)
        self._settings = settings
        self._access = access

    def give(self, name: str, content: bytes) -> Path:
        """A file that only PostgreSQL may read."""
        file = self.directory / name
        file.touch(0o600)
        owner = self.directory.stat()
        os.chown(file, owner.st_uid, owner.st_gid)
        file.write_bytes(content)
        return file

    def __enter__(self) -> Self:
        port = self._settings.get("port", "5432")
        self.url = f"postgresql://postgres@/postgres?host={self.directory}&port={port}"
        data = self.directory / "data"
        self._make(data)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.directory),
            "jit": "off",  # a package may lack the library
            **self._settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        self._arguments: list[str | Path] = ["-D", data, *options]
        self._start(self._arguments)
        return self

    def _make(self, data: Path) -> None:
        """Make its data directory."""
        subprocess.run(
            [self._program.path.with_name("initdb"), "--auth=trust", "--username=postgres",
             "--encoding=UTF8", "--locale=C", "--pgdata", data],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, **self._as,
        )  # fmt: skip
        (data / "pg_hba.conf").write_text(f"local all all trust\n{self._access}")

    def crash(self) -> None:
        """End it at once, as a loss of power would, and start it again: it recovers."""
        self.lose()
        self.recover()

    def lose(self) -> None:
        """End it at once, as a loss of power would."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(_STOP_SECONDS)

    def recover(self) -> None:
        """Start it again."""
        self._start(self._arguments)


class PgBouncer(_Daemon):
    """A PgBouncer in transaction mode; it runs inside the context.

    `postgres`: the directory of the PostgreSQL behind it. `prepare`: from version 1.21 on it
    follows prepared statements; before, servers behind it must do without. `pool_size`: its
    connections to PostgreSQL.
    """

    def __init__(
        self, program: Program, directory: Path, postgres: Path, *, pool_size: int = 10
    ) -> None:
        super().__init__(program, directory)
        self._pool_size = pool_size
        self._postgres = postgres
        version = tuple(map(int, program.version().split(".")))
        self.prepare = version >= (1, 21)
        # The one that older versions know waits for clients in newer ones.
        self._stop_signal = signal.SIGQUIT if version >= (1, 23) else signal.SIGTERM

    def __enter__(self) -> Self:
        self.url = f"postgresql://postgres@/postgres?host={self.directory}&port={_POOLER_PORT}"
        config = self.directory / "pgbouncer.ini"
        config.write_text(
            f"""\
[databases]
* = host={self._postgres} user=postgres

[pgbouncer]
unix_socket_dir = {self.directory}
listen_port = {_POOLER_PORT}
auth_type = any
pool_mode = transaction
default_pool_size = {self._pool_size}
max_client_conn = 1000
{"max_prepared_statements = 100" if self.prepare else ""}
"""
        )
        self._start([config])
        return self
