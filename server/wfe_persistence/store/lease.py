"""Leases: what all claims of the store have in common, of commands, subscriptions and queue items.

A lease is columns of the row that it is on: `lease_id`, a random text of each claim, which is in
the token that proves it; `lease_worker_id`, for information; when it expires, by the database's
clock; and `lease_epoch`, the fencing token. (Those of a subscription have other names and a token
that the client chooses, because other software shares its table.) Nobody has to end one that has
expired.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe_persistence import metrics
from wfe_persistence.errors import PersistenceError, invalid_field
from wfe_persistence.store.rows import PGresult, read_bool, read_int4

NEXT_EPOCH: Final = "nextval('wfc.claim_epochs')"
"""The epoch of a new claim, in SQL: higher than those of all claims before it in the store."""


def expiry_after(ms: str) -> str:
    """When a lease of so many milliseconds from now expires, in SQL."""
    return f"now() + {ms} * interval '1 millisecond'"


def expired(expiry: str) -> str:
    """The condition that a claim with this expiry has expired."""
    return f"{expiry} <= now()"


def unexpired(expiry: str) -> str:
    """The condition that there is a claim with this expiry (NULL: none), which has not expired."""
    return f"{expiry} > now()"


def unexpired_or_endless(expiry: str) -> str:
    """The condition that a claim has not expired, where an expiry of NULL means that it never
    does."""
    return f"({expiry} IS NULL OR {unexpired(expiry)})"


ALL_HELD: Final = "(SELECT count(*) FROM held) = (SELECT count(*) FROM given)"
"""The condition that all of the leases given are held, for what is done to all of them or none.
Both are parts of the statement; the rows that are `held` stay locked from there to its end."""


def new_lease_id() -> str:
    """The random text of a new claim."""
    return uuid.uuid4().hex


# The numbers are of rows, revisions and the like; the last part is a `new_lease_id`.
_TOKENS: Final = {
    numbers: re.compile(r"(0|[1-9][0-9]{0,17})\." * numbers + r"([0-9a-f]{32})")
    for numbers in (1, 2)
}

_RECEIPT: Final = _TOKENS[1].fullmatch

_KINDS: Final = {
    "lease_tokens": "command",
    "held_lease_tokens": "command",
    "complete_lease_tokens": "command",
    "tokens": "lock",
    "held_lock_tokens": "lock",
}
"""What is claimed, by the field that has the tokens; all others have receipts of queue items."""


def lease_token(lease_id: str, *numbers: int) -> str:
    """The token that proves a claim: numbers that the store finds its row by, and its lease_id."""
    return ".".join([*map(str, numbers), lease_id])


def parse_lease_token(
    token: str, field: str, *, numbers: int, origin: str
) -> tuple[tuple[int, ...], str]:
    """The numbers and the lease_id of a token. Raises PersistenceError for `field` if it can't be
    one. `origin`: the RPC that returns such tokens."""
    match = _TOKENS[numbers].fullmatch(token)
    if match is None:
        raise bad_token(field, origin=origin)
    *found, lease_id = match.groups()
    return tuple(map(int, found)), lease_id


def bad_token(field: str, *, origin: str) -> PersistenceError:
    """The error of a text that can't be a token. `origin`: the RPC that returns such tokens."""
    return invalid_field(
        field,
        FieldViolationReason.FIELD_VIOLATION_REASON_FORMAT,
        f"is not a token returned by {origin}",
    )


def receipt_claims(receipts: Sequence[str], path: str) -> list[str]:
    """The members of the documents that tell which items receipts are of: `n` and `lease_id`.
    Raises PersistenceError if one can't be a receipt; `path`: its field, with braces where its
    number belongs."""
    try:
        return [f'"n":{m[1]},"lease_id":"{m[2]}"' for m in map(_RECEIPT, receipts)]  # type: ignore[index]
    except TypeError:  # one of them does not match
        at = next(at for at, receipt in enumerate(receipts) if _RECEIPT(receipt) is None)
        raise bad_token(path.format(at), origin="Dequeue") from None


def check_held(rows: PGresult, tokens: Sequence[str], *, field: str = "lease_tokens") -> None:
    """Raise PersistenceError unless all leases are held: rows of a number and whether it is."""
    lost = [
        tokens[read_int4(rows.get_value(i, 0))]
        for i in range(rows.ntuples)
        if not read_bool(rows.get_value(i, 1))
    ]
    if lost:
        raise lease_lost(lost, of=len(tokens), field=field)


def lease_lost(
    lost: Sequence[str], *, of: int = 1, field: str = "lease_tokens"
) -> PersistenceError:
    """The error of leases that are no longer held; `of`: how many the request has."""
    kind = _KINDS.get(field.partition("[")[0], "queue_item")
    metrics.CLAIMS_LOST.add((kind,), len(lost))
    return PersistenceError(
        ErrorReason.ERROR_REASON_LEASE_LOST,
        f"{len(lost)} of {of} leases are no longer held",
        # Metadata is sent in HTTP/2 headers, whose size is limited, so not all are listed.
        metadata={
            "lease_tokens": ",".join(lost[:20]),
            "lost": str(len(lost)),
            "field": field,
        },
    )
