"""The conformance suite can fail: each planted fault is caught by the test that is meant for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.faulty_server import FAULTS, SERVER_FAULTS
from tests.support.server import ServerProcess

CONFORMANCE = Path(__file__).parents[1] / "conformance"


def run_pytest(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a test. (Hypothesis, whose plugin takes longer to load than most of them run, is there
    for those that use it without its plugin, too.)"""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x",
         "-p", "no:cacheprovider", "-p", "no:hypothesispytest", *arguments],
        capture_output=True, text=True, timeout=100, check=False, cwd=CONFORMANCE.parents[1],
        env=os.environ | env,
    )  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_caught(fault: str, tmp_path: Path, database_url: str) -> None:
    with ServerProcess(
        tmp_path / "log",
        "--db-url",
        database_url,
        "--allow-delete-namespace",
        module="tests.faults.faulty_server",
        env={**os.environ, "FAULT": fault},
    ) as server:
        done = run_pytest("--target", server.address, str(CONFORMANCE / FAULTS[fault][1]))
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout, done.stdout
    assert "AssertionError" in done.stdout or "AioRpcError" in done.stdout, done.stdout


@pytest.mark.parametrize("fault", SERVER_FAULTS)
def test_fault_planted_in_the_server_of_a_test_is_caught(fault: str) -> None:
    test = Path(__file__).parent / SERVER_FAULTS[fault][1]
    done = run_pytest(str(test), FAULT=fault)
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout or "1 error" in done.stdout, done.stdout
