"""`wfe-persistence migrate up | plan | down | status | grants | sql`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from wfe_persistence.cli.database import open_database, run
from wfe_persistence.cli.logs import log_to_stderr
from wfe_persistence.cli.options import DATABASE_SETTINGS, settings_options
from wfe_persistence.settings import Settings
from wfe_persistence.store.schema import DEFAULT_NAMESPACE, Schema, is_namespace

if TYPE_CHECKING:
    from wfe_persistence.store.migrate_all import Outcomes
    from wfe_persistence.store.migration_history import Applied


@click.group()
def migrate() -> None:
    """Create or migrate the tables.

    \b
    Example: wfe-persistence migrate up --db-url postgresql://wfe@db.example/wfe
    """


@migrate.command()
@click.option(
    "--grant-to",
    metavar="ROLE",
    help="Also grant this database role what a server with --no-migrate needs.",
)
@settings_options(*DATABASE_SETTINGS)
def up(settings: Settings, grant_to: str | None) -> None:
    """Apply the pending migrations in every namespace. Safe to run at any time and concurrently.

    A namespace that fails does not stop the others; the exit status is then 1.

    \b
    Examples:
      wfe-persistence migrate up --db-url postgresql://wfe@db.example/wfe
      wfe-persistence migrate up --db-url postgresql://owner@db.example/wfe --grant-to wfe_server
    """
    from wfe_persistence.errors import PersistenceError
    from wfe_persistence.store.migration_files import latest_version

    log_to_stderr(settings)
    with open_database(settings) as database:
        outcomes = run(database, _migrate_all(database.settings, grant_to))
    for name, outcome in outcomes.items():
        if isinstance(outcome, PersistenceError):
            click.echo(f"{name}: failed: {outcome.in_full}", err=True)
        elif outcome.applied:
            click.echo(f"{name}: applied {', '.join(outcome.applied)}")
        elif outcome.version > latest_version():
            click.echo(
                f"{name}: left as it is: newer (version {outcome.version}) than this release "
                f"(version {latest_version()}), which may go on using it"
            )
        else:
            click.echo(f"{name}: up to date (version {outcome.version})")
    sys.exit(any(isinstance(outcome, PersistenceError) for outcome in outcomes.values()))


async def _migrate_all(settings: Settings, grant_to: str | None) -> Outcomes:
    from wfe_persistence.cli.namespaces import opened
    from wfe_persistence.errors import PersistenceError
    from wfe_persistence.store.grants import grant
    from wfe_persistence.store.migrate_all import migrate_all

    async with opened(settings) as namespaces:
        outcomes = await migrate_all(namespaces)
        if grant_to is not None:
            for name, outcome in outcomes.items():
                if not isinstance(outcome, PersistenceError):
                    try:
                        store = await namespaces.find(name)
                        await grant(store.database, store.schema, grant_to)
                    except PersistenceError as exc:
                        outcomes[name] = exc
    return outcomes


@migrate.command()
@settings_options(*DATABASE_SETTINGS)
def status(settings: Settings) -> None:
    """Show the state of each migration. The exit status is 1 if this release can't use the store:
    migrations are pending, or newer ones do not allow it.

    With several databases also how many namespaces each of them has, and those in it that are
    behind. It is 1, too, if one of them can't be reached.

    \b
    Example: wfe-persistence migrate status --db-url postgresql://wfe@db.example/wfe
    """
    from wfe_persistence.database import source_from
    from wfe_persistence.errors import PersistenceError
    from wfe_persistence.store.migration_files import latest_version, migrations
    from wfe_persistence.store.migration_history import applied_migrations

    log_to_stderr(settings)
    schema = Schema(settings.schema, settings.table_prefix)
    with open_database(settings) as database:
        try:
            applied = run(database, applied_migrations(source_from(database.settings), schema))
        except PersistenceError as exc:
            raise click.ClickException(exc.in_full) from exc
    done = {migration.version: migration for migration in applied}
    usable = True
    for migration in migrations():
        if (found := done.pop(migration.version, None)) is None:
            usable = False
            click.echo(f"{migration.name}  pending")
        elif found.checksum != migration.checksum:
            usable = False
            click.echo(f"{migration.name}  applied with different content, by another build")
        else:
            click.echo(f"{migration.name}  applied {_time(found)}")
    for found in done.values():
        click.echo(
            f"{found.name}  applied {_time(found)} by a newer release; the oldest server that "
            f"may use the store has schema version {found.oldest_server}"
        )
    if done:
        newest = max(done.values(), key=lambda found: found.version)
        usable = usable and newest.oldest_server <= latest_version()
        click.echo(
            f"The store is newer than this release (schema version {latest_version()}), which "
            + ("may go on using it." if usable else "may not use it.")
        )
    if settings.other_databases:
        try:
            found_in = run(database, _status_of_others(database.settings))
        except PersistenceError as exc:
            raise click.ClickException(exc.in_full) from exc
        for line, is_usable in found_in:
            usable = usable and is_usable
            click.echo(line)
    sys.exit(0 if usable else 1)


async def _status_of_others(settings: Settings) -> list[tuple[str, bool]]:
    """A line about each database besides the home, and whether it can be used as it is."""
    from wfe_persistence.cli.namespaces import opened
    from wfe_persistence.store.database_list import list_databases
    from wfe_persistence.store.migration_files import latest_version
    from wfe_persistence.store.namespace_list import list_every

    lines: list[tuple[str, bool]] = []
    async with opened(settings) as namespaces:
        databases = await list_databases(namespaces)
        found = await list_every(namespaces)
    for listed in databases[1:]:
        those = [each for each in found if each.database == listed.name]
        old = [each.name for each in those if each.schema_version < latest_version()]
        if not listed.reachable:
            lines.append((f"database {listed.name}: can't be reached", False))
        elif old:
            behind = f"behind: {', '.join(old[:10])}{', …' if len(old) > 10 else ''}"
            lines.append((f"database {listed.name}: {len(those)} namespaces, {behind}", False))
        else:
            lines.append((f"database {listed.name}: {len(those)} namespaces, up to date", True))
    return lines


def _time(applied: Applied) -> str:
    return applied.applied_at.isoformat(timespec="seconds")


@migrate.command()
@click.option("--role", required=True, help="Database role of the server.")
@click.option("--namespace", default=DEFAULT_NAMESPACE, show_default=True, help="Namespace to use.")
@settings_options("schema", "table_prefix")
def grants(settings: Settings, role: str, namespace: str) -> None:
    """Print the privileges that a server with --no-migrate needs in one namespace, as SQL.

    The role can then read and write rows, but not change, truncate or drop a table.

    \b
    Example: wfe-persistence migrate grants --role wfe_server | psql "$URL"
    """
    from wfe_persistence.store.grants import grants as grants_for

    schema = _schema_of(settings, namespace)
    try:
        click.echo(grants_for(schema, role), nl=False)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--role") from exc


@migrate.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the output.",
)
@settings_options(*DATABASE_SETTINGS, "migrate_seconds")
def plan(settings: Settings, form: str) -> None:
    """Show what pending migrations would do in each namespace; nothing is changed.

    For each: the indexes that are built before it and hold up nobody, the tables that it locks,
    whom that holds up, and for how long, reckoned from their sizes and measured rates.

    \b
    Examples:
      wfe-persistence migrate plan --db-url postgresql://wfe@db.example/wfe
      wfe-persistence migrate plan --db-url postgresql://wfe@db.example/wfe --format json
    """
    from wfe_persistence.cli import migration_plan
    from wfe_persistence.errors import PersistenceError

    log_to_stderr(settings)
    with open_database(settings) as database:
        try:
            plans = run(database, migration_plan.reckon_all(database.settings))
        except PersistenceError as exc:
            raise click.ClickException(exc.in_full) from exc
    show = migration_plan.as_json if form == "json" else migration_plan.as_text
    click.echo(show(plans, settings.migrate_seconds))


@migrate.command()
@click.option(
    "--to",
    "version",
    type=click.IntRange(min=0),
    required=True,
    metavar="VERSION",
    help="Schema version to go back to: that before the newest one of the store.",
)
@settings_options(*DATABASE_SETTINGS)
def down(settings: Settings, version: int) -> None:
    """Take back the newest migration in every namespace, where nothing would be lost.

    It is the newer release that can do this. Stop its servers first, or they will report that the
    store is outdated. If something would be lost in any namespace, nothing is changed. Servers do
    not apply the migration again by themselves, only `migrate up` does.

    \b
    Example: wfe-persistence migrate down --to 10 --db-url postgresql://wfe@db.example/wfe
    """
    log_to_stderr(settings)
    with open_database(settings) as database:
        refused, taken_back = run(database, _take_back_all(database.settings, version))
    for name, why in refused.items():
        click.echo(f"{name}: {why}", err=True)
    for name, migration in taken_back.items():
        click.echo(f"{name}: took back {migration}" if migration else f"{name}: is at {version}")
    sys.exit(bool(refused))


async def _take_back_all(
    settings: Settings, version: int
) -> tuple[dict[str, str], dict[str, str | None]]:
    """By namespace: why it is not taken back; and which migration was taken back."""
    from wfe_persistence.cli.namespaces import all_stores
    from wfe_persistence.errors import PersistenceError
    from wfe_persistence.store import take_back

    refused: dict[str, str] = {}
    done: dict[str, str | None] = {}
    try:
        stores = await all_stores(settings)
    except PersistenceError as exc:
        return {DEFAULT_NAMESPACE: exc.in_full}, done
    for store in stores:
        source, schema, name = store.database.source, store.schema, store.namespace
        try:
            found = await take_back.obstacle(source, schema, version)
            if found:
                refused[name] = str(found)
        except (PersistenceError, take_back.NotTakenBackError) as exc:
            refused[name] = _in_full(exc)
    for store in () if refused else stores:
        source, schema, name = store.database.source, store.schema, store.namespace
        try:
            done[name] = await take_back.take_back(source, schema, version)
        except (PersistenceError, take_back.NotTakenBackError) as exc:
            refused[name] = _in_full(exc)
    return refused, done


def _in_full(error: Exception) -> str:
    return getattr(error, "in_full", str(error))


@migrate.command()
@click.option(
    "--from", "first", type=int, default=1, show_default=True, help="First version to print."
)
@click.option(
    "--namespace", default=DEFAULT_NAMESPACE, show_default=True, help="Namespace to migrate."
)
@click.option(
    "--concurrently",
    is_flag=True,
    help="Build indexes without holding up writes; not in a single transaction then.",
)
@settings_options("schema", "table_prefix")
def sql(settings: Settings, first: int, namespace: str, *, concurrently: bool) -> None:
    """Print the migrations of one namespace as one SQL script.

    For administrators who apply it themselves.

    \b
    Example: wfe-persistence migrate sql | psql --single-transaction "$URL"
    """
    from wfe_persistence.store.migrate import script

    schema = _schema_of(settings, namespace)
    click.echo(script(schema, first, concurrently=concurrently), nl=False)


def _schema_of(settings: Settings, namespace: str) -> Schema:
    """The schema of a namespace that an option names."""
    if not is_namespace(namespace):
        raise click.BadParameter("must match [a-z][a-z0-9_]{0,39}", param_hint="--namespace")
    try:
        return Schema(settings.schema, settings.table_prefix).for_namespace(namespace)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="--namespace") from exc
