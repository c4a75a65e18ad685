"""Namespace sets: declared on the server, with a number of members that never changes; names that
one workflow of a set has; and what lists of several namespaces are merged by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support import make
from tests.support.api import Api
from tests.support.expect import fails, invalid
from tests.support.scene import found, give_name_up, never_due
from tests.support.scene import skip_unless_namespaces_can_be_deleted as may_skip
from wfe.persistence.v1.event_pb2 import GetEventsRequest, GetRunnableEventsRequest
from wfe.persistence.v1.store_pb2 import (
    CreateNamespaceRequest,
    CreateNamespaceSetRequest,
    DeleteNamespaceRequest,
    DeleteNamespaceSetRequest,
    GetNamespaceSetRequest,
    GetStoreInfoRequest,
)
from wfe.persistence.v1.workflow_pb2 import (
    CreateNewWorkflowRequest,
    CreateWorkflowsRequest,
    DeleteWorkflowRequest,
    GetNameHolderRequest,
    GetRunnableInstancesRequest,
    SetNameHolderRequest,
)


@pytest.fixture
async def name(api: Api) -> AsyncIterator[str]:
    """The name of a set that is deleted afterwards."""
    await may_skip(api)
    name = make.new_namespace_set()
    yield name
    await found(api.store.DeleteNamespaceSet(DeleteNamespaceSetRequest(name=name, force=True)))


def create(api: Api, name: str, members: int = 2):  # type: ignore[no-untyped-def]
    return api.store.CreateNamespaceSet(CreateNamespaceSetRequest(name=name, members=members))


def within(name: str) -> tuple[tuple[str, str], ...]:
    return (("wfe-namespace", name),)


async def exists(api: Api, namespace: str) -> bool:
    ask = GetStoreInfoRequest()
    return await found(api.store.GetStoreInfo(ask, metadata=within(namespace))) is not None


async def test_a_set_has_its_members(api: Api, name: str) -> None:
    created = (await create(api, name)).namespace_set
    assert created.name == name
    assert created.members == [f"{name}_0", f"{name}_1"]
    get = GetNamespaceSetRequest(name=name)
    assert (await api.store.GetNamespaceSet(get)).namespace_set == created
    # The metadata is ignored.
    assert (
        await api.store.GetNamespaceSet(get, metadata=within("absent"))
    ).namespace_set == created
    assert (await create(api, name)).namespace_set == created
    for member in created.members:
        assert await exists(api, member)
    assert not await exists(api, f"{name}_2")


async def test_the_number_of_members_never_changes(api: Api, name: str) -> None:
    await create(api, name)
    for other in (1, 3):
        with fails("ALREADY_EXISTS", "NAMESPACE_SET_EXISTS") as failure:
            await create(api, name, other)
        assert failure.metadata["members"] == "2"


async def test_of_concurrent_creations_the_set_is_whole(api: Api, name: str) -> None:
    sets = await asyncio.gather(*(create(api, name) for _ in range(4)))
    assert len({one.namespace_set.SerializeToString() for one in sets}) == 1


async def test_a_member_that_has_data_is_refused(api: Api, name: str) -> None:
    """What is in it was not routed there. An empty one is taken."""
    for index in range(2):
        await api.store.CreateNamespace(CreateNamespaceRequest(name=f"{name}_{index}"))
    instance = never_due()
    request = CreateNewWorkflowRequest(instance=instance)
    await api.workflows.CreateNewWorkflow(request, metadata=within(f"{name}_1"))
    with fails("FAILED_PRECONDITION", "NAMESPACE_NOT_EMPTY") as failure:
        await create(api, name)
    assert failure.metadata["namespace"] == f"{name}_1"
    # Nobody can use it so.
    with fails("FAILED_PRECONDITION", "NAMESPACE_SET_INCOMPLETE"):
        await api.store.GetNamespaceSet(GetNamespaceSetRequest(name=name))
    delete = DeleteWorkflowRequest(id=instance.id)
    await api.workflows.DeleteWorkflow(delete, metadata=within(f"{name}_1"))
    await create(api, name)


async def test_a_member_is_not_deleted_alone(api: Api, name: str) -> None:
    await create(api, name)
    with fails("FAILED_PRECONDITION", "NAMESPACE_IN_SET") as failure:
        await api.store.DeleteNamespace(DeleteNamespaceRequest(name=f"{name}_1", force=True))
    assert failure.metadata["namespace_set"] == name
    # One with a similar name is no member.
    for other in (f"{name}_2", f"{name}_01"):
        await api.store.CreateNamespace(CreateNamespaceRequest(name=other))
        await api.store.DeleteNamespace(DeleteNamespaceRequest(name=other))


async def test_a_set_is_deleted_with_its_members(api: Api, name: str) -> None:
    await create(api, name)
    request = CreateNewWorkflowRequest(instance=never_due())
    await api.workflows.CreateNewWorkflow(request, metadata=within(f"{name}_1"))
    delete = DeleteNamespaceSetRequest(name=name)
    with fails("FAILED_PRECONDITION", "NAMESPACE_NOT_EMPTY"):
        await api.store.DeleteNamespaceSet(delete)
    # It had not begun.
    assert len((await create(api, name)).namespace_set.members) == 2
    assert await exists(api, f"{name}_0")
    await api.store.DeleteNamespaceSet(DeleteNamespaceSetRequest(name=name, force=True))
    for index in range(2):
        assert not await exists(api, f"{name}_{index}")
    with fails("NOT_FOUND", "NAMESPACE_SET_NOT_FOUND"):
        await api.store.GetNamespaceSet(GetNamespaceSetRequest(name=name))
    with fails("NOT_FOUND", "NAMESPACE_SET_NOT_FOUND"):
        await api.store.DeleteNamespaceSet(delete)
    # Anew, with another number.
    assert len((await create(api, name, 1)).namespace_set.members) == 1


@pytest.mark.parametrize("bad", ["", "Orders", "1orders", "a-b", "a" * 37])
async def test_names_of_sets(api: Api, bad: str) -> None:
    reason = "FORMAT" if bad else "REQUIRED"
    with invalid("name", reason=reason):
        await create(api, bad)
    with invalid("name", reason=reason):
        await api.store.GetNamespaceSet(GetNamespaceSetRequest(name=bad))
    with invalid("name", reason=reason):
        await api.store.DeleteNamespaceSet(DeleteNamespaceSetRequest(name=bad))


@pytest.mark.parametrize("members", [-1, 0, 257, 2**31 - 1])
async def test_numbers_of_members(api: Api, members: int) -> None:
    with invalid("members", reason="NUMBER_RANGE"):
        await create(api, make.new_namespace_set(), members)


# Names.


@pytest.fixture
async def held(api: Api) -> AsyncIterator[str]:
    """A name, given up afterwards."""
    held = make.new_id("name")
    yield held
    await give_name_up(api, held)


async def test_a_name_has_one_holder(api: Api, held: str) -> None:
    def claim(workflow_id: str, claim_id: str, expected: str = ""):  # type: ignore[no-untyped-def]
        return api.workflows.SetNameHolder(
            SetNameHolderRequest(
                name=held, workflow_id=workflow_id, claim_id=claim_id, expected_claim_id=expected
            )
        )

    async def holder() -> tuple[str, str]:
        answer = await api.workflows.GetNameHolder(GetNameHolderRequest(name=held))
        return answer.workflow_id, answer.claim_id

    assert await holder() == ("", "")
    for _ in range(2):  # idempotent
        answer = await claim("w1", "c1")
        assert (answer.workflow_id, answer.claim_id) == ("w1", "c1") == await holder()
    # Another one, without and with a wrong claim, and of the same workflow.
    for workflow_id, claim_id, expected in (("w2", "c2", ""), ("w2", "c2", "c0"), ("w1", "c3", "")):
        answer = await claim(workflow_id, claim_id, expected)
        assert (answer.workflow_id, answer.claim_id) == ("w1", "c1") == await holder()
    for _ in range(2):
        answer = await claim("w2", "c2", "c1")
        assert (answer.workflow_id, answer.claim_id) == ("w2", "c2") == await holder()
    # Given up with the right claim only.
    answer = await claim("", "", "c1")
    assert (answer.workflow_id, answer.claim_id) == ("w2", "c2") == await holder()
    for _ in range(2):
        answer = await claim("", "", "c2")
        assert (answer.workflow_id, answer.claim_id) == ("", "") == await holder()
    # Nobody has it who could hand it on.
    answer = await claim("w1", "c1", "c2")
    assert (answer.workflow_id, answer.claim_id) == ("", "") == await holder()


async def test_a_workflow_that_has_a_name_here_holds_it(api: Api, held: str) -> None:
    instance = never_due(name=held)
    await api.create_new_workflow(instance)
    claim = SetNameHolderRequest(name=held, workflow_id="other", claim_id="c")
    answer = await api.workflows.SetNameHolder(claim)
    assert (answer.workflow_id, answer.claim_id) == (instance.id, "")
    # For itself it may claim it.
    claim.workflow_id = instance.id
    assert (await api.workflows.SetNameHolder(claim)).claim_id == "c"


async def test_of_many_claims_one_succeeds(api: Api, held: str) -> None:
    answers = await asyncio.gather(
        *(
            api.workflows.SetNameHolder(
                SetNameHolderRequest(name=held, workflow_id=f"w{n}", claim_id=f"c{n}")
            )
            for n in range(20)
        )
    )
    assert len({(a.workflow_id, a.claim_id) for a in answers}) == 1


async def test_what_a_claim_needs(api: Api) -> None:
    with invalid("name", "claim_id", reason="REQUIRED"):
        await api.workflows.SetNameHolder(SetNameHolderRequest(workflow_id="w"))
    with invalid("name", "expected_claim_id", reason="REQUIRED"):
        await api.workflows.SetNameHolder(SetNameHolderRequest())


# A create that depends on locks.


async def test_a_workflow_is_created_under_a_lock(api: Api) -> None:
    lock = await api.acquire_lock(make.new_id("resource"))
    instance = never_due()
    request = CreateNewWorkflowRequest(instance=instance, held_lock_tokens=[lock.token])
    created = await api.workflows.CreateNewWorkflow(request)
    assert created.id == instance.id
    await api.release_lock(lock.token)
    # A repetition is one, whether it is still held or not.
    assert await api.workflows.CreateNewWorkflow(request) == created
    other = never_due()
    request.instance.CopyFrom(other)
    with fails("FAILED_PRECONDITION", "LEASE_LOST") as failure:
        await api.workflows.CreateNewWorkflow(request)
    assert failure.metadata["field"] == "held_lock_tokens[0]"
    assert failure.metadata["lease_tokens"] == lock.token
    with fails("NOT_FOUND", "WORKFLOW_NOT_FOUND"):
        await api.get_workflow_instance(other.id)


async def test_of_many_creates_each_depends_on_its_own_locks(api: Api) -> None:
    lock = await api.acquire_lock(make.new_id("resource"))
    lost = await api.acquire_lock(make.new_id("resource"))
    await api.release_lock(lost.token)
    requests = [
        CreateNewWorkflowRequest(instance=never_due(), held_lock_tokens=tokens)
        for tokens in ([], [lock.token], [lost.token], [lock.token, lost.token], [])
    ]
    stream = api.workflows.CreateWorkflows(iter([CreateWorkflowsRequest(workflows=requests)]))
    [answer] = [answer async for answer in stream]
    reasons = [result.error.reason for result in answer.results]
    assert [bool(reason) for reason in reasons] == [False, False, True, True, False]
    assert answer.results[3].error.metadata["field"] == "held_lock_tokens[1]"
    await api.release_lock(lock.token)


# What lists are merged by.


async def test_order_keys_of_runnable_workflows(api: Api) -> None:
    definition = make.new_id("definition")
    times = [3000, 1000, 2000, 1000]
    for time in times:
        await api.create_new_workflow(
            make.instance(workflow_definition_id=definition, next_execution=time)
        )
    request = GetRunnableInstancesRequest(
        workflow_definition_ids=[definition], page_size=3, with_order_keys=True
    )
    page = await api.workflows.GetRunnableInstances(request)
    assert list(page.order_keys) == [1000, 1000, 2000]
    assert len(page.instance_ids) == 3
    request.page_token = page.next_page_token
    page = await api.workflows.GetRunnableInstances(request)
    assert list(page.order_keys) == [3000]
    request = GetRunnableInstancesRequest(workflow_definition_ids=[definition])
    page = await api.workflows.GetRunnableInstances(request)
    assert (len(page.instance_ids), list(page.order_keys)) == (4, [])


async def test_order_keys_of_events(api: Api) -> None:
    key = make.new_id("key")
    ids = []
    for seconds in (3, 1, 2):
        event = make.event(event_name="keyed", event_key=key, event_time=make.time(seconds))
        await api.create_event(event)
        ids.append((seconds, event.id))
    page = await api.events.GetEvents(
        GetEventsRequest(event_name="keyed", event_key=key, with_order_keys=True)
    )
    in_order = [id_ for _, id_ in sorted(ids)]
    assert list(page.event_ids) == in_order
    first, second, third = page.order_keys
    assert (second - first, third - second) == (1_000_000, 1_000_000)
    runnable = await api.events.GetRunnableEvents(
        GetRunnableEventsRequest(page_size=1000, with_order_keys=True)
    )
    keys = dict(zip(runnable.event_ids, runnable.order_keys, strict=True))
    assert [keys.get(id_) for id_ in in_order] in (list(page.order_keys), [None] * 3)
    for id_ in in_order:
        await api.mark_event_processed(id_)
    without = await api.events.GetEvents(GetEventsRequest(event_name="keyed", event_key=key))
    assert list(without.order_keys) == []
