"""The commands that show what is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Shop, with_provider
from tests.cli.program import AT_NOON, ROOT, environment, on_terminal, run
from tests.cli.scene import NOON, before_noon, pointer
from tests.support.secured import Secured
from wfe_persistence_client import (
    ExecutionError,
    PersistenceProvider,
    PointerStatus,
    WorkflowInstance,
)


def names(printed: str) -> list[str]:
    """The first column of a table."""
    return [line.split()[0] for line in printed.splitlines()[1:]]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("", "nightly-2026-01-05 order-43 order-42 order-45 order-44 order-41"),
        ("--oldest", "order-41 order-44 order-45 order-42 order-43 nightly-2026-01-05"),
        ("--stuck", "order-42"),
        ("--overdue 2h", "order-42"),
        ("--overdue 3h", ""),
        ("--status suspended --status COMPLETE", "order-45 order-41"),
        ("--definition nightly-report", "nightly-2026-01-05"),
        ("--definition order --version 2", ""),
        ("--reference C-1043", "order-43"),
        ("--name nightly", "nightly-2026-01-05"),
        ("--created-from 2h", "nightly-2026-01-05"),
        ("--created-before 2026-01-05", "order-44 order-41"),
        ("--ended-from 3d --ended-before 1h", "order-41"),
        ("--waiting-for order.paid", "order-43 order-44"),
        ("--waiting-for order.paid --event-key 44", "order-44"),
        ("--errors-from 3h", "order-42"),
        ("--errors-from 1h", ""),
        ("--root 55aa", ""),
    ],
)
def test_list_has_what_is_asked_for(shop: Shop, options: str, found: str) -> None:
    printed = shop.says("list", *options.split())
    assert names(printed) == found.split() if found else printed == "no workflows\n"


def test_idle_workflows_have_not_ended(shop: Shop) -> None:
    # (What has only been created was written then.)
    found = names(shop.says("list", "--idle", "4h"))
    assert found == ["order-45", "order-44"]
    assert names(shop.says("list", "--idle", "4h", "--status", "complete")) == ["order-41"]


def test_a_list_says_that_there_is_more(shop: Shop) -> None:
    done = run(["list", "--limit", "2"], shop.env)
    assert names(done.stdout) == ["nightly-2026-01-05", "order-43"]
    assert done.stderr == "The first 2 are shown; there are more: --limit 20 or --all\n"
    assert len(names(shop.says("list", "--all"))) == 6
    assert len(names(shop.says("list", "--limit", "6"))) == 6


def test_lists_for_programs(shop: Shop) -> None:
    as_json = shop.says("list", "-o", "json", "--all")
    found = json.loads(as_json)
    assert [each["name"] for each in found][:2] == ["nightly-2026-01-05", "order-43"]
    assert len(as_json.splitlines()) == len(found) + 2, "an item a line"
    assert yaml.safe_load(shop.says("list", "-o", "yaml", "--all")) == found
    for form in ("json", "yaml"):
        assert shop.says("list", "--overdue", "9d", "-o", form) == "[]\n"
    for command in ("errors", "events", "subscriptions", "commands", "queues", "queues workflow"):
        found = json.loads(shop.says(*command.split(), "-o", "json"))
        assert found
        assert yaml.safe_load(shop.says(*command.split(), "-o", "yaml"))
    assert json.loads(shop.says("locks", "-o", "json")) == []


def test_get_by_id_and_by_name(shop: Shop) -> None:
    by_name, by_id = shop.says("get", "order-42"), shop.says("get", "6f0c")
    assert by_name == by_id
    assert json.loads(shop.says("get", "6f0c", "-o", "json"))["name"] == "order-42"
    assert yaml.safe_load(shop.says("get", "6f0c", "-o", "yaml"))["id"] == "6f0c"
    in_full = shop.says("get", "order-42", "--data")
    assert '              "sku": "tea",' in [line[6:] for line in in_full.splitlines()]


def test_get_says_why_a_workflow_does_not_go_on(shop: Shop) -> None:
    assert "It is stuck: it was to be run 2h40m ago" in shop.says("get", "order-42")
    assert "It waits for the event order.paid with the key '43'" in shop.says("get", "order-43")
    paid = shop.says("get", "order-44")
    assert "worker-7 holds that subscription until it is cleared" in paid
    assert "The event e1 that it waits for has been there for 2h" in paid
    assert "It is suspended" in shop.says("get", "order-45")
    assert "Why" not in shop.says("get", "order-41")
    assert "It is to be run in 10h" in shop.says("get", "nightly-2026-01-05")


def test_what_is_to_be_run_at_once_is_stuck_when_nobody_has_written_it(empty: Shop) -> None:
    """An engine's next_execution is 0 while there is something to do: it says nothing of when."""

    async def play(provider: PersistenceProvider) -> None:
        for name, minutes in (("fresh", 4), ("forgotten", 90), ("held", 60)):
            await provider.create_new_workflow(
                WorkflowInstance(
                    id=name, workflow_definition_id="order", version=1, data={},
                    next_execution=0, create_time=before_noon(minutes=minutes),
                )
            )  # fmt: skip
        await provider.acquire_lock("held", owner="host-7", ttl=timedelta(hours=1))

    with_provider(empty, play)
    assert names(empty.says("list", "--stuck")) == ["held", "forgotten"]
    assert names(empty.says("list", "--overdue", "1m")) == ["fresh", "held", "forgotten"]
    assert "at once" in empty.says("list", "--name", "fresh")
    stats = empty.says("stats")
    assert re.search(r"stuck +2\n", stats)
    assert "56y" not in stats
    assert "It is to be run at once.\n" in empty.says("get", "fresh")
    forgotten = empty.says("get", "forgotten")
    assert "It is stuck: it is to be run at once, and no host has. Are there hosts for order?" in (
        forgotten
    )
    held = empty.says("get", "held")
    assert "It is stuck: it is to be run at once, and whoever has it has written nothing" in held
    assert "host-7 has held the lock held" in held


