"""Completion, in real shells as far as they are installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.program import environment, run

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


def completed(shell: str, line: str, directory: Path) -> list[str]:
    """What a shell offers at the end of a line."""
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    program = directory / "bin" / "wfe-persistence"
    program.parent.mkdir(exist_ok=True)
    program.write_text(PROGRAM)
    program.chmod(0o755)
    env = environment(directory)
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
    assert done.returncode == 0, done.stderr
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
