"""`wfe-persistence health`."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import click

from wfe_persistence_cli.options import ClientCommand, target_options
from wfe_persistence_cli.screen import tell
from wfe_persistence_cli.target import Target

_quick_target = partial(target_options, timeout=3.0)  # as whoever probes expects it


@click.command(cls=ClientCommand)
@_quick_target
@click.option(
    "--service",
    default="",
    show_default="the server as a whole",
    help="Service to check, or `liveness` for the process alone.",
)
def health(target: Target, service: str) -> None:
    """Check the health of a server. The exit status is 0 if it is SERVING, otherwise 1.

    Without --target it is the server on this machine that has the same settings: that listens on
    --listen, and whose certificate, if it has one, is --tls-cert.

    \b
    Examples:
      wfe-persistence health
      wfe-persistence health --target 127.0.0.1:50052
      wfe-persistence health --target db.example:50052 --tls-ca ca.pem
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    try:
        opened = target.channel()
    except (OSError, ValueError) as exc:
        raise click.ClickException(str(exc)) from None
    with opened as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            response = stub.Check(request, timeout=target.timeout)
        except grpc.RpcError as exc:
            tell(f"{exc.code().name}: {exc.details()}")
            sys.exit(1)
    click.echo(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
    sys.exit(0 if response.status == health_pb2.HealthCheckResponse.SERVING else 1)
