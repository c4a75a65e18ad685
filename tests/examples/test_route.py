"""The routing of namespace sets in the languages of the examples, against the vectors of all."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VECTORS = json.loads((ROOT / "protos/wfe/persistence/v1/namespace_sets.json").read_text())[
    "vectors"
]


def run(*command: str, cwd: Path, given: str = "") -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}")
    done = subprocess.run(
        command, cwd=cwd, input=given, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_go() -> None:
    assert "ok" in run("go", "test", "./route", "-count=1", cwd=ROOT / "examples/go")


def test_typescript(tmp_path: Path) -> None:
    """Compiled alone: it needs nothing but Node.js, whose own types are left out here."""
    source = (ROOT / "examples/typescript/src/route.ts").read_text()
    program = tmp_path / "route.mjs"
    # The types are erased by hand, so that no package has to be installed.
    program.write_text(
        source.replace("(key: string, members: number): number", "(key, members)").replace(
            "(key: bigint, buckets: number): number", "(key, buckets)"
        )
        + "\nimport { readFileSync } from 'node:fs';\n"
        "const given = JSON.parse(readFileSync(0, 'utf8'));\n"
        "console.log(JSON.stringify(given.map(([key, members]) => memberOf(key, members))));\n"
    )
    given, expected = _cases()
    printed = run("node", str(program), cwd=tmp_path, given=json.dumps(given))
    assert json.loads(printed) == expected


def test_java(tmp_path: Path) -> None:
    source = ROOT / "examples/java/src/main/java/wfe/examples/Route.java"
    run("javac", "-d", str(tmp_path), str(source), cwd=tmp_path)
    given, expected = _cases()
    lines = "".join(f"{members}\t{key.encode().hex()}\n" for key, members in given)
    printed = run("java", "-cp", str(tmp_path), "wfe.examples.Route", cwd=tmp_path, given=lines)
    assert [int(line) for line in printed.split()] == expected


def _cases() -> tuple[list[tuple[str, int]], list[int]]:
    given = [(v["key"], int(count)) for v in VECTORS for count in v["members"]]
    expected = [index for v in VECTORS for index in v["members"].values()]
    assert len(given) >= 200
    return given, expected
