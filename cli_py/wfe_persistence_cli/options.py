"""The options that say which server a command calls; `target.py` says what they mean together."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from wfe_persistence_cli.contexts import ContextError, Contexts
from wfe_persistence_cli.target import (
    DEFAULT_LISTEN,
    ENV_PREFIX,
    NAMES,
    TOKEN_VARIABLE,
    resolve,
)

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])

READ_SETTINGS: Final = f"{__name__}.read_settings"
"""The key in `Context.meta` of how a file of settings is read, if the server is installed: it knows
all settings, and refuses unknown ones. It takes the context and the path."""

HEADING: Final = "Connection"


class ConnectionOption(click.Option):
    """An option that says which server is called, and how."""


class ClientCommand(click.Command):
    """A command whose help has the options of the connection after its own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, under a heading for each group."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], HEADING: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                of = HEADING if isinstance(parameter, ConnectionOption) else "Options"
                sections[of].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def _option(flag: str, **attributes: Any) -> Callable[[F], F]:
    name = flag.partition("/")[0].removeprefix("--").replace("-", "_")
    return click.option(
        flag,
        cls=ConnectionOption,
        envvar=ENV_PREFIX + name.upper(),
        show_envvar=True,
        **attributes,
    )


def _file_option(flag: str, text: str) -> Callable[[F], F]:
    kind = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
    return _option(flag, type=kind, metavar="FILE", help=text)


def _complete_context(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    try:
        return [name for name in sorted(Contexts.read().all) if name.startswith(begun)]
    except ContextError:
        return []


def _complete_namespace(
    context: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    from wfe_persistence_cli.names import namespaces  # which needs this module

    return namespaces(context, parameter, begun)


def _read_config_file(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Take `listen` and `tls-cert` from a server's file of settings."""
    if path is None:
        return
    read = context.meta.get(READ_SETTINGS, _read_settings)
    values = {key.replace("-", "_"): value for key, value in read(context, path).items()}
    context.default_map = {name: values[name] for name in ("listen", "tls_cert") if name in values}


def _read_settings(_: click.Context, path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise click.BadParameter(f"{path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise click.BadParameter(f"{path}: is not valid TOML: {exc}") from exc


# What says which server it is; a context has the same.
SERVER_OPTIONS: Final = (
    _option(
        "--target",
        metavar="ADDRESS",
        help="Address of the server: HOST:PORT or unix:PATH.",
        show_default="that of the context, else the server on this machine",
    ),
    _option(
        "--namespace",
        metavar="NAME",
        shell_complete=_complete_namespace,
        help="Namespace to use.",
        show_default="that of the context, else `default`",
    ),
    _option(
        "--namespace-set",
        metavar="NAME",
        help="Namespace set to use, instead of a namespace: all of its members as one store.",
        show_default="that of the context",
    ),
    _file_option(
        "--bearer-token-file",
        "File with the bearer token to send; only with TLS or to a server on this machine. "
        f"(The token itself may be in {TOKEN_VARIABLE}.)",
    ),
    _option(
        "--tls/--no-tls",
        default=None,
        help="Connect with TLS, and trust the authorities that gRPC comes with.",
    ),
    _file_option(
        "--tls-ca",
        "Certificate authorities (PEM) that the server's certificate is signed by: connect with "
        "TLS.",
    ),
    _file_option(
        "--tls-client-cert", "Certificate of the client (PEM), for a server that requires one."
    ),
    _file_option("--tls-client-key", "Private key of the client's certificate (PEM)."),
    _option(
        "--tls-server-name",
        metavar="NAME",
        show_default="the host of --target",
        help="Name that the server's certificate must have.",
    ),
)

_OPTIONS: Final = (
    _option(
        "--context",
        metavar="NAME",
        shell_complete=_complete_context,
        show_default="the one that `context use` has chosen",
        help="Context that says which server it is; see `wfe-persistence context`.",
    ),
    *SERVER_OPTIONS,
    _option(
        "--listen",
        default=DEFAULT_LISTEN,
        show_default=True,
        metavar="ADDRESS",
        help="Call the server on this machine that listens there.",
    ),
    _option(
        "--tls-cert",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Certificate of the server on this machine: connect to it with TLS.",
    ),
    _option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_read_config_file,
        help="TOML file with settings; the keys are the option names without the leading dashes.",
    ),
)


def target_options(command: Callable[..., None], *, timeout: float = 10.0) -> Callable[..., None]:
    """Give a command the options that name a server; it takes them as the argument `target`.
    `timeout` is the default of that option."""

    @wraps(command)
    def with_target(**arguments: Any) -> None:
        values = {name: arguments.pop(name) for name in NAMES}
        command(target=resolve(click.get_current_context(), values), **arguments)

    for option in reversed(_OPTIONS):
        with_target = option(with_target)
    return click.option(
        "--timeout",
        cls=ConnectionOption,
        type=click.FloatRange(0, 86_400, min_open=True),
        default=timeout,
        show_default=True,
        help="Maximum time to wait for the response (seconds).",
    )(with_target)
