"""The embedded PostgreSQL comes back by itself, whatever happened to it or to its files."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import psycopg
import pytest

from tests.support import make
from tests.support.embedded import postgres_processes, postmaster
from tests.support.server import ServerProcess
from tests.support.waiting import wait_for
from wfe.persistence.v1.event_pb2 import CreateEventRequest, GetEventRequest
from wfe.persistence.v1.event_pb2_grpc import EventServiceStub
from wfe_persistence.embedded import EmbeddedPostgres

ENDED = "the embedded PostgreSQL has ended; starting it again"
AGAIN = "the embedded PostgreSQL runs again"
WAITING = "which another process holds"


def server_on(data_dir: Path, log: Path, under: tuple[str, ...] = ()) -> ServerProcess:
    return ServerProcess(log, "--data-dir", str(data_dir), under=under)


def url_of(data_dir: Path) -> str:
    return f"host={data_dir}/postgres-18 user=postgres dbname=postgres"


def events(server: ServerProcess, said: str) -> list[str]:
    messages = [json.loads(line)["message"] for line in server.log().splitlines()]
    return [message for message in messages if said in message]


def write_and_read(server: ServerProcess) -> None:
    event = make.event()
    with grpc.insecure_channel(server.address) as channel:
        events = EventServiceStub(channel)
        events.CreateEvent(CreateEventRequest(event=event), timeout=20)
        assert events.GetEvent(GetEventRequest(id=event.id), timeout=20).event.id == event.id


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT, signal.SIGTERM])
def test_it_is_started_again_when_it_has_ended(
    tmp_path: Path, data_dir: Path, number: signal.Signals
) -> None:
    with server_on(data_dir, tmp_path / "log") as server:
        write_and_read(server)
        os.kill(postmaster(data_dir), number)
        wait_for(lambda: events(server, AGAIN))
        server.wait_until_serving()
        write_and_read(server)
        [event] = events(server, ENDED)
        assert ("killed by SIGKILL" if number == signal.SIGKILL else "exit status 0") in event
        assert "database system is " in event, "the end of its log tells more"
    assert not postgres_processes(data_dir)


def test_its_log_stays_small(tmp_path: Path, data_dir: Path) -> None:
    log = data_dir / "postgres-18" / "log"
    before = log.with_name("log.1")
    filling = b"LOG:  something happened\n" * (17 * 2**20 // 25)
    servers = [server_on(data_dir, tmp_path / name) for name in ("log", "other")]
    with servers[0], servers[1]:
        write_and_read(servers[0])
        for _ in range(2):
            with log.open("ab") as file:
                file.write(filling)
            wait_for(lambda: log.stat().st_size < 2 * 2**20)
            # All of it, and not that of the round before (it may begin while this still writes).
            assert before.stat().st_size + log.stat().st_size >= len(filling)
            assert before.stat().st_size < len(filling) + 2**20
        now, then = log.stat(), before.stat()
        assert (now.st_uid, now.st_mode) == (then.st_uid, then.st_mode)
        # PostgreSQL goes on in it, at its beginning.
        os.kill(postmaster(data_dir), signal.SIGKILL)
        wait_for(lambda: any(events(server, AGAIN) for server in servers))
        servers[0].wait_until_serving()
        assert b"database system is ready" in log.read_bytes()
        assert b"\0" not in log.read_bytes()


def test_processes_share_it_and_one_starts_it_again(tmp_path: Path, data_dir: Path) -> None:
    """Also when it is not the one that had started it, and that is dead."""
    servers = [server_on(data_dir, tmp_path / f"log{number}") for number in range(3)]
    with servers[1], servers[2]:
        servers[0].start()
        servers[0].wait_until_serving()
        for _ in range(2):
            before = sum(len(events(server, AGAIN)) for server in servers)
            os.kill(postmaster(data_dir), signal.SIGKILL)
            wait_for(lambda: sum(len(events(s, AGAIN)) for s in servers) > before)  # noqa: B023
            for server in servers:
                server.wait_until_serving()
            assert sum(len(events(server, AGAIN)) for server in servers) == before + 1
            assert sum(len(events(server, ENDED)) for server in servers) == before + 1
            assert len(postgres_processes(data_dir)) == 1
        servers[1].kill()  # which had started it at first
        os.kill(postmaster(data_dir), signal.SIGKILL)
        wait_for(lambda: sum(len(events(server, AGAIN)) for server in servers) == 3)
        servers[0].wait_until_serving()
        servers[2].wait_until_serving()
        assert servers[0].stop() == 0
        assert postgres_processes(data_dir)
    assert not postgres_processes(data_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk")
def test_a_full_disk_is_survived(tmp_path: Path, data_dir: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "none", data_dir], check=True)
    try:
        data_dir.chmod(0o711)
        with server_on(data_dir, tmp_path / "log") as server:
            write_and_read(server)
            ballast = data_dir / "ballast"
            with ballast.open("wb") as file:
                space = os.statvfs(data_dir)
                os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize)

            def fill() -> None:
                with psycopg.connect(url_of(data_dir), autocommit=True) as connection:
                    while True:
                        connection.execute(
                            "SELECT pg_logical_emit_message(false, 'x', %s)", ["x" * 10**6]
                        )

            with pytest.raises(psycopg.Error):
                fill()
            # The first restart may succeed, as recovery needs little; the disk is still full.
            wait_for(lambda: "is full" in "".join(events(server, ENDED)))
            ballast.unlink()
            wait_for(lambda: events(server, AGAIN))
            server.wait_until_serving()
            write_and_read(server)
    finally:
        subprocess.run(["umount", data_dir], check=True)


@contextmanager
def stranger(data_dir: Path, *, zombie: bool) -> Iterator[subprocess.Popen[bytes]]:
    """A process of PostgreSQL's user that is none of PostgreSQL's; a zombie if nobody reaps it."""
    owner = (data_dir / "postgres-18").stat().st_uid
    command = ["true"] if zombie else ["sleep", "1000"]
    process = subprocess.Popen(command, user=owner if os.geteuid() == 0 else None)
    try:
        if zombie:
            wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("zombie", [False, True])
def test_a_stale_pid_that_names_another_process(
    tmp_path: Path, data_dir: Path, zombie: bool
) -> None:
    server = server_on(data_dir, tmp_path / "log")
    with server:
        text = (data_dir / "postgres-18" / "postmaster.pid").read_text()
        server.kill()
        os.kill(postmaster(data_dir), signal.SIGKILL)
        wait_for(lambda: not postgres_processes(data_dir))
    with stranger(data_dir, zombie=zombie) as other:
        lines = [str(other.pid), *text.splitlines()[1:]]
        (data_dir / "postgres-18" / "postmaster.pid").write_text("\n".join(lines) + "\n")
        with server:
            assert postmaster(data_dir) != other.pid
        if not zombie:
            assert other.poll() is None, "the stranger was not taken for PostgreSQL at the stop"
    assert not postgres_processes(data_dir)


def test_one_that_an_earlier_release_has_started(tmp_path: Path, data_dir: Path) -> None:
    """Without our lock, and with a data directory as it was made then."""
    with EmbeddedPostgres(data_dir) as postgres:
        binaries = Path(psutil.Process(postmaster(data_dir)).exe()).parent
    pgdata = data_dir / "postgres-18"
    for lock in ("start.lock", "users.lock"):
        (data_dir / lock).chmod(0o644)
    options = f"-c listen_addresses='' -c unix_socket_directories='{pgdata}'"
    subprocess.run(
        [binaries / "pg_ctl", "start", "--silent", "--wait", "--pgdata", pgdata, "-o", options,
         "--log", pgdata / "log"],
        user=pgdata.stat().st_uid if os.geteuid() == 0 else None, check=True, cwd="/",
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    [pid] = postgres_processes(data_dir)
    with server_on(data_dir, tmp_path / "log"):
        assert postgres_processes(data_dir) == [pid]
        assert postgres.running()
        for lock in ("start.lock", "users.lock"):
            assert stat.S_IMODE((data_dir / lock).stat().st_mode) == 0o600
    assert not postgres_processes(data_dir)


@contextmanager
def start_lock_held(data_dir: Path) -> Iterator[None]:
    with (data_dir / "start.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_waiting_for_another_start_is_logged(tmp_path: Path, data_dir: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "wfe_persistence", "migrate", "up"]
        command += ["--data-dir", str(data_dir)]
        with start_lock_held(data_dir):
            process = subprocess.Popen(command, stdout=output, stderr=output)
            wait_for(lambda: WAITING in log.read_text())
            assert str(data_dir / "start.lock") in log.read_text()
        assert process.wait(60) == 0
    assert log.read_text().count(WAITING) == 1
    for lock in data_dir.glob("*.lock"):
        mode = stat.S_IMODE(lock.stat().st_mode)
        assert (mode == 0o600) or lock.name == "start.lock", (
            "others can't hold what they can't read"
        )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["serve", "migrate up"])
@pytest.mark.parametrize("moment", ["waits", "initializes", "starts", "runs"])
def test_a_start_that_is_interrupted_leaves_nothing(
    tmp_path: Path, data_dir: Path, command: str, number: signal.Signals, moment: str
) -> None:
    pgdata = data_dir / "postgres-18"
    log = tmp_path / "log"

    def reached() -> bool:
        return {
            "waits": WAITING in log.read_text(),
            "initializes": bool(list(data_dir.glob("*.new/base"))) or pgdata.exists(),
            "starts": pgdata.exists(),
            "runs": bool(list(pgdata.glob(".s.PGSQL.5432"))),
        }[moment]

    with log.open("wb") as output:
        arguments = [*command.split(), "--data-dir", str(data_dir)]
        if command == "serve":
            arguments += ["--listen", "127.0.0.1:0"]
        held = start_lock_held(data_dir) if moment == "waits" else nothing()
        with held:
            process = subprocess.Popen(
                [sys.executable, "-m", "wfe_persistence", *arguments], stdout=output, stderr=output
            )
            wait_for(reached)
            process.send_signal(number)
            process.send_signal(number)
            try:
                assert process.wait(30) == (0 if command == "serve" else 128 + number)
            finally:
                process.kill()
                process.wait()
    assert "Aborted" not in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not postgres_processes(data_dir)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(data_dir) in str(p.info)]


# What the handler of a signal raises would end where the signal happens to arrive.
SWALLOWED_IN_AN_IMPORT = """
import os, signal, sys
from wfe_persistence.cli import main

