"""Build what is published: `python -m packages.build DIRECTORY [WHAT …]`.

| what | is | needs |
|---|---|---|
| python | wfe-persistence and wfe-persistence-conformance, as sdist and wheel | hatchling |
| crate | client_rs | cargo |
| npm | the stubs for TypeScript and JavaScript | npm |
| maven | the stubs for Java, with sources and documentation, in a repository | mvn |
| go | the stubs for Go, as a module | go |

Without WHAT all of them. What needs a tool that is not installed is left out, which is said; one
that is named has to be built.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = ROOT / "packages"
GO_MODULE: Final = "wfe-persistence/gen/go"


class BuildError(Exception):
    """Something can't be built; the message says why."""


def python(out: Path) -> None:
    """The Python distributions. The wheels are built from the sdists, so that nothing is missing in
    those for whoever has to build one."""
    for directory in (ROOT, PACKAGES / "conformance"):
        with tempfile.TemporaryDirectory() as path:
            work = Path(path)
            _hatchling("sdist", directory, work)
            [sdist] = work.glob("*.tar.gz")
            with tarfile.open(sdist) as tar:
                tar.extractall(work, filter="data")
            _hatchling("wheel", work / sdist.name.removesuffix(".tar.gz"), out)
            shutil.copy(sdist, out)


def _hatchling(target: str, directory: Path, out: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", out,
        cwd=directory)  # fmt: skip


def crate(out: Path) -> None:
    """The crate, as the registry takes it. (It is not compiled here: whoever uses it does.)"""
    with tempfile.TemporaryDirectory() as target:
        run("cargo", "package", "--locked", "--allow-dirty", "--no-verify",
            cwd=ROOT / "client_rs", env={"CARGO_TARGET_DIR": target})  # fmt: skip
        [file] = (Path(target) / "package").glob("*.crate")
        shutil.copy(file, out)


def npm(out: Path) -> None:
    """The stubs of examples/typescript, compiled, as the registry takes them."""
    with tempfile.TemporaryDirectory() as path:
        work = Path(path) / "npm"
        shutil.copytree(PACKAGES / "npm", work, ignore=shutil.ignore_patterns("node_modules"))
        shutil.copytree(ROOT / "examples" / "typescript" / "gen", work / "src")
        shutil.copytree(ROOT / "protos" / "wfe", work / "protos" / "wfe")
        modules = sorted((work / "src" / "wfe").rglob("*_pb.ts"))
        (work / "src" / "index.ts").write_text(
            "".join(
                f'export * from "./{module.relative_to(work / "src").with_suffix(".js")}";\n'
                for module in modules
            )
        )
        run("npm", "ci", "--no-audit", "--no-fund", cwd=work)
        run("npm", "run", "build", cwd=work)
        run("npm", "pack", "--pack-destination", out, cwd=work)


def maven(out: Path) -> None:
    """The stubs for Java, deployed into a repository in `out`."""
    run("mvn", "--batch-mode", "--quiet", f"-DaltDeploymentRepository=local::file://{out}",
        "clean", "deploy", cwd=PACKAGES / "maven")  # fmt: skip


def go(out: Path) -> None:
    """The stubs for Go, as the module that they are: its path is the one in the protos."""
    example = ROOT / "examples" / "go"
    shutil.copytree(example / "gen", out, dirs_exist_ok=True)
    shutil.copy(ROOT / "LICENSE", out)
    shutil.copy(PACKAGES / "go" / "README.md", out)
    shutil.copy(example / "go.sum", out)
    # The versions of the example.
    lines = (example / "go.mod").read_text().splitlines()
    [version] = (line for line in lines if line.startswith("go "))
    needed = ("google.golang.org/grpc v", "google.golang.org/protobuf v")
    required = [f"require {line.strip()}" for line in lines if line.strip().startswith(needed)]
    (out / "go.mod").write_text("\n".join([f"module {GO_MODULE}", "", version, "", *required, ""]))
    run("go", "mod", "tidy", cwd=out)
    run("go", "vet", "./...", cwd=out)


def run(program: str, *arguments: str | Path, cwd: Path, env: Mapping[str, str] = {}) -> str:
    """Run a program; its output. Raises BuildError."""
    done = subprocess.run(
        [program, *arguments],
        cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        command = " ".join(map(str, (program, *arguments)))
        raise BuildError(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


BUILDS: Final[Mapping[str, tuple[Callable[[Path], None], tuple[str, ...]]]] = {
    "python": (python, ()),
    "crate": (crate, ("cargo",)),
    "npm": (npm, ("npm",)),
    "maven": (maven, ("mvn",)),
    "go": (go, ("go",)),
}
"""What there is: how it is built, and the programs that this needs."""


def missing(what: str) -> list[str]:
    """The programs that are needed to build it, and not installed."""
    return [program for program in BUILDS[what][1] if not shutil.which(program)]


def main(out: Path, wanted: list[str]) -> None:
    """Build what is wanted into directories of their own below `out`, replacing what was there."""
    for what in wanted or BUILDS:
        if programs := missing(what):
            if wanted:
                raise BuildError(f"{what} needs {' and '.join(programs)}, not installed here")
            print(f"{what}: left out, for it needs {' and '.join(programs)}, not installed here")
            continue
        directory = out.absolute() / what
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        BUILDS[what][0](directory)
        for file in sorted(path for path in directory.rglob("*") if path.is_file()):
            print(f"{file.relative_to(out.absolute())}  {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) < 2 or not set(sys.argv[2:]) <= BUILDS.keys():
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except BuildError as exc:
        sys.exit(str(exc))
