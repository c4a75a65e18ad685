"""docs/configuration.md: the settings as they are declared."""

from pathlib import Path
from typing import Final

import click

from wfe_persistence.cli.options import known_variables
from wfe_persistence.settings import ENV_PREFIX, GROUPS, SETTINGS, Setting

PAGE: Final = Path(__file__).with_suffix(".md")

KINDS: Final[dict[type, str]] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "string",
    Path: "path",
    tuple: "table",
    list: "list of strings",
}

INTRODUCTION: Final = """\
# Configuration

<!-- Generated from server/wfe_persistence/settings by `./run gen`. -->

Each setting has a command-line option, an environment variable, and a key in a TOML file that
`--config FILE` (or `WFE_PERSISTENCE_CONFIG`) names. The option goes before the variable, the
variable before the file, and the file before the default. An empty variable counts as none.

```toml
# settings.toml
db-url-file = "/run/secrets/db-url"
listen = "127.0.0.1:50052"
pool-size = 20
migrate = false
```

```sh
wfe-persistence config show --config settings.toml
```

`config show` takes the same options as `serve` and shows every setting, its value, and where it is
from: the option, the variable, the file or the default; then what follows from all of them. It does
not show secrets, starts nothing and connects to nothing. The exit status is 1 if `serve` would
refuse these settings; stderr says why. What is in files, such as the policy, is not examined (see
`policy check`). `--format json` is for programs:

```sh
wfe-persistence config show --format json | jq '.settings["pool-size"], .derived.protection'
```

## Names that are no settings

A misspelled limit would be no limit. So `serve`, and every other command that reads settings,
refuses an unknown key in the file and an unknown variable that begins with `WFE_PERSISTENCE_`, with
exit status 2 and the nearest known name. A command ignores the keys and variables of settings that
it has no use for, so that one file serves all commands. Before you go back to an older release,
remove those that it does not know.

Kubernetes gives each pod variables for the Services of its namespace. Those for a Service named
`wfe-persistence` (or `wfe-persistence-…`) begin with `WFE_PERSISTENCE_` too:
`WFE_PERSISTENCE_SERVICE_HOST`, `WFE_PERSISTENCE_SERVICE_PORT`, `WFE_PERSISTENCE_PORT=tcp://…`,
`WFE_PERSISTENCE_PORT_50052_TCP_ADDR` and so on. They are ignored, and no setting has such a name.
`enableServiceLinks: false` in the pod's specification avoids them.
"""


def page() -> str:
    """The page as it should be."""
    assert all(name.startswith(ENV_PREFIX) for name in known_variables())
    parts = [INTRODUCTION]
    for heading, group in GROUPS.items():
        parts.append(f"## {heading}\n\n{(group.__doc__ or '').strip()}\n")
        parts += [entry(setting) for setting in SETTINGS.values() if setting.group == heading]
    ours = {setting.env for setting in SETTINGS.values()}
    others = {name: each for name, each in known_variables().items() if name not in ours}
    parts.append(
        "## Variables of other options\n\nThey have no key in the file.\n\n"
        "| Variable | Option | Meaning |\n|---|---|---|\n"
        + "".join(f"| `{name}` | `{each.opts[0]}` | {_help(each)} |\n"
                  for name, each in sorted(others.items()))
    )  # fmt: skip
    return "\n".join(parts)


def entry(setting: Setting) -> str:
    """The section of one setting."""
    about = setting.about
    flag = setting.flag.replace("/", "` or `")
    value = f" {_metavar(setting)}" if setting.type is not bool else ""
    lines = [
        f"### {setting.key}",
        "",
        about.help,
        "",
        f"- option: `{flag}{value}`",
        f"- environment variable: `{setting.env}`",
        f"- key: `{setting.key}`",
        f"- type: {_type(setting)}",
        f"- default: {_default(setting)}",
    ]
    return "\n".join(lines) + "\n"


def _metavar(setting: Setting) -> str:
    about = setting.about
    return about.metavar or "|".join(about.choices) or KINDS[setting.type].upper()


def _type(setting: Setting) -> str:
    about = setting.about
    if about.choices:
        return "one of " + ", ".join(f"`{choice}`" for choice in about.choices)
    kind = KINDS[setting.type]
    if setting.type is Path:
        kind += " of a directory" if about.directory else " of a file"
    bounds = []
    if about.minimum is not None:
        bounds.append(f"at least {about.minimum}")
    if about.maximum is not None:
        bounds.append(f"at most {about.maximum}")
    if about.above is not None:
        bounds.append(f"more than {about.above:g}")
    if about.secret:
        several = setting.type is tuple
        bounds.append("its secrets are never shown" if several else "secret: never shown")
    return ", ".join([kind, *bounds])


def _default(setting: Setting) -> str:
    default = setting.default
    if setting.about.default_help or default in (None, "", ()) or callable(default):
        return setting.about.default_help or "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _help(parameter: click.Parameter) -> str:
    return (parameter.help or "") if isinstance(parameter, click.Option) else ""


FILES: Final = {PAGE: page}
