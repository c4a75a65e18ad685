"""The command group. The commands load gRPC and psycopg when they run, so that help is fast."""

from __future__ import annotations

import click

from wfe_persistence.cli.config import config
from wfe_persistence.cli.export import export
from wfe_persistence.cli.health import health
from wfe_persistence.cli.importing import import_
from wfe_persistence.cli.migrate import migrate
from wfe_persistence.cli.policy import policy
from wfe_persistence.cli.retention import retention, storage
from wfe_persistence.cli.serve import serve
from wfe_persistence.cli.token import token
from wfe_persistence.cli.version import version


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit status: 0 success, 1 failure, 2 invalid usage.",
)
@click.version_option(
    package_name="wfe-persistence", prog_name="wfe-persistence", message="%(prog)s %(version)s"
)
def commands() -> None:
    """Workflow persistence server: a gRPC API on top of PostgreSQL.

    \b
    Example: wfe-persistence serve
    """


for command in (
    serve, config, migrate, token, policy, retention, storage, export, import_, health, version
):  # fmt: skip
    commands.add_command(command)
