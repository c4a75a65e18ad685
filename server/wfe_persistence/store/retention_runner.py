"""The task that applies the retention policies of all namespaces."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence import metrics
from wfe_persistence.errors import PersistenceError
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.store.feed import PASSING
from wfe_persistence.store.namespace import Namespaces
from wfe_persistence.store.occupied import occupied_stores
from wfe_persistence.store.placement import side_by_side
from wfe_persistence.store.retention import DELETED_KINDS, RULES_TABLE, Rule, batch, rules
from wfe_persistence.store.rows import text
from wfe_persistence.store.tables import Store

log = logging.getLogger(__name__)
warnings = RecurringWarnings(log)

# How many batches of a rule are deleted before others have their turn.
_BATCHES: Final = 20

# However often it is asked for.
_LEAST_SECONDS: Final = 1.0

# After each batch at least: hosts come first.
_PAUSE_SECONDS: Final = 0.05


class Retention:
    """The retention of all namespaces.

    `seconds`: how often to look for what the policies let go. `rows_per_second`: how many rows to
    delete at most. `purged`: to be told of a store in which workflows were deleted.
    """

    def __init__(
        self,
        namespaces: Namespaces,
        seconds: float,
        rows_per_second: int,
        purged: Callable[[Store], None],
    ) -> None:
        self._namespaces = namespaces
        self._seconds = max(seconds, _LEAST_SECONDS)
        self._rows_per_second = rows_per_second
        self._purged = purged
        self._is_running = False
        self._asked: dict[str, Store] = {}
        self._is_asked = asyncio.Event()

    def run_soon(self, store: Store) -> None:
        """Look at a store now, rather than at the next time, unless this server does so never."""
        if not self._is_running:
            return
        self._asked[store.namespace] = store
        self._is_asked.set()

    async def run(self) -> None:
        """Apply the policies for as long as the server runs."""
        metrics.RETENTION_BUDGET.values[()] = self._rows_per_second
        for kind in DELETED_KINDS:
            metrics.RETENTION_DELETED.add((kind,), 0)  # so that the first deletion is an increase
        self._is_running = True
        loop = asyncio.get_running_loop()
        next_look = loop.time() + self._pause()
        unfinished: list[Store] = []
        while True:
            if not unfinished:
                try:
                    async with asyncio.timeout_at(next_look):
                        await self._is_asked.wait()
                except TimeoutError:
                    pass
            self._is_asked.clear()
            stores = {store.namespace: store for store in unfinished} | self._asked
            self._asked = {}
            if loop.time() >= next_look:
                next_look = loop.time() + self._pause()
                try:
                    for store in await occupied_stores(self._namespaces, RULES_TABLE):
                        stores.setdefault(store.namespace, store)
                except Exception as exc:  # whatever it is, the next look may succeed
                    warnings.warn("list", f"retention can't find policies: {exc or repr(exc)}")
            done = await side_by_side(stores.values(), self._apply)
            unfinished = [store for store, is_finished in done if not is_finished]

    def _pause(self) -> float:
        # With jitter: servers that are started together do not all ask at the same time. More often
        # than is needed, as others may have had the last turn.
        return self._seconds / 2 * random.uniform(0.75, 1.25)

    async def _apply(self, store: Store) -> bool:
        """Apply what is due of one namespace's policy, or a part of it; whether that was all."""
        is_finished = True
        try:
            due = await rules(store, due=True)
            if due:
                # Not what this release is too old for, nor what others own.
                store = await self._namespaces.get(store.namespace)
            for rule in due:
                is_finished = await self._delete(store, rule) and is_finished
        except PersistenceError as exc:
            # Deleted, or not migrated yet; or the next look succeeds.
            if exc.reason not in {ErrorReason.ERROR_REASON_SCHEMA_OUTDATED, *PASSING}:
                warnings.warn(store.namespace, f"retention: {store.namespace}: {exc}")
            return True
        except Exception as exc:
            warnings.warn(store.namespace, f"retention: {store.namespace}: {exc or repr(exc)}")
            return True
        return is_finished

    async def _delete(self, store: Store, rule: Rule) -> bool:
        """Delete some batches by a rule; whether that was all."""
        rate = self._rows_per_second
        turn = (text(rule.id), repr(float(self._seconds)).encode(), repr(1 / rate).encode())
        for _ in range(_BATCHES):
            done = await batch(store, rule, rate, *turn)
            for kind, rows in done.counts.items():
                if rows:
                    metrics.RETENTION_DELETED.add((kind,), rows)
            if done.counts.get("workflows"):
                self._purged(store)
            if done.rows:
                log.info(
                    "%s: retention deleted %s",
                    store.namespace,
                    ", ".join(f"{n} {kind}" for kind, n in done.counts.items() if n),
                )
            if done.is_last:
                return True
            # Of a rule without a cursor, the next batch begins at the beginning.
            rule = replace(rule, after=done.next)
            # By the database's clock the next batch is due by then: it took the time before it
            # answered.
            await asyncio.sleep(max(_PAUSE_SECONDS, done.rows / rate))
        return False
