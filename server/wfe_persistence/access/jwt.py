"""JSON Web Tokens of one issuer, verified offline against its keys.

A Kubernetes service account and a login by OpenID Connect are both such tokens.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from wfe_persistence.access.credentials import expired, rejected
from wfe_persistence.access.keys import ASYMMETRIC, Keys, KeySet
from wfe_persistence.access.principal import JWT, principal

LEEWAY_SECONDS: Final = 10
"""How much the clocks of the issuer and of the server may differ."""

_MAX_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Verified:
    """A token that has been verified."""

    principal: str
    ends: float
    keys: KeySet | None
    """The keys that it was verified with: with others, it is verified again."""


class JwtVerifier:
    """Verifies tokens, and remembers (by their hash) those that it has verified.

    A token must be signed by one of `keys` with one of `algorithms`, come from `issuer`, be meant
    for `audience`, and have `claim`, which names the principal. Raises ValueError for an algorithm
    that is not asymmetric.
    """

    def __init__(
        self, keys: Keys, *, issuer: str, audience: str, algorithms: frozenset[str], claim: str
    ) -> None:
        if not algorithms or not algorithms <= set(ASYMMETRIC):
            raise ValueError(f"must be some of {', '.join(ASYMMETRIC)}")
        self.keys = keys
        self._issuer = issuer
        self._audience = audience
        self._algorithms = algorithms
        self._claim = claim
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    async def principal(self, token: str) -> str:
        """Who calls with a token. Raises CREDENTIALS_INVALID, CREDENTIALS_EXPIRED, or
        KEYS_UNAVAILABLE."""
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(digest)
        if known is not None and known.keys is self.keys.current:
            if known.ends <= time.time():
                raise expired("the token has expired")
            return known.principal
        verified = await self._verify(token)
        self._verified[digest] = verified
        self._verified.move_to_end(digest)
        if len(self._verified) > _MAX_REMEMBERED:
            self._verified.popitem(last=False)
        return verified.principal

    async def _verify(self, token: str) -> _Verified:
        # Loaded on use: most servers of a sidecar need no JWT.
        import jwt

        try:
            header = jwt.get_unverified_header(token)
            algorithm, key_id = header["alg"], header.get("kid")
            # Before its key is looked for: nobody waits for the key of a token that can't be good.
            if algorithm not in self._algorithms:
                raise rejected("the token is signed with an algorithm that is not allowed")
            key = await self.keys.find(key_id)
            keys = self.keys.current
            if key is None:
                raise rejected("the token is signed with a key that the issuer does not have")
            claims = jwt.decode(
                token,
                key.public_key,
                # What a token says of itself only chooses among what it may be.
                algorithms=sorted(self._algorithms & key.algorithms & {algorithm}),
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", self._claim]},
            )
            return _Verified(self._principal(claims), float(claims["exp"]) + LEEWAY_SECONDS, keys)
        except jwt.ExpiredSignatureError:
            raise expired("the token has expired") from None
        except jwt.ImmatureSignatureError:
            raise rejected("the token is not valid yet") from None
        except jwt.InvalidIssuerError:
            raise rejected("the token is from another issuer") from None
        except jwt.InvalidAudienceError:
            raise rejected("the token is meant for another audience") from None
        except jwt.MissingRequiredClaimError as exc:
            raise rejected(f"the token has no claim {exc.claim}") from None
        # Without what was wrong: that may quote the token.
        except (jwt.PyJWTError, KeyError, ValueError, TypeError, OverflowError, RecursionError):
            raise rejected("the token is malformed, or its signature is wrong") from None

    def _principal(self, claims: dict[str, Any]) -> str:
        if self._claim == "email" and claims.get("email_verified", True) is not True:
            raise rejected("the token's email is not verified")
        name = claims[self._claim]
        if not isinstance(name, str):
            raise rejected(f"the token's claim {self._claim} is no text")
        try:
            return principal(JWT, name)
        except ValueError as exc:
            raise rejected(f"the token's claim {self._claim} {exc}") from None
