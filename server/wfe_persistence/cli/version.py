"""`wfe-persistence version`."""

from __future__ import annotations

import json
import sys

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Print all versions: server, schema, dependencies.

    \b
    Example: wfe-persistence version
    """
    from importlib.metadata import version as version_of

    from wfe_persistence.store.migrate import latest_version

    versions = {
        "wfe-persistence": version_of("wfe-persistence"),
        "schema": str(latest_version()),
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
