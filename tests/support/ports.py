"""Ports for programs that can't be told to choose one themselves."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port of the loopback address on which nobody listens now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
