"""`wfe-persistence health`."""

from __future__ import annotations

import sys
from typing import Any

import click

from wfe_persistence.settings import DEFAULT_LISTEN, ENV_PREFIX


@click.command()
@click.option(
    "--target",
    default=DEFAULT_LISTEN,
    metavar="ADDRESS",
    envvar=ENV_PREFIX + "TARGET",
    show_envvar=True,
    show_default=True,
    help="Address of the server: HOST:PORT or unix:PATH.",
)
@click.option(
    "--service",
    default="",
    show_default="the server as a whole",
    help="Service to check, or `liveness` for the process alone.",
)
@click.option(
    "--timeout",
    type=float,
    default=3.0,
    show_default=True,
    help="Maximum time to wait for the response (seconds).",
)
def health(target: str, service: str, timeout: float) -> None:
    """Check the health of a server. The exit status is 0 if it is SERVING, otherwise 1.

    \b
    Example: wfe-persistence health --target 127.0.0.1:50052
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout)
        except grpc.RpcError as exc:
            click.echo(f"{exc.code().name}: {exc.details()}", err=True)
            sys.exit(1)
    click.echo(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
    sys.exit(0 if response.status == health_pb2.HealthCheckResponse.SERVING else 1)
