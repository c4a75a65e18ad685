"""The options of the commands that call a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wfe_persistence.cli.options import setting_option
from wfe_persistence.settings import ENV_PREFIX, SETTINGS, listens_locally

if TYPE_CHECKING:
    import grpc

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Target:
    """The server that a command calls, and how."""

    address: str
    timeout: float
    tls_ca: Path | None
    tls_client_cert: Path | None
    tls_client_key: Path | None
    tls_server_name: str | None

    def channel(self) -> grpc.Channel:
        """A channel to it, which is connected when it is used."""
        import grpc

        if not self.tls_ca:
            return grpc.insecure_channel(self.address)
        credentials = grpc.ssl_channel_credentials(
            self.tls_ca.read_bytes(),
            self.tls_client_key.read_bytes() if self.tls_client_key else None,
            self.tls_client_cert.read_bytes() if self.tls_client_cert else None,
        )
        name = self.tls_server_name
        override = (("grpc.ssl_target_name_override", name),) if name else ()
        return grpc.secure_channel(self.address, credentials, override)

    def may_have_token(self) -> bool:
        """Whether nobody but the server sees what is sent to it."""
        return bool(self.tls_ca) or listens_locally(self.address)


def file_option(flag: str, text: str) -> Callable[[F], F]:
    """An option that is the path of a file."""
    return click.option(
        flag,
        type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path),
        metavar="FILE",
        envvar=ENV_PREFIX + flag.removeprefix("--").replace("-", "_").upper(),
        show_envvar=True,
        help=text,
    )


_OPTIONS = (
    setting_option(SETTINGS["listen"]),
    setting_option(SETTINGS["tls_cert"]),
    click.option(
        "--target",
        metavar="ADDRESS",
        envvar=ENV_PREFIX + "TARGET",
        show_envvar=True,
        show_default="the server of these settings, on this machine",
        help="Address of the server: HOST:PORT or unix:PATH.",
    ),
    click.option(
        "--timeout",
        type=float,
        default=3.0,
        show_default=True,
        help="Maximum time to wait for the response (seconds).",
    ),
    file_option(
        "--tls-ca",
        "Certificate authorities (PEM) that the server's certificate is signed by: connect with "
        "TLS.",
    ),
    file_option(
        "--tls-client-cert",
        "Certificate of the client (PEM), for a server that requires one.",
    ),
    file_option("--tls-client-key", "Private key of the client's certificate (PEM)."),
    click.option(
        "--tls-server-name",
        metavar="NAME",
        envvar=ENV_PREFIX + "TLS_SERVER_NAME",
        show_envvar=True,
        show_default="the host of --target",
        help="Name that the server's certificate must have.",
    ),
)


def target_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a server; it takes them as the argument `target`."""

    @wraps(command)
    def with_target(
        listen: str,
        tls_cert: Path | None,
        target: str | None,
        timeout: float,
        tls_ca: Path | None,
        tls_client_cert: Path | None,
        tls_client_key: Path | None,
        tls_server_name: str | None,
        **arguments: Any,
    ) -> None:
        if bool(tls_client_cert) != bool(tls_client_key):
            raise click.UsageError("--tls-client-cert and --tls-client-key: set both or neither")
        if target is None:
            target = _here(listen)
            if tls_cert and not tls_ca and not listen.startswith("unix:"):
                # Its own certificate is as good as the authority that signed it, and the host is
                # not what it is made out to.
                tls_ca = tls_cert
                tls_server_name = tls_server_name or _name_in(tls_cert)
        if not tls_ca and (tls_client_cert or tls_server_name):
            raise click.UsageError("--tls-ca is missing: it turns TLS on")
        called = Target(target, timeout, tls_ca, tls_client_cert, tls_client_key, tls_server_name)
        command(target=called, **arguments)

    for option in reversed(_OPTIONS):
        with_target = option(with_target)
    return with_target


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
