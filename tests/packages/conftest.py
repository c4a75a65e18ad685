"""Fixtures: what is published, as packages/build.py builds it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from packages import build
from tests.hosts.pages import ROOT


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory with what was built, by its name in packages/build.py; built once, unless
    $WFE_TEST_PACKAGES names the directory where it is already."""
    if ready := os.environ.get("WFE_TEST_PACKAGES"):
        out = ROOT / ready
    else:
        out = tmp_path_factory.mktemp("dist")

    def get(what: str) -> Path:
        if programs := build.missing(what):
            pytest.skip(f"{what} needs {' and '.join(programs)}, not installed here")
        if not (out / what).exists():
            (out / what).mkdir()
            build.BUILDS[what][0](out / what)
        return out / what

    return get
