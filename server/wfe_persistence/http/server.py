"""A small HTTP/1.1 server for GET and HEAD, parsed by h11, and bounded in everything.

It never waits for a client longer than `_PATIENCE_SECONDS`, and keeps at most `MAX_CONNECTIONS`: a
new one replaces the one that has waited longest, so that strangers who hold theirs open do not lock
a kubelet out. It takes no bodies, but for small ones of POST below one path. A response may be a
stream, of which there are at most `MAX_STREAMS`, so that there is always room for a probe.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import h11

from wfe_persistence.errors import CannotServeError

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 64
MAX_STREAMS: Final = 24
MAX_BODY_BYTES: Final = 32_768

_PATIENCE_SECONDS: Final = 10.0
_IDLE_SECONDS: Final = 75.0  # longer than scrapers pause, which is 15 to 60 s
_MAX_HEADER_BYTES: Final = 16_384
_READ_BYTES: Final = 16_384
_NO_ROOM_SECONDS: Final = 0.5
_ALLOWED: Final = (b"GET", b"HEAD")


@dataclass(frozen=True, slots=True)
class Request:
    """A request; its body is empty but for POST."""

    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, list[str]]
    """By name in lower case."""
    certificate: Mapping[str, object] | None
    """The client's certificate, which TLS has verified, as `ssl` decodes it; None: it has none."""
    peer: str
    method: str = "GET"
    body: bytes = b""
    encrypted: bool = False
    """Whether it came with TLS."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response, by default of plain text. A `stream` is what follows the body, for as long as the
    client stays; each piece is sent at once."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: AsyncGenerator[bytes, None] | None = None

    @classmethod
    def text(cls, status: HTTPStatus, text: str, **headers: str) -> Response:
        """A response of one or more lines of text."""
        return cls(status, f"{text}\n".encode(), headers=headers)


Handler = Callable[[Request], Awaitable[Response]]


class HttpServer:
    """Listens at HOST:PORT from `open` to `close`, and answers with `handler`.

    `context` returns the TLS context of a new connection, None: plaintext. `posts` is the start of
    the paths to which POST is allowed, with up to `MAX_BODY_BYTES`; empty: to none.
    """

    def __init__(
        self,
        listen: str,
        handler: Handler,
        context: Callable[[], ssl.SSLContext] | None,
        posts: str = "",
    ) -> None:
        self._listen = listen
        self._handler = handler
        self._context = context
        self._posts = posts
        self._streams = 0
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        # Those that wait for their client, the longest waiting one first.
        self._waiting: dict[asyncio.Task[None], None] = {}
        self.address = listen
        """The listen address; after `open`, with the real port."""

    async def open(self) -> None:
        """Listen. Raises CannotServeError."""
        host, _, port = self._listen.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        loop = asyncio.get_running_loop()
        try:
            [(family, kind, protocol, _, address), *_] = await loop.getaddrinfo(
                host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            listener = socket.socket(family, kind, protocol)
        except OSError as exc:
            raise CannotServeError(f"can't listen on {self._listen}: {exc.strerror}") from exc
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(MAX_CONNECTIONS)
        except OSError as exc:
            listener.close()
            raise CannotServeError(f"can't listen on {self._listen}: {exc.strerror}") from exc
        listener.setblocking(False)
        self._socket = listener
        name = listener.getsockname()
        self.address = f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
        self._accepting = loop.create_task(self._accept(listener))

    async def close(self) -> None:
        """Stop listening, and hang up."""
        if self._socket is None or self._accepting is None:
            return
        tasks = [self._accepting, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._socket.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as exc:  # no file descriptor is left, or the client is gone already
                log.debug("admin port: %s", exc)
                await asyncio.sleep(_NO_ROOM_SECONDS)
                continue
            if len(self._tasks) >= MAX_CONNECTIONS:
                await self._make_room()
            task = loop.create_task(self._serve(accepted))
            self._tasks.add(task)
            self._waiting[task] = None
            task.add_done_callback(self._forget)

    async def _make_room(self) -> None:
        """Hang up on the client that is waited for longest; if none is, wait for an answer."""
        longest = next(iter(self._waiting), None)
        if longest is None:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            return
        longest.cancel()
        await asyncio.wait([longest])

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._waiting.pop(task, None)
        if not task.cancelled() and (exc := task.exception()):
            log.error("admin port: bug", exc_info=exc)

    async def _serve(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_READ_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        context = self._context() if self._context else None
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=context,
                ssl_handshake_timeout=_PATIENCE_SECONDS if context else None,
                ssl_shutdown_timeout=1.0 if context else None,
            )
        except (OSError, EOFError) as exc:  # no TLS, another's certificate, or too slow
            log.debug("admin port: %s", exc)
            accepted.close()
            return
        except asyncio.CancelledError:
            accepted.close()
            raise
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await self._converse(reader, writer)
        except (OSError, EOFError, h11.LocalProtocolError) as exc:
            log.debug("admin port: %s", exc)
        finally:
            # Not `close`: it would wait until the client has taken what is left.
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request after the other until either side is done."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEADER_BYTES)
        patience = _PATIENCE_SECONDS
        while True:
            try:
                async with asyncio.timeout(patience):
                    request = await _receive(http, reader)
                    if request is None:
                        return
                    body = await self._body(http, reader, request)
            except TimeoutError:
                return
            except h11.RemoteProtocolError as exc:
                status = HTTPStatus(exc.error_status_hint or 400)
                if http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    answer = Response.text(status, status.phrase)
                    await _send(http, writer, answer, last=True)
                return
            task = asyncio.current_task()
            assert task is not None
            self._waiting.pop(task, None)
            answer = await self._answer(request, body, writer)
            if answer.stream is not None:
                await self._send_stream(http, reader, writer, answer, answer.stream)
                return
            await _send(http, writer, answer, only_head=request.method == b"HEAD")
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()
            self._waiting[task] = None
            patience = _IDLE_SECONDS

    def _takes_body(self, request: h11.Request) -> bool:
        return (
            bool(self._posts)
            and request.method == b"POST"
            and request.target.startswith(self._posts.encode())
        )

    async def _body(
        self, http: h11.Connection, reader: asyncio.StreamReader, request: h11.Request
    ) -> bytes:
        """The body of a request. Raises RemoteProtocolError if it is too large, or cut off."""
        body = b""
        if not self._takes_body(request):
            # What it says beyond its header is not read: then this is its last request.
            with suppress(h11.RemoteProtocolError):
                http.next_event()
            return body
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(_READ_BYTES))
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY_BYTES:
                    raise h11.RemoteProtocolError("too large", error_status_hint=413)
            else:
                return body

    async def _answer(
        self, request: h11.Request, body: bytes, writer: asyncio.StreamWriter
    ) -> Response:
        takes_body = self._takes_body(request)
        if request.method not in _ALLOWED and not takes_body:
            status = HTTPStatus.METHOD_NOT_ALLOWED
            return Response.text(status, status.phrase, allow="GET, HEAD")
        try:
            url = urlsplit(request.target.decode("ascii"))
            query = parse_qs(url.query, keep_blank_values=True, max_num_fields=20)
        except ValueError:
            return Response.text(HTTPStatus.BAD_REQUEST, "the URL is malformed")
        headers: dict[str, list[str]] = {}
        for name, value in request.headers:
            headers.setdefault(name.decode("ascii"), []).append(value.decode("latin-1"))
        peer = writer.get_extra_info("peername")
        return await self._handler(
            Request(
                path=unquote(url.path),
                query=query,
                headers=headers,
                certificate=writer.get_extra_info("peercert") or None,
                peer=f"{peer[0]}:{peer[1]}" if peer else "",
                method=request.method.decode("ascii"),
                body=body,
                encrypted=writer.get_extra_info("ssl_object") is not None,
            )
        )

    async def _send_stream(
        self,
        http: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        response: Response,
        stream: AsyncGenerator[bytes, None],
    ) -> None:
        """Send a stream until either side ends it; the connection ends with it."""
        if self._streams >= MAX_STREAMS:
            await stream.aclose()
            status = HTTPStatus.SERVICE_UNAVAILABLE
            await _send(http, writer, Response.text(status, "there are too many streams"))
            return
        self._streams += 1
        sending = asyncio.ensure_future(_pump(http, writer, response, stream))
        # A client that hangs up is noticed at once; so is one that says more, which it may not.
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams -= 1
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await stream.aclose()
        if not sending.cancelled() and (exc := sending.exception()):
            raise exc


async def _receive(http: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The next request; None: the client has hung up. Raises RemoteProtocolError."""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Request):
            return event
        else:
            return None


