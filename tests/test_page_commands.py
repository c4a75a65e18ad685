"""Commands on the pages: each is valid shell, and what it says to this project's programs exists.

That they do what the pages say is tested where those are run: docs/backup.md, inspecting.md,
quick-start.md, security.md, stubs.md, and the pages of the examples.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import click
import pytest

from tests.test_docs import PAGES, ROOT
from wfe_persistence.cli.group import commands as wfe

FENCE: Final = re.compile(r"^( *)```(sh|bash|console)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SPAN: Final = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
HEREDOC: Final = re.compile(r"<<-?'?(\w+)'?(.*?)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)

# Of other programs, only that a page does not misspell them.
PROGRAMS: Final = {
    *("awk", "bash", "buf", "cargo", "cat", "cd", "cp", "curl", "createdb", "date", "docker"),
    *("done", "echo"),
    *("exit", "export", "for", "go", "grpcurl", "helm", "java", "jq", "kubectl", "mkdir", "mvn"),
    *("node", "npm", "npx", "openssl", "pg_basebackup", "pg_dump", "pg_restore", "pip", "printf"),
    *("psql", "python", "sudo", "systemctl", "tar", "touch", "uv", "git", "wfe-persistence"),
    *("wfe-persistence-conformance",),
}  # fmt: skip

# Options of other programs that a page names without them.
OTHERS: Final = {
    *(
        "--build-arg",
        "--collect-only",
        "--features",
        "--junitxml",
        "--preload",
        "--reflect-header",
        "--set",
    ),
    *("--read-only", "--upgrade", "--vulnerability-service", "--workers"),
    *("--at-once", "--quick", "--steps"),  # of client_rs/benches/compare
}

TASKS: Final = set(re.findall(r"^task_(\w+)\(\)", (ROOT / "run").read_text(), re.MULTILINE))

# Of `./run TASK`, the modules whose options it takes.
MODULES: Final = {
    "bench": "benchmarks",
    "faults": "tests.faults.chaos",
    "fleet": "tests.faults.fleet",
    "soak": "benchmarks.soak",
}


def pages() -> list[Path]:
    return [page for page in PAGES if page.name != "CHANGELOG.md"]


def blocks(text: str) -> Iterator[str]:
    """The shell of a page's fences; of a console only what is typed."""
    for indent, language, body in FENCE.findall(text):
        plain = re.sub(f"^{indent}", "", body, flags=re.MULTILINE)
        if language == "console":
            typed = re.findall(r"^\$ ((?:.*\\\n)*.*)$", plain, re.MULTILINE)
            yield from typed or [plain]
        else:
            yield plain


