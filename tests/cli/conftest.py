"""A namespace with the scene, on the server of the session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.program import environment, run
from tests.cli.scene import play
from tests.support import make
from wfe_persistence_client import PersistenceProvider, connect


class Shop(NamedTuple):
    """Where the scene is."""

    address: str
    namespace: str
    env: dict[str, str]

    def says(self, *arguments: str, status: int = 0, stdin: str | None = None) -> str:
        """What a command prints there, which ends with this status: stdout, and then stderr."""
        done = run(arguments, self.env, stdin)
        assert done.returncode == status, f"{done.returncode}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


@pytest.fixture
def empty(target: str, tmp_path: Path) -> Iterator[Shop]:
    """A namespace with nothing in it; the environment of commands names it."""
    namespace = make.new_namespace()
    provided(target, "default", lambda provider: provider.create_namespace(namespace))
    env = environment(tmp_path, WFE_PERSISTENCE_TARGET=target, WFE_PERSISTENCE_NAMESPACE=namespace)
    yield Shop(target, namespace, env)
    provided(target, "default", lambda provider: provider.delete_namespace(namespace, force=True))


@pytest.fixture
def shop(empty: Shop) -> Shop:
    """A namespace with the scene."""
    provided(empty.address, empty.namespace, play)
    return empty


def provided(address: str, namespace: str, what: Callable[[PersistenceProvider], object]) -> None:
    async def main() -> None:
        async with connect(address, namespace=namespace) as provider:
            await what(provider)  # type: ignore[misc]

    asyncio.run(main())


def with_provider(shop: Shop, what: Callable[[PersistenceProvider], object]) -> None:
    """Do something there as a host would."""
    provided(shop.address, shop.namespace, what)