async def _send(
    http: h11.Connection,
    writer: asyncio.StreamWriter,
    response: Response,
    *,
    only_head: bool = False,
    last: bool = False,
) -> None:
    """Send a response. Raises TimeoutError if the client does not take it."""
    head = _head(response, {"content-length": str(len(response.body))}, last=last)
    data = http.send(head) or b""
    if not only_head:
        data += http.send(h11.Data(data=response.body)) or b""
    data += http.send(h11.EndOfMessage()) or b""
    await _write(writer, data)


async def _pump(
    http: h11.Connection,
    writer: asyncio.StreamWriter,
    response: Response,
    stream: AsyncGenerator[bytes, None],
) -> None:
    """Send a response whose end is that of the connection, or that it says itself."""
    await _write(writer, http.send(_head(response, {}, last=True)) or b"")
    async for piece in stream:
        await _write(writer, http.send(h11.Data(data=piece)) or b"")
    await _write(writer, http.send(h11.EndOfMessage()) or b"")


def _head(response: Response, length: Mapping[str, str], *, last: bool) -> h11.Response:
    headers = {
        "content-type": response.content_type,
        **length,
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        **response.headers,
    }
    if last:
        headers["connection"] = "close"
    return h11.Response(
        status_code=response.status.value,
        reason=response.status.phrase.encode(),
        headers=list(headers.items()),
    )


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send, and wait until all of it is on its way, so that what a client does not read is not
    kept. Raises TimeoutError if it takes nothing."""
    writer.write(data)
    writer.transport.set_write_buffer_limits(0)
    async with asyncio.timeout(_PATIENCE_SECONDS):
        await writer.drain()
