"""The commands that call a server, and the program that has nothing else: `wfe-persistence`
where the server is not installed. (Where it is, its own program has these commands, too.)"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Final, NoReturn

import click

from wfe_persistence_cli.status import EPILOG

COMMANDS: Final[Mapping[str, str]] = {
    "list": "listing:list_",
    "get": "get:get",
    "history": "history:history",
    "errors": "lists:errors",
    "events": "lists:events",
    "subscriptions": "lists:subscriptions",
    "commands": "lists:commands",
    "queues": "lists:queues",
    "locks": "lists:locks",
    "stats": "stats:stats",
    "watch": "watch:watch",
    "suspend": "changing:suspend",
    "resume": "changing:resume",
    "terminate": "changing:terminate",
    "delete": "changing:delete",
    "requeue": "requeue:requeue",
    "release": "release:release",
    "purge": "purge:purge",
    "namespace": "namespace:namespace",
    "namespace-set": "namespace_set:namespace_set",
    "retention": "retention:retention",
    "storage": "retention:storage",
    "export": "export:export",
    "import": "importing:import_",
    "bench": "bench:bench",
    "context": "context:context",
    "completion": "completion:completion",
    "health": "health:health",
}
"""The commands by their names, in the order of the help, each with its module in `commands` and its
name there."""

# What the extra `cli` has beside the client.
_MODULES: Final = ("click", "grpc_health")


class LazyCommands(UserDict[str, click.Command]):
    """Commands by their names, each loaded when it is looked up. `places`: where each is, as
    `module:name`."""

    def __init__(self, places: Mapping[str, str]) -> None:
        super().__init__()
        self._places = places

    def __getitem__(self, name: str) -> click.Command:
        if name not in self.data:
            module, _, member = self._places[name].partition(":")
            self.data[name] = getattr(import_module(module), member)
        return self.data[name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class ProgramGroup(click.Group):
    """A group whose help lists its commands under headings, in their own order."""

    def __init__(self, *arguments: object, sections: Mapping[str, Sequence[str]], **rest: object):
        super().__init__(*arguments, **rest)  # type: ignore[arg-type]
        self._sections = sections

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 — click's
        """The names, in the order of the sections."""
        return [name for names in self._sections.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section."""
        longest = max(map(len, self.list_commands(ctx)))
        for heading, names in self._sections.items():
            limit = formatter.width - 6 - longest
            rows = [(name, self.commands[name].get_short_help_str(limit)) for name in names]
            with formatter.section(heading):
                formatter.write_dl(rows, col_max=longest + 2, col_spacing=2)


SECTIONS: Final[Mapping[str, Sequence[str]]] = {
    "See what is there": (
        "list", "get", "history", "errors", "events", "subscriptions", "commands", "queues",
        "locks", "stats", "watch",
    ),
    "Change it": ("suspend", "resume", "terminate", "delete", "requeue", "release"),
    "Keep and move data": (
        "purge", "namespace", "namespace-set", "retention", "storage", "export", "import",
    ),
    "This program": ("bench", "context", "completion", "health"),
}  # fmt: skip
"""The commands under their headings."""

PLACES: Final = {name: f"wfe_persistence_cli.commands.{place}" for name, place in COMMANDS.items()}
"""The commands with their places, for `LazyCommands`."""

CONTEXT_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(
    cls=ProgramGroup,
    commands=LazyCommands(PLACES),
    sections=SECTIONS,
    context_settings=CONTEXT_SETTINGS,
    epilog=EPILOG,
)
@click.version_option(
    package_name="wfe-persistence", prog_name="wfe-persistence", message="%(prog)s %(version)s"
)
def client_program() -> None:
    """See and change what a workflow persistence server stores.

    The server itself is not installed here: `pip install 'wfe-persistence[server,embedded]'`.

    \b
    Example: wfe-persistence list --target 127.0.0.1:50052 --stuck
    """


def missing_modules() -> list[str]:
    """What the commands need and is not installed."""
    return [name for name in _MODULES if find_spec(name) is None]


def run(args: Sequence[str] | None = None, prog_name: str | None = None) -> NoReturn:
    """Run the program without a server, and exit."""
    client_program.main(args, prog_name)
    raise AssertionError("click exits")
