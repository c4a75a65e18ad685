"""Write what the image consists of: `python -m packages.sbom DIRECTORY`.

For each target of the Dockerfile a CycloneDX file, `server.cdx.json` and `embedded.cdx.json`, of an
environment that is made as the image's: by the same commands, from the same lock. Exits with 1 if
that is not exactly what is locked. (What the base image brings, its publisher says.)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from packages.build import ROOT, BuildError, run

TARGETS: Final = ("server", "embedded")
"""Targets of the Dockerfile, each the one before and more; their locks have the same names."""

OWN: Final = {"wfe-persistence", "pip", "setuptools"}
"""What is in the image, and in no lock: the server itself, and what an environment begins with."""


def locked(text: str) -> dict[str, str]:
    """The versions by name that a lock file has for this Python and this system."""
    lines = (line.partition(" \\")[0] for line in text.splitlines())
    entries = [Requirement(line) for line in lines if line and line[0] not in "# "]
    return {
        canonicalize_name(entry.name): str(entry.specifier).removeprefix("==")
        for entry in entries
        if entry.marker is None or entry.marker.evaluate()
    }


def components(bom: dict[str, Any]) -> dict[str, str]:
    """The versions by name that a CycloneDX document has."""
    return {canonicalize_name(each["name"]): each["version"] for each in bom["components"]}


def differences(bom: dict[str, Any], lock: str) -> list[str]:
    """What a document has and the lock has not, or the other way round."""
    of_bom, of_lock = components(bom), locked(lock)
    found = []
    for name in sorted((of_bom.keys() | of_lock.keys()) - OWN):
        there, here = of_bom.get(name, "nothing"), of_lock.get(name, "nothing")
        if there != here:
            found.append(f"{name}: {there} in the document, {here} locked")
    nameless = [each["name"] for each in bom["components"] if not each.get("purl")]
    return found + [f"{name}: no purl" for name in nameless if name not in OWN]


def main(out: Path) -> Iterable[str]:
    """Write the documents; what is wrong with them."""
    out.mkdir(parents=True, exist_ok=True)
    wrong = []
    with tempfile.TemporaryDirectory() as path:
        python = Path(path) / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        for target in TARGETS:
            lock = ROOT / "constraints" / f"{target}.txt"
            pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
            run(*pip, "--require-hashes", "--requirement", lock, cwd=ROOT)
            if target == TARGETS[0]:
                run(*pip, "--no-deps", "--no-build-isolation", ".", cwd=ROOT)
            file = out / f"{target}.cdx.json"
            run(
                str(Path(sys.executable).with_name("cyclonedx-py")), "environment",
                *("--pyproject", "pyproject.toml", "--mc-type", "application"),
                *("--output-format", "JSON", "--output-reproducible", "--output-file", file),
                python, cwd=ROOT,
            )  # fmt: skip
            bom = json.loads(file.read_text())
            wrong += [f"{target}: {each}" for each in differences(bom, lock.read_text())]
            print(f"{file}: {len(bom['components'])} components")
    return wrong


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        sys.exit("\n".join(main(Path(sys.argv[1]).absolute())) or None)
    except BuildError as exc:
        sys.exit(str(exc))
