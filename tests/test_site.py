"""The build of the site of docs/ (`./run docs`, which `./run lint` runs) refuses what is wrong."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PYTHON: Final = ROOT / ".tools" / "docs" / "bin" / "python"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one page, and all else as it is here."""
    if not PYTHON.exists():
        pytest.skip("`./run docs` has not been run: its environment is not there")
    (tmp_path / "docs").mkdir()
    for name in ("site_hook.py", "site.css"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs" / name)
    settings = (ROOT / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(
        re.sub(r"^nav:\n.*", "nav: [index.md]\n", settings, flags=re.MULTILINE | re.DOTALL)
    )
    (tmp_path / "NOTES.md").write_text("# Notes\n\n[back](docs/index.md#one)\n")
    (tmp_path / "program.sh").write_text("echo hello\n")
    return tmp_path


def build(project: Path, page: str) -> tuple[int, str]:
    (project / "docs" / "index.md").write_text(f"# Home\n\n## One\n\n{page}\n")
    done = subprocess.run(
        [PYTHON, "-m", "mkdocs", "build"],
        cwd=project, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_what_it_makes(project: Path) -> None:
    page = (
        "Read [notes](../NOTES.md#notes) and [this](../program.sh).\n- an item\n  that goes on\n\n"
        "```mermaid\nflowchart LR\n    a --> b\n```\n\n```sh\n[no](link.md)\n```\n"
    )
    code, said = build(project, page)
    assert code == 0, said
    site = project / "build" / "site"
    html = (site / "index.html").read_text()
    assert 'href="source/NOTES.html#notes"' in html
    assert 'href="source/program.sh.html"' in html
    assert re.search(r"<li>an item\s+that goes on</li>", html)
    assert "<svg id=" in html
    assert "```" not in html
    assert 'class="mermaid"' not in html
    assert 'href="../index.html#one"' in (site / "source" / "NOTES.html").read_text()
    assert "hello" in (site / "source" / "program.sh.html").read_text()
    # The theme's scripts fetch what old browsers lack, and mermaid, unless told otherwise.
    for script in site.rglob("*.js"):
        assert "unpkg.com" not in script.read_text(), script


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ("[gone](gone.md)", "not found among documentation files"),
        ("[two](#two)", "does not contain an anchor '#two'|no such anchor"),
        ('<script src="https://cdn.example/x.js"></script>', "load from other hosts"),
        ("![x](https://img.example/x.png)", "load from other hosts"),
        ("```mermaid\nflowchart LR\n    a -->\n```", "can't be drawn"),
    ],
)
def test_what_it_refuses(project: Path, page: str, why: str) -> None:
    code, said = build(project, page)
    assert code != 0
    assert re.search(why, said), said


def test_a_page_that_is_in_no_menu_is_refused(project: Path) -> None:
    (project / "docs" / "forgotten.md").write_text("# Forgotten\n")
    code, said = build(project, "")
    assert code != 0
    assert "forgotten.md" in said
