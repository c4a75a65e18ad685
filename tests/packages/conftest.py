"""Fixtures: what is published, as packages/build.py builds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from packages import build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory with what was built, by its name in packages/build.py; built once."""
    out = tmp_path_factory.mktemp("dist")

    def get(what: str) -> Path:
        if programs := build.missing(what):
            pytest.skip(f"{what} needs {' and '.join(programs)}, not installed here")
        if not (out / what).exists():
            (out / what).mkdir()
            build.BUILDS[what][0](out / what)
        return out / what

    return get
