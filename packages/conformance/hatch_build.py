"""The build hook that puts the tests into the package: tests/conformance of the repository, and
what of tests/support they import. In an sdist they are there already."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SUITE: Final = "wfe_persistence_conformance/suite"


class SuiteHook(BuildHookInterface[Any]):
    """Called by hatchling for the wheel and for the sdist."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files."""
        if version == "editable":
            raise NotImplementedError("the suite is run from its repository: ./run test --target")
        repository = Path(self.root).parents[1]
        if not (repository / "tests" / "conformance").is_dir():
            return
        for file in files(repository):
            build_data["force_include"][str(repository / file)] = f"{SUITE}/{file}"


def files(repository: Path) -> set[Path]:
    """The files of the suite: the tests, and all that they import of `tests`."""
    found: set[Path] = set()
    left = sorted(
        path.relative_to(repository) for path in repository.glob("tests/conformance/*.py")
    )
    left.append(Path("tests/support/given.py"))  # the plugin's
    while left:
        file = left.pop()
        if file in found:
            continue
        found.add(file)
        left += [p / "__init__.py" for p in file.parents if p.name]
        left += imported(repository, file)
    return found


def imported(repository: Path, file: Path) -> Iterator[Path]:
    """The modules of `tests` that a module imports."""
    for node in ast.walk(ast.parse((repository / file).read_bytes())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("tests"):
            continue
        path = Path(*str(node.module).split("."))
        if (repository / path).is_dir():
            yield from (path / f"{alias.name}.py" for alias in node.names)
        else:
            yield path.with_suffix(".py")
