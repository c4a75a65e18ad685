"""Names are unique over a namespace set, whenever a host dies, and however late another one is."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.client.conftest import FAST
from tests.client.sets.conftest import MEMBERS
from tests.client.sets.support import member, new_id, workflow
from tests.support.server import ServerProcess
from wfe_persistence_client import (
    LeaseLost,
    NamespaceSetProvider,
    NameTaken,
    PersistenceError,
    PersistenceProvider,
    RevisionMismatch,
    WorkflowNotFound,
    WorkflowPatch,
    connect,
)
from wfe_persistence_client.sets.names import name_lock
from wfe_persistence_client.sets.routing import member_of


@pytest.fixture
async def other(set_server: ServerProcess) -> AsyncIterator[NamespaceSetProvider]:
    """Another host."""
    async with connect(set_server.address, namespace_set="orders", retry=FAST) as provider:
        assert isinstance(provider, NamespaceSetProvider)
        yield provider


def name_in(index: int) -> str:
    """A new name that belongs to a member."""
    return next(
        name for n in itertools.count() if member_of(name := f"{new_id()}-{n}", MEMBERS) == index
    )


async def having(orders: NamespaceSetProvider, name: str) -> list[str]:
    """The ids of all workflows with a name, in all members."""
    found = []
    for index in range(MEMBERS):
        try:
            instance = await member(orders, index).get_workflow_instance_by_name(name)
        except WorkflowNotFound:
            continue
        found.append(instance.id)
    return found


class Death(BaseException):
    """A host ends at this point."""


@pytest.mark.parametrize("index", [0, 1])
async def test_a_name_is_had_by_one_workflow(
    orders: NamespaceSetProvider, other: NamespaceSetProvider, index: int
) -> None:
    name = name_in(0)
    first = workflow(new_id(index), name=name)
    await orders.create_new_workflow(first)
    assert first.name == name
    for second in (new_id(2), new_id(0), new_id(1)):
        with pytest.raises(NameTaken) as raised:
            await other.create_new_workflow(workflow(second, name=name))
        assert raised.value.field == "instance.name"
        with pytest.raises(WorkflowNotFound):
            await other.get_workflow_instance(second)
    # The same again changes nothing.
    await other.create_new_workflow(workflow(first.id, name=name))
    assert await having(orders, name) == [first.id]
    assert (await other.get_workflow_instance_by_name(name)).id == first.id
    assert await orders.list_locks(resource_prefix="wfe-set-name:") == []


async def test_of_many_at_the_same_time_one_has_the_name(
    orders: NamespaceSetProvider, other: NamespaceSetProvider
) -> None:
    name = name_in(3)

    async def create(provider: NamespaceSetProvider, index: int) -> bool:
        try:
            await provider.create_new_workflow(workflow(new_id(index), name=name))
        except NameTaken:
            return False
        return True

    done = await asyncio.gather(
        *(create(host, n % MEMBERS) for n, host in enumerate([orders, other] * 6))
    )
    assert sum(done) == 1
    assert len(await having(orders, name)) == 1


async def test_a_name_that_is_the_id_of_a_workflow(orders: NamespaceSetProvider) -> None:
    id_ = new_id(1)
    await orders.create_new_workflow(workflow(id_))
    with pytest.raises(NameTaken):
        await orders.create_new_workflow(workflow(new_id(2), name=id_))
    assert await having(orders, id_) == [id_]


async def test_a_deleted_workflow_gives_its_name_up(orders: NamespaceSetProvider) -> None:
    name = name_in(0)
    first = workflow(new_id(1), name=name)
    await orders.create_new_workflow(first)
    await orders.delete_workflow(first.id)
    assert await orders.get_name_holder(name) is None
    with pytest.raises(WorkflowNotFound):
        await orders.get_workflow_instance_by_name(name)
    await orders.create_new_workflow(workflow(new_id(2), name=name))


async def test_a_renamed_workflow(
    orders: NamespaceSetProvider, other: NamespaceSetProvider
) -> None:
    old, new = name_in(0), name_in(1)
    instance = workflow(new_id(2), name=old)
    await orders.create_new_workflow(instance)
    taken = workflow(new_id(3), name=name_in(2))
    await orders.create_new_workflow(taken)
    instance.name = taken.name
    with pytest.raises(NameTaken):
        await orders.persist_workflow(instance)
    instance.name = new
    await orders.persist_workflow(instance)
    assert (await other.get_workflow_instance_by_name(new)).id == instance.id
    with pytest.raises(WorkflowNotFound):
        await other.get_workflow_instance_by_name(old)
    # The old one can be had by another workflow, and the first can't get it back.
    next_ = workflow(new_id(0), name=old)
    await other.create_new_workflow(next_)
    instance.name = old
    with pytest.raises(NameTaken):
        await orders.persist_workflow(instance)
    patch = WorkflowPatch(id=instance.id, header={"name": old})
    with pytest.raises(NameTaken):
        await orders.commit_workflow(patch, expected_revision=instance.revision)
    with pytest.raises(NameTaken):
        async with orders.step(instance):
            pass
    assert await having(orders, old) == [next_.id]


async def test_a_name_that_was_taken_away_is_not_written(
    orders: NamespaceSetProvider, other: NamespaceSetProvider
) -> None:
    """By a host that still believes it to be the workflow's."""
    old = name_in(0)
    mine = workflow(new_id(2), name=old)
    await orders.create_new_workflow(mine)
    theirs = await other.get_workflow_instance(mine.id)
    theirs.name = name_in(1)
    await other.persist_workflow(theirs)
    await other.create_new_workflow(workflow(new_id(3), name=old))
    assert mine.name == old
    mine.data = {"a": 1}
    await orders.persist_workflow(mine)
    stored = await other.get_workflow_instance(mine.id)
    assert (stored.name, stored.data) == (theirs.name, {"a": 1})
    assert len(await having(orders, old)) == 1


