"""A run of the tests leaves no process behind, however it ends, and names what it had to end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.processes import end_all

ROOT = Path(__file__).parents[1]

LEAVES_ONE = """
import subprocess
from pathlib import Path

def test_it():
    process = subprocess.Popen(["sleep", "1000"])
    Path({left!r}).write_text(str(process.pid))
    process.returncode = 0  # no warning that it is still running
"""

WAITS = """
import time
from pathlib import Path
from tests.support.server import ServerProcess

def test_it(tmp_path, data_dir, request):
    done = Path({done!r})
    request.addfinalizer(lambda: done.write_text("cleaned up"))
    with ServerProcess(tmp_path / "log", "--data-dir", str(data_dir)) as server:
        print("started", server.process.pid, data_dir, flush=True)
        time.sleep(100)
"""

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(); time.sleep(99)"


@contextmanager
def run_of(
    test: str, directory: Path, shell: Sequence[str] = (), options: Sequence[str] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A run of a test of these contents, with the fixtures and checks of all tests."""
    file = directory / "test_it.py"
    file.write_text(test)
    with subprocess.Popen(
        [*shell, sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider",
         "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-qs", *options, str(file)],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        try:
            yield run
        finally:
            run.kill()


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_a_run_that_leaves_a_process_fails_and_names_it(
    tmp_path: Path, options: Sequence[str]
) -> None:
    left = tmp_path / "left"
    with run_of(LEAVES_ONE.format(left=str(left)), tmp_path, options=options) as run:
        said, _ = run.communicate()
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, said
    pid = left.read_text()
    assert f"\n{pid} sleeping sleep 1000\n" in said
    assert "1 passed" in said
    assert not psutil.pid_exists(int(pid))


# As a shell starts what is to run in the background.
IN_BACKGROUND = ("sh", "-c", 'trap "" INT QUIT; exec "$@"', "sh")


@pytest.mark.parametrize(
    ("number", "shell"),
    [(signal.SIGINT, ()), (signal.SIGTERM, IN_BACKGROUND), (signal.SIGKILL, ())],
)
def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, number: signal.Signals, shell: Sequence[str]
) -> None:
    done = tmp_path / "done"
    with run_of(WAITS.format(done=str(done)), tmp_path, shell) as run:
        assert run.stdout
        words: list[str] = []
        while words[:1] != ["started"]:
            words = run.stdout.readline().lstrip(".").split()
        server = psutil.Process(int(words[1]))
        data = Path(words[2])
        postgres = int((data / "postgres-18" / "postmaster.pid").read_text().split()[0])
        started = [server, psutil.Process(postgres)]
        run.send_signal(number)
        said, _ = run.communicate()
    _, alive = psutil.wait_procs(started, 30)
    assert not alive
    if number is not signal.SIGKILL:
        assert done.read_text() == "cleaned up"
        assert run.returncode == pytest.ExitCode.INTERRUPTED
        assert "were left" not in said
    deadline = time.monotonic() + 30
    while data.parent.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_that_ignores_sigterm_is_killed_and_named() -> None:
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout
        deaf.stdout.readline()
        [line] = end_all([psutil.Process(deaf.pid)], 0.5)
    assert line.startswith(f"{deaf.pid} ")
    assert line.endswith("(was not ended by SIGTERM)")
