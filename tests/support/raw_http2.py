"""One call as HTTP/2 by hand, for headers that client libraries refuse to send."""

from __future__ import annotations

import asyncio
import struct

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_ACK, _END_STREAM, _END_HEADERS = 1, 1, 4


async def call_with_headers(address: str, path: str, *headers: tuple[bytes, bytes]) -> bytes:
    """The payload of all frames that answer a call with an empty message. `RST_STREAM` is in it
    where the call, and `GOAWAY` where the connection was given up."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        block = b"".join(
            _literal(name, value)
            for name, value in (
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", path.encode()),
                (b":authority", address.encode()),
                (b"content-type", b"application/grpc"),
                (b"te", b"trailers"),
                *headers,
            )
        )
        writer.write(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, struct.pack(">HI", 1, 0))  # no table of headers to keep
            + _frame(_HEADERS, _END_HEADERS, 1, block)
            + _frame(_DATA, _END_STREAM, 1, bytes(5))
        )
        return await asyncio.wait_for(_answer(reader, writer), 20)
    finally:
        writer.close()
        await writer.wait_closed()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    answer = b""
    while True:
        try:
            head = await reader.readexactly(9)
        except (asyncio.IncompleteReadError, ConnectionError):
            return answer + b"GOAWAY"
        size, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
        payload = await reader.readexactly(size)
        if kind == _SETTINGS and not flags & _ACK:
            writer.write(_frame(_SETTINGS, _ACK, 0, b""))
        if kind in (_HEADERS, _DATA):
            answer += payload
        if kind == _RST_STREAM:
            return answer + b"RST_STREAM"
        if kind == _GOAWAY:
            return answer + b"GOAWAY"
        if kind in (_HEADERS, _DATA) and flags & _END_STREAM:
            return answer


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that is not indexed, without Huffman coding."""
    return b"\x00" + _text(name) + _text(value)


def _text(text: bytes) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text
