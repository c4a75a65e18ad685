"""The processes of a run: PostgreSQL, PgBouncer, servers, and the disks that may fill up.

All of them belong to this process, run in a temporary directory, and end with the stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import psycopg

from tests.faults.chaos.check import SERVER_DEADLINE
from tests.faults.chaos.network import Network
from tests.support import binaries
from tests.support.binaries import Program
from tests.support.postgres import PgBouncer
from tests.support.server import ServerProcess

_POSTGRES_VERSION = 18
_DISK_MB = {"data": 160, "wal": 24}


class NotPossibleHereError(Exception):
    """This machine can't do what the run needs; the message says why."""


@dataclass(frozen=True)
class Layout:
    """What stands where in a run."""

    servers: int = 1
    through: str = "socket"
    """How servers reach PostgreSQL: `socket`, `network` (which can fail) or `pgbouncer`."""
    disk: str = ""
    """What is on a small disk of its own: `data` or `wal`."""
    clock: str = ""
    """How far the first server's clock is off, as libfaketime writes it: `+1h`."""
    options: tuple[str, ...] = ()
    """More options of the servers."""
    max_connections: int = 60
    twice: bool = False
    """Clients send every write twice at the same time."""
    planted: str = ""
    """A bug in the servers, by its name in `planted`."""


class Postgres:
    """A PostgreSQL on a Unix socket. It is started again only by who calls `start`."""

    def __init__(
        self, program: Program, directory: Path, wal: Path, log: Path, layout: Layout
    ) -> None:
        self.directory = directory
        self._data = directory / "data"
        self._wal = wal
        self._log = log
        self._program = program
        self._layout = layout
        self.process: subprocess.Popen[bytes] | None = None
        self._initialize()

    @property
    def url(self) -> str:
        """For outsiders, who come by the socket."""
        return f"postgresql://postgres@/postgres?host={self.directory}"

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """An outsider's connection, in autocommit."""
        return psycopg.connect(self.url, autocommit=True, connect_timeout=5, **options)

    def _initialize(self) -> None:
        give_away(self.directory)
        give_away(self._wal)
        initdb = self._program.path.with_name("initdb")
        done = subprocess.run(
            [initdb, "--auth=trust", "--username=postgres", "--encoding=UTF8",
             "--locale=C", "--no-sync", "--wal-segsize=1", f"--waldir={self._wal}",
             f"--pgdata={self._data}"],
            capture_output=True, text=True, check=False, **self._as_unprivileged(),
        )  # fmt: skip
        if done.returncode != 0:
            raise NotPossibleHereError(f"initdb failed: {done.stderr.strip()}")

    def _as_unprivileged(self) -> dict[str, Any]:
        options: dict[str, Any] = {"cwd": "/", "env": self._program.env}
        if (user := _unprivileged()) is not None:
            options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        return options

    def start(self, seconds: float = 60) -> None:
        """Start it, again and again while what is left of the one before prevents it."""
        deadline = time.monotonic() + seconds
        while True:
            if self.process is None or self.process.poll() is not None:
                self._spawn()
            with contextlib.suppress(psycopg.OperationalError), self.connect():
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL does not start:\n{self.log()[-2000:]}")
            time.sleep(0.05)

    def _spawn(self) -> None:
        settings = {
            "listen_addresses": "", "unix_socket_directories": self.directory,
            "max_connections": self._layout.max_connections, "shared_buffers": "32MB",
            "min_wal_size": "2MB", "max_wal_size": "8MB", "wal_recycle": "off",
            "restart_after_crash": "on",
        }  # fmt: skip
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [self._program.path, "-D", self._data, *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._as_unprivileged(),
            )  # fmt: skip

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the postmaster, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def end(self, number: signal.Signals, seconds: float = 20) -> None:
        """Send a signal to the postmaster and wait until it has ended."""
        self.send(number)
        if self.process is not None:
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def running(self) -> bool:
        """Whether there is a postmaster."""
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")


class Disk:
    """A small disk (tmpfs), which can be filled up."""

    def __init__(self, path: Path, megabytes: int) -> None:
        self._path = path
        path.mkdir()
        if os.geteuid() != 0:
            raise NotPossibleHereError("only root can mount a small disk")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0755", "tmpfs", path],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise NotPossibleHereError(f"no small disk: {done.stderr.strip()}")

    def fill(self) -> None:
        """Take all the space that is left."""
        with (self._path / "filler").open("ab", buffering=0) as filler:
            block = b"x" * 65536
            while block:
                try:
                    filler.write(block)
                except OSError:
                    block = block[: len(block) // 2]

    def free(self) -> None:
        """Give it back."""
        (self._path / "filler").unlink(missing_ok=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self._path], check=True)


