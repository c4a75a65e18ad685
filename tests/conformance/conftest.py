"""Fixtures of the conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.api import Api
from tests.support.commands import OwnCommands


@pytest.fixture
async def own(api: Api) -> AsyncIterator[OwnCommands]:
    """Commands of the test's own."""
    if not (await api.get_store_info()).capabilities.scheduled_commands:
        pytest.skip("the target has no scheduled commands")
    commands = OwnCommands(api)
    yield commands
    await commands.finish()
