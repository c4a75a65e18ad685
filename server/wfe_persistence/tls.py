"""TLS: the server's certificate, and the authorities of its clients' certificates, from files.

The files may change while the server runs, as certificates that expire must: new connections get
the new ones, and no connection is closed. New files that can't be used change nothing.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import grpc

from wfe_persistence.errors import CannotServeError
from wfe_persistence.settings import Settings

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0
_EXPIRES_SOON: Final = timedelta(days=7)

Stamp = tuple[tuple[int, int, int, int] | None, ...]
"""What tells a file from the one that replaced it; None: it can't be read."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What the files held when they were read."""

    configuration: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext | None
    """For the admin port."""
    expiry: datetime


class Certificates:
    """The files of a server that serves TLS (1.2 or newer).

    `cert` has the certificate and its chain, `key` the private key, both as PEM. With `client_ca`,
    clients must have a certificate signed by one of the authorities in it (mutual TLS); those of
    the admin port, with `for_http`, may have one.

    Raises ValueError, naming the file, if the files can't be used.
    """

    def __init__(
        self, cert: Path, key: Path, client_ca: Path | None, *, for_http: bool = False
    ) -> None:
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._for_http = for_http
        self._files = tuple(file for file in (cert, key, client_ca) if file)
        # Before they are read, so that a change in between is noticed.
        self._stamp = self._look()
        self._loaded = self._load()
        self._refused: tuple[Stamp, str] | None = None
        self._warned = False
        self._warned_of_expiry = datetime.min.replace(tzinfo=UTC)

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC needs to listen. It asks for the current certificate at each handshake."""
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.configuration,
            lambda: self._loaded.configuration,
            require_client_authentication=self._client_ca is not None,
        )

    def context(self) -> ssl.SSLContext:
        """What a new connection to the admin port needs now. Requires `for_http`."""
        assert self._loaded.context is not None
        return self._loaded.context

    async def watch(self) -> None:
        """Notice changes of the files, for as long as the server runs."""
        while True:
            self.refresh()
            self._warn_of_expiry()
            await asyncio.sleep(_LOOK_SECONDS)

    def refresh(self) -> None:
        """Read the files again if they have changed."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        try:
            loaded = self._load()
        except ValueError as exc:
            # Files are replaced one by one, unless by way of a symbolic link as Kubernetes does it.
            # So a key without its certificate is common for a moment, and worth a line only if it
            # is still so at the next look.
            refused = stamp, str(exc)
            if refused != self._refused:
                self._refused, self._warned = refused, False
            elif not self._warned:
                self._warned = True
                log.warning("TLS goes on with the previous certificate: %s", exc)
            return
        self._stamp, self._loaded, self._refused = stamp, loaded, None
        log.info(
            "TLS: %s was read again; the certificate is valid until %s",
            ", ".join(map(str, self._files)),
            loaded.expiry,
        )

    def _warn_of_expiry(self) -> None:
        now = datetime.now(UTC)
        if now > self._loaded.expiry - _EXPIRES_SOON and now > self._warned_of_expiry:
            self._warned_of_expiry = now + timedelta(days=1)
            log.warning("the certificate in %s expires at %s", self._cert, self._loaded.expiry)

    def _look(self) -> Stamp:
        return tuple(_stamp(file) for file in self._files)

    def _load(self) -> _Loaded:
        # Loaded on use: it takes 40 ms, and most servers of a sidecar need no TLS.
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        cert, key = _read(self._cert), _read(self._key)
        try:
            chain = x509.load_pem_x509_certificates(cert)
        except ValueError as exc:
            raise ValueError(f"{self._cert}: has no certificate in PEM format") from exc
        try:
            private_key = load_pem_private_key(key, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise ValueError(f"{self._key}: has no unencrypted private key in PEM format") from exc
        if private_key.public_key() != chain[0].public_key():
            raise ValueError(f"{self._key}: is not the key of the certificate in {self._cert}")
        roots = None
        if self._client_ca:
            roots = _read(self._client_ca)
            try:
                x509.load_pem_x509_certificates(roots)
            except ValueError as exc:
                raise ValueError(f"{self._client_ca}: has no certificate in PEM format") from exc
        return _Loaded(
            grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=roots),
            self._http_context() if self._for_http else None,
            chain[0].not_valid_after_utc,
        )

    def _http_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._cert, self._key)
            if self._client_ca:
                context.load_verify_locations(self._client_ca)
                # A kubelet has none, and may see its probes all the same.
                context.verify_mode = ssl.CERT_OPTIONAL
        except OSError as exc:  # (ssl.SSLError is one)
            raise ValueError(f"{self._cert}: can't be used for HTTPS: {exc}") from exc
        return context


def _stamp(file: Path) -> tuple[int, int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise ValueError(f"{file}: {exc.strerror}") from exc


def certificates_of(settings: Settings) -> Certificates | None:
    """The files that the settings name, if any. Raises CannotServeError if they can't be used."""
    if not (settings.tls_cert and settings.tls_key):
        return None
    try:
        return Certificates(
            settings.tls_cert,
            settings.tls_key,
            settings.tls_client_ca,
            for_http=bool(settings.admin_listen),
        )
    except ValueError as exc:
        raise CannotServeError(f"TLS: {exc}") from exc
