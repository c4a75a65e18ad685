"""Settings of the database: which one it is, and the connections to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from wfe_persistence.settings.databases import Databases
from wfe_persistence.settings.setting import About
from wfe_persistence.store.schema import DEFAULT_SCHEMA


def default_data_dir() -> Path:
    """The data directory of the embedded PostgreSQL unless one is set."""
    if os.geteuid() == 0:
        return Path("/var/lib/wfe-persistence")
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "wfe-persistence"


@dataclass(frozen=True, kw_only=True)
class Database:
    """Which PostgreSQL it is, and what is in it."""

    db_url: Annotated[
        str,
        About(
            "PostgreSQL server (version 14 or newer), as a libpq connection string or URL.",
            metavar="URL",
            default_help="embedded PostgreSQL",
            secret=True,
        ),
    ] = field(default="", repr=False)
    db_url_file: Annotated[
        Path | None,
        About(
            "File that contains the connection string, instead of --db-url, so that the list of "
            "processes does not show its password. Read again for each connection.",
            metavar="FILE",
            default_help="none",
        ),
    ] = None
    db_password_file: Annotated[
        Path | None,
        About(
            "File that contains the database password, which takes precedence over one in the "
            "connection string. Read again for each connection, so that it can be rotated.",
            metavar="FILE",
            default_help="none",
        ),
    ] = None
    db_password_command: Annotated[
        str,
        About(
            "Command that prints the database password (within 10 s), for example a short-lived "
            "token. Run without a shell, again for each connection.",
            metavar="COMMAND",
            default_help="none",
            secret=True,
        ),
    ] = field(default="", repr=False)
    db_read_url: Annotated[
        Sequence[str],
        About(
            "Streaming replica of the database, which reads may use; repeat it for each. In the "
            "TOML file it is an array. --db-password-file and --db-password-command are for "
            "replicas too.",
            metavar="URL",
            default_help="none",
            secret=True,
        ),
    ] = field(default=(), repr=False)
    db_read_url_file: Annotated[
        Sequence[str],
        About(
            "File that contains the connection string of a streaming replica, as --db-read-url; "
            "repeat it for each. Read again for each connection.",
            metavar="FILE",
            default_help="none",
        ),
    ] = ()
    data_dir: Annotated[
        Path,
        About(
            "Data directory of the embedded PostgreSQL.",
            metavar="DIRECTORY",
            default_help="/var/lib/wfe-persistence as root, otherwise "
            "wfe-persistence in $XDG_DATA_HOME or ~/.local/share",
            directory=True,
        ),
    ] = field(default_factory=default_data_dir)
    schema: Annotated[
        str, About("PostgreSQL schema of the tables; upper and lower case count.")
    ] = DEFAULT_SCHEMA
    table_prefix: Annotated[
        str, About("Prefix of all table names, at most 28 bytes.", default_help="none")
    ] = ""
    migrate: Annotated[
        bool,
        About("Apply pending migrations at startup. Otherwise wait until `migrate up` has run."),
    ] = True
    migrate_seconds: Annotated[
        float,
        About(
            "How long pending migrations may take for a server to apply them by itself, as "
            "`migrate plan` reckons (seconds). Longer ones wait until `migrate up` has run.",
            minimum=0,
        ),
    ] = 10.0
    allow_data_loss: Annotated[
        bool, About("Accept a database with fsync or synchronous_commit off.")
    ] = False
    databases: Annotated[
        Databases,
        About(
            "A further database in which namespaces may live, by a name and its connection string; "
            "once for each. In the file, a table that can say more of each: see "
            "[Many databases](databases.md). All servers of a service need the same ones.",
            metavar="NAME=URL",
            default_help="none",
            secret=True,
            flag="--database",
        ),
    ] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The connections to the database."""

    pool_size: Annotated[int, About("Maximum number of database connections.", minimum=1)] = 10
    notify: Annotated[
        bool,
        About(
            "Tell other servers of the same store what was written, and listen to them, on one "
            "more database connection. Otherwise, and where LISTEN is not to be had (PgBouncer in "
            "transaction mode), calls that wait learn of others' writes within about a second."
        ),
    ] = True
    pool_timeout: Annotated[
        float, About("Maximum time a call waits for a connection (seconds).", above=0)
    ] = 5.0
    max_waiting: Annotated[
        int, About("Maximum calls per namespace waiting for a connection.", minimum=1)
    ] = 2000
    replica_max_lag: Annotated[
        float,
        About(
            "How stale what is read from a replica may be (seconds). One that lags by more, or "
            "does not answer, is left out.",
            minimum=1,
        ),
    ] = 2.0
    replica_wait: Annotated[
        float,
        About(
            "How long a read waits for a replica that has not replayed what it relies on, before "
            "it reads from the primary (seconds).",
            minimum=0,
        ),
    ] = 0.1
    prepare: Annotated[
        bool,
        About(
            "Use prepared statements. Disable behind PgBouncer older than 1.21 in transaction mode."
        ),
    ] = True
    max_prepared_mb: Annotated[
        int,
        About(
            "Memory limit for prepared statements, per connection (MB). Increase for many "
            "namespaces.",
            minimum=1,
        ),
    ] = 100