class Finder:
    def find_spec(self, name, path, target=None):
        if name in ("wfe_persistence.app", "wfe_persistence.store.namespace"):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except BaseException:
                pass

sys.meta_path.insert(0, Finder())
main()
"""


@pytest.mark.parametrize(
    ("command", "status"), [("serve --listen 127.0.0.1:0", 0), ("migrate up", 143)]
)
def test_a_signal_is_not_lost_in_an_import(
    tmp_path: Path, data_dir: Path, command: str, status: int
) -> None:
    log = tmp_path / "log"
    arguments = [*command.split(), "--data-dir", str(data_dir)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SWALLOWED_IN_AN_IMPORT, *arguments],
            stdout=output,
            stderr=output,
        )
        try:
            assert process.wait(30) == status, log.read_text()
        finally:
            process.kill()
            process.wait()
    assert "starting the embedded PostgreSQL" in log.read_text()
    assert not postgres_processes(data_dir)


@contextmanager
def nothing() -> Iterator[None]:
    yield


def test_one_that_a_killed_server_has_left_is_found_running(tmp_path: Path, data_dir: Path) -> None:
    server = server_on(data_dir, tmp_path / "log")
    with server:
        running = postgres_processes(data_dir)
        server.kill()
        assert postgres_processes(data_dir) == running
        server.start()
        server.wait_until_serving()
        assert postgres_processes(data_dir) == running
    assert not postgres_processes(data_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace of processes")
def test_as_process_1_it_reaps_orphans(tmp_path: Path, data_dir: Path) -> None:
    """As in a container. Beside it, a server in another container uses the same directory."""
    under = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    server = server_on(data_dir, tmp_path / "log", under)
    server.start()
    try:
        server.wait_until_serving()
        init = psutil.Process(server.process.pid).children()[0]
        with server_on(data_dir, tmp_path / "beside") as beside:
            assert len(postgres_processes(data_dir)) == 1, "seen though its process id is not"
            [main] = [p for p in init.children(recursive=True) if is_postmaster(p)]
            backends = main.children()
            assert len(backends) > 4
            main.kill()
            wait_for(lambda: events(server, AGAIN) + events(beside, AGAIN))
            server.wait_until_serving()
            beside.wait_until_serving()
            write_and_read(server)
            write_and_read(beside)
            assert len(postgres_processes(data_dir)) == 1
            wait_for(lambda: not [p for p in backends if p.is_running()])
            zombies = [p for p in init.children(recursive=True) if p.status() == "zombie"]
            assert not zombies
            assert len(events(server, AGAIN) + events(beside, AGAIN)) == 1
        init.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert events(server, "SIGTERM: draining")
    finally:
        server.process.kill()
        server.process.wait()
    # If the server beside has started it again, this one can't have ended it: it is as out of reach
    # as one in another container, with which it would end.
    with server_on(data_dir, tmp_path / "last"):
        pass
    wait_for(lambda: not postgres_processes(data_dir))


def is_postmaster(process: psutil.Process) -> bool:
    return "-D" in process.cmdline()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_as_a_user_without_privileges(tmp_path: Path) -> None:
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    reach = [*user, sys.executable, "-c", "import wfe_persistence"]
    if subprocess.run(reach, capture_output=True, check=False).returncode != 0:
        pytest.skip("this Python, or the tree, is out of reach of other users")
    home = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    try:
        os.chown(home, 65534, 65534)
        env = {**os.environ, "HOME": str(home)}
        env.pop("XDG_DATA_HOME", None)
        with ServerProcess(tmp_path / "log", env=env, under=tuple(user)) as server:
            data_dir = home / ".local/share/wfe-persistence"
            os.kill(postmaster(data_dir), signal.SIGKILL)
            wait_for(lambda: events(server, AGAIN))
            server.wait_until_serving()
            assert {path.stat().st_uid for path in home.rglob("*")} == {65534}
            assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert not postgres_processes(data_dir)
    finally:
        shutil.rmtree(home)
