"""The commands that change what is there."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.cli.conftest import Shop, with_provider
from tests.cli.program import AT_NOON, ROOT, on_terminal, run
from tests.cli.scene import before_noon
from wfe_persistence_client import (
    LeaseLost,
    LifecycleEvent,
    LifecycleEventType,
    PersistenceProvider,
    QueueItem,
    WorkflowInstance,
    WorkflowStatus,
)


def status(shop: Shop, name: str) -> str:
    """The status of a workflow."""
    return str(json.loads(shop.says("get", name, "-o", "json"))["status"])


def test_suspend_and_resume(shop: Shop) -> None:
    published: list[LifecycleEvent] = []

    async def watched(provider: PersistenceProvider) -> None:
        events = provider.watch_lifecycle(workflow_id="6f0c", heartbeat=timedelta(seconds=1))
        task = asyncio.ensure_future(anext(aiter(events)))
        await asyncio.sleep(1)
        suspended = await asyncio.to_thread(shop.says, "suspend", "order-42", "order-43")
        assert "order-42 (6f0c): RUNNABLE → SUSPENDED" in suspended
        assert "order-43 (77b2): RUNNABLE → SUSPENDED" in suspended
        published.append(await asyncio.wait_for(task, 30))

    with_provider(shop, watched)
    assert published[0].type is LifecycleEventType.SUSPENDED
    assert published[0].workflow_id == "6f0c"
    assert "is SUSPENDED already" in shop.says("suspend", "order-42")
    with_provider(shop, lambda provider: provider.delete_items("workflow", ["6f0c"]))
    assert "SUSPENDED → RUNNABLE" in shop.says("resume", "order-43", "order-42")
    found = json.loads(shop.says("list", "--status", "runnable", "-o", "json"))
    due = {each["name"]: each["next_execution"] for each in found}
    at_noon = int(before_noon().timestamp() * 1000)
    assert due["order-43"] == at_noon, "a host is to look at it"
    assert due["order-42"] < at_noon, "it is due when it was"
    items = json.loads(shop.says("queues", "workflow", "-o", "json"))
    assert {each["item"]["id"]: each["state"] for each in items} == {
        "6f0c": "WAITING",
        "77b2": "WAITING",
    }
    assert json.loads(shop.says("locks", "-o", "json")) == []


def test_what_has_ended_stays_so(shop: Shop) -> None:
    for command in ("suspend", "resume", "terminate --yes"):
        said = shop.says(*command.split(), "order-41", status=3)
        assert "order-41 (55aa) is COMPLETE" in said
    assert status(shop, "order-41") == "COMPLETE"
    assert "no workflow has the id" in shop.says("suspend", "order-42", "nope", status=4)
    assert status(shop, "order-42") == "RUNNABLE", "all are looked up before one is changed"


def test_a_host_that_runs_it_is_waited_for(shop: Shop) -> None:
    async def locked(provider: PersistenceProvider) -> None:
        async with provider.lock("6f0c", owner="host-7"):
            done = await asyncio.to_thread(run, ["suspend", "6f0c", "--wait", "0.1"], shop.env)
            assert done.returncode == 3
            assert "host-7 holds the lock on it" in done.stderr
            assert "--force changes it all the same" in done.stderr
            forced = await asyncio.to_thread(run, ["suspend", "6f0c", "--force"], shop.env)
            assert forced.returncode == 0, forced.stderr

    with_provider(shop, locked)
    assert "→ RUNNABLE" in shop.says("resume", "6f0c")

    async def leased(provider: PersistenceProvider) -> None:
        await provider.enqueue([QueueItem(queue="workflow", id="6f0c")])
        [held] = (await provider.dequeue(["workflow"], worker_id="host-8")).items
        done = await asyncio.to_thread(run, ["suspend", "6f0c", "--wait", "0.1"], shop.env)
        assert done.returncode == 3
        assert "host-8 holds its item of a queue" in done.stderr
        waiting = asyncio.ensure_future(
            asyncio.to_thread(run, ["suspend", "6f0c", "--wait", "30"], shop.env)
        )
        while not await provider.list_locks():
            assert not waiting.done()
            await asyncio.sleep(0.05)
        await provider.acknowledge([held.receipt])
        assert (await waiting).returncode == 0
        assert not await provider.list_locks()

    with_provider(shop, leased)
    assert status(shop, "6f0c") == "SUSPENDED"


def test_terminate_and_delete_ask_on_a_terminal(shop: Shop) -> None:
    env = {**shop.env, "NO_COLOR": "1"}
    question = "Terminate order-42 (6f0c), which is RUNNABLE?"
    code, printed = on_terminal(["terminate", "order-42"], env, answers=[(question, "n\n")])
    assert (code, "nothing was changed" in printed) == (1, True)
    assert status(shop, "order-42") == "RUNNABLE"
    code, _ = on_terminal(["terminate", "order-42"], env, answers=[(question, "y\n")])
    assert code == 0
    found = json.loads(shop.says("get", "order-42", "-o", "json"))
    assert (found["status"], found["complete_time"]) == ("TERMINATED", "2026-01-05T12:00:00Z")
    code, printed = on_terminal(["delete", "order-42"], env, answers=[("Delete", "\x03")])
    assert (code, "nothing was changed" in printed) == (130, True)
    assert status(shop, "order-42") == "TERMINATED"
    code, _ = on_terminal(["delete", "order-42"], env, answers=[("can't be undone", "y\n")])
    assert code == 0
    shop.says("get", "order-42", status=4)


@pytest.mark.parametrize(
    "command",
    ["terminate order-42", "delete order-42", "purge --ended-before 1d", "requeue workflow --dead",
     "release subscription s2", "namespace delete default"],
)  # fmt: skip
def test_where_nobody_can_be_asked_it_has_to_be_said(shop: Shop, command: str) -> None:
    before = shop.says("list", "-o", "json"), shop.says("queues", "-o", "json")
    assert "say --yes" in shop.says(*command.split(), status=2)
    assert (shop.says("list", "-o", "json"), shop.says("queues", "-o", "json")) == before


def test_purge_counts_asks_and_deletes(shop: Shop) -> None:
    assert shop.says("purge", "--ended-before", "9d", "--dry-run") == "would be deleted: nothing\n"
    dry = shop.says("purge", "--ended-before", "1d", "--dry-run")
    assert dry == "would be deleted: 1 workflow, 2 execution pointers\n"
    env = {**shop.env, "NO_COLOR": "1"}
    question = f"in the namespace {shop.namespace!r} at {shop.address}?"
    arguments = ["purge", "--ended-before", "1d"]
    code, printed = on_terminal(arguments, env, answers=[(question, "n\n")], columns=300)
    assert (code, "Delete 1 workflow, 2 execution pointers" in printed) == (1, True)
    assert status(shop, "order-41") == "COMPLETE"
    code, printed = on_terminal(arguments, env, answers=[(question, "y\n")], columns=300)
    assert (code, "deleted: 1 workflow, 2 execution pointers" in printed) == (0, True)
    shop.says("get", "order-41", status=4)
    assert len(json.loads(shop.says("list", "-o", "json"))) == 5
    events = shop.says("purge", "--events-before", "3h", "--yes", "-o", "json")
    assert json.loads(events) == {"events": 1}
    shop.says("purge", status=2)
    shop.says("purge", "--ended-before", "1d", "--event", "x", status=2)


async def _many(provider: PersistenceProvider) -> None:
    for i in range(60):
        await provider.create_new_workflow(
            WorkflowInstance(
                id=f"old-{i}",
                workflow_definition_id="old",
                version=1,
                status=WorkflowStatus.COMPLETE,
                data={},
                create_time=before_noon(days=9),
                complete_time=before_noon(days=8),
            )
        )


@pytest.fixture
def purging(empty: Shop) -> Iterator[subprocess.Popen[str]]:
    """A purge of 60 workflows that deletes one at a time, slowly."""
    with_provider(empty, _many)
    with subprocess.Popen(
        [*AT_NOON[:1], "-c", SLOW, "purge", "--ended-before", "1d", "--yes"],
        cwd=ROOT, env=empty.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process


SLOW = """
import asyncio, runpy
from wfe_persistence_client import PersistenceProvider
whole = PersistenceProvider.iter_purge_workflows
async def slowly(self, *arguments, **options):
    async for batch in whole(self, *arguments, max_rows=1, **options):
        yield batch
        await asyncio.sleep(0.2)
