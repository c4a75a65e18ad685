"""The order workflow, and the outside world in which it has its effects."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from examples.python.definition import (
    Context,
    Definition,
    Listener,
    Next,
    Sleep,
    StepFunction,
    StepResult,
    WaitFor,
    now,
)
from wfe_persistence_client import ABSENT, Event

PAID = "payment.confirmed"
SHIPPED = "order.shipped"

_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY, order_id TEXT, what TEXT, cents INT);
CREATE TABLE IF NOT EXISTS runs (seq INTEGER PRIMARY KEY AUTOINCREMENT,
    step TEXT, step_key TEXT, begins INT, worker TEXT, epoch INT);
COMMIT;
"""


class World:
    """Warehouse, bank, carrier and mail, in one SQLite file that survives any host."""

    def __init__(self, path: Path | str) -> None:
        self._db = sqlite3.connect(path, timeout=20, isolation_level=None)
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def effect(self, key: str, order_id: str, what: str, cents: int = 0) -> bool:
        """Performs an effect once per key; returns False if it was performed already."""
        done = self._db.execute(
            "INSERT OR IGNORE INTO effects VALUES (?, ?, ?, ?)", (key, order_id, what, cents)
        )
        return done.rowcount == 1

    def effects(self, order_id: str) -> list[str]:
        """The effects for an order, oldest first."""
        rows = self._db.execute(
            "SELECT what FROM effects WHERE order_id = ? ORDER BY rowid", (order_id,)
        )
        return [what for (what,) in rows]

    @contextmanager
    def run(self, context: Context) -> Iterator[None]:
        """Records when a run of a step begins and ends, and under which lease."""
        self._note(context, begins=True)
        try:
            yield
        finally:
            self._note(context, begins=False)

    def _note(self, context: Context, *, begins: bool) -> None:
        self._db.execute(
            "INSERT INTO runs (step, step_key, begins, worker, epoch) VALUES (?, ?, ?, ?, ?)",
            (
                context.step_name,
                context.key,
                begins,
                context.worker,
                context.epoch,
            ),
        )


class OutOfStockError(Exception):
    """The item is out of stock at present."""


class OrderWorkflow:
    """Reserve, charge, await the payment, cool off, ship, notify."""

    def __init__(self, world: World, *, work: timedelta = timedelta(milliseconds=20)) -> None:
        self._world = world
        self._work = work.total_seconds()
        self.listeners: dict[str, Listener] = {SHIPPED: self._send_mail}
        steps = (
            self._reserve_stock,
            self._charge,
            self._await_payment,
            self._cool_off,
            self._ship,
            self._notify,
        )
        self.definition = Definition(
            id="order",
            version=1,
            steps=[(step.__name__.lstrip("_"), self._noted(step)) for step in steps],
        )

    def _noted(self, step: StepFunction) -> StepFunction:
        async def run(context: Context) -> StepResult:
            with self._world.run(context):
                await asyncio.sleep(self._work)
                return await step(context)

        return run

    async def _reserve_stock(self, context: Context) -> StepResult:
        if context.attempt < 2:  # the delivery is late
            raise OutOfStockError(f"no {context.data['item']} on the shelf")
        self._world.effect(context.key, context.workflow_id, "reserved")
        return Next()

    async def _charge(self, context: Context) -> StepResult:
        cents = context.data["cents"]
        assert isinstance(cents, int)
        first = self._world.effect(context.key, context.workflow_id, "charged", cents)
        # Performed by this run or by an earlier one whose result was lost.
        return Next({"cents": cents, "first_run": first})

    async def _await_payment(self, context: Context) -> StepResult:
        if context.event_data is ABSENT:
            return WaitFor(PAID, context.workflow_id)
        context.data["payment"] = context.event_data
        return Next()

    async def _cool_off(self, context: Context) -> StepResult:
        if context.memory is ABSENT:
            return Sleep(now() + timedelta(milliseconds=300), remember={"since": str(now())})
        return Next()

    async def _ship(self, context: Context) -> StepResult:
        self._world.effect(context.key, context.workflow_id, "shipped")
        return Next(f"parcel-{context.workflow_id}")

    async def _notify(self, context: Context) -> StepResult:
        """Publishes an event upon which a worker, any, sends the mail after a delay."""
        mail = {"item": context.data["item"]}
        await context.publish(SHIPPED, context.workflow_id, mail, timedelta(milliseconds=200))
        return Next()

    async def _send_mail(self, event: Event) -> None:
        self._world.effect(f"mail/{event.id}", event.event_key, "notified")
