"""`wfe-persistence context list | use | set | delete`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wfe_persistence_cli.contexts import KEYS, PATHS, ContextError, Contexts, check_name
from wfe_persistence_cli.options import SERVER_OPTIONS
from wfe_persistence_cli.output import Output, output_option
from wfe_persistence_cli.screen import Cell, tell
from wfe_persistence_cli.status import FAILURE, NOT_FOUND
from wfe_persistence_cli.table import Column, Table


@click.group(short_help="Give servers names.")
def context() -> None:
    """Name servers, so that not every command has to say which one it is, and how it is reached.

    The file is ~/.config/wfe-persistence/contexts.toml, or the one that the environment variable
    WFE_PERSISTENCE_CONTEXT_FILE names. Tokens are not in it, only the paths of their files.

    \b
    Example: wfe-persistence context set prod --target db.example:50052 --tls-ca ca.pem
    """


@contextmanager
def _errors_shown() -> Iterator[None]:
    try:
        yield
    except ContextError as exc:
        tell(str(exc))
        sys.exit(NOT_FOUND if str(exc).startswith("there is no context") else FAILURE)


@context.command("list")
@output_option
def list_(*, output: Output) -> None:
    """List the contexts; the current one has a star.

    \b
    Example: wfe-persistence context list
    """
    with _errors_shown():
        contexts = Contexts.read()
    rows = [
        {"name": name, "current": name == contexts.current, **each}
        for name, each in sorted(contexts.all.items())
    ]
    if output.is_data:
        output.one(rows)
        return
    if not rows:
        tell(f"no contexts in {contexts.path}")
        return
    columns: list[Column[dict[str, Any]]] = [
        Column("", lambda each: Cell("*" if each["current"] else "", "good")),
        Column("NAME", lambda each: each["name"]),
        Column("TARGET", lambda each: each.get("target", "-"), shrinks=True),
        Column("NAMESPACE", _store),
        Column("TLS", lambda each: "yes" if each.get("tls") or "tls-ca" in each else "no"),
        Column("TOKEN FILE", lambda each: each.get("bearer-token-file", "-"), shrinks=True),
    ]
    Table(output.screen, columns, wide=output.is_wide).add(rows)


def _store(each: dict[str, Any]) -> str:
    if "namespace-set" in each:
        return f"{each['namespace-set']} (set)"
    return str(each.get("namespace", "-"))


def _complete(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    try:
        return [name for name in sorted(Contexts.read().all) if name.startswith(begun)]
    except ContextError:
        return []


@context.command()
@click.argument("name", shell_complete=_complete)
def use(name: str) -> None:
    """Make NAME the context that is used where nothing else is said.

    \b
    Example: wfe-persistence context use prod
    """
    with _errors_shown():
        contexts = Contexts.read()
        contexts.get(name)
        contexts.current = name
        contexts.write()
    tell(f"the current context is {name}")


def _server_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(SERVER_OPTIONS):
        command = option(command)
    return command


@context.command("set")
@click.argument("name", shell_complete=_complete)
@_server_options
def set_(name: str, **values: Any) -> None:
    """Make the context NAME, or change what is given of it. The first one becomes the current one.

    Paths are stored as absolute ones. An empty text, as in --namespace '', takes something out.

    \b
    Examples:
      wfe-persistence context set prod --target db.example:50052 --tls-ca ca.pem --namespace orders
      wfe-persistence context set prod --bearer-token-file ~/.prod-token
    """
    given = click.get_current_context().get_parameter_source
    with _errors_shown():
        check_name(name)
        contexts = Contexts.read()
        made = contexts.all.setdefault(name, {})
        for key in KEYS:
            value = values[key.replace("-", "_")]
            # (What the environment says is meant for one call.)
            if given(key.replace("-", "_")) is not ParameterSource.COMMANDLINE or value is None:
                continue
            if value == "":
                made.pop(key, None)
            else:
                made.pop(
                    {"namespace": "namespace-set", "namespace-set": "namespace"}.get(key, ""), None
                )
                made[key] = str(Path(value).resolve()) if key in PATHS else value
        if contexts.current is None:
            contexts.current = name
        contexts.write()
    tell(f"{contexts.path}: {name} is set")


@context.command()
@click.argument("name", shell_complete=_complete)
def delete(name: str) -> None:
    """Forget the context NAME. The server knows nothing of it.

    \b
    Example: wfe-persistence context delete old
    """
    with _errors_shown():
        contexts = Contexts.read()
        contexts.get(name)
        del contexts.all[name]
        if contexts.current == name:
            contexts.current = None
        contexts.write()
    tell(f"{contexts.path}: {name} is deleted")
