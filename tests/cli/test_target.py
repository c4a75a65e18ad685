"""Which server is called: options, environment, contexts."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.cli.conftest import Shop
from tests.cli.program import environment, run
from wfe_persistence.settings import DEFAULT_LISTEN, listens_locally
from wfe_persistence.store.schema import DEFAULT_NAMESPACE
from wfe_persistence_cli import target as target_module
from wfe_persistence_cli.contexts import Contexts
from wfe_persistence_cli.options import ClientCommand, target_options
from wfe_persistence_cli.target import Target, is_local


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two contexts: the current one needs TLS and a token."""
    (tmp_path / "wfe-persistence").mkdir()
    for name in ("ca.pem", "token", "other-token"):
        (tmp_path / name).write_text(name)
    (tmp_path / "wfe-persistence" / "contexts.toml").write_text(
        f"""
current = "prod"
[contexts.prod]
target = "db.example:50052"
namespace = "orders"
tls-ca = "{tmp_path}/ca.pem"
bearer-token-file = "{tmp_path}/token"
[contexts.test]
target = "127.0.0.1:7"
"""
    )
    return tmp_path


def resolved(home: Path, line: str, **env: str) -> Target | str:
    """What a command line means in an environment; the error, if it is refused."""
    found: list[Target] = []

    @click.command(cls=ClientCommand)
    @target_options
    def command(target: Target) -> None:
        found.append(target)

    variables = {f"WFE_PERSISTENCE_{name.upper()}": value for name, value in env.items()}
    done = CliRunner().invoke(
        command, line.split(), env={"XDG_CONFIG_HOME": str(home), **variables}
    )
    return found[0] if found else done.output


def fields(target: Target | str) -> dict[str, Any]:
    """What matters of a target."""
    assert isinstance(target, Target), target
    return {
        "address": target.address,
        "namespace": (target.namespace_set and f"set {target.namespace_set}") or target.namespace,
        "ca": target.tls_ca and target.tls_ca.name,
        "token": target.token or (target.token_file and target.token_file.name),
    }


PROD = {"address": "db.example:50052", "namespace": "orders", "ca": "ca.pem", "token": "token"}
HERE = {"address": DEFAULT_LISTEN, "namespace": "default", "ca": None, "token": None}


@pytest.mark.parametrize(
    ("line", "env", "expected"),
    [
        ("", {}, PROD),
        ("--namespace other", {}, {**PROD, "namespace": "other"}),
        ("", {"namespace": "other"}, {**PROD, "namespace": "other"}),
        ("--namespace a", {"namespace": "b"}, {**PROD, "namespace": "a"}),
        ("--namespace-set s", {}, {**PROD, "namespace": "set s"}),
        ("", {"namespace_set": "s"}, {**PROD, "namespace": "set s"}),
        ("--namespace a", {"namespace_set": "s"}, {**PROD, "namespace": "a"}),
        ("--namespace-set s", {"namespace": "a"}, {**PROD, "namespace": "set s"}),
        ("--context prod", {"namespace_set": "s"}, PROD),
        ("--context test", {}, {**HERE, "address": "127.0.0.1:7"}),
        ("", {"context": "test"}, {**HERE, "address": "127.0.0.1:7"}),
        ("--context prod", {"context": "test"}, PROD),
        # A token goes nowhere but to the server of its context.
        ("--target 127.0.0.1:8", {}, {**HERE, "address": "127.0.0.1:8"}),
        ("", {"target": "127.0.0.1:8"}, {**HERE, "address": "127.0.0.1:8"}),
        ("", {"target": "127.0.0.1:8", "context": "prod"}, {**HERE, "address": "127.0.0.1:8"}),
        ("--listen 0.0.0.0:9", {}, {**HERE, "address": "127.0.0.1:9"}),
        ("", {"listen": "[::]:9"}, {**HERE, "address": "[::1]:9"}),
        # And one of the environment not to a context that the command line names.
        ("--context test", {"target": "x:1", "bearer_token": "secret", "namespace": "n"},
         {**HERE, "address": "127.0.0.1:7"}),
        ("", {"bearer_token": "secret"}, {**PROD, "token": "secret"}),
        ("--target unix:/s", {"bearer_token": "secret"},
         {**HERE, "address": "unix:/s", "token": "secret"}),
        ("--target [::1]:1 --bearer-token-file {home}/other-token", {"bearer_token": "secret"},
         {**HERE, "address": "[::1]:1", "token": "other-token"}),
    ],
)  # fmt: skip
def test_what_a_command_line_means(
    home: Path, line: str, env: dict[str, str], expected: dict[str, Any]
) -> None:
    assert fields(resolved(home, line.format(home=home), **env)) == expected


