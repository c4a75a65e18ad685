"""A server under systemd: what it tells its service manager, and the unit in deploy/."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.server import ServerProcess
from wfe_persistence.service_manager import ServiceManager
from wfe_persistence.settings import SETTINGS

UNIT = Path(__file__).parents[1] / "deploy" / "systemd" / "wfe-persistence.service"

# Runs the rest of its arguments in a process whose memory is never writable and executable, and
# says first whether the kernel can do that: PR_SET_MDWE.
STRICT_MEMORY = """
import ctypes, os, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:
    print("no PR_SET_MDWE in this kernel", file=sys.stderr)
os.execv(sys.argv[1], sys.argv[1:])
"""


@contextmanager
def manager_at(path: Path) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(path))
        end.settimeout(30)
        yield end


def told_until(end: socket.socket, last: str) -> list[str]:
    """The messages up to the one that has `last` in it."""
    told = [""]
    while last not in told[-1]:
        told.append(end.recv(4096).decode())
    return told[1:]


def test_what_the_manager_is_told(tmp_path: Path, data_dir: Path) -> None:
    with manager_at(tmp_path / "notify") as end:
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "300000",
        }
        server = ServerProcess(
            tmp_path / "log", "--data-dir", str(data_dir), env=environment,
            under=[sys.executable, "-c", STRICT_MEMORY],
        )  # fmt: skip
        with server:
            started = told_until(end, "READY=1")
            assert started[0] == "STATUS=opening the database"
            assert "STATUS=serving" in started[-1]
            assert told_until(end, "WATCHDOG=1")[-1] == "WATCHDOG=1"
            # PostgreSQL may not speak for the server.
            children = psutil.Process(server.process.pid).children(recursive=True)
            assert children
            for child in children:
                assert "NOTIFY_SOCKET" not in child.environ()
        assert told_until(end, "STOPPING=1")[-1] == "STOPPING=1\nSTATUS=draining"


def test_a_database_that_is_away_is_the_status_and_no_end_of_the_start(tmp_path: Path) -> None:
    with manager_at(tmp_path / "notify") as end:
        server = ServerProcess(
            tmp_path / "log", "--db-url", "postgresql://u:canary@127.0.0.1:1/x",
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )  # fmt: skip
        server.start()
        try:
            told = told_until(end, "not serving: ")
        finally:
            server.stop()
        told += told_until(end, "STOPPING=1")
    assert "READY=1" not in "\n".join(told)
    assert "canary" not in "\n".join(told)


def test_an_abstract_address_and_a_watchdog_of_another_process(tmp_path: Path) -> None:
    name = f"wfe-persistence-{os.getpid()}"
    environment = {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0{name}")
        manager = ServiceManager(environment)
        manager.report(serving=True, why="")
        assert end.recv(4096) == b"READY=1\nSTATUS=serving"
    assert not environment
    assert manager.watchdog_seconds == 0


def test_a_manager_that_is_gone_is_no_reason_to_fail(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).stopping()
    assert "was not told" in caplog.text
    ServiceManager({}).stopping()


def test_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    # What it starts is not installed here; it complains about that, and rightly.
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"/opt/\S+/wfe-persistence ", f"{sys.executable} ", UNIT.read_text()))
    verified = subprocess.run(
        [analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    exposure = subprocess.run(
        [analyze, "security", "--offline=true", "--threshold=15", unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert exposure.returncode == 0, exposure.stdout


def test_the_settings_of_the_unit_are_settings() -> None:
    known = {setting.env for setting in SETTINGS.values()}
    assert set(re.findall(r"WFE_PERSISTENCE_\w+", UNIT.read_text())) <= known
    settings = tomllib.loads(UNIT.with_name("wfe-persistence.toml").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "wfe_persistence", "config", "show", "--config",
         UNIT.with_name("wfe-persistence.toml"), "--db-url", "postgresql://db.example/wfe"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert all(key in done.stdout for key in settings)
