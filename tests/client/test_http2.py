"""Calls that HTTP/2 ends: refused, reset, sent away, cut off. A server of bare frames does it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from tests.client.conftest import FAST
from wfe.persistence.v1.event_pb2 import CreateEventResponse
from wfe_persistence_client import CommitOutcomeUnknown, Event, connect

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK = END_STREAM = 1
END_HEADERS = 4
PREFACE_BYTES = 24
REFUSED_STREAM, CANCEL = 7, 8

EVENT = Event(event_name="n", event_key="k", event_data=1)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name: str, value: str) -> bytes:
    """In HPACK, as a literal."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def answer(stream: int) -> bytes:
    message = CreateEventResponse(id="e").SerializeToString()
    ok = b"\x88" + header("content-type", "application/grpc")
    return (
        frame(HEADERS, END_HEADERS, stream, ok)
        + frame(DATA, 0, stream, struct.pack(">BI", 0, len(message)) + message)
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, header("grpc-status", "0"))
    )


def reset(code: int) -> Callable[[int, asyncio.StreamWriter], None]:
    return lambda stream, to: to.write(frame(RST_STREAM, 0, stream, struct.pack(">I", code)))


def go_away(_: int, to: asyncio.StreamWriter) -> None:
    to.write(frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)))
    to.close()


def close(_: int, to: asyncio.StreamWriter) -> None:
    to.close()


def cut_off(_: int, to: asyncio.StreamWriter) -> None:
    connection = to.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    to.transport.abort()


ENDS = {
    "refused": reset(REFUSED_STREAM),
    "cancelled": reset(CANCEL),
    "sent away": go_away,
    "closed": close,
    "cut off": cut_off,
}


class Frames:
    """Ends the first calls in one way, and answers those that follow."""

    def __init__(self, end: Callable[[int, asyncio.StreamWriter], None], ended: int) -> None:
        self._end = end
        self._to_end = ended
        self.calls = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(PREFACE_BYTES)
            writer.write(frame(SETTINGS, 0, 0))
            while not writer.is_closing():
                size, kind, flags, stream = struct.unpack(
                    ">IBBI", b"\0" + await reader.readexactly(9)
                )
                payload = await reader.readexactly(size)
                if kind in (SETTINGS, PING) and not flags & ACK:
                    writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))
                elif kind == HEADERS:
                    self.calls += 1
                    if self.calls <= self._to_end:
                        self._end(stream, writer)
                    else:
                        writer.write(answer(stream))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()


@pytest.fixture(params=ENDS)
async def ended(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, Frames, str]]:
    """How calls end, the server that ends three of them so, and its address."""
    frames = Frames(ENDS[request.param], ended=3)
    server = await asyncio.start_server(frames.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield request.param, frames, f"127.0.0.1:{port}"
    server.close()


async def test_a_repeatable_write_is_tried_again(ended: tuple[str, Frames, str]) -> None:
    _, frames, target = ended
    async with connect(target, retry=FAST) as provider:
        assert await provider.create_event(EVENT) == "e"
    assert frames.calls == 4


async def test_an_unrepeatable_one_only_if_it_was_not_begun(ended: tuple[str, Frames, str]) -> None:
    how, frames, target = ended
    async with connect(target, retry=FAST) as provider:
        if how == "refused":
            await provider.persist_errors([])
            assert frames.calls == 4
        else:
            with pytest.raises(CommitOutcomeUnknown):
                await provider.persist_errors([])
            assert frames.calls == 1
