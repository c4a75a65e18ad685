"""What the console changes, with `--console-write`: each is one call, on the state that was seen.

What happens to a workflow is what the command line means by the same word, too: see
`wfe_persistence_client.administration`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Final

from wfe.persistence.v1 import subscription_pb2
from wfe_persistence_client import PersistenceError, SubscriptionClaim
from wfe_persistence_client.administration import Administration, Change, NotChanged
from wfe_persistence_console.link import Caller, refusal
from wfe_persistence_console.shapes import Shape
from wfe_persistence_console.web import Refusal, Request

# Who holds the lock on a workflow that is being changed, and who it was, as its events tell.
_BY: Final = "the console of wfe-persistence"

Action = Callable[[Caller, Request], Awaitable[Shape]]

LONGEST_SECONDS: Final = 30.0
"""How long an action may take, with all its calls and their repetitions."""


def _number(request: Request, name: str) -> int:
    text = request.field(name)
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", f"{name}: is not a number")
    return int(text)


async def _change(caller: Caller, request: Request, verb: str) -> Shape:
    """Give the workflow another status, if it still is as it was seen."""
    revision = _number(request, "revision")
    administration = Administration(caller.provider(), by=_BY)
    change: Change = await getattr(administration, verb)(
        request.field("id"), expected_revision=revision
    )
    if not change.changed:
        raise Refusal(
            HTTPStatus.CONFLICT, "WRONG_STATUS", f"the workflow is {change.status.name} already"
        )
    return {"revision": str(change.revision)}


async def delete(caller: Caller, request: Request) -> Shape:
    """A workflow is gone."""
    await Administration(caller.provider(), by=_BY).delete(
        request.field("id"), expected_revision=_number(request, "revision")
    )
    return {}


async def release_subscription(caller: Caller, request: Request) -> Shape:
    """A claim on a subscription is taken from its worker, if it still is the one that was seen."""
    found = await caller.call(
        caller.stubs.subscriptions.GetSubscription,
        subscription_pb2.GetSubscriptionRequest(id=request.field("id")),
    )
    held = found.subscription
    epoch = _number(request, "epoch")
    if not held.HasField("external_token") or held.external_token_epoch != epoch:
        raise Refusal(HTTPStatus.CONFLICT, "NOT_HELD", "this claim is over already")
    await caller.provider().release_subscription(
        SubscriptionClaim(
            subscription_id=held.id, token=held.external_token, epoch=epoch if epoch else None
        )
    )
    return {}


async def break_lock(caller: Caller, request: Request) -> Shape:
    """A lock is taken from its holder, if it still is the one that was seen."""
    broken = await caller.provider().break_lock(
        request.field("resource"), epoch=_number(request, "epoch")
    )
    if broken is None:
        raise Refusal(HTTPStatus.CONFLICT, "NOT_HELD", "this lock is over already")
    return {}


ACTIONS: Final[dict[str, Action]] = {
    **{verb: partial(_change, verb=verb) for verb in ("suspend", "resume", "terminate")},
    "delete": delete,
    "release-subscription": release_subscription,
    "break-lock": break_lock,
}
"""By the path below `api/`."""


async def act(action: Action, caller: Caller, request: Request) -> Shape:
    """Do it. Raises Refusal."""
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            return await action(caller, request)
    except TimeoutError as exc:
        raise Refusal(
            HTTPStatus.GATEWAY_TIMEOUT,
            "TIMEOUT",
            f"the server has not answered within {LONGEST_SECONDS:.0f} s: whether it was done, the "
            "page shows when it is read again",
        ) from exc
    except PersistenceError as exc:
        raise refusal(exc) from exc
    except NotChanged as exc:
        raise Refusal(HTTPStatus.CONFLICT, "WRONG_STATUS", f"the workflow {exc}") from exc
    except (TypeError, ValueError) as exc:  # the provider's: what can't be sent
        raise Refusal(HTTPStatus.BAD_REQUEST, "MALFORMED", str(exc)) from exc
