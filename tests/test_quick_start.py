"""docs/quick-start.md: every step of it, from the start of the server to the end of a workflow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts.pages import ADDRESS, ROOT, commands, run
from tests.hosts.test_inspecting import path_with
from tests.support.server import ServerProcess

PAGE = ROOT / "docs" / "quick-start.md"


def lines() -> list[str]:
    return [command.line for command in commands(PAGE, "sh")]


def test_the_steps(tmp_path: Path, data_dir: Path) -> None:
    """With the embedded PostgreSQL, which the page starts with; its files elsewhere."""
    [python] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    [health] = [line for line in lines() if line.startswith("wfe-persistence health")]
    with ServerProcess(tmp_path / "log", "--data-dir", str(data_dir)) as server:
        # On the port of the page there may be another server.
        env = {**os.environ, "WFE_PERSISTENCE_LISTEN": server.address}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        assert run(health, tmp_path, server.address, path, env=env) == "SERVING\n"
        done = subprocess.run(
            [sys.executable, "-c", python.replace(ADDRESS, server.address)],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "WorkflowStatus.COMPLETE\n", "")


@pytest.mark.timeout(600)
def test_the_calls(tmp_path: Path, database_url: str) -> None:
    create, due = (line for line in lines() if line.startswith("grpcurl "))
    path = path_with("grpcurl", tmp_path)
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        created = run(create, tmp_path, server.address, path)
        [id_] = re.findall(r'"id": "(\S+)"', created)
        assert '"revision": "1"' in created
        assert id_ in run(due, tmp_path, server.address, path)
