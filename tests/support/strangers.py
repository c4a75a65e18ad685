"""What strangers try on a server with mutual TLS: handshakes that can't succeed."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_SECONDS: Final = 5.0

_CLIENT_HELLO: Final = bytes.fromhex("1603010200010001fc0303")


class Strangers:
    """Makes handshakes with a server, each on a connection of its own, which it waits to be closed.

    `foreign` are the files of a certificate, and of its key, of an authority that the server does
    not trust.
    """

    def __init__(self, address: str, foreign: tuple[Path, Path]) -> None:
        host, _, port = address.rpartition(":")
        self._address = host, int(port)
        self._foreign = foreign
        self._half_open: list[socket.socket] = []
        self.ways: dict[str, Callable[[], None]] = {
            "garbage": lambda: self._send(b"\xff" * 300),
            "HTTP/1": lambda: self._send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
            "HTTP/2 without TLS": lambda: self._send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            "a part of a hello, and away": lambda: self._send(_CLIENT_HELLO, stay=False),
            "a part of a hello, and silence": self._stay,
            "no certificate": lambda: self._handshake(None),
            "a foreign certificate": lambda: self._handshake(self._foreign),
            "another protocol": lambda: self._handshake(None, protocol="http/1.1"),
        }

    def close(self) -> None:
        """Close the connections whose handshakes were not finished."""
        for connection in self._half_open:
            connection.close()

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._address, timeout=_SECONDS)

    def _send(self, data: bytes, *, stay: bool = True) -> None:
        with suppress(OSError), self._connect() as connection:
            connection.sendall(data)
            if stay:
                connection.recv(1)

    def _stay(self) -> None:
        connection = self._connect()
        connection.sendall(_CLIENT_HELLO)
        self._half_open.append(connection)

    def _handshake(self, pair: tuple[Path, Path] | None, *, protocol: str = "h2") -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([protocol])
        if pair:
            context.load_cert_chain(*pair)
        with (
            suppress(OSError),
            self._connect() as connection,
            context.wrap_socket(connection) as stream,
        ):
            # With TLS 1.3 a client learns only now that it was refused.
            assert not stream.recv(1)
