"""Page tokens: where a page ended, bound to the query it came from."""

from __future__ import annotations

import base64
import binascii
import json
from hashlib import blake2b

from google.protobuf.message import Message

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError
from wfe_persistence.store.db import Store
from wfe_persistence.store.paging import Cursor

_LEAST, _MOST = -(2**63), 2**63 - 1


def encode(request: Message, store: Store, cursor: Cursor | None) -> str:
    """The token of the page behind `cursor`; empty if there is none."""
    if cursor is None:
        return ""
    token = json.dumps([_query(request, store), *cursor], separators=(",", ":"))
    return base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


def decode(request: Message, store: Store, token: str, start: Cursor) -> Cursor:
    """Where the page of a token starts; `start` for an empty one."""
    if not token:
        return start
    try:
        padded = token + "=" * (-len(token) % 4)
        query, number, id_ = json.loads(base64.b64decode(padded, b"-_", validate=True))
    except (ValueError, TypeError, binascii.Error, RecursionError) as exc:
        raise _invalid() from exc
    if (
        query != _query(request, store)
        or type(number) is not int
        or not _LEAST <= number <= _MOST
        or not isinstance(id_, str)
        or any(c == "\0" or "\ud800" <= c <= "\udfff" for c in id_)
    ):
        raise _invalid()
    return number, id_


def page_bytes(max_message_bytes: int) -> int:
    """How many bytes of items a page may hold, so that the token still fits into the message."""
    return max_message_bytes - 2048


def _query(request: Message, store: Store) -> str:
    """What makes a query: its kind, its namespace and every field but the paging ones."""
    query = type(request)()
    query.CopyFrom(request)
    query.ClearField("page_size")
    query.ClearField("page_token")
    text = f"{query.DESCRIPTOR.full_name} {store.namespace} ".encode()
    return blake2b(text + query.SerializeToString(deterministic=True), digest_size=9).hexdigest()


def _invalid() -> PersistenceError:
    return PersistenceError(
        ErrorReason.ERROR_REASON_INVALID_PAGE_TOKEN,
        "page_token: was not given out for this query",
    )
