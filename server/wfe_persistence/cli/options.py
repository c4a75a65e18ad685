"""Command-line options derived from the declaration of the settings.

A setting comes from its option, else from its environment variable, else from the TOML file named
by `--config`, else it has its default. Names that are no settings are refused.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from wfe_persistence.settings import ENV_PREFIX, GROUPS, SETTINGS, Setting, Settings
from wfe_persistence.settings import databases as named_databases
from wfe_persistence.settings.databases import NamedDatabase
from wfe_persistence.settings.names import did_you_mean, unknown_variables
from wfe_persistence_cli.target import OTHER_VARIABLES

if TYPE_CHECKING:
    from wfe_persistence.configuration import Source

F = TypeVar("F", bound=Callable[..., Any])

DATABASE_SETTINGS = (
    "db_url", "db_url_file", "db_password_file", "db_password_command", "data_dir", "schema",
    "table_prefix", "databases", "log_level", "log_format",
)  # fmt: skip
"""The settings of every command that opens the database."""

# The key of the path of the file in `Context.meta`.
_FILE: Final = f"{__name__}.file"


class SettingOption(click.Option):
    """The option of a setting."""

    def __init__(self, *arguments: Any, setting: Setting, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.setting = setting


class SettingsCommand(click.Command):
    """A command whose help has the options of settings in their groups, after all others."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, under a heading for each group."""
        sections: dict[str, list[tuple[str, str]]]
        sections = {heading: [] for heading in ("Options", *GROUPS)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = "Options"
                if isinstance(parameter, SettingOption):
                    heading = parameter.setting.group
                sections[heading].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def settings_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of these settings (default: all), and `--config`.

    The command takes the validated `Settings` as its first argument; the settings without an
    option have their defaults. An invalid value or an unknown variable is a usage error.
    """
    chosen = [SETTINGS[name] for name in names] or list(SETTINGS.values())

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_settings(**arguments: Any) -> None:
            refuse_unknown_variables()
            values = {setting.name: arguments.pop(setting.name) for setting in chosen}
            try:
                settings = Settings(**values)
            except ValueError as exc:
                raise click.UsageError(str(exc)) from exc
            command(settings, **arguments)

        for setting in reversed(chosen):
            with_settings = setting_option(setting)(with_settings)
        return config_option(with_settings)

    return decorate


def setting_option(setting: Setting) -> Callable[[F], F]:
    """The option of a setting, which its environment variable can set too."""
    about = setting.about
    several = setting.type is tuple
    return click.option(
        *((setting.flag, setting.name) if several else (setting.flag,)),
        multiple=several or setting.type is list,
        cls=SettingOption,
        setting=setting,
        type=_parameter_type(setting),
        default=setting.default,
        envvar=setting.env,
        show_envvar=True,
        show_default=about.default_help or True,
        metavar=about.metavar,
        help=about.help,
    )


def refuse_unknown_variables() -> None:
    """Raise UsageError if the environment has variables that look like ours but are not known."""
    known = {ENV_PREFIX + "CONFIG", *(setting.env for setting in SETTINGS.values())}
    # The commands that have other ones are loaded only if there are others.
    if unknown_variables(os.environ, known) and (
        unknown := unknown_variables(os.environ, OTHER_VARIABLES | known_variables().keys())
    ):
        raise click.UsageError("\n".join(unknown))


def known_variables() -> dict[str, click.Parameter]:
    """The environment variables of all commands' options, each with one of the options."""
    from wfe_persistence.cli.group import commands  # which imports this module

    def variables_of(command: click.Command) -> dict[str, click.Parameter]:
        found = {each.envvar: each for each in command.params if isinstance(each.envvar, str)}
        if isinstance(command, click.Group):
            for inner in command.commands.values():
                found |= variables_of(inner)
        return found

    return variables_of(commands)


def sources(context: click.Context) -> dict[str, Source]:
    """Where the values of the command's settings are from, by the settings' names."""
    from wfe_persistence.configuration import Source

    def source(setting: Setting) -> Source:
        match context.get_parameter_source(setting.name):
            case ParameterSource.COMMANDLINE:
                off = setting.type is bool and not context.params[setting.name]
                return Source("flag", setting.flag.split("/")[off])
            case ParameterSource.ENVIRONMENT:
                return Source("environment", setting.env)
            case ParameterSource.DEFAULT_MAP:
                return Source("file", str(config_file(context)))
            case _:
                return Source("default")

    options = (each for each in context.command.params if isinstance(each, SettingOption))
    return {option.setting.name: source(option.setting) for option in options}


def config_file(context: click.Context) -> Path | None:
    """The file of settings that was read, if one was."""
    path: Path | None = context.meta.get(_FILE)
    return path


# (Older releases of click take no type.)
class _DatabaseType(click.ParamType):  # type: ignore[type-arg]
    """NAME=URL; in a file, what `[databases]` has become."""

    name = "database"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> NamedDatabase:
        """One database."""
        if isinstance(value, NamedDatabase):
            return value
        try:
            return NamedDatabase.from_text(value)
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


def _parameter_type(setting: Setting) -> Any:
    if setting.type is tuple:
        return _DatabaseType()
    if setting.about.choices:
        return click.Choice(setting.about.choices)
    if setting.type is list:
        return str
    if setting.type is Path:
        directory = setting.about.directory
        return click.Path(file_okay=not directory, dir_okay=directory, path_type=Path)
    return setting.type


def _take_config_file(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        context.default_map = read_config_file(context, path)


def read_config_file(context: click.Context, path: Path) -> dict[str, Any]:
    """The settings in a file, by their names. Raises BadParameter."""
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise click.BadParameter(f"{path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise click.BadParameter(f"{path}: is not valid TOML: {exc}") from exc
    # One file serves all commands, each of which takes the settings that it has options for.
    context.meta[_FILE] = path
    by_key = {setting.key: setting for setting in SETTINGS.values()}
    found: dict[str, Any] = {}
    for key, value in values.items():
        setting = by_key.get(key.replace("_", "-"))
        if setting is None:
            near = did_you_mean(key.replace("_", "-").lower(), by_key)
            raise click.BadParameter(f"{path}: unknown setting {key!r}{near}")
        # A string is converted as it is on the command line. Anything else must be valid as
        # it is: click would silently turn 2.5 into 2.
        if not isinstance(value, str) or setting.type is tuple:
            try:
                if setting.type is tuple:
                    value = named_databases.from_toml(value)
                setting.validate(value)
            except ValueError as exc:
                raise click.BadParameter(f"{path}: {exc}") from exc
        found[setting.name] = value
    return found


config_option = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    envvar=ENV_PREFIX + "CONFIG",
    show_envvar=True,
    is_eager=True,
    expose_value=False,
    callback=_take_config_file,
    help="TOML file with settings; the keys are the option names without the leading dashes.",
)
