"""`[databases]` and `--database`: the databases of a service besides its home."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from wfe_persistence.cli.config import show
from wfe_persistence.configuration import refusal
from wfe_persistence.database import databases_from, read_sources_from
from wfe_persistence.processes.channel import Assignment
from wfe_persistence.rpc.shared_listener import Shared
from wfe_persistence.settings import NamedDatabase, Settings
from wfe_persistence.settings.databases import from_toml

TABLE = """
db-url = "postgresql://h/home"
pool-size = 7

[databases]
west = "postgresql://u:hidden1@west/wfe"

[databases.east]
url-file = "/run/secrets/east"
password-command = "print hidden2"
pool-size = 20
labels = {region = "east", tier = "gold"}
accepts-new = false
read-urls = ["postgresql://u:hidden3@east-2/wfe"]
read-url-files = ["/run/secrets/east-3"]

[databases.home]
labels = {region = "west"}
"""


def shown(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(show, ["--format", "json", *arguments])
    assert result.exit_code == 0, result.output
    for hidden in ("hidden1", "hidden2", "hidden3"):
        assert hidden not in result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_table_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    for name in ("east", "east-3"):
        (tmp_path / name).write_text(f"postgresql://{name}/wfe")
    file.write_text(TABLE.replace("/run/secrets/east", str(tmp_path / "east")))
    databases = shown("--config", str(file))["settings"]["databases"]
    assert databases["source"] == "file"
    assert databases["value"] == {
        "west": {"url": "***"},
        "east": {
            "url-file": str(tmp_path / "east"),
            "password-command": "***",
            "pool-size": 20,
            "labels": {"region": "east", "tier": "gold"},
            "accepts-new": False,
            "read-urls": ["***"],
            "read-url-files": [str(tmp_path / "east-3")],
        },
        "home": {"labels": {"region": "west"}},
    }


def test_options_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(TABLE)
    given = ["--config", str(file), "--database", "a=postgresql://x/a"]
    databases = shown(*given, "--database", "b=host=x dbname=b")["settings"]["databases"]
    assert databases == {
        "value": {"a": {"url": "***"}, "b": {"url": "***"}},
        "source": "flag",
        "from": "--database",
    }


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"A": "postgresql://h/x"}, "no name of a database"),
        ({"a": 3}, "must be a connection string or a table"),
        ({"a": {}}, "needs url or url-file"),
        ({"a": {"url": "x", "url-file": "y"}}, "needs url or url-file"),
        ({"a": {"url": "x", "pool-sise": 3}}, "unknown key 'pool-sise'; there is accepts-new, "),
        ({"a": {"url": "x", "pool-size": 0}}, "pool-size must be at least 1"),
        ({"a": {"url": "x", "pool-size": "3"}}, "pool-size must be an integer"),
        ({"a": {"url": "x", "labels": {"region": 3}}}, "labels must be a table"),
        ({"a": {"url": "x", "read-urls": "y"}}, "read-urls must be a list"),
        ({"a": {"url": "x", "read-url-files": "y"}}, "read-url-files must be a list"),
        ({"a": {"url": "x", "read-url-files": [3]}}, "read-url-files must be a list"),
        ({"a": {"url": "x", "accepts-new": "no"}}, "accepts-new must be true or false"),
        ({"a": {"url": "x", "password-file": "f", "password-command": "c"}}, "set together"),
        ({"home": "postgresql://h/x"}, "its connection string is that of db-url"),
        ({"home": {"pool-size": 3}}, "the number of its connections is pool-size"),
        ("x", "must be a table"),
    ],
)
def test_what_is_refused(table: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_toml(table)


def test_the_same_name_twice_is_refused() -> None:
    twice = tuple(NamedDatabase(name="a", url=f"postgresql://h/{i}") for i in range(2))
    with pytest.raises(ValueError, match="a is there twice"):
        Settings(databases=twice)


@pytest.mark.parametrize("text", ["a", "a=", "=postgresql://h/x", "A=postgresql://h/x"])
def test_an_option_that_is_none_does_not_show_what_was_given(text: str) -> None:
    result = CliRunner().invoke(show, ["--database", f"{text}hidden" if "=" not in text else text])
    assert result.exit_code == 2
    assert "must be NAME=URL" in result.output
    assert "postgresql://" not in result.output


def test_an_invalid_url_is_said_before_the_start() -> None:
    named = (NamedDatabase(name="a", url="postgresql://u:p@ss@h/x"),)
    why = refusal(Settings(databases=named))
    assert why is not None
    assert why.startswith("databases.a.url: is no valid URL")
    assert "p@ss" not in why


def test_a_worker_process_gets_them(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(TABLE)
    settings = Settings(
        db_url="postgresql://h/home",
        databases=from_toml(
            {
                "a": "postgresql://h/a",
                "b": {
                    "url-file": "/f",
                    "labels": {"x": "y"},
                    "read-urls": ["postgresql://r/b"],
                    "read-url-files": ["/r"],
                    "pool-size": 3,
                },
            }
        ),
    )
    shared = Shared(index=0, sockets=(), counts=False, board=0)
    line = json.loads(json.dumps(Assignment(settings, shared).to_line()))
    assert Assignment.from_line(line).settings == settings


def test_the_pools_have_their_sizes() -> None:
    settings = Settings(
        db_url="postgresql://h/home",
        pool_size=7,
        databases=from_toml(
            {"a": "postgresql://h/a", "b": {"url": "postgresql://h/b", "pool-size": 20}}
        ),
    )
    databases = databases_from(settings)
    assert [each.name for each in databases] == ["home", "a", "b"]
    assert all(each.replicas is None for each in databases)
    assert settings.most_database_connections == 7 + 7 + 20 + 1


def test_replicas_of_each_database(tmp_path: Path) -> None:
    for name in ("home-2", "b-2"):
        (tmp_path / name).write_text(f"postgresql://file/{name}\n")
    settings = Settings(
        db_url="postgresql://h/home",
        db_read_url=("postgresql://h/home-1",),
        db_read_url_file=(str(tmp_path / "home-2"),),
        pool_size=7,
        databases=from_toml(
            {
                "a": "postgresql://h/a",
                "b": {
                    "url": "postgresql://h/b",
                    "pool-size": 20,
                    "read-urls": ["postgresql://h/b-1"],
                    "read-url-files": [str(tmp_path / "b-2")],
                },
            }
        ),
    )
    described = [each.description() for each in read_sources_from(settings)]
    assert described == [
        "host=h dbname=home-1",
        "host=file dbname=home-2",
        "host=h dbname=b-1",
        "host=file dbname=b-2",
    ]
    replicas = [
        [replica.label for replica in each.replicas or ()] for each in databases_from(settings)
    ]
    assert replicas == [["home/1", "home/2"], [], ["b/1", "b/2"]]
    assert settings.most_database_connections == 3 * 7 + 7 + 3 * 20 + 1


@pytest.mark.parametrize("name", ["db_read_url", "db_read_url_file"])
def test_replicas_of_the_home_are_said_in_one_place(name: str) -> None:
    home = from_toml({"home": {"read-url-files": ["/r"]}})
    key = name.replace("_", "-")
    given: dict[str, Any] = {name: ("postgresql://h/x",)}
    with pytest.raises(ValueError, match=f"{key}: can't be set together with the read-urls"):
        Settings(databases=home, **given)


def test_a_file_of_a_replica_that_is_not_there_is_said_before_the_start() -> None:
    why = refusal(Settings(db_url="postgresql://h/x", db_read_url_file=("/does/not/exist",)))
    assert why == "db-read-url-file: /does/not/exist: No such file or directory"