@pytest.mark.parametrize("at", ["set_name_holder", "create_new_workflow", "release_lock"])
@pytest.mark.parametrize("before", [True, False])
async def test_a_host_that_dies_at_any_step(
    orders: NamespaceSetProvider,
    other: NamespaceSetProvider,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    before: bool,
) -> None:
    """Before its call, or after it: nobody else has the name while it may still write, everybody
    may have it later, unless the workflow is there; and what it had begun, it can begin anew."""
    name = name_in(0)
    dying = workflow(new_id(1), name=name)
    real = getattr(PersistenceProvider, at)

    async def die(self: PersistenceProvider, *args: object, **kwargs: object) -> object:
        if not before:
            await real(self, *args, **kwargs)
        raise Death

    with monkeypatch.context() as patched:
        patched.setattr(PersistenceProvider, at, die)
        with pytest.raises(Death):
            await orders.create_new_workflow(dying)
        # (It does not release its lock either.)
        patched.setattr(PersistenceProvider, "release_lock", die)
    created = at == "release_lock" or (at == "create_new_workflow" and not before)
    claimed = at != "set_name_holder" or not before
    lock = name_lock(dying.id, name)
    heir = workflow(new_id(2), name=name)
    if at != "release_lock":
        # It had released it on its way; so we hold it, as if it had died without that.
        held = await member(orders, 1).acquire_lock(lock)
        assert held is not None
        if claimed:
            with pytest.raises(NameTaken):
                await other.create_new_workflow(heir)
        await member(orders, 1).release_lock(held.token)
    elif before:
        assert await member(orders, 1).break_lock(lock) is not None
    if created:
        with pytest.raises(NameTaken):
            await other.create_new_workflow(heir)
        assert await having(orders, name) == [dying.id]
    else:
        await other.create_new_workflow(heir)
        assert await having(orders, name) == [heir.id]
        assert (await other.get_workflow_instance_by_name(name)).id == heir.id
        with pytest.raises(NameTaken):
            await orders.create_new_workflow(dying)
    again = workflow(dying.id, name=name)
    if created:
        await other.create_new_workflow(again)
    assert len(await having(orders, name)) == 1


@pytest.mark.parametrize("then", ["lock expires", "name is taken over"])
async def test_a_host_that_is_late_can_not_write(
    orders: NamespaceSetProvider,
    other: NamespaceSetProvider,
    monkeypatch: pytest.MonkeyPatch,
    then: str,
) -> None:
    """It has taken the name, and sleeps before it creates the workflow."""
    name = name_in(0)
    late, heir = workflow(new_id(1), name=name), workflow(new_id(2), name=name)
    real = PersistenceProvider.create_new_workflow
    slept: list[bool] = []

    async def sleep(self: PersistenceProvider, *args: object, **kwargs: object) -> str:
        if not slept:
            slept.append(True)
            assert await member(orders, 1).break_lock(name_lock(late.id, name)) is not None
            if then == "name is taken over":
                await other.create_new_workflow(heir)
        return await real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(PersistenceProvider, "create_new_workflow", sleep)
    with pytest.raises(LeaseLost):
        await orders.create_new_workflow(late)
    if then == "lock expires":
        await orders.create_new_workflow(late)
        with pytest.raises(NameTaken):
            await other.create_new_workflow(heir)
    else:
        with pytest.raises(NameTaken):
            await orders.create_new_workflow(late)
    assert await having(orders, name) == [(late if then == "lock expires" else heir).id]


