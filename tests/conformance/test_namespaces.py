"""Namespaces: a whole store each, picked by the request metadata `wfe-namespace`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails, invalid
from wfe.persistence.v1.event_pb2 import CreateEventRequest, GetEventRequest
from wfe.persistence.v1.store_pb2 import (
    AbortMoveNamespaceRequest,
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    EnsureStoreExistsRequest,
    GetStoreInfoRequest,
    ListDatabasesRequest,
    ListNamespacesRequest,
    MoveNamespaceRequest,
    MoveNamespaceResponse,
    MovePhase,
    Namespace,
)
from wfe.persistence.v1.workflow_pb2 import NextDefinitionSequenceRequest


@pytest.fixture
async def name(api: Api) -> AsyncIterator[str]:
    """A namespace of the test's own, deleted afterwards."""
    info = await api.store.GetStoreInfo(GetStoreInfoRequest())
    if not (info.capabilities.create_namespace and info.capabilities.delete_namespace):
        pytest.skip("the target does not allow CreateNamespace and DeleteNamespace")
    name = make.new_namespace()
    await api.store.CreateNamespace(CreateNamespaceRequest(name=name))
    yield name
    try:
        await api.store.DeleteNamespace(DeleteNamespaceRequest(name=name, force=True))
    except grpc.aio.AioRpcError as exc:
        assert exc.code() == grpc.StatusCode.NOT_FOUND  # noqa: PT017


def within(name: str) -> tuple[tuple[str, str], ...]:
    """The metadata that picks a namespace."""
    return (("wfe-namespace", name),)


async def listed(api: Api) -> dict[str, Namespace]:
    found: dict[str, Namespace] = {}
    token = ""
    while True:
        page = await api.store.ListNamespaces(ListNamespacesRequest(page_size=2, page_token=token))
        assert len(page.namespaces) <= 2
        found.update({n.name: n for n in page.namespaces})
        token = page.next_page_token
        if not token:
            return found


async def test_namespace_has_ids_sequences_and_schema_of_its_own(api: Api, name: str) -> None:
    event = make.event()
    await api.events.CreateEvent(CreateEventRequest(event=event))
    with fails("NOT_FOUND", "EVENT_NOT_FOUND"):
        await api.events.GetEvent(GetEventRequest(id=event.id), metadata=within(name))
    other = make.event(id=event.id)
    await api.events.CreateEvent(CreateEventRequest(event=other), metadata=within(name))
    answer = await api.events.GetEvent(GetEventRequest(id=event.id), metadata=within(name))
    assert answer.event == other
    assert (await api.events.GetEvent(GetEventRequest(id=event.id))).event == event
    sequence = NextDefinitionSequenceRequest(definition_id=make.new_id())
    for number in (1, 2):
        assert (await api.workflows.NextDefinitionSequence(sequence)).number == number
    answer_there = await api.workflows.NextDefinitionSequence(sequence, metadata=within(name))
    assert answer_there.number == 1
    info = await api.store.GetStoreInfo(GetStoreInfoRequest(), metadata=within(name))
    assert (info.namespace, info.schema.endswith(f"_{name}")) == (name, True)


async def test_default_is_the_namespace_without_metadata(api: Api) -> None:
    event = make.event()
    await api.events.CreateEvent(CreateEventRequest(event=event), metadata=within("default"))
    assert (await api.events.GetEvent(GetEventRequest(id=event.id))).event == event


async def test_creating_again_changes_nothing(api: Api, name: str) -> None:
    event = make.event()
    await api.events.CreateEvent(CreateEventRequest(event=event), metadata=within(name))
    again = await api.store.CreateNamespace(CreateNamespaceRequest(name=name))
    info = await api.store.GetStoreInfo(GetStoreInfoRequest())
    assert (again.schema_version, list(again.applied_migrations)) == (
        info.latest_schema_version,
        [],
    )
    answer = await api.events.GetEvent(GetEventRequest(id=event.id), metadata=within(name))
    assert answer.event == event


async def test_list_tells_every_namespace_with_its_version(api: Api, name: str) -> None:
    found = await listed(api)
    info = await api.store.GetStoreInfo(GetStoreInfoRequest())
    assert {"default", name} <= set(found)
    assert found[name].schema == f"{found['default'].schema}_{name}"
    assert found[name].schema_version == info.latest_schema_version
    assert found["default"].schema == info.schema


async def test_absent_namespace_is_not_found_and_not_made(api: Api) -> None:
    for request in (api.events.GetEvent(GetEventRequest(id="e"), metadata=within("absent")),):
        with fails("NOT_FOUND", "NAMESPACE_NOT_FOUND") as failure:
            await request
        assert failure.metadata == {"namespace": "absent"}
    with fails("NOT_FOUND", "NAMESPACE_NOT_FOUND"):
        await api.store.EnsureStoreExists(EnsureStoreExistsRequest(), metadata=within("absent"))
    assert "absent" not in await listed(api)


@pytest.mark.usefixtures("name")  # skips targets that refuse CreateNamespace altogether
@pytest.mark.parametrize("bad", ["", "default", "A", "1a", "a-b", "a" * 41, "a b", 'a"'])
async def test_bad_names_are_refused(api: Api, bad: str) -> None:
    with invalid("name"):
        await api.store.CreateNamespace(CreateNamespaceRequest(name=bad))


async def test_a_call_is_for_one_namespace(api: Api, name: str) -> None:
    """Which one counts must not depend on who reads the metadata."""
    request = GetEventRequest(id="absent")
    for other in ("default", "absent", ""):
        for both in ((name, other), (other, name)):
            with fails("INVALID_ARGUMENT", "INVALID_NAMESPACE"):
                await api.events.GetEvent(request, metadata=[("wfe-namespace", n) for n in both])
    with fails("NOT_FOUND", "EVENT_NOT_FOUND"):
        await api.events.GetEvent(request, metadata=[("wfe-namespace", name)] * 2)


