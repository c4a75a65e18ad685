"""The engine workflow-es on this server: its host, its scenarios and its fleets."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.hosts.pages import ROOT, attempt, commands, run
from tests.support.server import ServerProcess

EXAMPLE = ROOT / "examples" / "workflow-es"

#: With the installation of the packages, on a busy machine.
pytestmark = pytest.mark.timeout(600)

#: The tests of the example: one that is not found, or left out, would go unnoticed otherwise.
TESTS = 21


def _need(*tools: str) -> None:
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        pytest.skip(f"needs {' and '.join(missing)}, not installed here")


def _host() -> str:
    """The command of the README, which installs the packages only once."""
    [command] = commands(EXAMPLE / "README.md", "sh")
    if (EXAMPLE / "node_modules").exists():
        return command.line.replace("npm ci && ", "")
    return command.line


def test_the_host_does_what_it_says(tmp_path: Path, database_url: str) -> None:
    _need("node", "npm")
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        printed = run(_host(), EXAMPLE, server.address)
    started, reserved, cup, saucer, complete = printed.splitlines()[-5:]
    assert started.startswith("started ")
    assert [reserved, cup, saucer] == ["reserve a cup, a saucer", "ship a cup", "ship a saucer"]
    assert json.loads(complete.removeprefix("complete: "))["receipt"] == "R-1"
    assert "bug" not in server.log(), server.log()

    again = f"node dist/workflow-es/src/host.js --target {server.address}"  # which is gone
    exit_code, printed, errors = attempt(again, EXAMPLE, server.address)
    assert exit_code == 1
    assert "started" not in printed
    [line] = [line for line in errors.splitlines() if server.address in line]
    assert line.startswith(f"no connection to {server.address}: ")
    assert "    at " not in errors  # no stack trace


def test_the_engines_scenarios_and_fleets(tmp_path: Path, database_url: str) -> None:
    _need("node", "npm")
    install = "" if (EXAMPLE / "node_modules").exists() else "npm ci && "
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        env = {**os.environ, "WFE_TARGET": server.address}
        printed = run(f"{install}npm test", EXAMPLE, env=env)
    counts = dict(re.findall(r"^# (\w+) (\d+)$", printed, re.MULTILINE))
    assert (int(counts["pass"]), counts["fail"], counts["skipped"]) == (TESTS, "0", "0"), printed
    assert "bug" not in server.log(), server.log()
