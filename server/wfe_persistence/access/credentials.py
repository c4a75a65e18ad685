"""What a call brings to prove who makes it, and the errors when that fails.

Their messages may be shown to anybody and logged: they never quote a credential.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.errors import PersistenceError

MAX_TOKEN_BYTES: Final = 8192

_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)


def bearer_token(values: Sequence[str | bytes]) -> str | None:
    """The token in the values of the metadata `authorization`; None: there are no values.

    Raises CREDENTIALS_INVALID for anything but one bearer token.
    """
    if not values:
        return None
    if len(values) > 1:
        raise rejected("the metadata has several values of authorization")
    [value] = values
    if len(value) > MAX_TOKEN_BYTES:
        raise rejected(f"the token has more than {MAX_TOKEN_BYTES} bytes")
    found = _BEARER.fullmatch(value) if isinstance(value, str) else None
    if not found:
        raise rejected("the metadata authorization is not `Bearer TOKEN`")
    return found[1]


def missing(message: str) -> PersistenceError:
    """The error of a call without any credentials."""
    return PersistenceError(ErrorReason.ERROR_REASON_CREDENTIALS_REQUIRED, message)


def rejected(message: str) -> PersistenceError:
    """The error of credentials that prove nothing."""
    return PersistenceError(ErrorReason.ERROR_REASON_CREDENTIALS_INVALID, message)


def expired(message: str) -> PersistenceError:
    """The error of credentials that were good before."""
    return PersistenceError(ErrorReason.ERROR_REASON_CREDENTIALS_EXPIRED, message)