def test_an_event_that_cannot_come_is_said(shop: Shop) -> None:
    with_provider(shop, lambda provider: provider.terminate_subscription("s1"))
    assert "there is no subscription: the event will not reach it" in shop.says("get", "order-43")


async def _loop(provider: PersistenceProvider) -> None:
    """A loop of 300 steps, in one that is below itself."""
    steps = [
        pointer(f"{i}", f"step {i}", PointerStatus.COMPLETE, scope=["1000"]) for i in range(300)
    ]
    steps.insert(150, pointer("500", "bad", PointerStatus.FAILED, scope=["1000"]))
    around = pointer("1000", "each", PointerStatus.RUNNING, children=["1001"])
    within = pointer("1001", "ring", PointerStatus.RUNNING, children=["1000"])
    await provider.create_new_workflow(
        WorkflowInstance(
            id="loop",
            workflow_definition_id="d",
            version=1,
            data={},
            create_time=NOON,
            execution_pointers=[around, within, *steps],
        )
    )


def test_many_pointers_are_folded(empty: Shop) -> None:
    with_provider(empty, _loop)
    folded = empty.says("get", "loop")
    assert folded.count("144 more like these (--all shows them)") == 2
    assert "✗ bad  FAILED" in folded
    assert "each" in folded
    assert "ring" in folded
    assert len(folded.splitlines()) < 40
    whole = empty.says("get", "loop", "--all")
    assert "more like these" not in whole
    assert len(re.findall(r"✓ step \d+", whole)) == 300


def test_other_lists_have_what_is_asked_for(shop: Shop) -> None:
    assert len(names(shop.says("errors", "order-42"))) == 3
    assert len(names(shop.says("errors", "--from", "170m"))) == 2
    assert shop.says("errors", "order-43") == "no errors\n"
    assert names(shop.says("events", "--unprocessed")) == ["e1"]
    assert names(shop.says("events", "--name", "order.paid", "--key", "41")) == ["e0"]
    assert names(shop.says("events", "--oldest")) == ["e0", "e1"]
    assert names(shop.says("subscriptions", "--workflow", "order-43")) == ["s1"]
    assert names(shop.says("subscriptions", "--held")) == ["s2"]
    assert names(shop.says("subscriptions", "--event", "order.paid", "--key", "43")) == ["s1"]
    assert names(shop.says("commands", "--due", "--free")) == ["PROCESS_WORKFLOW"]
    assert shop.says("commands", "--leased") == "no commands\n"
    assert names(shop.says("queues", "workflow", "--state", "dead")) == ["6f0c"]
    assert shop.says("queues", "workflow", "--state", "leased") == "no items\n"
    with_provider(shop, lambda provider: provider.acquire_lock("6f0c", owner="host-7"))
    assert names(shop.says("locks", "--resource", "6f")) == ["6f0c"]
    assert names(shop.says("locks", "--owner", "host-7")) == ["6f0c"]
    assert "host-7 has held the lock 6f0c" in shop.says("get", "order-42")


