"""What a request and an answer are, and what every answer tells the browser about security."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Final

# Only what comes from here is loaded and run, nothing inline; no other site frames the console, and
# text never becomes markup, whatever a script does with it.
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

SECURITY_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request for something below the path of the console."""

    method: str
    path: str
    """Below that path, without a slash at its beginning, decoded."""
    query: Mapping[str, list[str]]
    headers: Mapping[str, list[str]]
    """By name in lower case."""
    body: bytes = b""
    encrypted: bool = False
    """Whether it came with TLS."""

    def header(self, name: str) -> str:
        """The only value of a header; empty: there is none, or more than one."""
        values = self.headers.get(name, [])
        return values[0] if len(values) == 1 else ""

    def text(self, name: str) -> str:
        """The value of a parameter; empty: it is not given."""
        return self.query.get(name, [""])[0]

    def given(self, name: str) -> str | None:
        """The value of a parameter, which may be empty; None: it is not given."""
        values = self.query.get(name)
        return values[0] if values else None

    def document(self) -> dict[str, Any]:
        """The body, a JSON object. Raises Refusal."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", "the body is not a JSON object")
        return value

    def field(self, name: str) -> str:
        """A text of the body. Raises Refusal."""
        value = self.document().get(name)
        if not isinstance(value, str):
            raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", f"{name}: is not a text")
        return value


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. A `stream` follows the body for as long as the client stays."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: AsyncGenerator[bytes, None] | None = None

    def secured(self) -> Answer:
        """With what tells the browser to be careful."""
        return replace(self, headers={**SECURITY_HEADERS, **self.headers})


class Refusal(Exception):  # noqa: N818 — not an error of the console
    """A request is refused: its status, and why, for programs and for people."""

    def __init__(self, status: HTTPStatus, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason

    def answer(self) -> Answer:
        """It as an answer."""
        return json_answer({"error": {"reason": self.reason, "message": str(self)}}, self.status)


def json_answer(
    value: Mapping[str, object],
    status: HTTPStatus = HTTPStatus.OK,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """An answer of one JSON object."""
    body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )
    return Answer(status, body, "application/json", headers or {})
