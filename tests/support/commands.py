"""Commands of one test's own, in a store that others use too."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from google.protobuf.duration_pb2 import Duration

from tests.support import make
from tests.support.api import Api
from tests.support.expect import eventually, failure_of
from wfe.persistence.v1.command_pb2 import (
    ClaimedCommand,
    RenewCommandsRequest,
    ScheduledCommand,
)


def tokens(claims: Iterable[ClaimedCommand]) -> list[str]:
    return [claim.lease_token for claim in claims]


def commands(claims: Iterable[ClaimedCommand]) -> list[ScheduledCommand]:
    return [claim.command for claim in claims]


class OwnCommands:
    """Schedules commands, claims none but those, and leaves none behind.

    A claim can't say whose commands it wants. So these are due long before the year 1, the first
    that anybody can claim for, and what is claimed of others is given back.
    """

    def __init__(self, api: Api) -> None:
        self.api = api
        self._base = random.randrange(-(2**63), -(2**62))
        self._data: set[str] = set()
        self._tokens: list[str] = []

    def new(self, at: int = 0, **fields: Any) -> ScheduledCommand:
        """A command due so many milliseconds after a time of the test's own."""
        command = make.command(**({"execute_time": self._base + at} | fields))
        self._data.add(command.data)
        return command

    async def schedule(self, at: int = 0, **fields: Any) -> ScheduledCommand:
        """A new command, scheduled."""
        command = self.new(at, **fields)
        await self.api.schedule_command(command)
        return command

    async def claim(self, **fields: Any) -> list[ClaimedCommand]:
        """Claim what is due by the year 1."""
        claims = await self.api.claim_commands(
            **({"as_of": make.FIRST_TIME, "limit": 1000} | fields)
        )
        own = self.hold(claims)
        if strange := [claim for claim in claims if claim.command.data not in self._data]:
            await self.api.release_commands(*tokens(strange))
        return own

    def hold(self, claims: Iterable[ClaimedCommand]) -> list[ClaimedCommand]:
        """Those of this test, which are then not left behind under their leases."""
        own = [claim for claim in claims if claim.command.data in self._data]
        self._tokens += tokens(own)
        return own

    async def reclaim(self) -> ClaimedCommand:
        """Claim the one command whose lease is about to expire."""
        claims: list[ClaimedCommand] = []

        async def claimed() -> bool:
            claims.extend(await self.claim())
            return bool(claims)

        await eventually(claimed)
        [claim] = claims
        return claim

    async def renew(self, *lease_tokens: str) -> bool:
        """Whether all of these are still held; renewed for an hour then."""
        request = RenewCommandsRequest(
            lease_tokens=lease_tokens, lease_duration=Duration(seconds=3600)
        )
        return (await self.api.commands.RenewCommands(request)).HasField("lease_expiry")

    async def finish(self) -> None:
        for token in self._tokens:
            await failure_of(self.api.complete_commands(token))
        while left := await self.claim():
            await self.api.complete_commands(*tokens(left))
