"""A server with a console, and a shop in it to look at."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.console import scene
from tests.support.admin import AdminServer
from tests.support.browser import Browser, Tab, started


@pytest.fixture(scope="package")
def shop(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminServer]:
    """A server with the scene, whose console may write. Tests leave the shop as it is, but for what
    is theirs alone."""
    directory = tmp_path_factory.mktemp("shop")
    name = "console_shop"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
        connection.execute(f"CREATE DATABASE {name}".encode())
    url = postgres_url.replace("/postgres?", f"/{name}?")
    server = AdminServer(
        directory / "log", "--db-url", url, "--console", "--console-write", "--slow-call", "0"
    )
    with server:
        asyncio.run(scene.make(server.address, directory))
        yield server
    log = server.log()
    assert ": bug" not in log
    assert "Traceback" not in log


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    """A tab in which nothing may go wrong."""
    tab = browser.tab()
    yield tab
    assert tab.problems == []
    tab.close()
