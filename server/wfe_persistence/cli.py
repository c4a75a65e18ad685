"""The command line: `wfe-persistence serve | migrate | health | version`.

A setting comes from its flag, else from its environment variable, else from the configuration file,
else it has its default.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

# Before gRPC is loaded: PostgreSQL is started as a child, and gRPC's fork handlers only complain.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import click

from wfe_persistence.config import DEFAULT_LISTEN, Config, default_data_dir
from wfe_persistence.embedded import EmbeddedPostgres, EmbeddedPostgresError
from wfe_persistence.store.schema import DEFAULT_SCHEMA, Schema

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

_ENV = "WFE_PERSISTENCE_"


def _option(name: str, **attributes: Any) -> Callable[[F], F]:
    """An option that its environment variable and the configuration file can set too."""
    env = _ENV + name.removeprefix("--").split("/")[0].replace("-", "_").upper()
    attributes.setdefault("show_default", True)
    return click.option(name, envvar=env, show_envvar=True, **attributes)


def _read_config_file(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        settings = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise click.BadParameter(f"{path}: {exc}") from exc
    # One file serves all commands, so each takes what it knows; what none knows is a mistake.
    known = {parameter.name for command in _commands(main) for parameter in command.params}
    for name in settings:
        if name.replace("-", "_") not in known:
            raise click.BadParameter(f"{path}: unknown setting {name!r}")
    context.default_map = {name.replace("-", "_"): value for name, value in settings.items()}


def _commands(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from _commands(command)
        else:
            yield command


def _database_options(function: F) -> F:
    """The options of every command that needs the store."""
    for option in reversed(
        (
            click.option(
                "--config",
                type=click.Path(dir_okay=False, path_type=Path),
                envvar=_ENV + "CONFIG",
                show_envvar=True,
                is_eager=True,
                expose_value=False,
                callback=_read_config_file,
                help="A TOML file with settings, named as the flags without dashes in front.",
            ),
            _option(
                "--db-url",
                metavar="URL",
                help="The PostgreSQL server (14 or newer), as a libpq connection string or URL. "
                "Default: an embedded one.",
            ),
            _option(
                "--data-dir",
                type=click.Path(file_okay=False, path_type=Path),
                default=default_data_dir,
                help="Where the embedded PostgreSQL keeps its data.",
            ),
            _option("--schema", default=DEFAULT_SCHEMA, help="The schema of the tables."),
            _option("--table-prefix", default="", help="A prefix for the names of the tables."),
            _option(
                "--log-level",
                type=click.Choice(["debug", "info", "warning", "error"]),
                default="info",
                help="What to log (to stderr).",
            ),
            _option(
                "--log-format",
                type=click.Choice(["auto", "text", "json"]),
                default="auto",
                help="auto: text on a terminal, else JSON, one object a line.",
            ),
        )
    ):
        function = option(function)
    return function


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """The workflow persistence server: gRPC in front, PostgreSQL behind.

    \b
    Example: wfe-persistence serve
    """


@main.command()
@_database_options
@_option(
    "--listen",
    default=DEFAULT_LISTEN,
    metavar="ADDRESS",
    help="HOST:PORT (port 0: any free one) or unix:PATH.",
)
@_option("--pool-size", type=int, default=10, help="Database connections at most.")
@_option(
    "--pool-timeout", type=float, default=5.0, help="Seconds a call may wait for a connection."
)
@_option(
    "--max-waiting",
    type=int,
    default=2000,
    help="How many calls of one namespace may wait for one.",
)
@_option(
    "--prepare/--no-prepare",
    default=True,
    help="Prepare statements; not behind a PgBouncer older than 1.21 in transaction mode.",
)
@_option(
    "--max-prepared-mb",
    type=int,
    default=100,
    help="What they may take of PostgreSQL's memory on each connection; more for many namespaces.",
)
@_option(
    "--migrate/--no-migrate",
    default=True,
    help="Bring the store up to date at start; otherwise wait for `migrate up`.",
)
@_option("--allow-truncate/--no-allow-truncate", default=False, help="Allow TruncateAll.")
@_option(
    "--allow-delete-namespace/--no-allow-delete-namespace",
    default=False,
    help="Allow DeleteNamespace.",
)
@_option(
    "--allow-data-loss/--no-allow-data-loss",
    default=False,
    help="Serve from a database with fsync or synchronous_commit off.",
)
@_option("--reflection/--no-reflection", default=True, help="Tell clients about the services.")
@_option(
    "--max-message-bytes",
    type=int,
    default=4 * 1024 * 1024,
    help="The largest request, and the largest workflow; clients must be set to receive as much.",
)
@_option("--default-deadline", type=float, default=30.0, help="Seconds, for calls that give none.")
@_option(
    "--drain-seconds", type=float, default=5.0, help="How long calls under way get at the end."
)
def serve(
    *,
    db_url: str | None,
    data_dir: Path,
    log_level: str,
    log_format: str,
    **settings: Any,
) -> None:
    """Run the server until SIGTERM or Ctrl-C, then finish the calls under way.

    \b
    Examples:
      wfe-persistence serve
      wfe-persistence serve --db-url postgresql://wfe@db.example/wfe --listen 127.0.0.1:50052
      WFE_PERSISTENCE_DB_URL=postgresql://… wfe-persistence serve
    """
    _log_to_stderr(log_level, log_format)
    try:
        # Before anything is started.
        Config(db_url=_conninfo(db_url or ""), **settings)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    with _database(db_url, data_dir) as url:
        sys.exit(asyncio.run(_serve(Config(db_url=url, **settings))))


async def _serve(config: Config) -> int:
    from wfe_persistence.app import VERSION, CannotServeError, Server

    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def on_signal(number: signal.Signals) -> None:
        # Once is enough: the drain is bounded. (Supervisors often pass a signal on twice.)
        if not stop.done():
            log.info("%s: draining", number.name)
            stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        async with Server(config) as server:
            log.info("wfe-persistence %s listens on %s", VERSION, server.address)
            watch = loop.create_task(server.watch())
            await asyncio.wait([stop, watch], return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
            watch.cancel()
    except CannotServeError as exc:
        log.error("can't serve: %s", exc)  # noqa: TRY400 — its message is all there is to say
        return 1
    log.info("stopped")
    return 0


@main.group(name="migrate")
def migrate_group() -> None:
    """Create the store or bring it up to date.

    \b
    Example: wfe-persistence migrate up --db-url postgresql://wfe@db.example/wfe
    """


@migrate_group.command()
@_database_options
def up(
    db_url: str | None,
    data_dir: Path,
    schema: str,
    table_prefix: str,
    log_level: str,
    log_format: str,
) -> None:
    """Apply the migrations that are missing, in every namespace. Safe at any time, by many at once.

    A namespace that fails does not stop the others; the command exits 1 then.

    \b
    Example: wfe-persistence migrate up --db-url postgresql://wfe@db.example/wfe
    """
    from wfe_persistence.store import migrate, namespace
    from wfe_persistence.store.postgres.database import Database
    from wfe_persistence.store.tables import Store

    _log_to_stderr(log_level, log_format)
    where = _schema(schema, table_prefix)

    async def bring_up(url: str) -> namespace.Outcomes:
        async with Database(url, pool_size=1) as database:
            return await namespace.migrate_all(Store(database, where, "default"))

    with _database(db_url, data_dir) as url:
        outcomes = asyncio.run(bring_up(url))
    for name, outcome in outcomes.items():
        if isinstance(outcome, Exception):
            click.echo(f"{name}: failed: {outcome}", err=True)
        elif outcome:
            click.echo(f"{name}: applied {', '.join(outcome)}")
        else:
            click.echo(f"{name}: up to date (version {migrate.latest_version()})")
    sys.exit(any(isinstance(outcome, Exception) for outcome in outcomes.values()))


@migrate_group.command()
@_database_options
def status(
    db_url: str | None,
    data_dir: Path,
    schema: str,
    table_prefix: str,
    log_level: str,
    log_format: str,
) -> None:
    """Show each migration and when it was applied. Exits 1 if some are missing.

    \b
    Example: wfe-persistence migrate status --db-url postgresql://wfe@db.example/wfe
    """
    from wfe_persistence.store import migrate

    _log_to_stderr(log_level, log_format)
    where = _schema(schema, table_prefix)
    with _database(db_url, data_dir) as url, _errors_told():
        applied = asyncio.run(migrate.applied_migrations(_conninfo(url), where))
    done = {migration.version: migration for migration in applied}
    pending = 0
    for migration in migrate.migrations():
        if (found := done.pop(migration.version, None)) is None:
            pending += 1
            click.echo(f"{migration.name}  pending")
        elif found.checksum != migration.checksum:
            click.echo(f"{migration.name}  applied with other content, by another build")
        else:
            click.echo(
                f"{migration.name}  applied {found.applied_at.isoformat(timespec='seconds')}"
            )
    for found in done.values():
        click.echo(f"{found.name}  unknown to this version: the store is newer than the server")
    sys.exit(1 if pending or done else 0)


@migrate_group.command()
@click.option("--from", "first", type=int, default=1, show_default=True, help="The first to print.")
@_option("--schema", default=DEFAULT_SCHEMA, help="The schema of the tables.")
@_option("--table-prefix", default="", help="A prefix for the names of the tables.")
def sql(first: int, schema: str, table_prefix: str) -> None:
    """Print the migrations as one script, for administrators who run it themselves.

    \b
    Example: wfe-persistence migrate sql | psql --single-transaction "$URL"
    """
    from wfe_persistence.store import migrate

    click.echo(migrate.script(_schema(schema, table_prefix), first), nl=False)


@main.command()
@_option("--target", default=DEFAULT_LISTEN, metavar="ADDRESS", help="HOST:PORT or unix:PATH.")
@click.option(
    "--service",
    default="",
    help="One service, or `liveness` for the process alone. Default: the server as a whole.",
)
@click.option("--timeout", type=float, default=3.0, show_default=True, help="Seconds to wait.")
def health(target: str, service: str, timeout: float) -> None:
    """Ask a server for its health. Exits 0 if it is SERVING, else 1.

    \b
    Example: wfe-persistence health --target 127.0.0.1:50052
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout)
        except grpc.RpcError as exc:
            click.echo(f"{exc.code().name}: {exc.details()}", err=True)
            sys.exit(1)
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    click.echo(name)
    sys.exit(0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def version(as_json: bool) -> None:
    """Print the versions of the server, its schema, and what it runs on.

    \b
    Example: wfe-persistence version
    """
    from importlib.metadata import version as version_of

    from wfe_persistence.store import migrate

    versions = {
        "wfe-persistence": version_of("wfe-persistence"),
        "schema": str(migrate.latest_version()),
        "python": sys.version.split()[0],
        "grpcio": version_of("grpcio"),
        "protobuf": version_of("protobuf"),
        "psycopg": version_of("psycopg"),
    }
    if as_json:
        click.echo(json.dumps(versions))
    else:
        for name, number in versions.items():
            click.echo(f"{name} {number}")


@contextmanager
def _database(db_url: str | None, data_dir: Path) -> Iterator[str]:
    """The connection string of the database, which is started if it is the embedded one."""
    if db_url:
        yield db_url
        return
    try:
        with EmbeddedPostgres(data_dir) as postgres:
            log.info("embedded PostgreSQL in %s", data_dir)
            yield postgres.url
    except (EmbeddedPostgresError, OSError) as exc:
        raise click.ClickException(str(exc)) from exc


@contextmanager
def _errors_told() -> Iterator[None]:
    from wfe_persistence.errors import PersistenceError

    try:
        yield
    except PersistenceError as exc:
        raise click.ClickException(str(exc)) from exc


def _schema(name: str, table_prefix: str) -> Schema:
    try:
        return Schema(name, table_prefix)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc


def _conninfo(url: str) -> str:
    from wfe_persistence.store.postgres.database import conninfo_with_defaults

    return conninfo_with_defaults(url)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def _log_to_stderr(level: str, log_format: str) -> None:
    handler = logging.StreamHandler()
    if log_format == "json" or (log_format == "auto" and not sys.stderr.isatty()):
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # The pool tells of every broken connection; what matters of it is reported as health.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
