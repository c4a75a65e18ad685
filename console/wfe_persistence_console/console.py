"""Who asks for what: static files, logins, and the JSON behind the pages."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from http import HTTPStatus
from importlib.resources import files
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

import grpc.aio

from wfe.persistence.v1.store_pb2 import ListNamespacesRequest
from wfe_persistence_client.administration import EXPLANATIONS
from wfe_persistence_console.actions import ACTIONS, act
from wfe_persistence_console.link import Caller, Link
from wfe_persistence_console.live import watch
from wfe_persistence_console.parameters import check_names
from wfe_persistence_console.reads import READS
from wfe_persistence_console.sessions import Session, Sessions, cookie_in, set_cookie
from wfe_persistence_console.shapes import Shape
from wfe_persistence_console.web import Answer, Refusal, Request, json_answer

log = logging.getLogger(__name__)

MOST_LOGINS: Final = 4
"""How many logins are checked at a time: each is a call in the name of a stranger."""
_MAX_TOKEN_CHARACTERS: Final = 16_384

MOST_READS: Final = 28
"""How many reads are answered at a time. With streams, logins and actions they are fewer than the
connections that the server keeps, so that there is room for a probe however long all that takes."""

MOST_ACTIONS: Final = 4
"""How many changes are made at a time. Of a session it is one: a person makes one after the
other."""

_NAMESPACE: Final = re.compile("[a-z][a-z0-9_]{0,39}")
_FILE: Final = re.compile(r"static/((?:pages/)?[a-z]+\.(?:css|js|svg))")
_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "html": "text/html; charset=utf-8",
}
PAGES: Final = (
    "",
    "workflows",
    "workflow",
    "errors",
    "events",
    "commands",
    "queues",
    "locks",
    "namespaces",
    "storage",
)
"""The paths of the pages. What they show, the query says; the page itself is always the same."""

_ANYBODY: Final = Session("", 0.0, 0.0)


class Console:
    """A console for a server, to which `channel` opens a connection.

    With `authentication`, people log in with the token with which they call the server; else
    everybody may see everything, as with the server itself. Only with `write` it changes anything.
    """

    def __init__(
        self, channel: Callable[[], grpc.aio.Channel], *, authentication: bool, write: bool
    ) -> None:
        self._link = Link(channel)
        self._authentication = authentication
        self._write = write
        self.sessions = Sessions()
        """Who has logged in."""
        self._logins = 0
        self._actions = 0
        self._reads = 0
        self._files: dict[str, Answer] = {}

    async def close(self) -> None:
        """Hang up on the server."""
        await self._link.close()

    async def answer(self, request: Request) -> Answer:
        """The answer to a request; `request.path` is what follows the path of the console."""
        try:
            self._check_host(request)
            answer = await self._answer(request)
        except Refusal as exc:
            answer = exc.answer()
        except (ValueError, OverflowError):  # of urlsplit, of times beyond the calendar
            answer = Refusal(
                HTTPStatus.BAD_REQUEST, "MALFORMED", "the request is malformed"
            ).answer()
        return answer.secured()

    async def _answer(self, request: Request) -> Answer:
        if request.path.startswith("api/"):
            return await self._api(request, request.path.removeprefix("api/"))
        if request.method == "POST":
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "METHOD", "only GET is allowed here")
        if request.path in PAGES:
            return self._file("index.html")
        if match := _FILE.fullmatch(request.path):
            return self._file(match[1])
        raise Refusal(HTTPStatus.NOT_FOUND, "NOT_FOUND", "there is no such page")

    def _file(self, name: str) -> Answer:
        """A file, which is read once."""
        if name not in self._files:
            file = files("wfe_persistence_console").joinpath("static", *name.split("/"))
            if not file.is_file():
                raise Refusal(HTTPStatus.NOT_FOUND, "NOT_FOUND", "there is no such file")
            self._files[name] = Answer(
                HTTPStatus.OK, file.read_bytes(), _TYPES[name.rpartition(".")[2]]
            )
        return self._files[name]

    async def _api(self, request: Request, name: str) -> Answer:
        if request.method == "POST":
            self._check_origin(request)
            return await self._post(request, name)
        if request.header("sec-fetch-site") not in ("", "none", "same-origin"):
            # It could read nothing, but have the server count and record.
            raise Refusal(HTTPStatus.FORBIDDEN, "ORIGIN", "the request comes from another site")
        if name == "session":
            return json_answer(
                {
                    "authentication": self._authentication,
                    "signed_in": self._session(request) is not None,
                    "write": self._write,
                    "explanations": EXPLANATIONS,
                }
            )
        session = self._required_session(request)
        caller = self._caller(request, session)
        try:
            if name == "watch":
                check_names(request, name)
                stream = watch(caller, request, lambda: self._is_over(session))
                return Answer(HTTPStatus.OK, b"", "text/event-stream", stream=stream)
            return json_answer(await self._read(name, caller, request))
        except Refusal as exc:
            self._note(session, exc)
            raise
        except ValueError as exc:  # protobuf's: what can't be sent, such as a lone surrogate
            raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", "a parameter is invalid") from exc

    async def _read(self, name: str, caller: Caller, request: Request) -> Shape:
        if name not in READS:
            raise Refusal(HTTPStatus.NOT_FOUND, "NOT_FOUND", f"there is no {name[:100]!r}")
        check_names(request, name)
        if self._reads >= MOST_READS:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS, "BUSY", "too many others are just looking: try again"
            )
        self._reads += 1
        try:
            return await READS[name](caller, request)
        finally:
            self._reads -= 1

    async def _post(self, request: Request, name: str) -> Answer:
        if name == "login" and self._authentication:
            return await self._login(request)
        session = self._required_session(request)
        if name == "logout" and self._authentication:
            self.sessions.end(session)
            cookie = set_cookie("", encrypted=_is_encrypted(request))
            return json_answer({}, headers={"set-cookie": cookie})
        if name not in ACTIONS:
            raise Refusal(HTTPStatus.NOT_FOUND, "NOT_FOUND", f"there is no {name[:100]!r}")
        if not self._write:
            raise Refusal(
                HTTPStatus.FORBIDDEN, "READ_ONLY", "the console was started without --console-write"
            )
        try:
            return json_answer(await self._act(name, session, request))
        except Refusal as exc:
            self._note(session, exc)
            raise

    async def _act(self, name: str, session: Session, request: Request) -> Shape:
        caller = self._caller(request, session)
        if session.acting:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS, "BUSY", "your last change is not done yet: try again"
            )
        if self._actions >= MOST_ACTIONS:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                "BUSY",
                "others are just changing something: try again",
            )
        self._actions += 1
        # Without logins all are of one session, and only their sum is bounded.
        session.acting = self._authentication
        try:
            return await act(ACTIONS[name], caller, request)
        finally:
            self._actions -= 1
            session.acting = False

    async def _login(self, request: Request) -> Answer:
        token = request.field("token").strip()
        if not (token and token.isascii() and token.isprintable()):
            raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", "this is not a token")
        if len(token) > _MAX_TOKEN_CHARACTERS:
            raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", "the token is too long")
        if self._logins >= MOST_LOGINS:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS, "BUSY", "others are just logging in: try again"
            )
        self._logins += 1
        try:
            # Allowed to everybody who may read anything.
            caller = Caller(self._link, token, "")
            await caller.call(caller.stubs.store.ListNamespaces, ListNamespacesRequest(page_size=1))
        finally:
            self._logins -= 1
        cookie = set_cookie(self.sessions.begin(token), encrypted=_is_encrypted(request))
        return json_answer({}, headers={"set-cookie": cookie})

    def _session(self, request: Request) -> Session | None:
        if not self._authentication:
            return _ANYBODY
        return self.sessions.find(cookie_in("; ".join(request.headers.get("cookie", []))))

    def _required_session(self, request: Request) -> Session:
        session = self._session(request)
        if session is None:
            raise Refusal(HTTPStatus.UNAUTHORIZED, "LOGIN_REQUIRED", "log in with your token")
        return session

    def _is_over(self, session: Session) -> bool:
        return self._authentication and self.sessions.is_over(session)

    def _note(self, session: Session, refusal: Refusal) -> None:
        """A token that the server no longer accepts is of no use to anybody."""
        if refusal.status == HTTPStatus.UNAUTHORIZED and self._authentication:
            self.sessions.end(session)

    def _caller(self, request: Request, session: Session) -> Caller:
        namespace = request.text("namespace")
        if namespace and not _NAMESPACE.fullmatch(namespace):
            raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", "namespace: is not a name of one")
        return Caller(self._link, session.token, namespace)

    def _check_host(self, request: Request) -> None:
        """Without logins, only addresses count as names of this server: another site could have a
        name of its own lead here, and would be taken for it by the browser."""
        if self._authentication:
            return
        host = urlsplit(f"//{request.header('host')}").hostname or ""
        if host == "localhost" or host.endswith(".localhost"):
            return
        try:
            ip_address(host)
        except ValueError:
            raise Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                "HOST",
                "without authentication, the console is reached as localhost or by an address only",
            ) from None

    def _check_origin(self, request: Request) -> None:
        """Only its own pages may have it change anything: no page of another site can send JSON,
        nor give another origin than its own."""
        if request.header("content-type") != "application/json":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "CONTENT_TYPE", "send JSON")
        site = request.header("sec-fetch-site")
        origin = urlsplit(request.header("origin"))
        if site not in ("", "same-origin") or origin.netloc != request.header("host"):
            raise Refusal(HTTPStatus.FORBIDDEN, "ORIGIN", "this comes from another site")


def _is_encrypted(request: Request) -> bool:
    """Whether the browser reached it with TLS, here or at a proxy before it."""
    return request.encrypted or request.header("x-forwarded-proto") == "https"
