"""The console on the admin port. It is a package of its own, which calls this server as any client
does; here is how it reaches the server, and how its requests and answers are those of the port.

Loaded on use: with `--console` only.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio

from wfe_persistence.http.server import Request, Response
from wfe_persistence_console import Console
from wfe_persistence_console.web import Request as ConsoleRequest

if TYPE_CHECKING:
    from wfe_persistence.settings import Settings

CONSOLE_PATH: Final = "/console/"

# Nothing here is a host name that a resolver or a proxy has to know.
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # One connection for all: a stream must not have one of its own that nobody closes.
    ("grpc.keepalive_time_ms", 30_000),
)


class ConsolePages:
    """The console of a server with these settings, which listens at `address()`."""

    def __init__(self, settings: Settings, address: Callable[[], str]) -> None:
        self._address = address
        self._certificate = settings.tls_cert
        self._console = Console(
            self._channel,
            authentication=bool(settings.authentication),
            write=settings.console_write,
        )

    async def answer(self, request: Request) -> Response:
        """The response to a request below `CONSOLE_PATH`."""
        answer = await self._console.answer(
            ConsoleRequest(
                method=request.method,
                path=request.path.removeprefix(CONSOLE_PATH),
                query=request.query,
                headers=request.headers,
                body=request.body,
                encrypted=request.encrypted,
            )
        )
        return Response(
            HTTPStatus(answer.status),
            answer.body,
            answer.content_type,
            answer.headers,
            answer.stream,
        )

    async def close(self) -> None:
        """Hang up on the server."""
        await self._console.close()

    def _channel(self) -> grpc.aio.Channel:
        """A new channel to this server."""
        target = _here(self._address())
        if self._certificate is None:
            return grpc.aio.insecure_channel(target, _OPTIONS)
        # Its own certificate is as good as the authority that signed it, and the host is not what
        # it is made out to. When the file changes, a connection is refused: a new channel is made.
        pem = self._certificate.read_bytes()
        name = _name_in(self._certificate)
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", name)) if name else _OPTIONS
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(pem), options)


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
