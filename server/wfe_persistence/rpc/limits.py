"""How much each principal and each namespace may use, as the policy file says: calls in progress,
calls per second, and what is stored.

What it costs a call does not depend on how many callers there are, one caller at its limit takes
nothing from another, and what is remembered of callers is bounded.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import grpc

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence.access.policy import Limit, Policy
from wfe_persistence.errors import PersistenceError
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.rpc.guard import Caller
from wfe_persistence.rpc.services import Method
from wfe_persistence.store.placement import side_by_side
from wfe_persistence.store.schema import is_namespace
from wfe_persistence.store.tables import Store
from wfe_persistence.store.usage import Usage, usage

log = logging.getLogger(__name__)
refusals = RecurringWarnings(log)

Context = grpc.aio.ServicerContext[Any, Any]

# Of how many idle callers it is remembered how much they have called just now, and of how many
# namespaces what they store. Who comes back after so many others begins anew.
_MAX_REMEMBERED: Final = 10_000

# When to try again if too many calls are in progress; it is not known when one of them will end.
_RETRY_AFTER: Final = 0.5

# What a caller at its limit of calls per second is asked to wait in addition, so that it is not a
# moment too early, and does not try very often, however high the limit is.
_MIN_RETRY_AFTER: Final = 0.01

# How often what a namespace stores is looked at while it is written to, and how long that may take.
_LOOK_SECONDS: Final = 5.0

_MB: Final = 1024 * 1024

Key = tuple[str, str]
"""A principal and a namespace; of what all use together, an empty one."""


class Limits:
    """Lets calls in within the limits of a policy, which may change. None: there are no limits."""

    def __init__(self, policy: Callable[[], Policy] | None) -> None:
        self._policy = policy
        self._accounts = Accounts()
        self.space = Space(policy)

    def admit(self, context: Context, caller: Caller, method: Method) -> None:
        """Count a call until its end. Raises CALLER_LIMITED or NAMESPACE_FULL.

        For RPCs that concern the whole server, only limits of the principal alone count.
        """
        if self._policy is None:
            return
        namespace, of_namespace, shares = self._shares(self._policy(), caller, method)
        if shares:
            self._accounts.enter(shares, context)
        if of_namespace and method.adds:
            self.space.require(of_namespace, namespace)

    async def pace(self, caller: Caller, method: Method) -> None:
        """Count one more request of a stream as a call, for the limits of calls per second; wait
        until it may come."""
        if self._policy is None or not method.is_bulk:
            return
        _, _, shares = self._shares(self._policy(), caller, method)
        wait = self._accounts.count(shares) if shares else 0.0
        while wait:  # for time to pass, so there is no event
            await asyncio.sleep(wait)
            wait = self._accounts.count(shares)

    @staticmethod
    def _shares(
        policy: Policy, caller: Caller, method: Method
    ) -> tuple[str, Limit | None, list[tuple[Key, Limit]]]:
        """The namespace of a call, its limit, and all limits that count for the call."""
        principal = caller.principal
        namespace = caller.namespace
        if method.server_wide or not is_namespace(namespace):
            namespace = ""
        limits = policy.limits(principal, namespace)
        shares: list[tuple[Key, Limit]] = []
        if limits.of_principal:
            shares.append(((principal, ""), limits.of_principal))
        if limits.of_namespace:
            shares.append((("", namespace), limits.of_namespace))
        if limits.of_both:
            shares.append(((principal, namespace), limits.of_both))
        return namespace, limits.of_namespace, shares

    def require_space(self, caller: Caller, method: Method) -> None:
        """Raise NAMESPACE_FULL if a call that lasts may not add more."""
        if self._policy is None or not method.adds or not is_namespace(caller.namespace):
            return
        limits = self._policy().limits(caller.principal, caller.namespace)
        if limits.of_namespace:
            self.space.require(limits.of_namespace, caller.namespace)


class Accounts:
    """What callers use of the limits of calls."""

    def __init__(self) -> None:
        self._busy: dict[Key, _Account] = {}
        # The one that became idle most recently last.
        self._idle: OrderedDict[Key, _Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._busy) + len(self._idle)

    def enter(self, shares: list[tuple[Key, Limit]], context: Context) -> None:
        """Count a call in all of them until its end, or raise CALLER_LIMITED and count it in
        none."""
        now = asyncio.get_running_loop().time()
        accounts = [(self._find(key), key, limit) for key, limit in shares]
        for account, key, limit in accounts:
            account.require_room(key, limit, now)
        for account, key, _ in accounts:
            account.tokens -= 1
            account.calls += 1
            self._idle.pop(key, None)
            self._busy[key] = account
            # Not when the handler returns: see Intake.
            context.add_done_callback(partial(self._leave, key, account))  # type: ignore[arg-type]

    def count(self, shares: list[tuple[Key, Limit]]) -> float:
        """Count one more call, of those that are in progress, in the calls per second. If there may
        be none now, count nothing and return after how many seconds to try again."""
        now = asyncio.get_running_loop().time()
        accounts = [(self._find(key), limit) for key, limit in shares]
        wait = max(account.wait_for_token(limit, now) for account, limit in accounts)
        if not wait:
            for account, _ in accounts:
                account.tokens -= 1
        return wait

    def _find(self, key: Key) -> _Account:
        account = self._busy.get(key)
        if account is None:
            account = self._idle.pop(key, None) or _Account()
            self._remember(key, account)
        return account

    def _leave(self, key: Key, account: _Account, _: object) -> None:
        account.calls -= 1
        if not account.calls:
            del self._busy[key]
            self._remember(key, account)

    def _remember(self, key: Key, account: _Account) -> None:
        self._idle[key] = account
        if len(self._idle) > _MAX_REMEMBERED:
            self._idle.popitem(last=False)


class _Account:
    """What one caller uses: its calls in progress, and a bucket of tokens, one for each call."""

    __slots__ = ("calls", "tokens", "updated")

    def __init__(self) -> None:
        self.calls = 0
        self.tokens = float("inf")  # full, whatever the limit
        self.updated = 0.0

    def require_room(self, key: Key, limit: Limit, now: float) -> None:
        """Raise CALLER_LIMITED if there can't be one more call."""
        if limit.max_calls is not None and self.calls >= limit.max_calls:
            raise _limited(key, "max_calls", limit.max_calls, _RETRY_AFTER)
        if wait := self.wait_for_token(limit, now):
            assert limit.calls_per_second is not None
            raise _limited(key, "calls_per_second", limit.calls_per_second, wait)

    def wait_for_token(self, limit: Limit, now: float) -> float:
        """After how many seconds there will be a token for a call; 0: there is."""
        rate = limit.calls_per_second
        if rate is None:
            self.tokens = float("inf")
            return 0.0
        self.tokens = min(limit.burst, self.tokens + (now - self.updated) * rate)
        self.updated = now
        return 0.0 if self.tokens >= 1 else (1 - self.tokens) / rate + _MIN_RETRY_AFTER


