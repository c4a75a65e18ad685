"""Fixtures of the conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support import make
from tests.support.api import Api, connect
from tests.support.commands import OwnCommands
from wfe.persistence.v1.store_pb2 import CreateNamespaceRequest, DeleteNamespaceRequest

WHITE_BOX = "white_box"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers", f"{WHITE_BOX}: needs the server's process or its database, not only its address"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a given target only the address is known."""
    if config.getoption("--target"):
        left_out = [item for item in items if item.get_closest_marker(WHITE_BOX)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
async def command_api(api: Api, target: str, pytestconfig: pytest.Config) -> AsyncIterator[Api]:
    """The API for commands: on a given target in a namespace of the session's own, if it can be
    deleted afterwards, because a claim can't tell whose commands it wants. What --namespace names
    is the session's own already."""
    capabilities = (await api.get_store_info()).capabilities
    shared = pytestconfig.getoption("--target") and not pytestconfig.getoption("--namespace")
    if not (shared and capabilities.create_namespace and capabilities.delete_namespace):
        yield api
        return
    name = make.new_namespace()
    await api.store.CreateNamespace(CreateNamespaceRequest(name=name))
    async with connect(target, namespace=name) as channel:
        yield Api(channel)
    await api.store.DeleteNamespace(DeleteNamespaceRequest(name=name, force=True))


@pytest.fixture
async def own(command_api: Api) -> AsyncIterator[OwnCommands]:
    """Commands of the test's own."""
    if not (await command_api.get_store_info()).capabilities.scheduled_commands:
        pytest.skip("the target has no scheduled commands")
    commands = OwnCommands(command_api)
    yield commands
    await commands.finish()
