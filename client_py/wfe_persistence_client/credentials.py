"""What a provider proves with who it is, and to whom: TLS and the bearer token."""

import inspect
import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from wfe_persistence_client.hints import Fields, is_async
from wfe_persistence_client.misfit import FieldTypeError

log = logging.getLogger(__package__)

#: The bearer token to send: the token, or a function that returns the current one and
#: is called before every attempt.
Token = str | Callable[[], str]

_LOCAL_SCHEMES: Final = ("unix", "unix-abstract")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files, in PEM, for a connection with TLS.

    They are read by `connect`. gRPC cannot replace them later: when they change, connect a new
    provider before the old certificate expires.

    Attributes:
        ca: the certificates of the authorities to trust; None: those that gRPC comes with.
        cert: the client certificate with its chain, for servers that require one (mutual
            TLS).
        key: its private key.
        server_name: the name that the server's certificate must be valid for; None: the
            host of the target.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        """Checks the types, and that a certificate has its key."""
        Fields(Tls).check(self)
        if (self.cert is None) is not (self.key is None):
            raise ValueError("cert and key must be given together")
        if self.server_name == "":
            raise ValueError("server_name must not be empty")

    def credentials(self) -> grpc.ChannelCredentials:
        """gRPC's credentials, with the files as they are now; OSError if one cannot be read."""
        ca, key, cert = (
            None if path is None else Path(path).read_bytes()
            for path in (self.ca, self.key, self.cert)
        )
        for path, content in ((self.ca, ca), (self.key, key), (self.cert, cert)):
            # gRPC's own error would be that of a failing connection.
            if content is not None and b"-----BEGIN " not in content:
                raise ValueError(f"{path} has nothing in PEM")
        return grpc.ssl_channel_credentials(ca, key, cert)

    def options(self) -> list[tuple[str, str]]:
        """gRPC's options for the channel."""
        if self.server_name is None:
            return []
        return [("grpc.ssl_target_name_override", self.server_name)]


class TokenFile:
    """A token from a file, which is read for every attempt.

    A token is a line or a page, so it costs less to read it than to find out whether it has
    changed. While the file cannot be read or is empty, as in the middle of its replacement,
    the last token stays in use.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._failed = False
        self._token = self._read()

    def __call__(self) -> str:
        """The current token."""
        try:
            self._token = self._read()
            self._failed = False
        except (OSError, ValueError) as error:
            if not self._failed:
                log.warning("the last token stays in use: %s", error)
            self._failed = True
        return self._token

    def _read(self) -> str:
        # Decoded this way because the error of a decoder would quote the token.
        token = self._path.read_bytes().decode("ascii", "replace").strip()
        if not (token.isascii() and token.isprintable()):
            raise ValueError(f"{self._path}: a token must be printable ASCII")
        if not token:
            raise ValueError(f"{self._path}: there is no token in the file")
        return token


def token_source(token: Token | None, file: str | Path | None) -> Token | None:
    """The token of `connect`, which has two arguments for it."""
    if token is not None and file is not None:
        raise ValueError("give token or token_file, not both")
    return token if file is None else TokenFile(file)


def check_token(token: Token | None) -> None:
    """Rejects a function that cannot be called where the token is needed."""
    if is_async(token):
        raise FieldTypeError("token", "expected str or a plain function, not an async one")


def check_private(target: str) -> None:
    """Rejects a target to which a token would travel in plain text over a network."""
    if not _is_local(target):
        raise ValueError(
            f"a token is not sent to {target} in plain text: connect with tls, or with "
            "allow_insecure_token=True"
        )


def current_token(token: Token) -> str:
    """The token to send now."""
    current = token if isinstance(token, str) else token()
    if not isinstance(current, str):
        if inspect.iscoroutine(current):
            # Else Python warns that nothing awaited it.
            current.close()
        raise FieldTypeError(
            "token", f"the function returned {type(current).__name__} instead of str"
        )
    if not current:
        raise ValueError("token must not be empty")
    return current


def _is_local(target: str) -> bool:
    """Whether whoever reads what is sent there is on this machine; False for what is unclear."""
    scheme, separator, rest = target.partition(":")
    if separator and scheme.lower() in _LOCAL_SCHEMES:
        return True
    if scheme.lower() in ("ipv4", "ipv6"):
        return all(_is_loopback(address) for address in rest.lstrip("/").split(","))
    if scheme.lower() == "dns":
        # dns:HOST:PORT or dns://RESOLVER/HOST:PORT; "dns:1" is a host of that name.
        return _is_loopback(rest.rpartition("/")[2])
    return _is_loopback(target)


def _is_loopback(address: str) -> bool:
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or (":" in host and not host.startswith("[")):
        host = address
    host = host.removeprefix("[").removesuffix("]").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