class Space:
    """Refuses what would add to namespaces that store as much as they may.

    What they store is known from looks in the background, so each may come to store more than its
    limit: by what is written between two looks.
    """

    def __init__(self, policy: Callable[[], Policy] | None) -> None:
        self._policy = policy
        # By namespace, what it stored at the last look, the latest look last.
        self._usage: OrderedDict[str, Usage] = OrderedDict()
        # Those to look at: written to since the last look, or full.
        self._due: dict[str, Store] = {}
        self._any_due = asyncio.Event()

    def require(self, limit: Limit, namespace: str) -> None:
        """Raise NAMESPACE_FULL if a namespace may not store more."""
        used = self._usage.get(namespace)
        reached = used and _reached(limit, used)
        if not reached:
            return
        name, value = reached
        refusals.warn_each(
            "NAMESPACE_FULL",
            namespace,
            f"writes are refused with NAMESPACE_FULL: {namespace} has reached {name} = {value}",
        )
        raise PersistenceError(
            ErrorReason.ERROR_REASON_NAMESPACE_FULL,
            f"the namespace stores as much as it may ({name} = {value})",
            metadata={"namespace": namespace, "limit": name, "value": str(value)},
        )

    def note(self, store: Store, method: Method) -> None:
        """Know that a call may add to a store, so that it is looked at if it has a limit."""
        if method.adds and store.namespace not in self._due and self._limit(store.namespace):
            self._due[store.namespace] = store
            self._any_due.set()

    async def watch(self) -> None:
        """Look at what is due, for as long as the server runs."""
        while True:
            await self._any_due.wait()
            due, self._due = self._due, {}
            for store, is_full in await side_by_side(due.values(), self._is_full):
                if is_full:
                    self._due[store.namespace] = store  # until it is not
            if not self._due:
                self._any_due.clear()
            await asyncio.sleep(_LOOK_SECONDS)

    async def _is_full(self, store: Store) -> bool:
        """Look at a store; returns whether it must be looked at again in any case."""
        limit = self._limit(store.namespace)
        if limit is None:
            return False
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                used = await usage(store, limit.max_rows)
        except Exception as exc:  # whatever it is, the other namespaces are still looked at
            why = repr(exc) if not str(exc) else exc
            refusals.warn("usage", f"{store.namespace}: can't tell how much it stores: {why}")
            return True
        self._usage.pop(store.namespace, None)
        self._usage[store.namespace] = used
        if len(self._usage) > _MAX_REMEMBERED:
            self._usage.popitem(last=False)
        return _reached(limit, used) is not None

    def _limit(self, namespace: str) -> Limit | None:
        """The limit of what a namespace stores."""
        if self._policy is None:
            return None
        limit = self._policy().limits("", namespace).of_namespace
        return limit if limit and (limit.max_rows or limit.max_mb) else None


def _reached(limit: Limit, used: Usage) -> tuple[str, int] | None:
    """The limit that is reached, and its value; None: there is space."""
    if limit.max_rows is not None and used.rows >= limit.max_rows:
        return "max_rows", limit.max_rows
    if limit.max_mb is not None and used.disk_bytes >= limit.max_mb * _MB:
        return "max_mb", limit.max_mb
    return None


def _limited(key: Key, name: str, value: float, retry_after: float) -> PersistenceError:
    principal, namespace = key
    whose = " in ".join(filter(None, key))
    refusals.warn_each(
        "CALLER_LIMITED",
        whose,
        f"calls are refused with CALLER_LIMITED: {whose} has reached {name} = {value}",
    )
    what = "calls in progress" if name == "max_calls" else "calls per second"
    metadata = {"principal": principal, "namespace": namespace}
    return PersistenceError(
        ErrorReason.ERROR_REASON_CALLER_LIMITED,
        f"{whose} has the maximum of {value} {what}",
        metadata={
            "limit": name,
            "value": str(value),
            **{k: v for k, v in metadata.items() if v},
        },
        retry_after=retry_after,
    )
