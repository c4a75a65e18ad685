"""Which parameters each read takes. Any other is refused: it would seem to choose something, and
nothing would be chosen by it."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from wfe_persistence_console.web import Refusal, Request

_PAGE: Final = ("size", "cursor")
_FILTER: Final = (
    "status", "definition", "version", "reference", "name", "event", "key", "younger", "older",
    "ended", "errors", "stuck", "root",
)  # fmt: skip

PARAMETERS: Final[dict[str, tuple[str, ...]]] = {
    "overview": (),
    "throughput": (),
    "workflows": (*_FILTER, "order", "at", *_PAGE),
    "count": (*_FILTER, "at"),
    "workflow": ("id", "name"),
    "pointers": ("id", *_PAGE),
    "pointer": ("id", "pointer", *_PAGE),
    "errors": ("workflow", "younger", "at", *_PAGE),
    "events": ("event", "key", "processed", "order", *_PAGE),
    "subscriptions": ("workflow", "event", "key", "held", *_PAGE),
    "commands": ("command", "data", "leased", "worker", *_PAGE),
    "queues": _PAGE,
    "queue-items": ("queue", "state", "id", *_PAGE),
    "locks": ("resource", "owner", *_PAGE),
    "namespaces": _PAGE,
    "storage": (),
    "watch": ("id", "definition", "root", "after"),
}
"""By what is read. All take `namespace` besides."""


def check_names(request: Request, read: str) -> None:
    """Raise Refusal if the request has a parameter that the read does not take, or one twice."""
    known = ("namespace", *PARAMETERS[read])
    for name, values in request.query.items():
        if name not in known:
            raise Refusal(
                HTTPStatus.BAD_REQUEST,
                "UNKNOWN_PARAMETER",
                f"{name[:100]}: there is no such parameter here; there is {', '.join(known)}",
            )
        if len(values) > 1:
            raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", f"{name}: is given more than once")


def given_with(request: Request, name: str, needed: str) -> str | None:
    """A parameter that only says more about another one; None: neither is given. Raises Refusal if
    it is given alone: it would choose nothing."""
    if request.text(needed):
        return request.given(name)
    if request.text(name):
        raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", f"{name}: needs {needed} as well")
    return None
