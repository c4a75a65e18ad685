"""Completion, in real shells as far as they are installed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from tests.cli.conftest import Shop, with_provider
from tests.cli.program import environment, run
from wfe_persistence_cli.program import client_program
from wfe_persistence_client import PersistenceProvider, QueueItem, WorkflowInstance

# What stands for the program: it is not installed under this name wherever tests run.
PROGRAM = f'#!/bin/sh\nexec "{sys.executable}" -m wfe_persistence "$@"\n'

BASH = r"""
source ./script
COMP_WORDS=({words}) COMP_CWORD={at}
_wfe_persistence_completion wfe-persistence
printf '%s\n' "${{COMPREPLY[@]}}"
"""

ZSH = r"""
compdef() {{ :; }}
compadd() {{ shift $(( $# - 1 )); print -rl -- ${{(P)1:-$1}} }}
_describe() {{ for each in ${{(P)3}}; do print -r -- ${{each%%:*}}; done }}
words=({words}) CURRENT={zsh_at}
source ./script
_wfe_persistence_completion
"""

FISH = "source ./script; complete -C 'wfe-persistence {line}'"


def completed(shell: str, line: str, directory: Path, **more: str) -> list[str]:
    """What a shell offers at the end of a line. `more`: of its environment."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    program = directory / "bin" / "wfe-persistence"
    program.parent.mkdir(exist_ok=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    env = environment(directory, **more)
    env["PATH"] = f"{program.parent}:{env['PATH']}"
    script = run(["completion", shell], env)
    assert script.returncode == 0, script.stderr
    (directory / "script").write_text(script.stdout)
    words = ["wfe-persistence", *line.split(" ")]
    quoted = " ".join(f"'{word}'" for word in words)
    source = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell].format(
        words=quoted, at=len(words) - 1, zsh_at=len(words), line=line
    )
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run(
        [shell, *options, "-c", source],
        cwd=directory, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [each.split("\t")[0] for each in done.stdout.split()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_options_values_and_contexts(shell: str, tmp_path: Path) -> None:
    env = environment(tmp_path)
    for name in ("prod", "preview", "test"):
        assert run(["context", "set", name, "--target", "127.0.0.1:1"], env).returncode == 0
    assert {"list", "locks"} <= set(completed(shell, "l", tmp_path))
    assert "subscriptions" in completed(shell, "sub", tmp_path)
    assert {"--stuck", "--status"} <= set(completed(shell, "list --st", tmp_path))
    assert completed(shell, "list --status s", tmp_path)[:1] == ["suspended"]
    found = completed(shell, "list --context pr", tmp_path)
    assert {"prod", "preview"} <= set(found)
    assert "test" not in found


# Else a machine with much to do would offer nothing.
PATIENT = "--timeout 50"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_names_that_the_server_knows(shop: Shop, shell: str, tmp_path: Path) -> None:
    server = {
        name: value for name, value in shop.env.items() if name.startswith("WFE_PERSISTENCE_")
    }
    found = completed(shell, f"suspend {PATIENT} order", tmp_path, **server)
    assert {"order-42", "order-43", "order-44"} <= set(found)
    assert not {"order-41", "order-45"} & set(found), "neither ended nor suspended ones"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("get {} nightly", "nightly-2026-01-05"),
        ("resume {} ", "order-45"),
        ("requeue {} ", "workflow"),
        ("requeue {} workflow 6", "6f0c"),
        ("release subscription {} ", "s2"),
        ("release lock {} lo", "locked"),
        ("release item {} workflow ", "leased"),
        ("release command {} process_workflow ", "6f0c"),
    ],
)
def test_what_is_offered(
    shop: Shop, line: str, offered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the scripts of the shells ask for it, in one process."""

    async def play(provider: PersistenceProvider) -> None:
        await provider.acquire_lock("locked")
        await provider.claim_commands()
        await provider.enqueue([QueueItem(queue="workflow", id="leased")])
        await provider.dequeue(["workflow"])

    with_provider(shop, play)
    for name, value in shop.env.items():
        if name.startswith("WFE_PERSISTENCE_"):
            monkeypatch.setenv(name, value)
    assert asked(line.format(PATIENT)) == [offered]
    namespaces = asked(f"list {PATIENT} --namespace {shop.namespace[:-1]}")
    assert shop.namespace in namespaces


def asked(line: str) -> list[str]:
    *words, begun = line.split(" ")
    complete = ShellComplete(client_program, {}, "wfe-persistence", "_COMPLETE")
    return [each.value for each in complete.get_completions(words, begun)]


def test_what_a_shell_would_take_for_something_else_is_not_offered(
    empty: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "good-1", "größe", "$(touch x)", "`touch x`", "a b", "a;b", "-rf", "\x1b[31m", "a\nb", "~",
        "a'b", "a\u202eb", "*", "x" * 500,
    ]  # fmt: skip

    async def play(provider: PersistenceProvider) -> None:
        for name in names:
            await provider.create_new_workflow(
                WorkflowInstance(
                    name=name, workflow_definition_id="$(touch x)\x1b", version=1, data={}
                )
            )

    with_provider(empty, play)
    for name, value in empty.env.items():
        if name.startswith("WFE_PERSISTENCE_"):
            monkeypatch.setenv(name, value)
    assert set(asked(f"get {PATIENT} ")) == {"good-1", "größe", "x" * 500}


@pytest.mark.parametrize("what", ["away", "silent", "none"])
def test_a_server_that_does_not_answer_is_nothing_to_whoever_types(
    what: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {
            "away": "127.0.0.1:1",
            "silent": f"127.0.0.1:{silent.getsockname()[1]}",
            "none": "http://no such address",
        }[what]
        # Nothing is offered, and nothing is said on stderr; that it ends is soon enough.
        assert completed("bash", "get ord", tmp_path, WFE_PERSISTENCE_TARGET=address) == []
