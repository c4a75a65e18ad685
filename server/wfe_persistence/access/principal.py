"""The name of a caller, in one text form that begins with how it was proved.

| form | proved by |
|---|---|
| `token:NAME` | a token of the token file, with this name |
| `jwt:NAME` | a JWT of the issuer, with this name in its principal claim (`sub`) |
| `spiffe://DOMAIN/PATH` | a client certificate with this SPIFFE ID |
| `cert:NAME` | a client certificate without one, with this common name |

What comes after the kind is compared as it is, so no principal can be taken for one of another
kind, whatever an issuer or a certificate authority puts into a name.
"""

from __future__ import annotations

from typing import Final

TOKEN: Final = "token:"
JWT: Final = "jwt:"
SPIFFE: Final = "spiffe://"
CERTIFICATE: Final = "cert:"
KINDS: Final = (TOKEN, JWT, SPIFFE, CERTIFICATE)

MAX_NAME_BYTES: Final = 255


def principal(kind: str, name: str) -> str:
    """The principal with this name. Raises ValueError for a name that can't be one."""
    if not name or name != name.strip() or not name.isprintable():
        raise ValueError("must be printable text without space around it")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"must have at most {MAX_NAME_BYTES} bytes")
    return kind + name
