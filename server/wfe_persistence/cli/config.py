"""`wfe-persistence config show`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from wfe_persistence.cli.options import SettingsCommand, config_file, settings_options, sources
from wfe_persistence.settings import GROUPS, SETTINGS, Setting, Settings


@click.group()
def config() -> None:
    """Show the configuration.

    \b
    Example: wfe-persistence config show
    """


@config.command(cls=SettingsCommand)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Format of the output.",
)
@settings_options()
def show(settings: Settings, format_: str) -> None:
    """Show every setting, its value and where it is from, and what is derived from them.

    Takes the options of `serve`, and reads the same environment variables and the same file, but
    starts nothing and connects to nothing. Secrets are not shown. The exit status is 1 if `serve`
    would refuse these settings; stderr says why.

    \b
    Examples:
      wfe-persistence config show
      wfe-persistence config show --config settings.toml --format json
    """
    from wfe_persistence.configuration import configuration, refusal

    context = click.get_current_context()
    refused = refusal(settings)
    shown = configuration(settings, sources(context))
    if format_ == "json":
        path = config_file(context)
        whole = {"file": str(path) if path else None, **shown, "refused": refused}
        click.echo(json.dumps(whole, indent=2, ensure_ascii=False))
    else:
        click.echo(_text(shown))
    if refused:
        click.echo(f"A server does not start with these settings: {refused}", err=True)
        sys.exit(1)


def _text(shown: dict[str, Any]) -> str:
    """The settings by group, and what is derived, in columns."""
    settings, derived = shown["settings"], shown["derived"]
    values = {
        setting.key: _value(setting, settings[setting.key]["value"])
        for setting in SETTINGS.values()
    }
    names = max(map(len, [*settings, *derived])) + 2
    # A single long value does not move all sources out of sight.
    width = min(max(map(len, values.values())), 40)
    lines = []
    for heading in GROUPS:
        lines.append(heading)
        for setting in SETTINGS.values():
            if setting.group == heading:
                entry = settings[setting.key]
                source = " ".join(filter(None, (entry["source"], entry["from"])))
                lines.append(f"  {setting.key:{names}}{values[setting.key]:{width}}  {source}")
        lines.append("")
    lines.append("Derived")
    lines += [f"  {name:{names}}{_plain(value)}" for name, value in derived.items()]
    return "\n".join(lines)


def _value(setting: Setting, value: Any) -> str:
    """The value as it is written in a file of settings; what it means, if there is none."""
    if value is None or value in ("", {}):
        return f"({setting.about.default_help or 'none'})"
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "(none)"
    if isinstance(value, str):
        return value if value.isprintable() else json.dumps(value)
    return json.dumps(value)