@pytest.mark.parametrize(
    ("line", "env", "said"),
    [
        ("--context prod --target x:1", {}, "name two servers"),
        ("--namespace a --namespace-set s", {}, "not both"),
        ("", {"namespace": "a", "namespace_set": "s"}, "not both"),
        ("--context nope", {}, "there is no context 'nope'"),
        ("--target x:1 --bearer-token-file {home}/token", {}, "not sent in plain text"),
        ("--target x:1", {"bearer_token": "secret"}, "not sent in plain text"),
        ("--no-tls", {}, "not sent in plain text"),
        ("--target x:1 --tls-client-cert {home}/ca.pem", {}, "set both or neither"),
        ("--target x:1 --tls-server-name y", {}, "it turns TLS on"),
        ("--timeout 0", {}, "0<x"),
        ("--tls-cert {home}/ca.pem --listen 127.0.0.1:1", {}, "--tls-cert"),
    ],
)
def test_what_is_refused(home: Path, line: str, env: dict[str, str], said: str) -> None:
    message = resolved(home, line.format(home=home), **env)
    assert isinstance(message, str)
    assert said in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("current = 1", "must be a table"),
        ("[contexts]\na = 1", "contexts.a must be a table"),
        ("[contexts.a]\ntargt = 'x'", "unknown key 'targt'"),
        ("[contexts.a]\ntarget = 1", "contexts.a.target: must be a string"),
        ("[contexts.a]\ntls = 'yes'", "contexts.a.tls: must be true or false"),
        ("[contexts.'a b']", "name must match"),
        ("current = 'gone'", "there is no context 'gone'"),
        ("[", "is not valid TOML"),
    ],
)
def test_a_file_that_is_wrong_is_named(home: Path, content: str, said: str) -> None:
    file = home / "wfe-persistence" / "contexts.toml"
    file.write_text(content)
    message = resolved(home, "")
    assert isinstance(message, str)
    assert said in message
    assert str(file) in message or "match" in said
    # Who names the server needs no file.
    assert isinstance(resolved(home, "--target 127.0.0.1:1"), Target)


def test_client_and_server_mean_the_same() -> None:
    assert target_module.DEFAULT_LISTEN == DEFAULT_LISTEN
    assert target_module.DEFAULT_NAMESPACE == DEFAULT_NAMESPACE
    for address in ("127.0.0.1:1", "[::1]:1", "unix:/a", "localhost:1", "x:1", "0.0.0.0:1", ":1"):
        assert is_local(address) == listens_locally(address)


def test_contexts_are_set_used_and_deleted(shop: Shop, tmp_path: Path) -> None:
    env = environment(tmp_path)

    def says(*arguments: str, status: int = 0) -> str:
        done = run(arguments, env)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    assert "no contexts in" in says("context", "list")
    says("context", "set", "shop", "--target", shop.address, "--namespace", shop.namespace)
    says("context", "set", "gone", "--target", "127.0.0.1:1")
    assert "order-42" in says("list", "--stuck"), "the first one is the current one"
    assert "Connection refused" in says("list", "--context", "gone", status=5)
    assert "from the context 'gone'" in says("list", "--context", "gone", status=5)
    says("context", "use", "gone")
    says("list", status=5)
    assert json.loads(says("context", "list", "-o", "json")) == [
        {"name": "gone", "current": True, "target": "127.0.0.1:1"},
        {"name": "shop", "current": False, "target": shop.address, "namespace": shop.namespace},
    ]
    (tmp_path / "ca.pem").write_text("-----BEGIN ")
    says("context", "set", "gone", "--tls-ca", str(tmp_path / "ca.pem"))
    says("context", "set", "gone", "--target", "")
    file = tmp_path / "wfe-persistence" / "contexts.toml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f'tls-ca = "{tmp_path}/ca.pem"' in file.read_text()
    assert "127.0.0.1:1" not in file.read_text()
    says("context", "delete", "gone")
    assert "there is no context 'gone'" in says("context", "use", "gone", status=4)
    assert "shop" in says("context", "list")
    says("context", "set", "a b", status=1)


def test_what_is_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WFE_PERSISTENCE_CONTEXT_FILE", str(tmp_path / "deep" / "file.toml"))
    contexts = Contexts.read()
    contexts.all = {"a.b": {"target": 'unix:/tmp/"x"\\\n\x7f\x00é', "tls": True}, "c": {}}
    contexts.current = "c"
    contexts.write()
    again = Contexts.read()
    assert (again.all, again.current) == (contexts.all, "c")
