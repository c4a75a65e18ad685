"""A server with an admin port, and requests to it."""

from __future__ import annotations

import http.client
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.server import ServerProcess

_ADMIN_PORT = re.compile(r"admin port: (https?)://([0-9.]+):(\d+)")


@dataclass(frozen=True)
class Answer:
    """A response of the admin port."""

    status: int
    text: str
    headers: dict[str, str]


class AdminServer(ServerProcess):
    """A server whose admin port listens on a free port, unless another address is given."""

    def __init__(self, log_file: Path, *arguments: str, module: str = "wfe_persistence") -> None:
        if "--admin-listen" not in arguments:
            arguments = ("--admin-listen", "127.0.0.1:0", *arguments)
        super().__init__(log_file, *arguments, module=module)
        self.context: ssl.SSLContext | None = None

    @property
    def admin(self) -> tuple[str, int]:
        """Host and port of the admin port, of the latest start."""
        _, host, port = _ADMIN_PORT.findall(self.log())[-1]
        return host.replace("0.0.0.0", "127.0.0.1"), int(port)

    def get(
        self,
        path: str,
        headers: dict[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes | None = None,
    ) -> Answer:
        """One request on a connection of its own."""
        host, port = self.admin
        connection = (
            http.client.HTTPSConnection(host, port, timeout=20, context=self.context)
            if self.context
            else http.client.HTTPConnection(host, port, timeout=20)
        )
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        return Answer(response.status, text, {k.lower(): v for k, v in response.getheaders()})

    def wait_for(self, path: str, condition: Callable[[Answer], bool]) -> Answer:
        """Ask until it is so."""
        deadline = time.monotonic() + 30
        while True:
            answer = self.get(path)
            if condition(answer):
                return answer
            assert time.monotonic() < deadline, answer
            time.sleep(0.02)
