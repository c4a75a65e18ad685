"""`wfe-persistence health`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from wfe_persistence.cli.options import (
    SettingsCommand,
    config_option,
    refuse_unknown_variables,
    setting_option,
)
from wfe_persistence.settings import ENV_PREFIX, SETTINGS

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


@click.command(cls=SettingsCommand)
@config_option
@setting_option(SETTINGS["listen"])
@setting_option(SETTINGS["tls_cert"])
@click.option(
    "--target",
    metavar="ADDRESS",
    envvar=ENV_PREFIX + "TARGET",
    show_envvar=True,
    show_default="the server of these settings, on this machine",
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
    listen: str,
    tls_cert: Path | None,
    target: str | None,
    service: str,
    timeout: float,
    tls_ca: Path | None,
    tls_client_cert: Path | None,
    tls_client_key: Path | None,
    tls_server_name: str | None,
) -> None:
    """Check the health of a server. The exit status is 0 if it is SERVING, otherwise 1.

    Without --target it is the server on this machine that has the same settings: that listens on
    --listen, and whose certificate, if it has one, is --tls-cert.

    \b
    Examples:
      wfe-persistence health
      wfe-persistence health --target 127.0.0.1:50052
      wfe-persistence health --target db.example:50052 --tls-ca ca.pem
    """
    refuse_unknown_variables()
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    if bool(tls_client_cert) != bool(tls_client_key):
        raise click.UsageError("--tls-client-cert and --tls-client-key: set both or neither")
    if target is None:
        target = _here(listen)
        if tls_cert and not tls_ca and not listen.startswith("unix:"):
            # Its own certificate is as good as the authority that signed it, and the host is not
            # what it is made out to.
            tls_ca = tls_cert
            tls_server_name = tls_server_name or _name_in(tls_cert)
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


def _here(listen: str) -> str:
    """The address of a server on this machine: that of one that listens on all is the loopback."""
    host, _, port = listen.rpartition(":")
    return {"0.0.0.0": f"127.0.0.1:{port}", "[::]": f"[::1]:{port}"}.get(host, listen)  # noqa: S104


def _name_in(certificate: Path) -> str | None:
    """The first name that a certificate is made out to."""
    from cryptography import x509

    first = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    try:
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    return next((str(name.value) for name in names), None)
