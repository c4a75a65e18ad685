"""`wfe-persistence policy check`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from wfe_persistence.store.schema import DEFAULT_NAMESPACE


@click.group()
def policy() -> None:
    """Check the policy file of `serve --policy-file`.

    \b
    Example: wfe-persistence policy check policy.toml
    """


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--principal", metavar="NAME", help="Ask about this principal: token:billing.")
@click.option(
    "--namespace", metavar="NAME", help=f"Namespace to ask about.  [default: {DEFAULT_NAMESPACE}]"
)
@click.option("--rpc", metavar="NAME", help="RPC to ask about: PersistWorkflow.")
def check(file: Path, principal: str | None, namespace: str | None, rpc: str | None) -> None:
    """Validate a policy file, or ask it whether a principal may call an RPC in a namespace.

    The exit status is 1 if the file is invalid, or if the answer is no.

    \b
    Examples:
      wfe-persistence policy check policy.toml
      wfe-persistence policy check policy.toml --principal token:billing --namespace prod \\
          --rpc PersistWorkflow
    """
    from wfe_persistence.access.policy import parse_policy
    from wfe_persistence.access.principal import KINDS
    from wfe_persistence.access.watched import read_file

    try:
        parsed = parse_policy(read_file(file))
    except ValueError as exc:
        raise click.ClickException(f"{file}: {exc}") from exc
    if principal is None:
        if namespace or rpc:
            raise click.UsageError("Missing option '--principal'.")
        click.echo(
            f"{file}: valid; number of grants: {len(parsed.grants)}, "
            f"of limits: {len(parsed.limit_entries)}"
        )
        return
    if not principal.startswith(KINDS):
        raise click.BadParameter(f"must begin with {', '.join(KINDS)}", param_hint="--principal")
    namespace = namespace or DEFAULT_NAMESPACE
    role = parsed.rights(principal).role(namespace)
    has = f"{principal} has {f'the role {role.label}' if role else 'no role'} in {namespace}"
    if rpc is None:
        click.echo(has)
        limits = parsed.limits(principal, namespace)
        for whose, limit in (
            (principal, limits.of_principal),
            (namespace, limits.of_namespace),
            (f"{principal} in {namespace}", limits.of_both),
        ):
            if limit:
                click.echo(f"limit of {whose}: {limit}")
        sys.exit(0 if role else 1)

    from wfe_persistence.rpc.services import REQUIRED_ROLE

    if rpc not in REQUIRED_ROLE:
        raise click.BadParameter(f"{rpc!r} is no RPC", param_hint="--rpc")
    required = REQUIRED_ROLE[rpc]
    allowed = (role or 0) >= required
    answer = "allowed" if allowed else "denied"
    click.echo(f"{answer}: {has}; {rpc} requires {required.label}")
    sys.exit(0 if allowed else 1)
