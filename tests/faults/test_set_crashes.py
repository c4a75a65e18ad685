"""A server dies while it creates or deletes a namespace set: on another server, the same call again
finishes it, and so does deleting the set, which leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.faults.set_driver import CREATING, DELETING, MEMBERS
from tests.support import make
from tests.support.api import Api, connect
from tests.support.expect import fails
from tests.support.scene import never_due
from tests.support.server import ServerProcess
from wfe.persistence.v1 import store_pb2 as pb
from wfe.persistence.v1.workflow_pb2 import CreateNewWorkflowRequest, GetNameHolderRequest


@dataclass
class Service:
    """Two databases, a server that knows both, and another one that dies."""

    urls: tuple[str, str]
    server: ServerProcess
    driver: subprocess.Popen[str]

    def dies(self, what: str, name: str, place: str) -> None:
        assert self.driver.stdin is not None
        assert self.driver.stdout is not None
        self.driver.stdin.write(f"{what} {name} {place}\n")
        self.driver.stdin.flush()
        assert self.driver.stdout.readline().strip() == "killed"

    def left(self, name: str) -> list[str]:
        """What there is of a set in the databases."""
        found = []
        for url in self.urls:
            with psycopg.connect(url) as connection:
                rows = connection.execute(
                    "SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s)",
                    [f"wfc_{name}_"],
                )
                found += [schema for (schema,) in rows.fetchall()]
        with psycopg.connect(self.urls[0]) as connection:
            for table, column in (("namespace_sets", "name"), ("placements", "namespace")):
                query = f"SELECT {column} FROM wfc.{table} WHERE starts_with({column}, %s)"
                found += [row[0] for row in connection.execute(query.encode(), [name]).fetchall()]
        return found


@pytest.fixture(scope="module")
def service(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    names = ("set_crashes_home", "set_crashes_b")
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        for name in names:
            admin.execute(f"CREATE DATABASE {name}".encode())
    home, b = (postgres_url.replace("/postgres?", f"/{name}?") for name in names)
    log: Path = tmp_path_factory.mktemp("set-crashes") / "log"
    with ServerProcess(
        log, "--db-url", home, "--database", f"b={b}", "--allow-delete-namespace"
    ) as server:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.set_driver", home, b],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with driver:
            yield Service((home, b), server, driver)
            assert driver.stdin is not None
            driver.stdin.close()
    assert '"message": "bug' not in server.log()


async def create(api: Api, name: str) -> list[str]:
    request = pb.CreateNamespaceSetRequest(name=name, members=MEMBERS)
    return list((await api.store.CreateNamespaceSet(request)).namespace_set.members)


async def delete(api: Api, name: str, *, force: bool = False) -> None:
    await api.store.DeleteNamespaceSet(pb.DeleteNamespaceSetRequest(name=name, force=force))


async def check_usable(api: Api, name: str) -> None:
    """Every member takes a workflow, and knows who has names."""
    found = await api.store.GetNamespaceSet(pb.GetNamespaceSetRequest(name=name))
    assert list(found.namespace_set.members) == [f"{name}_{index}" for index in range(MEMBERS)]
    for member in found.namespace_set.members:
        inside = (("wfe-namespace", member),)
        request = CreateNewWorkflowRequest(instance=never_due())
        await api.workflows.CreateNewWorkflow(request, metadata=inside)
        await api.workflows.GetNameHolder(GetNameHolderRequest(name="n"), metadata=inside)


@pytest.mark.parametrize(
    ("made_until", "deleted_until"), list(zip(CREATING, DELETING, strict=True))
)
async def test_whoever_dies_the_next_one_finishes(
    service: Service, made_until: str, deleted_until: str
) -> None:
    name = make.new_namespace_set()
    get = pb.GetNamespaceSetRequest(name=name)
    async with connect(service.server.address) as channel:
        api = Api(channel)

        service.dies("create", name, made_until)
        if made_until != "complete":
            with fails("FAILED_PRECONDITION", "NAMESPACE_SET_INCOMPLETE") as failure:
                await api.store.GetNamespaceSet(get)
            assert "CreateNamespaceSet" in failure.message
            assert failure.metadata["phase"] == "creating"
        assert len(await create(api, name)) == MEMBERS
        await check_usable(api, name)

        service.dies("delete", name, deleted_until)
        if deleted_until != "gone":
            with fails("FAILED_PRECONDITION", "NAMESPACE_SET_INCOMPLETE") as failure:
                await api.store.GetNamespaceSet(get)
            assert "DeleteNamespaceSet" in failure.message
            assert failure.metadata["phase"] == "deleting"
            # A half of a set is not made whole again: some of its data has gone.
            with fails("FAILED_PRECONDITION", "NAMESPACE_SET_INCOMPLETE"):
                await create(api, name)
            await delete(api, name, force=True)
        assert service.left(name) == []
        with fails("NOT_FOUND", "NAMESPACE_SET_NOT_FOUND"):
            await delete(api, name)


@pytest.mark.parametrize("place", CREATING[:-1])
async def test_a_set_that_is_not_whole_can_be_deleted(service: Service, place: str) -> None:
    name = make.new_namespace_set()
    service.dies("create", name, place)
    async with connect(service.server.address) as channel:
        await delete(Api(channel), name)
    assert service.left(name) == []
