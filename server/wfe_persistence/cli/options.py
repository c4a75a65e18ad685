"""Command-line options derived from the declaration of the settings.

A setting comes from its option, else from its environment variable, else from the TOML file named
by `--config`, else it has its default.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from wfe_persistence.settings import ENV_PREFIX, SETTINGS, Setting, Settings

F = TypeVar("F", bound=Callable[..., Any])

DATABASE_SETTINGS = (
    "db_url", "db_url_file", "db_password_file", "db_password_command", "data_dir", "schema",
    "table_prefix", "log_level", "log_format",
)  # fmt: skip
"""The settings of every command that opens the database."""


def settings_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these settings (default: all), and `--config`.

    The command takes the validated `Settings` as its first argument; the settings without an
    option have their defaults. An invalid value is a usage error.
    """
    chosen = [SETTINGS[name] for name in names] or list(SETTINGS.values())

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_settings(**arguments: Any) -> None:
            values = {setting.name: arguments.pop(setting.name) for setting in chosen}
            try:
                settings = Settings(**values)
            except ValueError as exc:
                raise click.UsageError(str(exc)) from exc
            command(settings, **arguments)

        for setting in reversed(chosen):
            with_settings = setting_option(setting)(with_settings)
        return _config_option(with_settings)

    return decorate


def setting_option(setting: Setting) -> Callable[[F], F]:
    """The option of a setting, which its environment variable can set too."""
    about = setting.about
    return click.option(
        setting.flag,
        type=_parameter_type(setting),
        default=setting.default,
        envvar=setting.env,
        show_envvar=True,
        show_default=about.default_help or True,
        metavar=about.metavar,
        help=about.help,
    )


def _parameter_type(setting: Setting) -> Any:
    if setting.about.choices:
        return click.Choice(setting.about.choices)
    if setting.type is Path:
        directory = setting.about.directory
        return click.Path(file_okay=not directory, dir_okay=directory, path_type=Path)
    return setting.type


def _read_config_file(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise click.BadParameter(f"{path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise click.BadParameter(f"{path}: is not valid TOML: {exc}") from exc
    # One file serves all commands, each of which takes the settings that it has options for.
    by_key = {setting.key: setting for setting in SETTINGS.values()}
    context.default_map = {}
    for key, value in values.items():
        setting = by_key.get(key.replace("_", "-"))
        if setting is None:
            raise click.BadParameter(f"{path}: unknown setting {key!r}")
        # A string is converted as it is on the command line. Anything else must be valid as
        # it is: click would silently turn 2.5 into 2.
        if not isinstance(value, str):
            try:
                setting.validate(value)
            except ValueError as exc:
                raise click.BadParameter(f"{path}: {exc}") from exc
        context.default_map[setting.name] = value


_config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    envvar=ENV_PREFIX + "CONFIG",
    show_envvar=True,
    is_eager=True,
    expose_value=False,
    callback=_read_config_file,
    help="TOML file with settings; the keys are the option names without the leading dashes.",
)
