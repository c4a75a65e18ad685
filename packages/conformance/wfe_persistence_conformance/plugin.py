"""What the suite's tests get from pytest here: the server whose address was given, and its API."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from tests.support.given import add_options, api, given_server, seed_ids

__all__ = ["api"]  # a fixture too


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the suite, which the command passes on."""
    add_options(parser)


def pytest_configure() -> None:
    """Leave no database of examples behind where the command is run."""
    hypothesis.settings.register_profile("conformance", database=None)
    hypothesis.settings.load_profile("conformance")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ids that can be made again."""
    seed_ids(item)


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> Iterator[str]:
    """The address of the server under test."""
    address: str = pytestconfig.getoption("--target")
    with given_server(address, pytestconfig.getoption("--namespace")):
        yield address