async def test_a_second_attempt_of_a_host_that_was_thought_dead(
    orders: NamespaceSetProvider, other: NamespaceSetProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It claims the name anew between the look of the one who wants it and their claim."""
    name = name_in(0)
    slow, heir = workflow(new_id(1), name=name), workflow(new_id(2), name=name)
    real = PersistenceProvider.create_new_workflow

    async def die(*_: object, **__: object) -> str:
        raise Death

    with monkeypatch.context() as patched:
        patched.setattr(PersistenceProvider, "create_new_workflow", die)
        with pytest.raises(Death):
            await orders.create_new_workflow(slow)
    assert PersistenceProvider.create_new_workflow is real
    look = NamespaceSetProvider._is_abandoned
    looked: list[bool] = []

    async def look_slowly(self: NamespaceSetProvider, *args: object) -> bool:
        abandoned = await look(self, *args)  # type: ignore[arg-type]
        if not looked:
            looked.append(abandoned)
            await orders.create_new_workflow(slow)
        return abandoned

    monkeypatch.setattr(NamespaceSetProvider, "_is_abandoned", look_slowly)
    with pytest.raises(NameTaken):
        await other.create_new_workflow(heir)
    assert looked == [True]
    assert await having(orders, name) == [slow.id]


async def test_hosts_that_die_and_are_late_at_random(set_server: ServerProcess) -> None:
    """Whatever happens between the calls of several hosts, no name is had twice."""
    import random

    chance = random.Random(7)
    names = [name_in(n % MEMBERS) for n in range(6)]

    async def host(number: int) -> None:
        async with connect(set_server.address, namespace_set="orders", retry=FAST) as provider:
            assert isinstance(provider, NamespaceSetProvider)
            own = random.Random(number)
            for _ in range(12):
                name, id_ = own.choice(names), new_id(own.randrange(MEMBERS))
                task = asyncio.ensure_future(provider.create_new_workflow(workflow(id_, name=name)))
                # Dies now and then, wherever it is.
                if own.random() < 0.5:
                    await asyncio.sleep(own.random() * 0.02)
                    task.cancel()
                try:
                    await task
                except (asyncio.CancelledError, PersistenceError):
                    continue
                if own.random() < 0.3:
                    await provider.delete_workflow(id_)

    await asyncio.gather(*(host(chance.randrange(10**6)) for _ in range(5)))
    async with connect(set_server.address, namespace_set="orders", retry=FAST) as provider:
        assert isinstance(provider, NamespaceSetProvider)
        for name in names:
            assert len(await having(provider, name)) <= 1, name


@pytest.mark.parametrize("when", ["it is there", "it is being created"])
async def test_a_workflow_that_is_created_again_while_it_is_deleted(
    orders: NamespaceSetProvider,
    other: NamespaceSetProvider,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """The name is the new one's: whoever has deleted the first must not give it up."""
    name = name_in(0)
    first = workflow(new_id(1), name=name)
    await orders.create_new_workflow(first)
    create, delete = PersistenceProvider.create_new_workflow, PersistenceProvider.delete_workflow
    claimed, given_up = asyncio.Event(), asyncio.Event()

    async def create_slowly(self: PersistenceProvider, *args: Any, **kwargs: Any) -> str:
        claimed.set()
        if when == "it is being created":
            await given_up.wait()
        return await create(self, *args, **kwargs)

    tasks: list[asyncio.Task[str]] = []

    async def delete_and_lose(self: PersistenceProvider, *args: Any, **kwargs: Any) -> None:
        await delete(self, *args, **kwargs)
        again = workflow(first.id, name=name, data={"again": True})
        tasks.append(asyncio.create_task(other.create_new_workflow(again)))
        await claimed.wait()
        if when == "it is there":
            await tasks[0]

    with monkeypatch.context() as patched:
        patched.setattr(PersistenceProvider, "create_new_workflow", create_slowly)
        patched.setattr(PersistenceProvider, "delete_workflow", delete_and_lose)
        await orders.delete_workflow(first.id)
    given_up.set()
    assert await tasks[0] == first.id
    assert await orders.get_name_holder(name) is not None
    for index in (0, 2):
        with pytest.raises(NameTaken):
            await orders.create_new_workflow(workflow(new_id(index), name=name))
    assert await having(orders, name) == [first.id]


async def test_a_delete_that_fails_leaves_the_name(orders: NamespaceSetProvider) -> None:
    name = name_in(0)
    first = workflow(new_id(1), name=name)
    await orders.create_new_workflow(first)
    with pytest.raises(RevisionMismatch):
        await orders.delete_workflow(first.id, expected_revision=first.revision + 1)
    with pytest.raises(NameTaken):
        await orders.create_new_workflow(workflow(new_id(2), name=name))
    assert await having(orders, name) == [first.id]