def test_stats(shop: Shop) -> None:
    found = json.loads(shop.says("stats", "-o", "json"))
    assert found["namespace"] == shop.namespace
    assert found["workflows"] == {"RUNNABLE": 4, "SUSPENDED": 1, "COMPLETE": 1}
    assert (found["stuck"], found["unprocessed_events"], found["due_commands"]) == (1, 1, 1)
    assert found["queues"][0]["dead"] == 1
    assert "workflows" not in shop.says("stats", "--no-count")


# What goes wrong.


@pytest.mark.parametrize(
    "command",
    ["list", "get x", "history x", "errors", "events", "subscriptions", "commands", "queues",
     "locks", "stats", "storage", "retention show"],
)  # fmt: skip
def test_a_server_that_is_not_there(tmp_path: Path, command: str) -> None:
    done = run([*command.split(), "--target", "127.0.0.1:1"], environment(tmp_path))
    assert (done.returncode, done.stdout) == (5, "")
    assert "127.0.0.1:1" in done.stderr
    assert "Connection refused" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_does_not_exist(shop: Shop) -> None:
    assert "no workflow has the id or the name 'nope'" in shop.says("get", "nope", status=4)
    absent = shop.says("list", "--namespace", "prodd", status=4)
    assert "the namespace does not exist" in absent
    assert "'prodd' is from --namespace" in absent


def test_a_wrong_token_and_a_role_that_is_not_enough(tmp_path: Path, database_url: str) -> None:
    secured = Secured(tmp_path, database_url)
    tls = [
        "--tls-ca", str(secured.authority.ca_file), "--tls-client-cert", str(secured.client.cert),
        "--tls-client-key", str(secured.client.key), "--tls-server-name", "localhost",
    ]  # fmt: skip
    env = environment(tmp_path)
    wrong = tmp_path / "wrong"
    wrong.write_text("not-a-token-that-anybody-has-given-to-anybody")
    with secured.server as server:
        target = ["--target", server.address, *tls]
        right = ["--bearer-token-file", str(secured.token_file)]
        assert run(["list", *target, *right], env).returncode == 0
        by_variable = {**env, "WFE_PERSISTENCE_BEARER_TOKEN": secured.token}
        assert run(["list", *target], by_variable).returncode == 0
        done = run(["list", *target, "--bearer-token-file", str(wrong)], env)
        assert (done.returncode, done.stdout) == (6, "")
        assert f"The token is from the file {wrong}, --bearer-token-file." in done.stderr
        assert "not-a-token" not in done.stderr
        refused = run(["retention", "set", "--none", *target, *right], env)
        assert refused.returncode == 6
        assert "operator" in refused.stderr
        plain = run(["list", "--target", server.address], env)
        assert plain.returncode == 5
        assert "without TLS" in plain.stderr


def test_whoever_reads_may_have_enough(shop: Shop) -> None:
    """`| head`: the reader goes after one line."""

    async def many(provider: PersistenceProvider) -> None:
        await provider.persist_errors(
            [ExecutionError(workflow_id="w", message="x" * 1000) for _ in range(2000)]
        )

    with_provider(shop, many)
    with subprocess.Popen(
        [*AT_NOON, "errors", "--all"],
        cwd=ROOT, env=shop.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"TIME")
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(60), errors) == (0, b"")