class Stage:
    """All processes of a run but the clients. As a context manager, it serves inside."""

    def __init__(self, layout: Layout, random_: random.Random, run_dir: Path) -> None:
        self.layout = layout
        self._run_dir = run_dir
        self._random = random_
        self._stack = AsyncExitStack()
        self.servers: list[ServerProcess] = []
        self.postgres: Postgres
        self.disk: Disk | None = None
        self.network: Network | None = None
        self._prepare = True
        self.directory = Path()
        self.kill_client: Callable[[random.Random], None] | None = None
        """Kills one of the clients, which are the runner's."""
        self.schema = "wfc"
        """That of the namespace in which the clients are."""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.directory = Path(tempfile.mkdtemp(dir=self._run_dir, prefix="stage-"))
            self.directory.chmod(0o755)
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            places = {"data": self.directory / "pg", "wal": self.directory / "wal"}
            for name, path in places.items():
                if self.layout.disk == name:
                    self.disk = Disk(path, _DISK_MB[name])
                    stack.callback(self.disk.unmount)
                else:
                    path.mkdir()
            self.postgres = await asyncio.to_thread(
                Postgres, self._program(), places["data"], places["wal"],
                self.directory / "pg.log", self.layout,
            )  # fmt: skip
            stack.callback(self.postgres.end, signal.SIGQUIT)
            await asyncio.to_thread(self.postgres.start)
            url = await self._way_to_postgres(stack)
            for number in range(self.layout.servers):
                server = self._server(number, url, "127.0.0.1:0")
                stack.callback(self._stop, number)
                self.servers.append(server)
                await asyncio.to_thread(server.start)
                await asyncio.to_thread(server.wait_until_serving)
                # From now on it can be started again at the same address.
                again = self._server(number, url, server.address)
                again.process, again.address = server.process, server.address
                self.servers[number] = again
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _way_to_postgres(self, stack: AsyncExitStack) -> str:
        if self.layout.through == "network":
            self.network = await stack.enter_async_context(
                Network(self.postgres.directory, self._random)
            )
            return f"postgresql://postgres@127.0.0.1:{self.network.port}/postgres?sslmode=disable"
        if self.layout.through == "pgbouncer":
            pooler = PgBouncer(
                binaries.pgbouncer(), self.directory / "pgbouncer", self.postgres.directory,
                pool_size=2,
            )  # fmt: skip
            self._prepare = pooler.prepare
            await asyncio.to_thread(stack.enter_context, pooler)
            return pooler.url
        return self.postgres.url

    def _program(self) -> Program:
        """PostgreSQL's program, where an unprivileged user can reach it: copied once in a run."""
        program = binaries.postgres(_POSTGRES_VERSION)
        if _unprivileged() is None or program.root is None:
            return program
        copy = self._run_dir / "postgres"
        if not copy.exists():
            return program.copied_to(copy)
        return Program(copy / program.path.relative_to(program.root), copy)

    def _server(self, number: int, url: str, listen: str) -> ServerProcess:
        options = [
            "--db-url", url, "--listen", listen, "--default-deadline", str(SERVER_DEADLINE),
            "--allow-create-namespace",
        ]  # fmt: skip
        if not self._prepare:
            options.append("--no-prepare")
        env = dict(os.environ)
        if self.layout.clock and number == 0:
            # Only the time of day is off; what waits, waits by the monotonic clock.
            env |= {
                "LD_PRELOAD": str(_libfaketime()), "FAKETIME": self.layout.clock,
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
            }  # fmt: skip
        if self.layout.planted:
            env["PLANTED"] = self.layout.planted
        return ServerProcess(
            self.directory / f"server-{number}", *options, *self.layout.options, env=env,
            module="tests.faults.chaos.planted" if self.layout.planted else "wfe_persistence",
        )  # fmt: skip

    def _stop(self, number: int) -> None:
        server = self.servers[number]
        if hasattr(server, "process") and server.process.poll() is None:
            server.kill()

    @property
    def addresses(self) -> list[str]:
        """Where the servers listen."""
        return [server.address for server in self.servers]


def _libfaketime() -> Path:
    wheel = find_spec("libfaketime")
    if wheel is None or wheel.origin is None or sys.platform != "linux":
        raise NotPossibleHereError("no clock can be set: libfaketime is not installed")
    return Path(wheel.origin).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom PostgreSQL runs as, which refuses to run as root; None: the current user."""
    if os.geteuid() != 0:
        return None
    return pwd.getpwnam("nobody")


def give_away(path: Path) -> None:
    """Make a directory that of the user whom PostgreSQL runs as."""
    if (user := _unprivileged()) is not None:
        os.chown(path, user.pw_uid, user.pw_gid)


def backends(connection: psycopg.Connection[Any]) -> Iterator[int]:
    """The processes of PostgreSQL that serve clients, but for the one that asks."""
    for (pid,) in connection.execute(
        "SELECT pid FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    ):
        yield int(pid)
