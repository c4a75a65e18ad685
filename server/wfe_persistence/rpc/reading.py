"""What a call reads from, and what it has written up to, as its metadata says.

`wfe-read`: `replica` or `primary`; otherwise it depends on the RPC (`READS` in `services.py`).
`wfe-lsn`: with a request, the position that its answer has to contain; with the answer to a write,
the position up to which that has been written. What is no position, is one of another database, or
differs from another one that was sent, no replica has: it is never an error, since a client only
hands on what servers have told it. Answers have metadata only if the database has replicas, so that
nobody else pays for it.
"""

from __future__ import annotations

from typing import Any, Final

import grpc

from wfe.persistence.v1.error_reason_pb2 import FieldViolationReason
from wfe_persistence.errors import invalid_field
from wfe_persistence.rpc.call import Call
from wfe_persistence.rpc.services import WRITES_APART, Method, Source
from wfe_persistence.store.postgres.reads import Reads
from wfe_persistence.store.postgres.replicas import Replicas
from wfe_persistence.store.tables import Store

READ_KEY: Final = "wfe-read"
POSITION_KEY: Final = "wfe-lsn"

_REPLICA: Final = "replica"
_PRIMARY: Final = "primary"

_UNKNOWN: Final = "unknown"
"""A position that no replica has."""

Context = grpc.aio.ServicerContext[Any, Any]


class Wish:
    """What the metadata of a request says: which source, and the position (empty: none)."""

    __slots__ = ("position", "source")

    def __init__(self, context: Context, method: Method) -> None:
        """Raises INVALID_FIELD for a source that there is not."""
        self.position = ""
        self.source = method.reads
        sources = set()
        for key, value in context.invocation_metadata() or ():
            text = value if isinstance(value, str) else value.decode(errors="replace")
            if key == POSITION_KEY:
                self.position = _UNKNOWN if self.position not in ("", text) else text or _UNKNOWN
            elif key == READ_KEY:
                sources.add(text)
        if sources:
            self._choose(sources)

    def _choose(self, sources: set[str]) -> None:
        if not sources <= {_REPLICA, _PRIMARY}:
            raise invalid_field(
                READ_KEY,
                FieldViolationReason.FIELD_VIOLATION_REASON_FORMAT,
                "must be replica or primary",
            )
        if self.source is not Source.PRIMARY:
            # Of both, the one that is never wrong.
            self.source = Source.PRIMARY if _PRIMARY in sources else Source.REPLICA


def store_to_read(store: Store, replicas: Replicas, method: Method, context: Context) -> Store:
    """The store as a call reads from it: from a replica, if there is one that will do."""
    if method.reads is Source.PRIMARY:
        return store
    wish = Wish(context, method)
    if wish.source is not Source.REPLICA:
        return store
    reads = replicas.reader(wish.position, store.found_at)
    return store if reads is None else store.read_from(reads)


def position_for_replica(method: Method, context: Context) -> str | None:
    """Of a stream that lasts: the position (empty: any) that a replica must have for it; None: it
    reads from the primary."""
    wish = Wish(context, method)
    return wish.position if wish.source is Source.REPLICA else None


async def tell(context: Context, call: Call, method: Method) -> None:
    """Say with the answer what was read from, or up to where a write has come. Raises
    COMMIT_OUTCOME_UNKNOWN."""
    store, replicas = call.store, call.database.replicas
    if store.database is not call.database:
        # The namespace has moved. Where the write is in its new database nobody has asked.
        if method.is_write and (replicas or store.database.replicas):
            context.set_trailing_metadata(((POSITION_KEY, _UNKNOWN),))
    elif replicas is not None and method.is_write:
        if method.name in WRITES_APART:
            await replicas.find_position()
        if replicas.position is not None:
            context.set_trailing_metadata(((POSITION_KEY, str(replicas.position)),))
    elif replicas is not None:
        is_replica = isinstance(store.reader, Reads) and store.reader.ended()
        context.set_trailing_metadata(((READ_KEY, _REPLICA if is_replica else _PRIMARY),))
