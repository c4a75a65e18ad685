"""The conformance suite against a server that is given, by nothing but its address.

What tests/conftest.py and the plugin of packages/conformance have in common.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext

import pytest

from tests.support import make
from tests.support.api import Api, all_channels_in, connect
from tests.support.server import delete_a_workflow, delete_own_namespaces


def add_options(parser: pytest.Parser) -> None:
    """The options of the suite."""
    parser.addoption(
        "--target",
        metavar="HOST:PORT",
        help="run the conformance suite against this server instead of one of its own",
    )
    parser.addoption(
        "--namespace",
        metavar="NAME",
        help="run the conformance suite in this namespace, which a given target must have",
    )
    parser.addoption(
        "--id-seed",
        metavar="N",
        type=int,
        help="make the same ids and names as every run of the same tests with this number",
    )


def seed_ids(item: pytest.Item) -> None:
    """Each test has ids of its own, so that how many the one before took does not matter."""
    number: int | None = item.config.getoption("--id-seed")
    if number is not None:
        make.seed(f"{number} {item.nodeid}")


@contextmanager
def given_server(address: str, namespace: str | None) -> Iterator[None]:
    """The server there as the target of a session: all calls go to that namespace, and no namespace
    of the tests' own is left behind."""
    with all_channels_in(address, namespace) if namespace else nullcontext():
        delete_a_workflow(address)
        yield
    left = delete_own_namespaces(address)
    assert not left, f"tests left these namespaces behind, now deleted: {left}"


@pytest.fixture(scope="session")
async def api(target: str) -> AsyncIterator[Api]:
    """The API of the server under test."""
    async with connect(target) as channel:
        yield Api(channel)
