"""A Unix socket belongs to one server at a time, and to whom its permissions say."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.server import ServerProcess
from wfe_persistence.settings import Settings


def serve(tmp_path: Path, url: str, path: Path, *more: str) -> ServerProcess:
    log = tmp_path / f"log{len(list(tmp_path.glob('log*')))}"
    return ServerProcess(log, "--db-url", url, "--listen", f"unix:{path}", *more)


def refusal(url: str, path: Path) -> str:
    """What a server says that can't listen there."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "wfe_persistence",
            "serve",
            "--db-url",
            url,
            "--listen",
            f"unix:{path}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_second_server_is_refused_and_the_first_one_keeps_its_socket(
    tmp_path: Path, data_dir: Path, database_url: str
) -> None:
    path = data_dir / "socket"
    with serve(tmp_path, database_url, path) as first:
        inode = path.stat().st_ino
        for _ in range(2):
            said = refusal(database_url, path)
            assert f"another server (process {first.process.pid}) does" in said
        assert path.stat().st_ino == inode
        first.wait_until_serving()
    assert not list(data_dir.iterdir())


def test_the_socket_of_a_killed_server_is_replaced(
    tmp_path: Path, data_dir: Path, database_url: str
) -> None:
    path = data_dir / "socket"
    with serve(tmp_path, database_url, path) as killed:
        killed.kill()
    assert path.is_socket()
    with serve(tmp_path, database_url, path) as next_one:
        assert "left behind" in next_one.log()
        assert f"process {next_one.process.pid}" in refusal(database_url, path)
    assert not list(data_dir.iterdir())


def test_what_is_no_socket_of_a_dead_server_stays(
    tmp_path: Path, data_dir: Path, database_url: str
) -> None:
    path = data_dir / "file"
    path.write_text("precious")
    assert "it exists and is no socket" in refusal(database_url, path)
    assert path.read_text() == "precious"
    path = data_dir / "foreign"
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(path))
        foreign.listen()
        assert "another program does" in refusal(database_url, path)
        assert path.is_socket()
    assert "No such file or directory" in refusal(database_url, data_dir / "none" / "socket")
    assert "at most 103 bytes" in refusal(database_url, data_dir / ("x" * 110))


def test_a_stopping_server_leaves_the_socket_of_others(
    tmp_path: Path, data_dir: Path, database_url: str
) -> None:
    path = data_dir / "socket"
    with serve(tmp_path, database_url, path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as foreign:
            foreign.bind(str(path))
    assert path.is_socket()


@pytest.mark.parametrize("mode", ["0600", "660", "0666"])
def test_the_socket_is_never_more_open_than_the_mode(
    tmp_path: Path, data_dir: Path, database_url: str, mode: str
) -> None:
    path = data_dir / "socket"
    seen: set[tuple[str, int]] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            for entry in os.scandir(data_dir):
                try:
                    seen.add((entry.name, stat.S_IMODE(entry.stat().st_mode)))
                except FileNotFoundError:
                    continue

    thread = threading.Thread(target=look)
    umask = os.umask(0)  # the server inherits it
    thread.start()
    try:
        with serve(tmp_path, database_url, path, "--socket-mode", mode, "--insecure"):
            pass
    finally:
        os.umask(umask)
        ended.set()
        thread.join()
    assert {m for name, m in seen if name == "socket"} == {int(mode, 8)}
    # While it has another name, nobody else can connect either; nor read or take the lock.
    assert {m for name, m in seen if name == "socket.new"} <= {0o600, int(mode, 8)}
    assert {m for name, m in seen if name == "socket.lock"} == {0o600}


@pytest.mark.parametrize(
    ("listen", "mode", "said"),
    [
        ("unix-abstract:wfe", "0600", "has no permissions"),
        ("unix:/run/wfe", "0800", "^socket-mode: must be octal"),
        ("unix:/run/wfe", "rw", "^socket-mode: must be octal"),
        ("unix:/run/wfe", "4755", "^socket-mode: must be octal"),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(listen: str, mode: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(listen=listen, socket_mode=mode)
