"""Deleting a namespace set while somebody writes to it."""

from __future__ import annotations

import pytest

from tests.store.test_databases import refused, schemas, serving
from tests.support import make
from wfe_persistence.store import event, namespace_set
from wfe_persistence.store.migrate import migrate
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.namespace_set import (
    create_namespace_set,
    delete_namespace_set,
    get_namespace_set,
)


async def test_a_deletion_that_meets_a_write_is_undone(
    database_urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After all members were found empty, somebody writes to the last one."""
    async with serving(database_urls) as namespaces:
        await migrate(namespaces.databases.home, namespaces.default.schema)
        await create_namespace_set(namespaces, "s", 5, ["a", "b"])
        check_empty = namespace_set._check_empty
        created = make.event()

        async def checked(of: Namespaces, member: str) -> None:
            await check_empty(of, member)
            if member == "s_4":
                await event.create_event(await of.get("s_4"), created)

        monkeypatch.setattr(namespace_set, "_check_empty", checked)
        with refused("NAMESPACE_NOT_EMPTY"):
            await delete_namespace_set(namespaces, "s", force=False)
        # It is whole, where it was, and has what was written.
        assert (await get_namespace_set(namespaces.default, "s")).size == 5
        assert await schemas(database_urls["a"]) == ["wfc_s_0", "wfc_s_2", "wfc_s_4"]
        assert await schemas(database_urls["b"]) == ["wfc_s_1", "wfc_s_3"]
        async with serving(database_urls) as others:
            found = await event.get_event(await others.get("s_4"), created.id)
            assert found.id == created.id
            other = make.event()
            await event.create_event(await others.get("s_1"), other)
        with refused("NAMESPACE_NOT_EMPTY"):
            await delete_namespace_set(namespaces, "s", force=False)
        await delete_namespace_set(namespaces, "s", force=True)
        with refused("NAMESPACE_SET_NOT_FOUND"):
            await get_namespace_set(namespaces.default, "s")
        assert await schemas(database_urls["a"]) == await schemas(database_urls["b"]) == []
