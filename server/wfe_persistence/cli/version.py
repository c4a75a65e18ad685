"""`wfe-persistence version`."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Print all versions: server, schema, dependencies.

    \b
    Example: wfe-persistence version
    """
    from wfe_persistence.versions import versions

    if as_json:
        click.echo(json.dumps(versions()))
    else:
        for name, number in versions().items():
            click.echo(f"{name} {number}")
