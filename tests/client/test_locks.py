"""`lock`: a block that holds a lock, renewed in the background, and ended when the lock is lost."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.client.conftest import FAST
from tests.client.fake_store import FakeStore, Step, answers, fails, hangs
from tests.support import make
from tests.support.expect import eventually
from wfe.persistence.v1 import lock_pb2
from wfe_persistence_client import (
    HeldLock,
    LeaseLost,
    LockHeld,
    PersistenceProvider,
    WorkflowInstance,
    connect,
    connect_blocking,
)

GONE = fails(grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
LOST = fails(grpc.StatusCode.FAILED_PRECONDITION, "LEASE_LOST")
GRANTED = answers(
    lock_pb2.AcquireLockResponse(acquired=True, token="t", epoch=7, expiry=Timestamp(seconds=1))
)
HELD = answers(lock_pb2.AcquireLockResponse(holder=lock_pb2.Lock(owner="another", epoch=6)))
RENEWED = answers(lock_pb2.RenewLocksResponse(expiry=Timestamp(seconds=2)))
RELEASED = answers(lock_pb2.ReleaseLockResponse(released=True))
SHORT = timedelta(milliseconds=900)
LONG = timedelta(seconds=60)


@pytest.fixture
def locks(store: FakeStore) -> FakeStore:
    """A store that grants everything."""
    store.on("AcquireLock", GRANTED)
    store.on("RenewLocks", RENEWED)
    store.on("ReleaseLock", RELEASED)
    return store


async def in_block(provider: PersistenceProvider, ttl: timedelta = SHORT) -> HeldLock:
    """Hold a lock until it is lost."""
    async with provider.lock("r", ttl=ttl) as lock:
        await asyncio.sleep(60)
    return lock


async def test_a_block_holds_the_lock_and_releases_it(
    locks: FakeStore, provider: PersistenceProvider
) -> None:
    async with provider.lock("r", owner="me", ttl=LONG) as lock:
        assert (lock.token, lock.epoch, lock.lost) == ("t", 7, False)
        assert lock.acquired.resource == "r"
        assert locks.count("ReleaseLock") == 0
    [request] = locks.requests["AcquireLock"]
    assert (request.resource, request.owner, request.ttl.seconds) == ("r", "me", 60)
    assert [request.token for request in locks.requests["ReleaseLock"]] == ["t"]


async def test_it_is_released_also_if_the_block_raises(
    locks: FakeStore, provider: PersistenceProvider
) -> None:
    with pytest.raises(KeyError):
        async with provider.lock("r", ttl=LONG):
            raise KeyError
    assert locks.count("ReleaseLock") == 1


async def test_it_is_released_also_if_the_block_is_cancelled(
    locks: FakeStore, provider: PersistenceProvider
) -> None:
    running = asyncio.create_task(in_block(provider, LONG))
    await locks.called("AcquireLock")
    await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert locks.count("ReleaseLock") == 1


async def test_it_is_renewed_for_as_long_as_the_block_runs(
    locks: FakeStore, provider: PersistenceProvider
) -> None:
    async with provider.lock("r", ttl=SHORT):
        while locks.count("RenewLocks") < 4:
            await asyncio.sleep(0.01)
    for request in locks.requests["RenewLocks"]:
        assert list(request.tokens) == ["t"]
        assert request.ttl.nanos == 900_000_000
    ended = locks.count("RenewLocks")
    await asyncio.sleep(0.3)
    assert locks.count("RenewLocks") == ended


async def test_a_block_whose_lock_is_lost_is_cancelled(
    locks: FakeStore, provider: PersistenceProvider
) -> None:
    locks.on("RenewLocks", RENEWED, LOST)
    cancelled = False
    lock = provider.lock("r", ttl=SHORT)

    async def block() -> None:
        nonlocal cancelled
        async with lock:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled = True
                raise

    with pytest.raises(LeaseLost):
        await block()
    assert cancelled
    assert lock.lost
    assert locks.count("ReleaseLock") == 0
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)  # nothing is left that would be cancelled


@pytest.mark.parametrize("failure", [GONE, hangs()], ids=["away", "hangs"])
async def test_a_store_that_is_away_for_too_long_loses_it(
    locks: FakeStore, provider: PersistenceProvider, failure: Step
) -> None:
    locks.on("RenewLocks", failure)
    async with asyncio.timeout(20):
        with pytest.raises(LeaseLost, match="could not be renewed"):
            await in_block(provider)


async def test_a_store_that_is_away_for_a_moment_goes_unnoticed(
    locks: FakeStore, provider: PersistenceProvider
) -> None:
    locks.on("RenewLocks", GONE, GONE, RENEWED)
    async with provider.lock("r", ttl=timedelta(seconds=2)):
        while locks.count("RenewLocks") < 4:
            await asyncio.sleep(0.01)


async def test_a_block_that_ends_as_its_lock_is_lost_raises_that(
    locks: FakeStore, provider: PersistenceProvider
) -> None:
    locks.on("RenewLocks", LOST)

    async def block() -> None:
        async with provider.lock("r", ttl=SHORT) as lock:
            while not lock.lost:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.01)

    with pytest.raises(LeaseLost):
        await block()
    await asyncio.sleep(0)


async def test_what_the_block_raises_comes_before_the_loss(
    locks: FakeStore, provider: PersistenceProvider
) -> None:
    locks.on("RenewLocks", LOST)

    async def block() -> None:
        async with provider.lock("r", ttl=SHORT):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise KeyError from None

    with pytest.raises(KeyError):
        await block()


async def test_a_lock_that_is_held_is_waited_for_and_then_refused(
    locks: FakeStore, provider: PersistenceProvider
) -> None:
    locks.on("AcquireLock", HELD)
    with pytest.raises(LockHeld) as caught:
        async with provider.lock("r", wait=timedelta(milliseconds=100)):
            pytest.fail("it is held")
    assert caught.value.owner == "another"
    assert locks.requests["AcquireLock"][0].wait.nanos > 0
    ids = [request.request_id for request in locks.requests["AcquireLock"]]
    assert len(set(ids)) == len(ids)


async def test_after_a_long_wait_it_is_renewed_before_the_block(
    locks: FakeStore, provider: PersistenceProvider
) -> None:
    async def late(_: object, __: object) -> lock_pb2.AcquireLockResponse:
        await asyncio.sleep(0.2)
        return lock_pb2.AcquireLockResponse(acquired=True, token="t", epoch=7)

    locks.on("AcquireLock", late)
    async with provider.lock("r", ttl=timedelta(milliseconds=500)):
        assert locks.count("RenewLocks") == 1


async def test_a_lock_object_holds_once(locks: FakeStore, provider: PersistenceProvider) -> None:
    held = provider.lock("r")
    with pytest.raises(RuntimeError, match="not been acquired"):
        held.token  # noqa: B018
    async with held:
        pass
    with pytest.raises(RuntimeError, match="only once"):
        async with held:
            pass


async def test_a_failing_release_is_no_error(
    locks: FakeStore, provider: PersistenceProvider
) -> None:
    locks.on("ReleaseLock", fails(grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED"))
    async with provider.lock("r"):
        pass


# Against a real server.


@pytest.fixture
async def real(target: str) -> AsyncIterator[PersistenceProvider]:
    async with connect(target, timeout=20, retry=FAST) as connected:
        yield connected


async def test_the_plain_methods(real: PersistenceProvider) -> None:
    resource = make.new_id("resource")
    first = await real.acquire_lock(resource, owner="me", ttl=LONG)
    assert first is not None
    assert await real.acquire_lock(resource) is None
    assert await real.acquire_lock(resource, wait=timedelta(milliseconds=50)) is None
    [lock] = await real.list_locks(resource_prefix=resource, owner="me")
    assert (lock.resource, lock.epoch, lock.expiry) == (resource, first.epoch, first.expiry)
    assert [lock async for lock in real.iter_locks(resource_prefix=resource)] == [lock]
    renewed = await real.renew_locks([first.token], ttl=LONG * 2)
    assert renewed is not None
    assert renewed > first.expiry
    assert await real.renew_locks([]) is None
    assert await real.release_lock(first.token) is True
    assert await real.release_lock(first.token) is False
    with pytest.raises(LeaseLost) as caught:
        await real.renew_locks([first.token])
    assert caught.value.lease_tokens == (first.token,)
    assert await real.break_lock(resource) is None
    assert (await real.get_store_info()).capabilities.locks


async def test_one_block_at_a_time(real: PersistenceProvider) -> None:
    """However long each takes: three times the ttl here."""
    resource, inside, epochs = make.new_id("resource"), 0, []

    async def block() -> None:
        nonlocal inside
        async with real.lock(resource, ttl=timedelta(seconds=1), wait=LONG) as lock:
            inside += 1
            assert inside == 1
            await asyncio.sleep(0.7)
            epochs.append(lock.epoch)
            inside -= 1

    await asyncio.gather(*(block() for _ in range(3)))
    assert epochs == sorted(set(epochs))


async def test_a_broken_lock_ends_its_block(real: PersistenceProvider) -> None:
    resource = make.new_id("resource")

    async def block() -> None:
        async with real.lock(resource, owner="me", ttl=timedelta(seconds=1)) as lock:
            broken = await real.break_lock(resource, epoch=lock.epoch)
            assert broken is not None
            await asyncio.sleep(60)

    with pytest.raises(LeaseLost):
        await block()


async def test_stores_under_a_lock_only_while_it_is_held(real: PersistenceProvider) -> None:
    workflow = WorkflowInstance(workflow_definition_id="order", version=1, data={})
    await real.create_new_workflow(workflow)
    async with real.lock(make.new_id("resource"), ttl=LONG) as lock:
        async with real.step(workflow) as step:
            step.hold(lock)
        async with real.step(workflow) as step:
            step.hold(lock.acquired)
        await real.persist_workflow(workflow, held_lock_tokens=[lock.token])
        await real.persist_workflow_with_subscriptions(workflow, [], held_lock_tokens=[lock.token])
        await real.commit_workflow(workflow, held_lock_tokens=[lock.token])
    revision = workflow.revision
    with pytest.raises(LeaseLost) as caught:
        async with real.step(workflow) as step:
            step.hold(lock)
    assert caught.value.metadata["field"] == "held_lock_tokens[0]"
    for write in (
        real.persist_workflow(workflow, held_lock_tokens=[lock.token]),
        real.persist_workflow_with_subscriptions(workflow, [], held_lock_tokens=[lock.token]),
        real.commit_workflow(workflow, held_lock_tokens=[lock.token]),
    ):
        with pytest.raises(LeaseLost):
            await write
    assert (await real.get_workflow_instance(workflow.id)).revision == revision


async def test_blocking(target: str, real: PersistenceProvider) -> None:
    resource = make.new_id("resource")
    entered, leave = threading.Event(), threading.Event()

    def block() -> None:
        with (
            connect_blocking(target, timeout=20, retry=FAST) as provider,
            provider.lock(resource, ttl=timedelta(seconds=1)) as lock,
        ):
            assert not lock.lost
            entered.set()
            leave.wait(30)

    def lost() -> None:
        with (
            connect_blocking(target, timeout=20, retry=FAST) as provider,
            provider.lock(resource, ttl=timedelta(seconds=1)) as lock,
        ):
            provider.break_lock(resource)
            while not lock.lost:
                leave.wait(0.01)

    running: Any = asyncio.create_task(asyncio.to_thread(block))
    await asyncio.to_thread(entered.wait, 30)
    before = (await real.list_locks(resource_prefix=resource))[0].expiry

    async def renewed() -> bool:
        return (await real.list_locks(resource_prefix=resource))[0].expiry > before

    await eventually(renewed)
    leave.set()
    await running
    assert await real.list_locks(resource_prefix=resource) == []
    leave.clear()
    with pytest.raises(LeaseLost):
        await asyncio.to_thread(lost)
