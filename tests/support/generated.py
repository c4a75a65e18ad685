"""A copy of what is generated, and of what makes it, to change and to check."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copy_generated(to: Path) -> None:
    """The pages and files, their scripts, and what they are made from, at the same paths there."""
    for directory in (
        "docs",
        "benchmarks/results",
        "deploy/helm",
        "deploy/monitoring",
        "protos/wfe/persistence/v1",
    ):
        shutil.copytree(ROOT / directory, to / directory)


def run_generated(at: Path, verb: str) -> subprocess.CompletedProcess[str]:
    """Write what is generated there, or check it."""
    return subprocess.run(
        [sys.executable, "-m", "docs.generated", verb],
        cwd=at, capture_output=True, text=True, check=False,
    )  # fmt: skip
