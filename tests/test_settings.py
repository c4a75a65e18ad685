"""Each setting is declared once; option, environment variable, TOML key and validation follow."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.support.settings import as_text, as_toml, other_value
from wfe_persistence.cli.options import settings_options
from wfe_persistence.cli.serve import serve
from wfe_persistence.settings import GROUPS, SETTINGS, Setting, Settings

each_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda s: str(s.key))


def parse(*arguments: str, env: dict[str, str] | None = None) -> Settings:
    """The settings of a command that has all options."""
    parsed: list[Settings] = []

    @click.command()
    @settings_options()
    def command(settings: Settings) -> None:
        parsed.append(settings)

    result = CliRunner(env=env).invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return parsed[0]


def changed(setting: Setting) -> Settings:
    return Settings(**{setting.name: other_value(setting)})


def test_every_group_is_a_part_of_the_settings_and_has_a_heading() -> None:
    assert set(SETTINGS) == {field.name for field in fields(Settings)}


@each_setting
def test_default_is_declared_once(setting: Setting) -> None:
    assert getattr(parse(), setting.name) == getattr(Settings(), setting.name)


@each_setting
def test_every_setting_has_an_option_of_serve(setting: Setting) -> None:
    value = other_value(setting)
    if setting.type is bool:
        arguments = [f"--{setting.key}" if value else f"--no-{setting.key}"]
    else:
        arguments = [setting.flag, as_text(value)]
    assert parse(*arguments) == changed(setting)
    assert setting.name in {parameter.name for parameter in serve.params}


@each_setting
def test_every_setting_has_an_environment_variable(setting: Setting) -> None:
    assert setting.env == "WFE_PERSISTENCE_" + setting.key.upper().replace("-", "_")
    assert parse(env={setting.env: as_text(other_value(setting))}) == changed(setting)


@each_setting
def test_every_setting_has_a_key_in_the_file(setting: Setting, tmp_path: Path) -> None:
    value = other_value(setting)
    file = tmp_path / "settings.toml"
    file.write_text(f"{setting.key} = {as_toml(value)}\n")
    assert parse("--config", str(file)) == changed(setting)


@each_setting
def test_every_setting_is_described(setting: Setting) -> None:
    assert setting.about.help.endswith(".")
    assert setting.type in (bool, int, float, str, Path, tuple, list)


def out_of_bounds() -> list[Any]:
    cases: list[tuple[Setting, Any]] = []
    for setting in SETTINGS.values():
        about = setting.about
        cases.append((setting, Ellipsis))  # of a type that no setting has
        if about.choices:
            cases.append((setting, "none of them"))
        if about.minimum is not None:
            cases.append((setting, about.minimum - 1))
        if about.maximum is not None:
            cases.append((setting, about.maximum + 1))
        if about.above is not None:
            cases.append((setting, about.above))
        if setting.type is float:
            cases += [(setting, math.nan), (setting, math.inf)]
        if setting.type is int:
            cases += [(setting, 2.5), (setting, True)]
    return [pytest.param(setting, bad, id=f"{setting.key}-{bad}"[:40]) for setting, bad in cases]


@pytest.mark.parametrize(("setting", "bad"), out_of_bounds())
def test_an_invalid_value_names_its_setting(setting: Setting, bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{setting.key}: must be "):
        Settings(**{setting.name: bad})


@each_setting
def test_bounds_themselves_are_valid(setting: Setting) -> None:
    for bound in (setting.about.minimum, setting.about.maximum):
        if bound is not None:
            setting.validate(bound)


@pytest.mark.parametrize("text", ["pool-size = 2.5", "pool-size = true", "schema = 1", "x = ["])
def test_a_value_of_the_wrong_type_in_the_file_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    result = CliRunner().invoke(serve, ["--config", str(file)])
    assert result.exit_code == 2
    assert ("not valid TOML" if text == "x = [" else "must be") in result.output


@pytest.mark.parametrize(
    ("listen", "local"),
    [
        ("127.0.0.1:1", True), ("127.9.9.9:1", True), ("localhost:1", True), ("[::1]:1", True),
        ("unix:/run/wfe", True), ("0.0.0.0:1", False), ("[::]:1", False), ("10.0.0.1:1", False),
        ("db.example:1", False), ("localhost.example:1", False),
    ],
)  # fmt: skip
def test_create_namespace_is_enabled_by_default_only_for_local_callers(
    listen: str, local: bool
) -> None:
    assert Settings(listen=listen).create_namespace_allowed == local
    assert Settings(listen=listen, allow_create_namespace=True).create_namespace_allowed
    assert not Settings(listen=listen, allow_create_namespace=False).create_namespace_allowed


def test_help_has_the_options_in_their_groups() -> None:
    lines = CliRunner().invoke(serve, ["--help"]).output.splitlines()
    headings = [line.removesuffix(":") for line in lines if line[:1] > " " and line.endswith(":")]
    assert headings == ["Options", *GROUPS]
    sections: dict[str, list[str]] = {}
    for line in lines:
        if line.removesuffix(":") in GROUPS:
            section = sections.setdefault(line.removesuffix(":"), [])
        elif line.startswith("  --") and sections:
            section.append(line.split()[0])
    assert sections == {
        heading: [s.flag.split("/")[0] for s in SETTINGS.values() if s.group == heading]
        for heading in GROUPS
    }


def test_default_that_depends_on_another_setting_is_in_the_help() -> None:
    text = " ".join(CliRunner().invoke(serve, ["--help"]).output.split())
    assert "enabled if --listen is a loopback address or a Unix socket" in text
