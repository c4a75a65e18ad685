"""`watch` and `bench`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cli.conftest import Shop, with_provider
from tests.cli.program import AT_NOON, ROOT, on_terminal
from wfe_persistence_client import (
    LifecycleEvent,
    LifecycleEventType,
    PersistenceProvider,
    WorkflowPatch,
    WorkflowStatus,
)


class Watch:
    """A `watch` that runs, and the lines that it has written."""

    def __init__(self, shop: Shop, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*AT_NOON, "watch", *arguments],
            cwd=ROOT, env=shop.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@contextmanager
def watching(shop: Shop, *arguments: str) -> Iterator[Watch]:
    """A `watch` that has begun: it shows what is written to a workflow until it does."""
    watch = Watch(shop, *arguments)
    begun = threading.Event()
    first = []

    def read() -> None:
        first.append(watch.line())
        begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(600):
            touch(shop, "c0de", number)
            if begun.wait(0.2):
                break
        assert first
        assert "nightly" in first[0] or "c0de" in first[0], watch.process.communicate()
        yield watch
    finally:
        watch.process.kill()
        watch.process.communicate()
        reader.join()


def touch(shop: Shop, id_: str, number: int) -> None:
    """Write a workflow, and tell of it."""

    async def write(provider: PersistenceProvider) -> None:
        instance = await provider.get_workflow_instance(id_)
        instance.description = f"version {number}"
        await provider.persist_workflow(
            instance,
            publish=[
                LifecycleEvent(
                    type=LifecycleEventType.STEP_COMPLETED,
                    workflow_id=id_,
                    workflow_definition_id="nightly-report",
                    version=3,
                    step_name="count",
                )
            ],
        )

    with_provider(shop, write)


def set_status(shop: Shop, id_: str, status: WorkflowStatus) -> None:
    """As a host does it."""

    async def write(provider: PersistenceProvider) -> None:
        instance = await provider.get_workflow_instance(id_)
        await provider.commit_workflow(
            WorkflowPatch(id=id_, header={"status": status}), expected_revision=instance.revision
        )

    with_provider(shop, write)


def until(watch: Watch, text: str) -> str:
    """The first line that has a text."""
    for _ in range(1000):
        line = watch.line()
        assert line, watch.process.communicate()
        if text in line:
            return line
    raise AssertionError(text)


def test_changes_are_lines(shop: Shop) -> None:
    with watching(shop) as watch:
        set_status(shop, "6f0c", WorkflowStatus.SUSPENDED)
        assert until(watch, "order-42").split()[1:6] == [
            "SUSPENDED", "order-42", "order", "v1", "C-1042",
        ]  # fmt: skip
        with_provider(shop, lambda provider: provider.delete_workflow("90ce"))
        assert "DELETED" in until(watch, "order-45")
        watch.process.send_signal(signal.SIGINT)
        _, errors = watch.process.communicate(timeout=60)
        assert (watch.process.returncode, errors) == (130, "interrupted\n")


def test_changes_for_programs(shop: Shop) -> None:
    with watching(shop, "-o", "json") as watch:
        set_status(shop, "6f0c", WorkflowStatus.SUSPENDED)
        change = json.loads(until(watch, "order-42"))
        assert change["instance"]["status"] == "SUSPENDED"
        assert change["deleted"] is False
    # Behind a cursor comes what was written since.
    set_status(shop, "6f0c", WorkflowStatus.RUNNABLE)
    said = shop.says("watch", "--after", change["cursor"], "--count", "1", "-o", "json")
    assert json.loads(said)["instance"]["status"] == "RUNNABLE"


def test_lifecycle_events(shop: Shop) -> None:
    with watching(shop, "--events") as watch:
        touch(shop, "c0de", 1000)
        line = until(watch, "STEP_COMPLETED")
        assert line.split()[1:] == ["STEP_COMPLETED", "c0de", "nightly-report", "v3", "count"]


def test_a_workflow_is_shown_until_it_has_ended(shop: Shop) -> None:
    end = threading.Timer(8, set_status, (shop, "6f0c", WorkflowStatus.TERMINATED))
    end.start()
    status, printed = on_terminal(["watch", "order-42"], shop.env, seconds=90)
    end.join()
    assert status == 0
    screens = printed.split("\x1b[2J")
    assert "RUNNABLE" in screens[1]
    assert "TERMINATED" in screens[-1]
    assert "Steps" in screens[-1]


def test_a_server_that_is_not_there_is_said_at_once(shop: Shop) -> None:
    assert "Connection refused" in shop.says("watch", "--target", "127.0.0.1:1", status=5)
    shop.says("watch", "nope", status=4)
    shop.says("watch", "order-42", "--status", "complete", status=2)


def test_bench_measures_and_leaves_nothing(shop: Shop) -> None:
    made = shop.says("bench", "--seconds", "1", "--concurrency", "3", "-o", "json")
    found = json.loads(made)
    assert [each["call"] for each in found["calls"]] == ["create", "get", "persist", "delete"]
    assert all(each["count"] > 0 for each in found["calls"])
    code, printed = on_terminal(["bench", "--seconds", "1"], {**shop.env, "NO_COLOR": "1"})
    assert code == 0
    # Nobody knows how many it will be: the bar is full only at its end.
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed)
    counted = re.findall(r"measuring [^\r\n]*? (\d+)/(\S+)", printed)
    assert {of for _, of in counted[:-1]} == {"?"}
    assert counted[-1][0] == counted[-1][1] != "0"
    assert re.search(r"CALL +CALLS", printed)
    assert shop.says("list", "--definition", "wfe-persistence-bench") == "no workflows\n"


def test_bench_leaves_nothing_after_ctrl_c(shop: Shop) -> None:
    with subprocess.Popen(
        [*AT_NOON, "bench", "--seconds", "600", "--progress"],
        cwd=ROOT, env=shop.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        while shop.says("list", "--definition", "wfe-persistence-bench") == "no workflows\n":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert "interrupted; its workflows are deleted" in errors
        assert "create" in out
    assert shop.says("list", "--definition", "wfe-persistence-bench") == "no workflows\n"
