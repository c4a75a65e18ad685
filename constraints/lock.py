"""Write the lock files in this directory from pyproject.toml, or check that they are current.

    lock.py write [UV-OPTION …]    resolve; needs uv beside this Python, and the network
    lock.py check                  exit with 1 if pyproject.toml has other requirements; offline

`write` keeps the versions that are locked already as long as they are allowed;
`write --upgrade` takes the newest.
"""

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent

COMPILE: Final = (
    *("pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
    *("--generate-hashes", "--no-header", "--no-annotate"),
    *("--no-emit-index-url", "--no-emit-find-links"),
)

PROJECT: Final = ("pyproject.toml", "-")  # "-": the build backend, which an editable install needs
NEWEST: Final = ("--constraints", "constraints/lint.txt")

# Each file, and what it is resolved from. `lint` has everything, so it comes first, and the others
# agree with it: they are installed into one environment. `lowest`, `gen`, `lock`,
# `audit` and `package` have environments of their own.
SETS: Final[dict[str, tuple[str, ...]]] = {
    "lint": (*PROJECT, "--extra", "lint"),
    "test": (*PROJECT, "--extra", "test", *NEWEST),
    "embedded": (*PROJECT, "--extra", "server", "--extra", "embedded", "--extra", "otel", *NEWEST),
    "server": (*PROJECT, "--extra", "server", "--extra", "otel", *NEWEST),
    "lowest": (*PROJECT, "--extra", "test", "--resolution", "lowest-direct"),
    "gen": ("--group", "gen"),
    "lock": ("--group", "lock"),
    "audit": ("--group", "audit"),
    "docs": ("--group", "docs"),
    "package": ("--group", "package"),
}


def pyproject() -> dict[str, Any]:
    """Return the contents of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def header() -> str:
    """Return the first lines of every lock file; they change with what the files follow from."""
    document = pyproject()
    project = document["project"]
    requirements = (
        document["build-system"]["requires"],
        project["requires-python"],
        project["dependencies"],
        project["optional-dependencies"],
        document["dependency-groups"],
        COMPILE,
        SETS,
    )
    digest = hashlib.sha256(json.dumps(requirements, sort_keys=True).encode()).hexdigest()
    return f"# Made by `./run lock` from pyproject.toml; do not edit.\n# Requirements: {digest}\n"


def write(options: list[str]) -> None:
    """Resolve every set again. `options` go to `uv pip compile`."""
    build = "\n".join(pyproject()["build-system"]["requires"])
    uv = Path(sys.executable).with_name("uv")
    for name, sources in SETS.items():
        file = HERE / f"{name}.txt"
        command = (str(uv), *COMPILE, *sources, *options, "--output-file", str(file))
        # Without stdout, where uv writes the file a second time.
        devnull = subprocess.DEVNULL
        subprocess.run(command, cwd=ROOT, input=build, text=True, check=True, stdout=devnull)
        file.write_text(header() + file.read_text())


def check() -> None:
    """Exit with an error if a lock file was made from other requirements."""
    expected = header()
    for name in SETS:
        file = HERE / f"{name}.txt"
        if not file.exists() or not file.read_text().startswith(expected):
            sys.exit(f"{file.relative_to(ROOT)} does not match pyproject.toml: ./run lock")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", *options]:
            write(options)
        case ["check"]:
            check()
        case _:
            sys.exit(__doc__)
