"""`wfe-persistence token create | list | revoke`."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click

from wfe_persistence.cli.options import settings_options
from wfe_persistence.settings import Settings

_UNITS: Final = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


@click.group(short_help="Manage the file of bearer tokens.")
def token() -> None:
    """Manage the file of bearer tokens that `serve --token-file` accepts.

    The file has only hashes. A running server notices changes within seconds.

    \b
    Example: wfe-persistence token create billing --token-file tokens.json
    """


@token.command()
@click.argument("name")
@click.option(
    "--expires-in",
    metavar="DURATION",
    help="Time until the token expires, for example 90d, 12h or 30m.  [default: never]",
)
@click.option(
    "--stdin",
    "from_stdin",
    is_flag=True,
    help="Add the token on standard input (32 to 1024 characters) instead of a new one.",
)
@settings_options("token_file")
def create(settings: Settings, name: str, expires_in: str | None, from_stdin: bool) -> None:
    """Create a token and print it, once. Its principal is `token:NAME`.

    Several tokens may have the same name: to replace one, create another, bring it to the clients,
    and revoke the old one by its id.

    \b
    Examples:
      wfe-persistence token create billing --token-file tokens.json --expires-in 90d
      pass show billing | wfe-persistence token create billing --token-file tokens.json --stdin
    """
    from wfe_persistence.access.tokens import create_token

    path = _file(settings)
    expires = None if expires_in is None else datetime.now(UTC) + _duration(expires_in)
    given = sys.stdin.read().rstrip("\r\n") if from_stdin else None
    try:
        created, secret = create_token(path, name, expires, given)
    except ValueError as exc:
        raise click.ClickException(f"{path}: {exc}") from exc
    click.echo(f"{path}: {created.principal} has the new token {created.id}", err=True)
    if not from_stdin:
        click.echo(secret)


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options("token_file")
def list_(settings: Settings, as_json: bool) -> None:
    """List the tokens of the file: ids, principals and times.

    \b
    Example: wfe-persistence token list --token-file tokens.json
    """
    from wfe_persistence.access.tokens import parse_tokens
    from wfe_persistence.access.watched import read_file

    path = _file(settings)
    try:
        tokens = parse_tokens(read_file(path)).all
    except ValueError as exc:
        raise click.ClickException(f"{path}: {exc}") from exc
    now = datetime.now(UTC)
    if as_json:
        listed = [
            {
                "id": each.id,
                "principal": each.principal,
                "created": each.created.isoformat(),
                "expires": each.expires.isoformat() if each.expires else None,
                "expired": each.has_expired(now),
            }
            for each in tokens
        ]
        click.echo(json.dumps(listed, indent=2))
        return
    for each in tokens:
        state = "has expired" if each.has_expired(now) else "expires"
        until = f"{state} {each.expires.isoformat()}" if each.expires else "does not expire"
        click.echo(f"{each.id}  {each.principal}  created {each.created.isoformat()}  {until}")


@token.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID|NAME…")
@settings_options("token_file")
def revoke(settings: Settings, ids: tuple[str, ...]) -> None:
    """Remove tokens from the file, by id, or all that have a name.

    \b
    Example: wfe-persistence token revoke 9f2c41aa --token-file tokens.json
    """
    from wfe_persistence.access.tokens import revoke_tokens

    path = _file(settings)
    try:
        revoked = revoke_tokens(path, ids)
    except ValueError as exc:
        raise click.ClickException(f"{path}: {exc}") from exc
    for each in revoked:
        click.echo(f"revoked {each.id}  {each.principal}")


def _file(settings: Settings) -> Path:
    if settings.token_file is None:
        raise click.UsageError("Missing option '--token-file'.")
    return settings.token_file


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    if not found:
        raise click.BadParameter("must be like 90d, 12h or 30m", param_hint="--expires-in")
    return int(found[1]) * _UNITS[found[2]]
