"""The commands on a namespace set: they show what they show of a single namespace, and change the
same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Shop, provided
from tests.cli.program import environment, on_terminal, run
from tests.cli.scene import before_noon, play
from tests.support import make
from wfe_persistence_client import (
    EventSubscription,
    PersistenceProvider,
    WorkflowInstance,
    connect,
)

MEMBERS = 3


def in_set(shop: Shop, what: Any) -> None:
    """Do something in the set as a host would."""

    async def main() -> None:
        async with connect(shop.address, namespace_set=shop.namespace) as provider:
            await what(provider)

    asyncio.run(main())


@pytest.fixture(scope="module")
def stores(target: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, Shop]]:
    """A namespace and a set, both with the scene; only for reading."""
    home = tmp_path_factory.mktemp("home")
    namespace, name = make.new_namespace(), make.new_namespace_set()
    env = environment(home, WFE_PERSISTENCE_TARGET=target)
    single = Shop(target, namespace, {**env, "WFE_PERSISTENCE_NAMESPACE": namespace})
    spread = Shop(target, name, {**env, "WFE_PERSISTENCE_NAMESPACE_SET": name})
    provided(target, "default", lambda provider: provider.create_namespace(namespace))
    provided(target, namespace, play)
    spread.says("namespace-set", "create", name, "--members", str(MEMBERS))
    in_set(spread, play)
    yield single, spread
    spread.says("namespace-set", "delete", name, "--force", "--yes")
    provided(target, "default", lambda provider: provider.delete_namespace(namespace, force=True))


@pytest.fixture
def spread(target: str, tmp_path: Path) -> Iterator[Shop]:
    """A set with the scene."""
    name = make.new_namespace_set()
    env = environment(tmp_path, WFE_PERSISTENCE_TARGET=target, WFE_PERSISTENCE_NAMESPACE_SET=name)
    shop = Shop(target, name, env)
    shop.says("namespace-set", "create", name, "--members", str(MEMBERS))
    in_set(shop, play)
    yield shop
    shop.says("namespace-set", "delete", name, "--force", "--yes")


@pytest.mark.parametrize(
    "command",
    [
        "list", "list --oldest", "list --limit 2", "list --stuck", "list -o wide",
        "list --waiting-for order.paid", "list --errors-from 9h", "list --status suspended",
        "list -o json",
        "get order-42", "get 6f0c --data", "get order-43", "get order-44", "get order-42 -o json",
        "history order-42", "errors", "errors order-42", "errors --limit 1",
        "events", "events --unprocessed", "events --name order.paid --key 44 -o json",
        "subscriptions", "subscriptions --held", "subscriptions --workflow order-43",
        "commands", "commands --due", "queues", "queues workflow", "queues workflow --state dead",
        "locks",
    ],
)  # fmt: skip
def test_it_is_shown_as_in_a_single_namespace(stores: tuple[Shop, Shop], command: str) -> None:
    single, spread = stores
    # (Its own log differs by ids, and revisions count the writes of a member.)
    shown = spread.says(*command.split())
    expected = single.says(*command.split())
    if command.endswith("json"):
        assert _without_revisions(shown) == _without_revisions(expected)
    elif not command.endswith("wide"):
        assert shown == expected
    else:
        assert [line.split()[:3] for line in shown.splitlines()] == [
            line.split()[:3] for line in expected.splitlines()
        ]


def _without_revisions(text: str) -> object:
    found = json.loads(text)
    for each in found if isinstance(found, list) else [found]:
        each.pop("revision", None)
    return found


def test_the_workflows_are_on_several_members(stores: tuple[Shop, Shop]) -> None:
    _, spread = stores
    members = [
        len(json.loads(run(["list", "-o", "json", "--namespace", member], spread.env).stdout))
        for member in (f"{spread.namespace}_{index}" for index in range(MEMBERS))
    ]
    assert sum(members) == 6
    assert sum(map(bool, members)) > 1


def test_a_glance_at_the_set(stores: tuple[Shop, Shop]) -> None:
    single, spread = stores
    expected = single.says("stats").replace(
        f"namespace {single.namespace}", f"namespace set {spread.namespace}"
    )
    assert spread.says("stats") == expected
    found = json.loads(spread.says("stats", "-o", "json"))
    assert found["namespace"] == spread.namespace
    assert found["workflows"]["RUNNABLE"] == 4


@pytest.mark.parametrize(
    "command",
    ["export", "import", "storage", "retention show", "retention run", "retention set --none"],
)
def test_what_is_done_in_one_namespace_is_refused(stores: tuple[Shop, Shop], command: str) -> None:
    _, spread = stores
    said = spread.says(*command.split(), status=2)
    assert f"not in the namespace set {spread.namespace!r} as a whole" in said
    spread.says("storage", "--namespace", f"{spread.namespace}_1")


def test_sets_and_namespaces_are_listed_with_a_set_too(stores: tuple[Shop, Shop]) -> None:
    _, spread = stores
    names = [f"{spread.namespace}_{index}" for index in range(MEMBERS)]
    shown = json.loads(spread.says("namespace-set", "show", spread.namespace, "-o", "json"))
    assert [each["name"] for each in shown] == names
    printed = spread.says("namespace-set", "show", spread.namespace).splitlines()
    assert printed[0].split() == ["MEMBER", "DATABASE", "VERSION", "ROWS", "(ESTIMATED)"]
    assert [line.split()[:2] for line in printed[1:]] == [[name, "home"] for name in names]
    listed = spread.says("namespace", "list")
    assert all(name in listed for name in names)
    assert "←" not in listed


def test_sets_that_are_not_there(stores: tuple[Shop, Shop]) -> None:
    single, spread = stores
    said = run(["list", "--namespace-set", "nope"], single.env)
    assert said.returncode == 4
    assert "NAMESPACE_SET_NOT_FOUND" in said.stderr
    assert "The namespace set 'nope' is from --namespace-set" in said.stderr
    spread.says("namespace-set", "show", "nope", status=4)
    spread.says("namespace-set", "delete", "nope", "--yes", status=4)
    spread.says("namespace-set", "create", "Nope", "--members", "2", status=1)
    spread.says("namespace-set", "create", "nope", "--members", "0", status=2)
    said_ = spread.says("namespace-set", "create", spread.namespace, "--members", "9", status=3)
    assert "NAMESPACE_SET_EXISTS" in said_


def test_a_set_is_deleted_by_who_types_its_name(target: str, tmp_path: Path) -> None:
    name = make.new_namespace_set()
    env = environment(tmp_path, WFE_PERSISTENCE_TARGET=target)
    shop = Shop(target, name, env)
    created = shop.says("namespace-set", "create", name, "--members", "2")
    assert created == f"{name}: {name}_0 to {name}_1\n"
    assert shop.says("namespace-set", "create", name, "--members", "2") == created
    arguments = ["namespace-set", "delete", name]
    assert "say --yes" in shop.says(*arguments, status=2)
    env = {**env, "NO_COLOR": "1"}
    answers = [(f"Type its name to delete the namespace set {name}", "other\n")]
    code, printed = on_terminal(arguments, env, answers=answers, columns=300)
    assert (code, "nothing was changed" in printed) == (1, True)
    answers = [("Type its name", f"{name}\n")]
    code, printed = on_terminal(arguments, env, answers=answers, columns=300)
    assert (code, f"{name}: deleted" in printed) == (0, True)
    shop.says("namespace-set", "show", name, status=4)


def status(shop: Shop, name: str) -> str:
    return str(json.loads(shop.says("get", name, "-o", "json"))["status"])


def test_it_is_changed_as_in_a_single_namespace(spread: Shop) -> None:
    assert "RUNNABLE → SUSPENDED" in spread.says("suspend", "order-42", "order-43")
    assert "SUSPENDED → RUNNABLE" in spread.says("resume", "order-43")
    assert [status(spread, name) for name in ("order-42", "order-43")] == ["SUSPENDED", "RUNNABLE"]
    assert "→ TERMINATED" in spread.says("terminate", "order-42", "--yes")
    spread.says("delete", "order-42", "--yes")
    spread.says("get", "order-42", status=4)

    async def again(provider: PersistenceProvider) -> None:
        await provider.create_new_workflow(
            WorkflowInstance(
                id="6f0d",
                name="order-42",
                workflow_definition_id="order",
                version=1,
                data={},
                create_time=before_noon(),
            )
        )

    in_set(spread, again)  # the name is free again
    env = {**spread.env, "NO_COLOR": "1"}
    question = f"in the namespace set {spread.namespace!r} at {spread.address}?"
    arguments = ["purge", "--ended-before", "1d"]
    code, printed = on_terminal(arguments, env, answers=[(question, "y\n")], columns=300)
    assert (code, "deleted: 1 workflow, 2 execution pointers" in printed) == (0, True)
    assert json.loads(spread.says("purge", "--events-before", "3h", "--yes", "-o", "json")) == {
        "events": 1
    }


def test_what_somebody_holds_is_released_and_enqueued_again(spread: Shop) -> None:
    assert "was held by worker-7" in spread.says("release", "subscription", "s2", "--yes")
    assert spread.says("subscriptions", "--held") == "no subscriptions\n"
    assert "1 item requeued" in spread.says("requeue", "workflow", "6f0c")

    async def held(provider: PersistenceProvider) -> None:
        await provider.acquire_lock("6f0c", owner="host-7")
        await provider.acquire_lock("77b2", owner="host-7")
        [_] = (await provider.dequeue(["workflow"], worker_id="host-8")).items
        [_] = await provider.claim_commands(worker_id="host-9")
        # A claim of its own has a token that names the member.
        subscription = EventSubscription(
            id="s3", workflow_id="77b2", step_id=2, execution_pointer_id="2",
            event_name="order.paid", event_key="43", subscribe_as_of=before_noon(hours=3),
        )  # fmt: skip
        await provider.create_event_subscription(subscription)
        await provider.claim_subscription("s3", worker_id="worker-8")

    in_set(spread, held)
    assert "was held by host-7" in spread.says("release", "lock", "6f0c", "--yes")
    assert "was held by host-8" in spread.says("release", "item", "workflow", "6f0c", "--yes")
    assert "was held by host-9" in spread.says(
        "release", "command", "process_workflow", "6f0c", "--yes"
    )
    assert "was held by worker-8" in spread.says("release", "subscription", "s3", "--yes")
    assert "77b2" in spread.says("locks")
    assert spread.says("commands", "--leased") == "no commands\n"


def test_it_is_watched(spread: Shop) -> None:
    async def watch(provider: PersistenceProvider) -> None:
        watching = asyncio.create_task(
            asyncio.to_thread(run, ["watch", "--count", "3", "-o", "json"], spread.env)
        )
        ids = [f"w{index}" for index in range(40)]
        while not watching.done():
            if ids:
                await provider.create_new_workflow(
                    WorkflowInstance(
                        id=ids.pop(),
                        workflow_definition_id="order",
                        version=1,
                        data={},
                        create_time=before_noon(),
                    )
                )
            await asyncio.sleep(0.3)
        done = await watching
        assert done.returncode == 0, done.stderr
        seen = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(seen) == 3
        assert len({each["cursor"] for each in seen}) == 3
        # Behind the first one come the others.
        arguments = ["watch", "--after", seen[0]["cursor"], "--count", "2", "-o", "json"]
        after = await asyncio.to_thread(run, arguments, spread.env)
        first, *others = [each["instance"]["id"] for each in seen]
        again = [json.loads(line)["instance"]["id"] for line in after.stdout.splitlines()]
        assert len(again) == 2
        assert first not in again
        assert set(others) & set(again)

    in_set(spread, watch)


def test_a_context_names_a_set_or_a_namespace(stores: tuple[Shop, Shop], tmp_path: Path) -> None:
    _, spread = stores
    env = environment(tmp_path)

    def says(*arguments: str, status: int = 0) -> str:
        done = run(arguments, env)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    says("context", "set", "x", "--target", spread.address, "--namespace-set", spread.namespace)
    assert f"{spread.namespace} (set)" in says("context", "list")
    assert len(json.loads(says("list", "-o", "json"))) == 6
    # What is nearer counts, and one takes the place of the other.
    assert len(json.loads(says("list", "-o", "json", "--namespace", spread.namespace + "_0"))) < 6
    says("context", "set", "x", "--namespace", spread.namespace + "_0")
    assert "(set)" not in says("context", "list")
    assert len(json.loads(says("list", "-o", "json"))) < 6
    both = ["--namespace", "a", "--namespace-set", "b"]
    assert "not both" in says("list", *both, status=2)
