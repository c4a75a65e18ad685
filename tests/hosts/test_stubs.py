"""The stubs of the examples are those of protos/, and the commands of docs/stubs.md make them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.hosts.pages import ROOT, commands, run

PAGE = ROOT / "docs" / "stubs.md"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def _need(*tools: str) -> None:
    if missing := [tool for tool in tools if not shutil.which(tool, path=PATH)]:
        pytest.skip(f"needs {' and '.join(missing)}, not installed here")


def _files(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.timeout(600)
def test_committed_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    _need("buf", "go", "npm")
    typescript = ROOT / "examples" / "typescript"
    if not (typescript / "node_modules/.bin/protoc-gen-es").exists():
        run("npm ci", typescript, path=PATH)
    run(f"buf generate --output '{tmp_path}'", ROOT, path=PATH)
    run(f"buf generate --output '{tmp_path}/examples/typescript'", typescript, path=PATH)
    for example in ("go", "typescript"):
        committed = _files(ROOT / "examples" / example / "gen")
        assert committed == _files(tmp_path / "examples" / example / "gen"), (
            "differ: npm ci --prefix examples/typescript && buf generate"
        )


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("language", "tools"), [("go", ("go",)), ("typescript", ("npm",))])
def test_commands_for_other_repositories(
    language: str, tools: tuple[str, ...], tmp_path: Path
) -> None:
    _need("buf", *tools)
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    first = {"go": "buf ", "typescript": "npm "}[language]
    [command] = [c for c in commands(PAGE, "sh") if c.line.startswith(first)]
    run(command.line, tmp_path, path=PATH)
    generated = _files(tmp_path / "gen")
    committed = _files(ROOT / "examples" / language / "gen")
    ours = {name: text for name, text in committed.items() if name.startswith("wfe/")}
    assert generated == ours