PersistenceProvider.iter_purge_workflows = slowly
runpy.run_module('tests.cli.at_noon', run_name='__main__')
"""


def test_ctrl_c_ends_a_purge_between_two_transactions(
    empty: Shop, purging: subprocess.Popen[str]
) -> None:
    def left() -> int:
        return len(json.loads(empty.says("list", "-o", "json")))

    deadline = time.monotonic() + 60
    while left() == 60:
        assert time.monotonic() < deadline
    purging.send_signal(signal.SIGINT)
    out, err = purging.communicate(timeout=60)
    assert (purging.returncode, out) == (130, "")
    assert "interrupted; deleted: " in err
    assert "Traceback" not in err
    assert 0 < left() < 60
    empty.says("purge", "--ended-before", "1d", "--yes")
    assert left() == 0


def test_release(shop: Shop) -> None:
    env = {**shop.env, "NO_COLOR": "1"}
    question = "worker-7 (until cleared) holds the subscription s2 to order.paid. Release it?"
    answers = [(question, "y\n")]
    code, _ = on_terminal(["release", "subscription", "s2"], env, answers=answers, columns=300)
    assert code == 0
    assert shop.says("subscriptions", "--held") == "no subscriptions\n"
    assert "nobody holds" in shop.says("release", "subscription", "s2")
    shop.says("release", "subscription", "nope", status=4)
    with_provider(shop, lambda provider: provider.acquire_lock("6f0c", owner="host-7"))
    shop.says("release", "lock", "6f", "--yes", status=4)
    shop.says("release", "lock", "6f0c", "--yes", "--epoch", "1", status=3)
    assert "was held by host-7" in shop.says("release", "lock", "6f0c", "--yes")
    assert shop.says("locks") == "no locks\n"


def test_release_of_an_item(shop: Shop) -> None:
    shop.says("release", "item", "workflow", "nope", "--yes", status=4)
    assert "nobody holds a lease on 6f0c: it is DEAD" in shop.says(
        "release", "item", "workflow", "6f0c"
    )

    async def held(provider: PersistenceProvider) -> None:
        await provider.enqueue([QueueItem(queue="workflow", id="6f0c")])
        [taken] = (await provider.dequeue(["workflow"], worker_id="host-8")).items
        told = await asyncio.to_thread(run, ["get", "6f0c"], shop.env)
        assert "`release item workflow 6f0c` has another run it" in told.stdout
        asked = await asyncio.to_thread(run, ["release", "item", "workflow", "6f0c"], shop.env)
        assert asked.returncode == 2
        done = await asyncio.to_thread(
            run, ["release", "item", "workflow", "6f0c", "--yes"], shop.env
        )
        assert (done.returncode, "was held by host-8" in done.stderr) == (0, True)
        with pytest.raises(LeaseLost):
            await provider.acknowledge([taken.receipt])
        assert len((await provider.dequeue(["workflow"])).items) == 1

    with_provider(shop, held)


def test_release_of_a_command(shop: Shop) -> None:
    shop.says("release", "command", "process_event", "6f0c", "--yes", status=4)
    assert "nobody holds a lease" in shop.says("release", "command", "process_workflow", "6f0c")
    env = {**shop.env, "NO_COLOR": "1"}
    question = "host-8 holds the command PROCESS_WORKFLOW of 6f0c, under a lease that expires"
    arguments = ["release", "command", "process_workflow", "6f0c"]

    async def held(provider: PersistenceProvider) -> None:
        [taken] = await provider.claim_commands(
            worker_id="host-8", lease_duration=timedelta(hours=1)
        )
        told = await asyncio.to_thread(run, ["get", "6f0c"], shop.env)
        assert "`release command process_workflow 6f0c` has another process it" in told.stdout

        def answered(answer: str) -> tuple[int, str]:
            return on_terminal(arguments, env, answers=[(question, answer)], columns=300)

        code, printed = await asyncio.to_thread(answered, "n\n")
        assert (code, "nothing was changed" in printed) == (1, True)
        await provider.renew_commands([taken.lease_token])
        code, printed = await asyncio.to_thread(answered, "y\n")
        assert (code, "released, was held by host-8" in printed) == (0, True)
        with pytest.raises(LeaseLost):
            await provider.complete_commands([taken.lease_token])
        assert len(await provider.claim_commands()) == 1

    with_provider(shop, held)


@pytest.mark.parametrize("kind", ["item", "command"])
def test_the_next_workers_lease_is_not_released_instead(shop: Shop, kind: str) -> None:
    """It is claimed by another worker while somebody thinks about the question."""
    is_item = kind == "item"
    arguments = ["release", kind, "workflow" if is_item else "process_workflow", "6f0c"]

    async def held(provider: PersistenceProvider) -> None:
        async def claim(worker: str) -> str:
            if is_item:
                [item] = (await provider.dequeue(["workflow"], worker_id=worker)).items
                return item.receipt
            [command] = await provider.claim_commands(worker_id=worker)
            return command.lease_token

        if is_item:
            await provider.requeue_items("workflow", ["6f0c"])
        first = await claim("host-8")
        second = ""

        async def next_one() -> None:
            nonlocal second
            if is_item:
                await provider.requeue_items("workflow", ["6f0c"], break_leases=True)
            else:
                await provider.release_commands([first])
            second = await claim("host-9")

        loop = asyncio.get_running_loop()

        def answered() -> tuple[int, str]:
            def meanwhile() -> str:
                asyncio.run_coroutine_threadsafe(next_one(), loop).result(60)
                return "y\n"

            env = {**shop.env, "NO_COLOR": "1"}
            return on_terminal(arguments, env, answers=[("host-8 holds", meanwhile)], columns=300)

        code, printed = await asyncio.to_thread(answered)
        assert (code, "or another worker; nothing was changed" in printed) == (3, True)
        if is_item:
            await provider.acknowledge([second])
        else:
            await provider.complete_commands([second])

    with_provider(shop, held)


def test_requeue(shop: Shop) -> None:
    assert "1 item requeued" in shop.says("requeue", "workflow", "6f0c")
    assert "0 items requeued" in shop.says("requeue", "workflow", "6f0c", status=4)
    assert "no dead items" in shop.says("requeue", "workflow", "--dead")

    async def die(provider: PersistenceProvider) -> None:
        await provider.enqueue([QueueItem(queue="workflow", id=f"w{i}") for i in range(5)])
        taken = await provider.dequeue(["workflow"], max_items=9)
        await provider.return_items([each.receipt for each in taken.items])

    with_provider(shop, die)
    assert "6 items requeued" in shop.says("requeue", "workflow", "--dead", "--yes")
    shop.says("requeue", "workflow", status=2)


def test_namespaces(empty: Shop, tmp_path: Path) -> None:
    name = empty.namespace + "2"
    assert "created" in empty.says("namespace", "create", name)
    assert "is there already" in empty.says("namespace", "create", name)
    listed = {each["name"] for each in json.loads(empty.says("namespace", "list", "-o", "json"))}
    assert {name, empty.namespace, "default"} <= listed
    env = {**empty.env, "NO_COLOR": "1"}
    prompt = "Type its name to delete"
    arguments = ["namespace", "delete", name]
    code, printed = on_terminal(arguments, env, answers=[(prompt, "default\n")], columns=300)
    assert (code, "nothing was changed" in printed) == (1, True)
    with_provider(
        Shop(empty.address, name, empty.env),
        lambda provider: provider.enqueue([QueueItem(queue="q", id="1")]),
    )
    assert "NAMESPACE_NOT_EMPTY" in empty.says(*arguments, "--yes", status=3)
    code, _ = on_terminal([*arguments, "--force"], env, answers=[(prompt, name + "\n")])
    assert code == 0
    empty.says(*arguments, "--yes", status=4)