async def test_deleted_namespace_is_gone_with_all_that_was_in_it(api: Api, name: str) -> None:
    event = make.event()
    await api.events.CreateEvent(CreateEventRequest(event=event), metadata=within(name))
    with fails("FAILED_PRECONDITION", "NAMESPACE_NOT_EMPTY"):
        await api.store.DeleteNamespace(DeleteNamespaceRequest(name=name))
    answer = await api.events.GetEvent(GetEventRequest(id=event.id), metadata=within(name))
    assert answer.event == event
    await api.store.DeleteNamespace(DeleteNamespaceRequest(name=name, force=True))
    with fails("NOT_FOUND", "NAMESPACE_NOT_FOUND"):
        await api.events.GetEvent(GetEventRequest(id=event.id), metadata=within(name))
    with fails("NOT_FOUND", "NAMESPACE_NOT_FOUND"):
        await api.store.DeleteNamespace(DeleteNamespaceRequest(name=name))
    await api.store.CreateNamespace(CreateNamespaceRequest(name=name))
    with fails("NOT_FOUND", "EVENT_NOT_FOUND"):
        await api.events.GetEvent(GetEventRequest(id=event.id), metadata=within(name))


async def test_empty_namespace_is_deleted_without_force(api: Api, name: str) -> None:
    await api.store.DeleteNamespace(DeleteNamespaceRequest(name=name))
    assert name not in await listed(api)


async def test_default_is_never_deleted(api: Api, name: str) -> None:
    with invalid("name"):
        await api.store.DeleteNamespace(DeleteNamespaceRequest(name="default", force=True))


# What needs a second database is in tests/faults/test_move_namespace.py.


async def test_a_namespace_that_is_there_already_is_not_moved(api: Api, name: str) -> None:
    database = (await listed(api))[name].database
    request = MoveNamespaceRequest(name=name, database=database)
    [response] = [each async for each in api.store.MoveNamespace(request)]
    assert response == MoveNamespaceResponse(phase=MovePhase.MOVE_PHASE_MOVED)
    request.dry_run = True
    assert [each async for each in api.store.MoveNamespace(request)] == [response]
    assert (await listed(api))[name].database == database


async def test_what_is_not_there_is_not_moved(api: Api, name: str) -> None:
    database = (await listed(api))[name].database
    with fails("NOT_FOUND", "NAMESPACE_NOT_FOUND"):
        request = MoveNamespaceRequest(name=make.new_namespace(), database=database)
        assert [each async for each in api.store.MoveNamespace(request)]
    with fails("NOT_FOUND", "DATABASE_NOT_FOUND"):
        request = MoveNamespaceRequest(name=name, database="of-another-service")
        assert [each async for each in api.store.MoveNamespace(request)]
    with invalid("name"):
        request = MoveNamespaceRequest(name="default", database=database)
        assert [each async for each in api.store.MoveNamespace(request)]


async def test_without_a_move_nothing_is_aborted(api: Api, name: str) -> None:
    for _ in range(2):
        answer = await api.store.AbortMoveNamespace(AbortMoveNamespaceRequest(name=name))
        assert not answer.aborted
    assert name in await listed(api)


async def test_health_of_each_namespace(api: Api, name: str) -> None:
    stub: health_pb2_grpc.HealthStub = health_pb2_grpc.HealthStub(api.channel)

    async def status(service: str) -> str:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await stub.Check(request)  # type: ignore[attr-defined]
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    for namespace in (name, "default"):
        assert await status(f"{namespace}/wfe.persistence.v1.WorkflowService") == "SERVING"
    for unknown in (f"{name}/nonsense", "absent/wfe.persistence.v1.WorkflowService"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status(unknown)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_databases_are_listed_with_what_they_say_of_themselves(api: Api) -> None:
    databases = (await api.store.ListDatabases(ListDatabasesRequest())).databases
    home = databases[0]
    assert (home.name, home.reachable) == ("home", True)
    assert "name=home" in home.labels
    assert home.size_bytes > 1_000_000
    assert home.postgres_version == (await api.get_store_info()).postgres_version
    names = [each.name for each in databases]
    assert len(set(names)) == len(names)
    for each in databases:
        assert list(each.labels) == sorted(each.labels)


async def test_a_namespace_is_created_in_the_database_that_is_asked_for(
    api: Api, name: str
) -> None:
    await api.store.DeleteNamespace(DeleteNamespaceRequest(name=name))
    for database in (await api.store.ListDatabases(ListDatabasesRequest())).databases:
        if not database.reachable:
            continue
        for wish in ({"database": database.name}, {"database_labels": database.labels}):
            request = CreateNamespaceRequest(name=name, **wish)
            assert (await api.store.CreateNamespace(request)).database == database.name
        request = CreateNamespaceRequest(name=name)
        assert (await api.store.CreateNamespace(request)).database == database.name
        with fails("NOT_FOUND", "DATABASE_NOT_FOUND"):
            await api.store.CreateNamespace(
                CreateNamespaceRequest(name=name, database="there-is-no-such-database")
            )
        assert (await listed(api))[name].database == database.name
        await api.store.DeleteNamespace(DeleteNamespaceRequest(name=name))


async def test_the_store_says_in_which_database_it_is(api: Api) -> None:
    names = [d.name for d in (await api.store.ListDatabases(ListDatabasesRequest())).databases]
    assert (await api.get_store_info()).database in names
