"""A workflow host: starts orders, pays them, and runs them until all are complete.

    python -m examples.python.host --target 127.0.0.1:50052 --workers 2 --orders 5

With `--role worker` it runs whatever is due until SIGTERM; any number of such hosts may
run. With `--role client` it starts and pays the orders and waits for them.
"""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from examples.python.definition import EVENTS
from examples.python.engine import Engine, log, start_workflow
from examples.python.order import PAID, SHIPPED, OrderWorkflow, World
from wfe_persistence_client import (
    JSON,
    Event,
    EventAlreadyExists,
    PersistenceError,
    PersistenceProvider,
    PointerStatus,
    QueueItem,
    RetryPolicy,
    Tls,
    WorkflowInstance,
    WorkflowStatus,
    connect,
)

_PRICES = {"kettle": 2995, "teapot": 1850, "cup": 650}


class Client:
    """A client that places orders, and pays half of them immediately and half on
    demand.

    A client that is restarted with the same order numbers continues.
    """

    def __init__(self, store: PersistenceProvider, orders: OrderWorkflow, ids: list[str]) -> None:
        self._store = store
        self._orders = orders
        self._ids = ids
        self._paid: set[str] = set()

    async def run(self, stop: asyncio.Event) -> bool:
        """Orders, pays and waits; returns False if stopped before all orders are complete."""
        for number, order_id in enumerate(self._ids):
            item, cents = list(_PRICES.items())[number % len(_PRICES)]
            data: JSON = {"item": item, "cents": cents}
            if await start_workflow(self._store, self._orders.definition, order_id, data):
                log.info("client  %s  ordered a %s", order_id, item)
            if number % 2 == 0:
                await self._pay(order_id)  # long before the workflow waits for it
        while not stop.is_set():
            orders = await self._store.get_workflow_instances(self._ids)
            for order in orders:
                if order.execution_pointers[-1].status is PointerStatus.WAITING_FOR_EVENT:
                    await self._pay(order.id)
            if all([await self._over(order) for order in orders]):
                return True
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.1)
        return False

    async def _pay(self, order_id: str) -> None:
        if order_id in self._paid:
            return
        self._paid.add(order_id)
        event = Event(
            id=f"payment-{order_id}",
            event_name=PAID,
            event_key=order_id,
            event_data={"receipt": f"R-{order_id}"},
        )
        with suppress(EventAlreadyExists):
            await self._store.create_event(event, enqueue=[QueueItem(queue=EVENTS, id="")])
            log.info("client  %s  paid", order_id)

    async def _over(self, order: WorkflowInstance) -> bool:
        """Whether the order is complete and its mail has been sent."""
        if order.status is not WorkflowStatus.COMPLETE:
            return order.status is WorkflowStatus.TERMINATED
        mails = await self._store.get_events(SHIPPED, order.id)
        return bool(mails) and (await self._store.get_event(mails[0])).is_processed


async def print_table(store: PersistenceProvider, world: World, ids: list[str]) -> None:
    """Prints the state of the orders, in the store and in the outside world."""
    row = "{:14} {:10} {:>8} {:>7} {:>6}  {}"
    print(row.format("order", "status", "revision", "retries", "errors", "effects"))
    for order in await store.get_workflow_instances(ids):
        print(
            row.format(
                order.id,
                order.status.name.lower(),
                order.revision,
                sum(pointer.retry_count for pointer in order.execution_pointers),
                len(await store.list_errors(order.id)),
                " ".join(world.effects(order.id)),
            ),
            flush=True,
        )


async def host(options: argparse.Namespace) -> bool:
    """Runs the role; returns False if the orders were not complete when it was stopped."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    ids = [f"order-{options.batch}-{number}" for number in range(1, options.orders + 1)]
    # As many attempts as fit in the timeout, so that the host waits for a restarting
    # server.
    patience = RetryPolicy(max_attempts=1000, max_backoff=0.5)
    with closing(World(options.world)) as world:
        orders = OrderWorkflow(world, work=timedelta(seconds=options.work))
        async with connection(options.target, timeout=options.patience, retry=patience) as store:
            engine = Engine(
                store,
                [orders.definition],
                orders.listeners,
                name=f"{socket.gethostname()}-{os.getpid()}",
                lease=timedelta(seconds=options.lease),
            )
            if options.role == "worker":
                log.info("running until SIGTERM")
                await engine.run(options.workers, stop)
                return True
            client = Client(store, orders, ids)
            if options.role == "client":
                complete = await client.run(stop)
            else:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(engine.run(options.workers, stop))
                    complete = await client.run(stop)
                    stop.set()
            await print_table(store, world, ids)
            return complete


def connection(target: str, *, timeout: float, retry: RetryPolicy) -> PersistenceProvider:
    """A connection as the environment says; see README.md."""
    ca, token_file = os.environ.get("WFE_TLS_CA"), os.environ.get("WFE_TOKEN_FILE")
    tls = Tls(ca=ca, cert=os.environ.get("WFE_TLS_CERT"), key=os.environ.get("WFE_TLS_KEY"))
    return connect(
        target,
        tls=tls if ca else None,
        token=None if token_file else os.environ.get("WFE_TOKEN"),
        token_file=token_file,
        timeout=timeout,
        retry=retry,
    )


async def check_server(target: str) -> None:
    """Raises at once if there is no server; a host that runs waits for one that is away."""
    async with connection(target, timeout=5, retry=RetryPolicy(max_attempts=1)) as store:
        await store.get_store_info()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Says in one line what is wrong with the arguments."""
        self.exit(1, f"{self.prog}: {message}\n")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.001 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"must be 0.001 to 86400 seconds, not {text!r}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the host; returns the exit code."""
    parser = _Parser(prog="python -m examples.python.host", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--target", default="127.0.0.1:50052", help="address of the server")
    parser.add_argument("--role", choices=("worker", "client", "all"), default="all")
    parser.add_argument(
        "--workers", type=_count, default=2, help="maximum number of concurrent steps"
    )
    parser.add_argument("--orders", type=_count, default=5, help="number of orders to start")
    parser.add_argument(
        "--batch", default=str(os.getpid()), help="part of the order ids; reuse it to continue"
    )
    parser.add_argument("--lease", type=_seconds, default=10.0, help="lease duration in seconds")
    parser.add_argument("--work", type=_seconds, default=0.02, help="duration of a step in seconds")
    parser.add_argument(
        "--patience",
        type=_seconds,
        default=15.0,
        help="how long to wait for a server that is away, in seconds",
    )
    parser.add_argument(
        "--world",
        type=Path,
        default=Path(tempfile.gettempdir()) / "wfe-example-world.sqlite3",
        help="the file that records the effects",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format="%(relativeCreated)6d ms  %(message)s"
    )
    try:
        asyncio.run(check_server(options.target))
    except (PersistenceError, ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    try:
        complete = asyncio.run(host(options))
    except* (PersistenceError, sqlite3.OperationalError) as failures:
        # In a group, because it ended the other tasks of the host.
        complete = False
        failure: BaseException = failures
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        what = f"{options.world}: " if isinstance(failure, sqlite3.OperationalError) else ""
        print(f"{parser.prog}: {what}{failure}", file=sys.stderr)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
