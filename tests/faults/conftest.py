"""Fixtures of the tests that start their servers themselves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import make
from tests.support.server import ServerProcess

Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path, database_url: str) -> Iterator[Start]:
    """Starts a server on the test's database, with the fault that $FAULT names."""
    with ExitStack() as stack:

        def start(*options: str) -> ServerProcess:
            module = "tests.faults.faulty_server" if "FAULT" in os.environ else "wfe_persistence"
            log = tmp_path / f"log-{make.new_id()}"
            return stack.enter_context(
                ServerProcess(log, "--db-url", database_url, *options, module=module)
            )

        yield start