def commands(shell: str) -> Iterator[list[str]]:
    """The commands in a piece of shell, as lists of words."""
    shell = HEREDOC.sub(r"\2", shell).replace("\\\n", " ")
    waiting = ""
    for line in shell.splitlines():
        waiting += line
        lexer = shlex.shlex(waiting, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quotation that goes on
            waiting += "\n"
            continue
        waiting = ""
        command: list[str] = []
        redirected = False
        for word in [*words, ";"]:
            if set(word) <= set("();<>|&"):
                redirected = set(word) <= set("<>&") and word != "&&" and word != "&"
                if not redirected:
                    if command:
                        yield command
                    command = []
            elif redirected:
                redirected = False
            else:
                command.append(word)


def without_prefix(words: list[str]) -> list[str]:
    """Without what may be before a program: assignments, and words of the shell."""
    while words and (
        re.match(r"\w+=", words[0])
        or words[0] in ("do", "then", "else", "if", "while", "exec", "!")
    ):
        words = words[1:]
    return words


def faults(words: list[str]) -> list[str]:
    """What is wrong with a command."""
    words = without_prefix(words)
    if not words or words[0].startswith("$"):
        return []
    program, *rest = words
    if program == "wfe-persistence":
        return faults_of_click(rest)
    if re.fullmatch(r"(\.\./)*\.?/?run", program):
        return faults_of_run(rest)
    if program.startswith(("./", "../", "/")) or program in PROGRAMS:
        return []
    # What is no word at all is the rest of a substitution within a quotation.
    return [f"no program {program}"] if re.fullmatch(r"[\w./-]+", program) else []


def faults_of_click(words: list[str]) -> list[str]:
    """What is wrong with the arguments of `wfe-persistence`."""
    command: click.Command = wfe
    while isinstance(command, click.Group):
        if not words or words[0].startswith("-"):
            break
        name, *words = words
        if name not in command.commands:
            return [f"no command {name}"]
        command = command.commands[name]
    context = click.Context(command, info_name=command.name)
    try:
        values, left, _ = command.make_parser(context).parse_args(list(words))
    except click.UsageError as exc:
        return [f"{command.name}: {exc.format_message()}"]
    wrong = [f"{command.name}: {word} is too much" for word in left]
    for parameter in command.params:
        value = values.get(parameter.name or "")
        if isinstance(parameter.type, click.Choice) and isinstance(value, str):
            try:
                parameter.type.convert(value, parameter, context)
            except click.UsageError as exc:
                wrong.append(f"{command.name}: {exc.format_message()}")
    return wrong


def faults_of_run(words: list[str]) -> list[str]:
    """What is wrong with the arguments of `./run`."""
    if not words or words[0].isupper():
        return []
    task, *rest = words
    if task not in TASKS:
        return [f"no task {task}"]
    if task in ("serve", "wfe"):
        return faults_of_click([task, *rest] if task == "serve" else rest)
    options = {word.partition("=")[0] for word in rest if word.startswith("--")}
    known = help_of(MODULES[task]) if task in MODULES else None
    if task in ("test", "lowest"):
        known = pytest_options()
    return [f"{task}: no option {option}" for option in sorted(options - (known or options))]


@cache
def help_of(module: str) -> frozenset[str]:
    """The options that a program's help names."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return frozenset(re.findall(r"--[a-z][a-z-]*", done.stdout))


@cache
def pytest_options() -> frozenset[str]:
    files = [ROOT / "tests" / name for name in ("conftest.py", "support/given.py")]
    own = [name for file in files for name in re.findall(r'"(--[a-z-]+)"', file.read_text())]
    return frozenset(own) | {"--timeout", "--help"}


@cache
def click_options() -> frozenset[str]:
    """All options of all commands."""

    def of(command: click.Command) -> Iterator[str]:
        for parameter in command.params:
            yield from (*parameter.opts, *parameter.secondary_opts)
        if isinstance(command, click.Group):
            for each in command.commands.values():
                yield from of(each)

    return frozenset(of(wfe)) | {"--help", "--version"}


def faults_of_span(span: str) -> list[str]:
    """What is wrong with code within a sentence."""
    if re.match(r"(\./run|wfe-persistence) ", span) and "…" not in span:
        try:
            return [fault for command in commands(span) for fault in faults(command)]
        except ValueError as exc:
            return [f"{span}: {exc}"]
    if option := re.match(r"--[a-z][a-z-]*", span):
        known = click_options() | pytest_options() | OTHERS
        for module in MODULES.values():
            known |= help_of(module)
        return [] if option[0] in known else [f"no option {option[0]}"]
    return []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands(page: Path) -> None:
    text = page.read_text()
    wrong = [
        f"{' '.join(command)}: {fault}"
        for block in blocks(text)
        for command in commands(block)
        for fault in faults(command)
    ]
    assert wrong == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_code_in_sentences(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    wrong = [f"`{s}`: {fault}" for s in SPAN.findall(text) for fault in faults_of_span(s)]
    assert wrong == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_it_is_valid_shell(page: Path) -> None:
    for block in blocks(page.read_text()):
        # An ellipsis stands for what the reader knows; a heading of a task for its arguments.
        done = subprocess.run(
            ["bash", "-n"], input=block, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize(
    ("shell", "fault"),
    [
        ("wfe-persistence servve", "no command servve"),
        ("wfe-persistence migrate up --db-urll x", "up: No such option '--db-urll'"),
        ("A=1 wfe-persistence migrate upp | psql", "no command upp"),
        (
            "for a in 1 2; do\n  wfe-persistence health --nope\ndone",
            "health: No such option '--nope'",
        ),
        ("wfe-persistence health x >/dev/null", "health: x is too much"),
        (
            "wfe-persistence serve \\\n  --log-format yaml",
            "serve: Invalid value for '--log-format'",
        ),
        ("wfe-persistence serve --listen", "serve: Option '--listen' requires an argument."),
        ("./run tset", "no task tset"),
        ("./run test --postgress 14", "test: no option --postgress"),
        ("./run faults --sed 1", "faults: no option --sed"),
        ("./run wfe retention shew", "no command shew"),
        ("pqsl -c 'SELECT 1'", "no program pqsl"),
    ],
)
def test_a_fault_is_noticed(shell: str, fault: str) -> None:
    [found] = [fault for command in commands(shell) for fault in faults(command)]
    assert found.startswith(fault)


def test_a_fault_in_a_sentence_is_noticed() -> None:
    assert faults_of_span("--no-such-option") == ["no option --no-such-option"]
    assert faults_of_span("wfe-persistence serve --nope")[0].startswith("serve: No such option")
    assert faults_of_span("--pool-size 10") == []
