"""`config show`, names that are no settings, and docs/configuration.md."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.generated import copy_generated, run_generated
from tests.support.server import ServerProcess
from tests.support.settings import as_text, as_toml, other_value
from wfe_persistence.cli.group import commands
from wfe_persistence.cli.options import known_variables
from wfe_persistence.settings import GROUPS, SETTINGS, Setting
from wfe_persistence.settings.names import is_of_a_service, unknown_variables

PASSWORD = "canary-7f20c1"
PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

each_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=lambda s: str(s.key))


def run(*arguments: str, env: dict[str, str | None] | None = None) -> Result:
    return CliRunner(env=env).invoke(commands, arguments)


def show(*arguments: str, env: dict[str, str | None] | None = None) -> dict[str, Any]:
    """What `config show --format json` says, whether a server would start or not."""
    result = run("config", "show", "--format", "json", *arguments, env=env)
    assert result.exit_code in (0, 1), result.output
    document: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == (1 if document["refused"] else 0)
    return document


def shown(setting: Setting) -> Any:
    """`other_value` as it is shown."""
    value = other_value(setting)
    if setting.type is list:
        return ["***"] if setting.about.secret else list(value)
    if setting.type is tuple:
        return {value[0].name: {"url": "***"}}
    return "***" if setting.about.secret else str(value) if setting.type is Path else value


@each_setting
def test_a_default_is_shown(setting: Setting) -> None:
    entry = show()["settings"][setting.key]
    default = setting.default() if callable(setting.default) else setting.default
    if default == ():
        default = [] if setting.type is list else {}
    assert entry["value"] == (str(default) if isinstance(default, Path) else default)
    assert (entry["source"], entry["from"]) == ("default", None)


@each_setting
def test_an_option_is_shown(setting: Setting) -> None:
    value = other_value(setting)
    option = setting.flag.split("/")[value is False]
    entry = show(*([option] if setting.type is bool else [option, as_text(value)]))["settings"]
    assert entry[setting.key] == {"value": shown(setting), "source": "flag", "from": option}


@each_setting
def test_a_variable_is_shown(setting: Setting) -> None:
    entry = show(env={setting.env: as_text(other_value(setting))})["settings"][setting.key]
    assert entry == {"value": shown(setting), "source": "environment", "from": setting.env}


@each_setting
def test_a_value_from_the_file_shows_the_file(setting: Setting, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    value = other_value(setting)
    file.write_text(f"{setting.name} = {as_toml(value)}\n")
    for document in (
        show("--config", str(file)),
        show(env={"WFE_PERSISTENCE_CONFIG": str(file)}),
    ):
        assert document["file"] == str(file)
        entry = document["settings"][setting.key]
        assert entry == {"value": shown(setting), "source": "file", "from": str(file)}


def test_all_settings_are_shown_and_the_first_source_counts(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("pool-size = 2\nmax-calls = 3\nmax-waiting = 4\nmax-connections = 5\n")
    env: dict[str, str | None] = {
        "WFE_PERSISTENCE_POOL_SIZE": "6",
        "WFE_PERSISTENCE_MAX_CALLS": "7",
        "WFE_PERSISTENCE_MAX_WAITING": "",
    }
    settings = show("--config", str(file), "--pool-size", "8", env=env)["settings"]
    assert set(settings) == {setting.key for setting in SETTINGS.values()}
    found = {key: (entry["value"], entry["source"]) for key, entry in settings.items()}
    assert found["pool-size"] == (8, "flag")
    assert found["max-calls"] == (7, "environment")
    assert found["max-waiting"] == (4, "file")
    assert found["max-connections"] == (5, "file")
    assert found["max-namespaces"] == (1000, "default")


def test_text_for_people(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("pool-size = 2\n")
    result = run("config", "show", "--config", str(file), "--no-prepare")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line for line in lines if line and line[0] != " "] == [*GROUPS, "Derived"]
    words = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    assert {setting.key for setting in SETTINGS.values()} <= set(words)
    assert words["pool-size"] == ["2", "file", str(file)]
    assert words["prepare"] == ["false", "flag", "--no-prepare"]
    assert words["schema"] == ["wfc", "default"]
    assert "  (embedded PostgreSQL)  " in result.stdout


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "setting",
    [
        {"db-url": f"postgresql://wfe:{PASSWORD}@db.example:5433/wfe"},
        {"db-url": f"host=db.example dbname=wfe password={PASSWORD}"},
        {"db-url": f"postgresql://db.example/wfe?pass%77ord={PASSWORD}"},
        {"db-url": f"postgresql://wfe:{PASSWORD}@{PASSWORD}@db.example/wfe"},
        {"db-url": "postgresql://db.example/wfe", "db-password-command": f"say {PASSWORD}"},
        {"jwt-jwks": f"https://reader:{PASSWORD}@issuer.example/keys"},
    ],
    ids=lambda setting: "+".join(setting),
)
def test_secrets_are_not_shown(setting: dict[str, str], form: str, tmp_path: Path) -> None:
    arguments = [part for key, value in setting.items() for part in (f"--{key}", value)]
    result = run("config", "show", "--format", form, *arguments)
    assert next(iter(setting)) in result.stdout
    assert "***" in result.stdout
    assert PASSWORD not in result.output + result.stderr


def test_the_database_is_described_without_its_secrets_and_not_connected_to(
    tmp_path: Path,
) -> None:
    url = f"postgresql://wfe:{PASSWORD}@127.0.0.1:1/store?sslmode=require"
    expected = "host=127.0.0.1 port=1 dbname=store user=wfe sslmode=require"
    document = show("--db-url", url)
    assert set(document["derived"]["database"].split()) == set(expected.split())
    assert document["refused"] is None
    file = tmp_path / "url"
    file.write_text(url + "\n")
    assert show("--db-url-file", str(file))["derived"] == document["derived"]
    missing = show("--db-url-file", str(tmp_path / "missing"))
    assert "No such file" in missing["refused"]


def test_no_embedded_database_is_made(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    derived = show("--data-dir", str(directory))["derived"]
    assert derived["database"] == f"embedded PostgreSQL in {directory}"
    assert not directory.exists()


def test_what_is_derived() -> None:
    local = show()["derived"]
    assert local.pop("database").startswith("embedded PostgreSQL in ")
    assert local == {
        "replicas": [],
        "protection": "plaintext, no authentication",
        "authentication": [],
        "reflection": True,
        "allow-create-namespace": True,
        "workers": 1,
        "drain-delay": 0.0,
    }
    files = ("--tls-cert", "c", "--tls-key", "k", "--token-file", "t", "--policy-file", "p")
    open_ = show("--listen", "0.0.0.0:50052", "--workers", "3", *files)
    assert open_["refused"] is None
    del open_["derived"]["database"]
    assert open_["derived"] == {
        "replicas": [],
        "protection": "TLS, token",
        "authentication": ["token"],
        "reflection": False,
        "allow-create-namespace": False,
        "workers": 3,
        "drain-delay": 3.0,
    }
    assert show("--drain-delay", "1.5", "--reflection")["derived"]["drain-delay"] == 1.5


def test_settings_that_serve_would_refuse_are_shown_with_the_reason() -> None:
    arguments = ("--listen", "0.0.0.0:50052")
    result = run("config", "show", *arguments)
    assert result.exit_code == 1
    assert "0.0.0.0:50052" in result.stdout
    [line] = result.stderr.splitlines()
    assert line.startswith("A server does not start with these settings: listen: ")
    served = run("serve", *arguments)
    assert served.exit_code == 2
    assert show(*arguments)["refused"] in served.output


READERS = (
    "serve", "config show", "migrate up", "migrate status", "migrate sql",
    "migrate grants --role x", "token list", "token create x", "token revoke x", "health",
    "retention show", "storage", "export", "import",
)  # fmt: skip


@pytest.mark.parametrize("command", READERS)
def test_an_unknown_variable_is_refused_with_the_nearest_name(command: str) -> None:
    env: dict[str, str | None] = {
        "WFE_PERSISTENCE_POOLSIZE": PASSWORD,
        "WFE_PERSISTENCE_DATABASE_URL": PASSWORD,
        "WFE_PERSISTENCE_PORT": "50052",
    }
    result = run(*command.split(), env=env)
    assert result.exit_code == 2
    said = result.output
    assert "WFE_PERSISTENCE_POOLSIZE; did you mean WFE_PERSISTENCE_POOL_SIZE?" in said
    assert "WFE_PERSISTENCE_DATABASE_URL; did you mean WFE_PERSISTENCE_DB_URL?" in said
    assert "unknown environment variable WFE_PERSISTENCE_PORT; " in said
    assert PASSWORD not in said


def test_the_variables_of_all_options_are_known() -> None:
    known = known_variables()
    assert {setting.env for setting in SETTINGS.values()} <= set(known)
    assert {f"WFE_PERSISTENCE_{name}" for name in ("CONFIG", "TARGET", "TLS_CA")} <= set(known)
    assert unknown_variables(dict.fromkeys(known, "x"), known) == []


@pytest.mark.parametrize("known", sorted(known_variables()))
def test_a_name_with_a_typing_error_is_near_to_the_right_one(known: str) -> None:
    prefix, name = "WFE_PERSISTENCE_", known.removeprefix("WFE_PERSISTENCE_")
    for wrong in (
        name + "S",
        name[:-1] + "__" + name[-1],
        known.lower().removeprefix(prefix.lower()),
    ):
        [message] = unknown_variables({prefix + wrong: ""}, known_variables())
        assert message.endswith(f"did you mean {known}?")


# As the kubelet writes them, for Services `wfe-persistence`, with a named port, and
# `wfe-persistence-admin`.
OF_SERVICES = {
    "WFE_PERSISTENCE_SERVICE_HOST": "10.96.0.10",
    "WFE_PERSISTENCE_SERVICE_PORT": "50052",
    "WFE_PERSISTENCE_SERVICE_PORT_GRPC": "50052",
    "WFE_PERSISTENCE_PORT": "tcp://10.96.0.10:50052",
    "WFE_PERSISTENCE_PORT_50052_TCP": "tcp://10.96.0.10:50052",
    "WFE_PERSISTENCE_PORT_50052_TCP_PROTO": "tcp",
    "WFE_PERSISTENCE_PORT_50052_TCP_PORT": "50052",
    "WFE_PERSISTENCE_PORT_50052_TCP_ADDR": "10.96.0.10",
    "WFE_PERSISTENCE_ADMIN_SERVICE_HOST": "10.96.0.11",
    "WFE_PERSISTENCE_ADMIN_SERVICE_PORT": "9464",
    "WFE_PERSISTENCE_ADMIN_PORT": "tcp://10.96.0.11:9464",
    "WFE_PERSISTENCE_ADMIN_PORT_9464_UDP_ADDR": "10.96.0.11",
}


def test_a_server_starts_beside_kubernetes_services_of_its_name(
    tmp_path: Path, database_url: str
) -> None:
    env = {**os.environ, **OF_SERVICES}
    with ServerProcess(tmp_path / "log", "--db-url", database_url, env=env) as server:
        assert server.address.startswith("127.0.0.1:")
        assert not server.address.endswith((":50052", ":9464"))
    assert "unknown" not in server.log()


def test_variables_of_services_are_never_taken_for_settings() -> None:
    settings = show(env=dict(OF_SERVICES))["settings"]
    assert {entry["source"] for entry in settings.values()} == {"default"}
    for name in known_variables():
        assert not is_of_a_service(name, "tcp://10.96.0.10:50052"), f"{name} is like a Service's"


@pytest.mark.parametrize("key", ["poolsize", "Pool-Size", "pool_sise"])
def test_an_unknown_key_is_refused_with_the_nearest_name(key: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"{key} = 1\n")
    result = run("config", "show", "--config", str(file))
    assert result.exit_code == 2
    assert f"unknown setting {key!r}; did you mean pool-size?" in result.output


def test_the_page_has_every_setting() -> None:
    sections = re.split(r"^#{2,3} ", PAGE.read_text(), flags=re.MULTILINE)
    by_title = {section.partition("\n")[0]: section for section in sections}
    assert set(GROUPS) <= set(by_title)
    for setting in SETTINGS.values():
        section = by_title[setting.key]
        assert setting.about.help in section
        assert f"`{setting.flag.split('/')[0]}" in section
        assert f"`{setting.env}`" in section
        for bound in (setting.about.minimum, setting.about.maximum):
            assert bound is None or str(bound) in section


def test_a_page_that_differs_is_noticed(tmp_path: Path) -> None:
    copy_generated(tmp_path)
    assert run_generated(tmp_path, "check").returncode == 0
    page = tmp_path / "docs" / PAGE.name
    page.write_text(PAGE.read_text().replace("at least 1", "at least 2", 1))
    done = run_generated(tmp_path, "check")
    assert (done.returncode, "./run gen" in done.stderr) == (1, True)
    page.unlink()
    assert run_generated(tmp_path, "check").returncode == 1


def test_the_example_of_the_page_works(tmp_path: Path) -> None:
    example = PAGE.read_text().partition("```toml\n")[2].partition("```")[0]
    file = tmp_path / "settings.toml"
    url = tmp_path / "db-url"
    url.write_text("postgresql://db.example/wfe")
    file.write_text(example.replace("/run/secrets/db-url", str(url)))
    document = show("--config", str(file))
    assert document["refused"] is None
    for key in tomllib.loads(example):
        assert document["settings"][key]["source"] == "file"
