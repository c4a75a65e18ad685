"""Who calls and what they may do, as the settings say; one for the whole server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from wfe_persistence.access.certificate import Properties, certificate_principal
from wfe_persistence.access.credentials import bearer_token, expired, missing, rejected
from wfe_persistence.access.policy import (
    Policy,
    Rights,
    parse_anonymous_policy,
    parse_policy,
)
from wfe_persistence.access.tokens import Tokens, parse_tokens
from wfe_persistence.access.watched import WatchedFile
from wfe_persistence.errors import CannotServeError
from wfe_persistence.settings import Settings

if TYPE_CHECKING:
    from wfe_persistence.access.jwt import JwtVerifier


class Access:
    """Turns credentials into a principal, and a principal into its rights.

    Raises CannotServeError, naming the setting or the file, for values and files that can't be
    used. The settings must go together (`Settings.require_protection`).
    """

    def __init__(self, settings: Settings, policy: WatchedFile[Policy]) -> None:
        self._policy = policy
        self._tokens: WatchedFile[Tokens] | None = None
        if settings.token_file is not None:
            self._tokens = WatchedFile(settings.token_file, parse_tokens)
            self._tokens.load()
        self._jwt = _verifier(settings)

    def rights(self, principal: str) -> Rights:
        """What a principal may do now."""
        return self._policy.value.rights(principal)

    async def identify(self, authorization: Sequence[str | bytes], properties: Properties) -> str:
        """The principal that makes a call.

        `authorization` are the values of that metadata, `properties` those of the connection. A
        token decides alone: a bad one is not made good by a certificate. Raises PersistenceError.
        """
        token = bearer_token(authorization)
        if token is not None:
            return await self._principal_of(token)
        try:
            principal = certificate_principal(properties)
        except ValueError as exc:
            raise rejected(f"the client certificate {exc}") from None
        if principal is None:
            raise missing("the call has no credentials: send the metadata authorization: Bearer …")
        return principal

    async def watch(self) -> None:
        """Notice changes of the tokens and keys, for as long as the server runs."""
        async with asyncio.TaskGroup() as group:
            if self._jwt:
                group.create_task(self._jwt.keys.watch())
            if self._tokens:
                group.create_task(self._tokens.watch())

    async def _principal_of(self, token: str) -> str:
        if self._tokens and (known := self._tokens.value.find(token)):
            if known.has_expired(datetime.now(UTC)):
                raise expired(f"the token {known.id} of {known.principal} has expired")
            return known.principal
        if self._jwt and token.count(".") == 2:
            return await self._jwt.principal(token)
        raise rejected("the token is unknown")


def watched_policy(settings: Settings) -> WatchedFile[Policy] | None:
    """The policy file of the settings. Raises CannotServeError if it can't be used."""
    if settings.policy_file is None:
        return None
    parse = parse_policy if settings.authentication else parse_anonymous_policy
    policy = WatchedFile(settings.policy_file, parse)
    policy.load()
    return policy


def _verifier(settings: Settings) -> JwtVerifier | None:
    """The verifier of the settings; None: they accept no JWT."""
    if not settings.jwt_issuer:
        return None
    # Loaded on use, with an HTTP client.
    from wfe_persistence.access.jwt import JwtVerifier
    from wfe_persistence.access.keys import Keys

    try:
        keys = Keys(settings.jwt_jwks, ca=settings.jwt_jwks_ca, token=settings.jwt_jwks_token_file)
        keys.load()
    except ValueError as exc:
        raise CannotServeError(f"jwt-jwks: {settings.jwt_jwks}: {exc}") from exc
    try:
        return JwtVerifier(
            keys,
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            algorithms=frozenset(a.strip() for a in settings.jwt_algorithms.split(",")),
            claim=settings.jwt_principal_claim,
        )
    except ValueError as exc:
        raise CannotServeError(f"jwt-algorithms: {exc}") from exc
