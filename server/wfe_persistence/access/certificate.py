"""The client certificate of a connection, which TLS has verified."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from wfe_persistence.access.principal import CERTIFICATE, SPIFFE, principal

# What gRPC calls the properties of a peer. Not `x509_subject_alternative_name`: it does not tell a
# URI from a DNS name that looks like one. The SPIFFE ID is there only if it is the only URI.
_SPIFFE_ID: Final = "peer_spiffe_id"
_URI: Final = "peer_uri"
_COMMON_NAME: Final = "x509_common_name"

Properties = Mapping[str, Iterable[bytes]]


def certificate_principal(properties: Properties) -> str | None:
    """Whose certificate it is; None: there is none, or none with a name.

    Raises ValueError for a certificate that could be that of two, or whose name can't be one.
    """
    ids = [id_.decode("ascii") for id_ in properties.get(_SPIFFE_ID, ())]
    if ids:
        [id_] = ids
        if not id_.startswith(SPIFFE):
            raise ValueError("has a SPIFFE ID that does not begin with spiffe://")
        return principal(SPIFFE, id_.removeprefix(SPIFFE))
    if any(uri[:7].lower() == b"spiffe:" for uri in properties.get(_URI, ())):
        raise ValueError("has a SPIFFE ID that is malformed or not its only URI")
    names = [name.decode() for name in properties.get(_COMMON_NAME, ()) if name]
    if not names:
        return None
    [name] = names
    return principal(CERTIFICATE, name)
