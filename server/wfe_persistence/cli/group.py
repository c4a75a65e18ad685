"""The command group. A command is loaded when it is used, and loads gRPC and psycopg when it runs,
so that help is fast, and a server does not keep what it does not need."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from importlib import import_module
from typing import Final

import click

from wfe_persistence import collector

_MODULES: Final = {
    "serve": "serve",
    "config": "config",
    "migrate": "migrate",
    "token": "token",
    "policy": "policy",
    "retention": "retention",
    "storage": "retention",
    "export": "export",
    "import": "importing",
    "health": "health",
    "version": "version",
}
"""The modules of the commands. Each has its command under its name, `import` as `import_`."""


class _Commands(UserDict[str, click.Command]):
    """The commands by their names, each loaded when it is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in self.data:
            module = import_module(f"wfe_persistence.cli.{_MODULES[name]}")
            self.data[name] = getattr(module, "import_" if name == "import" else name)
        return self.data[name]

    def __contains__(self, name: object) -> bool:
        return name in _MODULES

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


@click.group(
    commands=_Commands(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 success, 1 failure, 2 invalid usage.",
)
@click.version_option(
    package_name="wfe-persistence", prog_name="wfe-persistence", message="%(prog)s %(version)s"
)
@click.pass_context
def commands(context: click.Context) -> None:
    """Workflow persistence server: a gRPC API on top of PostgreSQL.

    \b
    Example: wfe-persistence serve
    """
    if context.invoked_subcommand != "serve":  # which has more to load
        collector.resume()
