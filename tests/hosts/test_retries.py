"""The retries of the hosts in examples/."""

from __future__ import annotations

import shutil

import pytest

from tests.hosts.pages import ROOT, run


@pytest.mark.timeout(600)
def test_typescript_repeats_what_a_broken_connection_lost() -> None:
    if missing := [tool for tool in ("node", "npm") if not shutil.which(tool)]:
        pytest.skip(f"needs {' and '.join(missing)}, not installed here")
    example = ROOT / "examples" / "typescript"
    install = "" if (example / "node_modules").exists() else "npm ci && "
    printed = run(f"{install}npm test", example)
    assert "# fail 0" in printed
    assert "# pass 28" in printed
