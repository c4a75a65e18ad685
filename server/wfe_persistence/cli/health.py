"""`wfe-persistence health`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from wfe_persistence.cli.options import refuse_unknown_variables
from wfe_persistence.settings import DEFAULT_LISTEN, ENV_PREFIX

F = TypeVar("F", bound=Callable[..., Any])


def _file_option(flag: str, text: str) -> Callable[[F], F]:
    return click.option(
        flag,
        type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
        metavar="FILE",
        envvar=ENV_PREFIX + flag.removeprefix("--").replace("-", "_").upper(),
        show_envvar=True,
        help=text,
    )


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
@_file_option("--tls-ca", "Certificate authorities (PEM) that the server's certificate is signed "
              "by: connect with TLS.")  # fmt: skip
@_file_option("--tls-client-cert", "Certificate of the client (PEM), for a server that requires "
              "one.")  # fmt: skip
@_file_option("--tls-client-key", "Private key of the client's certificate (PEM).")
@click.option(
    "--tls-server-name",
    metavar="NAME",
    envvar=ENV_PREFIX + "TLS_SERVER_NAME",
    show_envvar=True,
    show_default="the host of --target",
    help="Name that the server's certificate must have.",
)
def health(
    target: str,
    service: str,
    timeout: float,
    tls_ca: Path | None,
    tls_client_cert: Path | None,
    tls_client_key: Path | None,
    tls_server_name: str | None,
) -> None:
    """Check the health of a server. The exit status is 0 if it is SERVING, otherwise 1.

    \b
    Examples:
      wfe-persistence health --target 127.0.0.1:50052
      wfe-persistence health --target db.example:50052 --tls-ca ca.pem
    """
    refuse_unknown_variables()
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    if bool(tls_client_cert) != bool(tls_client_key):
        raise click.UsageError("--tls-client-cert and --tls-client-key: set both or neither")
    if not tls_ca and (tls_client_cert or tls_server_name):
        raise click.UsageError("--tls-ca is missing: it turns TLS on")
    if tls_ca:
        credentials = grpc.ssl_channel_credentials(
            tls_ca.read_bytes(),
            tls_client_key.read_bytes() if tls_client_key else None,
            tls_client_cert.read_bytes() if tls_client_cert else None,
        )
        name = (("grpc.ssl_target_name_override", tls_server_name),) if tls_server_name else ()
        opened = grpc.secure_channel(target, credentials, name)
    else:
        opened = grpc.insecure_channel(target)
    with opened as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout)
        except grpc.RpcError as exc:
            click.echo(f"{exc.code().name}: {exc.details()}", err=True)
            sys.exit(1)
    click.echo(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
    sys.exit(0 if response.status == health_pb2.HealthCheckResponse.SERVING else 1)
