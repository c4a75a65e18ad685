"""`./run soak`: what it finds out is written even if it is interrupted, and nothing is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from tests.support.waiting import wait_for


def test_an_interrupted_soak_writes_its_results_and_leaves_nothing(tmp_path: Path) -> None:
    data, results = tmp_path / "data", tmp_path / "soak.json"
    data.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.soak", "--minutes", "60", "--workflows", "1000",
         "--find-seconds", "1.5", "--rate", "20", "--directory", data, "--json", results,
         "--picture", tmp_path / "soak.png"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as soak:  # fmt: skip
        assert soak.stdout is not None
        said = ""
        for line in soak.stdout:
            said += line
            if "going on" in line:
                break
        children = psutil.Process(soak.pid).children(recursive=True)
        soak.send_signal(signal.SIGTERM)
        said += soak.stdout.read()
    assert soak.returncode == 0, said
    figures = json.loads(results.read_text())["figures"]
    assert figures["ended_early"] == "interrupted"
    assert figures["workflows"] == 1000
    assert figures["failed"] == {}
    assert list(data.iterdir()) == []
    assert len(children) > 1
    wait_for(lambda: not any(child.is_running() for child in children))