# On a terminal.


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_table_fits_on_the_screen(shop: Shop, columns: int) -> None:
    status, printed = on_terminal(["list"], {**shop.env, "NO_COLOR": "1"}, columns=columns)
    assert status == 0
    lines = printed.splitlines()
    assert len(lines) == 7
    assert all(len(line) <= columns for line in lines), printed
    assert ("…" in printed) == (columns < 72)


def test_colours_are_for_terminals_that_like_them(shop: Shop) -> None:
    assert "\x1b[36mRUNNABLE" in on_terminal(["list"], shop.env)[1]
    for off in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_terminal(["list"], {**shop.env, **off})[1]
    assert "\x1b" not in shop.says("list")
    assert "\x1b" not in on_terminal(["list", "--color", "never"], shop.env)[1]
    without_rich = [sys.executable, "-c", WITHOUT_RICH]
    assert "\x1b" not in on_terminal(["list"], shop.env, program=without_rich)[1]
    always = ["list", "--color", "always"]
    code, printed = on_terminal(always, shop.env, program=without_rich)
    assert (code, "needs the package rich" in printed) == (2, True)
    # For a pager, whatever the environment says; of the table nothing else is different.
    colourful = run(always, {**shop.env, "NO_COLOR": "1", "TERM": "dumb"}).stdout
    assert "\x1b[36mRUNNABLE" in colourful
    assert re.sub(r"\x1b\[[0-9;]*m", "", colourful) == run(["list"], shop.env).stdout


WITHOUT_RICH = (
    "import sys; sys.modules['rich'] = None; "
    "import runpy; runpy.run_module('tests.cli.at_noon', run_name='__main__')"
)


def test_without_rich_all_is_said_that_is_said_with_it(shop: Shop) -> None:
    for command in ("list", "get order-42", "stats"):
        env = {**shop.env, "NO_COLOR": "1"}
        with_it = on_terminal(command.split(), env)
        assert with_it == on_terminal(
            command.split(), shop.env, program=[sys.executable, "-c", WITHOUT_RICH]
        )


HOSTILE = "\x1b]52;c;cm0gLXJmIC8=\x07\x1b[2Jx\u202ecod.exe\n\x9b5mfake: COMPLETE"


async def _hostile(provider: PersistenceProvider) -> None:
    await provider.create_new_workflow(
        WorkflowInstance(
            id=HOSTILE,
            name="הזמנה " + HOSTILE,
            workflow_definition_id=HOSTILE,
            version=1,
            reference=HOSTILE,
            description=HOSTILE,
            data={HOSTILE: HOSTILE},
            create_time=before_noon(hours=1),
            execution_pointers=[
                pointer(
                    "1", HOSTILE, PointerStatus.WAITING_FOR_EVENT,
                    event_name=HOSTILE, event_key=HOSTILE, active=True, outcome=HOSTILE,
                )
            ],
        )
    )  # fmt: skip
    await provider.persist_errors(
        [ExecutionError(workflow_id=HOSTILE, execution_pointer_id="1", message=HOSTILE)]
    )


@pytest.mark.parametrize(
    "command",
    ["list", "list -o wide", "list -o json", "list -o yaml", "get", "get --data", "get -o json",
     "get -o yaml", "history", "errors"],
)  # fmt: skip
def test_hostile_names_do_nothing(empty: Shop, command: str) -> None:
    with_provider(empty, _hostile)
    name, *options = command.split()
    what = [name, HOSTILE] if name in ("get", "history") else [name]
    # (Without the colours, which are escape sequences, too.)
    status, printed = on_terminal([*what, *options], {**empty.env, "NO_COLOR": "1"}, columns=500)
    assert status == 0
    assert not set(printed) & set("\x1b\x07\x9b\u202e"), printed
    assert "x1b]52" in printed or "u001b]52" in printed
    asked = on_terminal(
        ["delete", HOSTILE], {**empty.env, "NO_COLOR": "1"}, columns=500, answers=[("[y/N]", "n\n")]
    )
    assert "Delete " in asked[1]
    assert not set(asked[1]) & set("\x1b\x07\x9b\u202e"), asked
    missing = on_terminal(["get", "no" + HOSTILE], {**empty.env, "NO_COLOR": "1"})
    assert missing[0] == 4
    assert not set(missing[1]) & set("\x1b\x07\x9b\u202e"), missing
