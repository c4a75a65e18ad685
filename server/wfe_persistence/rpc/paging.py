"""Page tokens: the cursor at which a page ended, bound to the query it came from."""

from __future__ import annotations

import base64
import binascii
import struct
from hashlib import blake2b
from typing import Final, Protocol, cast

from google.protobuf.message import Message

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe_persistence.errors import PersistenceError, Violation
from wfe_persistence.store.paging import START, Cursor
from wfe_persistence.store.tables import Store

# A token is a hash of the query and the cursor, the cursor's number and its id, in base64.
_HEAD = struct.Struct("!9sq")

# What may differ from page to page.
_NOT_OF_THE_QUERY: Final = ("page_size", "page_token", "max_rows", "expected_revision")

MAX_TOKEN_BYTES: Final = (_HEAD.size + 512 + 2) // 3 * 4
"""The length of the longest token: that of an id of 512 bytes."""
# Other software may have stored longer ids: PostgreSQL's indexes take hundreds of kB, compressed.
_LONGEST_TOKEN: Final = 1_048_576

FRAMING_BYTES: Final = 16
"""What a list's response has at most beside its items and the token: tags, lengths, a revision."""


class Paged(Protocol):
    """A request for one page of a list."""

    page_token: str


def encode(request: Message, store: Store, cursor: Cursor | None) -> str:
    """The token of the page after `cursor`; empty if there is none."""
    if cursor is None:
        return ""
    number, id_ = cursor
    token = _HEAD.pack(_hash(request, store, cursor), number) + id_.encode()
    return base64.urlsafe_b64encode(token).decode().rstrip("=")


def decode(request: Paged, store: Store) -> Cursor | None:
    """The cursor after which the requested page starts; START if it is the first one.

    Raises PersistenceError if the token was not issued for this query.
    """
    token = request.page_token
    if not token:
        return START
    if len(token) > _LONGEST_TOKEN:
        raise _invalid()
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        found, number = _HEAD.unpack(data[: _HEAD.size])
        id_ = data[_HEAD.size :].decode()
    except (ValueError, binascii.Error, struct.error) as exc:
        raise _invalid() from exc
    if found != _hash(cast(Message, request), store, (number, id_)):
        raise _invalid()
    return number, id_


def _hash(request: Message, store: Store, cursor: Cursor) -> bytes:
    """A hash of the query (its type, its namespace, every field but those of paging) and the
    cursor: it differs for a token of another query, or a truncated one."""
    query = type(request)()
    query.CopyFrom(request)
    for field in _NOT_OF_THE_QUERY:
        if field in query.DESCRIPTOR.fields_by_name:
            query.ClearField(field)
    text = f"{query.DESCRIPTOR.full_name} {store.namespace} {cursor} ".encode()
    return blake2b(text + query.SerializeToString(deterministic=True), digest_size=9).digest()


def _invalid() -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_INVALID_PAGE_TOKEN,
        "page_token: was not issued for this query",
        violations=(
            Violation(
                "page_token",
                FieldViolationReason.FIELD_VIOLATION_REASON_FORMAT,
                "was not issued for this query",
            ),
        ),
    )
