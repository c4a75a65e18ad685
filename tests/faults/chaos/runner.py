"""One run: start everything, wait for the load, inject the fault, wait until the service has
resumed, and check."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg

from tests.faults.chaos.check import check, read_stored
from tests.faults.chaos.faults import Fault
from tests.faults.chaos.history import Call, History
from tests.faults.chaos.stage import NotPossibleHereError, Stage
from tests.faults.chaos.tags import EVENT_NAME, SHARED_SUBSCRIPTIONS, SHARED_WORKFLOWS, tagged
from tests.faults.chaos.watcher import Watcher
from tests.support import make
from tests.support.api import Api, connect
from tests.support.binaries import BinariesError
from wfe.persistence.v1 import store_pb2, subscription_pb2, workflow_pb2

LEAST_RATE = 100
"""Acknowledged writes a second before the fault, below which a run proves nothing."""
WARM_UP_SECONDS = 60.0
_RESUME_SECONDS = 40.0
_READS = {"load", "get_event"}


@dataclass
class Result:
    """What came of one run."""

    fault: str
    seed: int
    verdict: str = "passed"
    """`passed`, `FAILED`, `invalid` (too little load to prove anything) or `skipped`."""
    notes: list[str] = field(default_factory=list)
    """Each violation; or why the run is invalid or was skipped."""
    calls: int = 0
    ok: int = 0
    errors: int = 0
    """Calls that had certainly no effect."""
    maybe: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    """What the calls that failed got, by status and reason."""
    rate: float = 0.0
    """Acknowledged writes a second before the fault."""
    fault_seconds: float = 0.0
    resumed_seconds: float | None = None
    """From when the fault was lifted to when every client had a write acknowledged; None: never."""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Clients:
    """The client processes and their histories."""

    def __init__(
        self, number: int, stage: Stage, directory: Path, seed: str, namespace: str, *, twice: bool
    ) -> None:
        self.histories: list[History] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for i in range(number):
            path = directory / f"client-{i}.jsonl"
            self.histories.append(History(path))
            command = [
                sys.executable, "-m", "tests.faults.chaos.client", *stage.addresses,
                "--name", f"client-{i}", "--history", str(path), "--seed", f"{seed} {i}",
                "--namespace", namespace, *(["--twice"] if twice else []),
            ]  # fmt: skip
            with (directory / f"client-{i}.log").open("wb") as log:
                self._processes.append(
                    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                )
        self._directory = directory

    def read_on(self) -> list[list[Call]]:
        """What has returned since the last time, by client."""
        for i, process in enumerate(self._processes):
            if process.poll() not in (None, 0, -9):
                log = (self._directory / f"client-{i}.log").read_text()
                raise AssertionError(f"client {i} ended with {process.returncode}:\n{log[-3000:]}")
        return [list(history.read_on()) for history in self.histories]

    def alive(self, number: int) -> bool:
        return self._processes[number].poll() is None

    def kill_one(self, random_: random.Random) -> None:
        """SIGKILL of a client; what it held becomes free by itself."""
        process = random_.choice(self._processes)
        process.kill()
        process.wait()

    async def stop(self) -> None:
        """Let each end what it has begun."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            await asyncio.to_thread(process.wait, 60)
        self.read_on()

    def kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()


class Auditor:
    """A reader in the middle: looks at the tables all the time, by its own connection, each time in
    one snapshot."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._stop = False
        self.looks = 0
        self.violations: set[str] = set()
        self._sql = f"""
            WITH tags AS (
                SELECT w.id, w.data #>> '{{}}' AS tag,
                    (SELECT count(*) FROM {stage.schema}.execution_pointers p
                        WHERE p.workflow_id = w.id AND p.outcome IS DISTINCT FROM w.data)
                        AS strange,
                    (SELECT array_agg(s.subscription_data #>> '{{}}')
                        FROM {stage.schema}.event_subscriptions s WHERE s.workflow_id = w.id)
                        AS subscribed
                FROM {stage.schema}.workflows w
            )
            SELECT id, tag, strange, subscribed FROM tags
            WHERE strange > 0 OR (id LIKE 'commit-%' AND coalesce(subscribed, '{{}}') <>
                CASE WHEN tag LIKE 'create %' THEN '{{}}' ELSE ARRAY[tag] END)
        """

    async def run(self) -> None:
        await asyncio.to_thread(self._run)

    def stop(self) -> None:
        self._stop = True

    def _run(self) -> None:
        while not self._stop:
            try:
                with self._stage.postgres.connect() as connection:
                    connection.execute("SET lock_timeout = '200ms'")
                    while not self._stop:
                        for row in connection.execute(self._sql.encode()):
                            self.violations.add(f"I2 in the tables: {row}")
                        self.looks += 1
                        time.sleep(0.05)
            except psycopg.Error:  # the fault
                time.sleep(0.1)


async def run(
    fault: Fault,
    seed: int,
    run_dir: Path,
    *,
    clients: int = 4,
    planted: str = "",
    keep: Path | None = None,
) -> Result:
    """Run a fault once, with its data below `run_dir`, a short path.

    `planted`: with this bug in the server. `keep`: where to copy the histories and logs of a run
    that does not pass.
    """
    result = Result(fault.name, seed)
    random_ = random.Random(f"{fault.name} {seed}")
    begin = time.monotonic()
    try:
        async with Stage(replace(fault.layout, planted=planted), random_, run_dir) as stage:
            await run_on(stage, fault, result, random_, clients, "")
            if keep is not None and result.verdict not in ("passed", "skipped"):
                shutil.copytree(
                    stage.directory, keep / f"{fault.name}-{seed}", dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("pg", "wal", "program", ".s.*"),
                )  # fmt: skip
    except (NotPossibleHereError, BinariesError) as exc:
        result.verdict, result.notes = "skipped", [str(exc)]
    result.seconds = time.monotonic() - begin
    return result


async def run_on(
    stage: Stage, fault: Fault, result: Result, random_: random.Random, number: int, namespace: str
) -> None:
    """Run a fault once on a stage, in an empty namespace, and fill the result in."""
    directory = stage.directory / f"clients{namespace}"
    directory.mkdir()
    watcher = Watcher(stage, namespace)
    await _prepare(stage, namespace, watcher)
    clients = Clients(
        number, stage, directory, f"{result.seed}", namespace, twice=fault.layout.twice
    )
    stage.kill_client = clients.kill_one
    auditor = Auditor(stage)
    auditing = asyncio.create_task(auditor.run())
    try:
        result.rate = await _warm_up(clients, random_)
        if result.rate < LEAST_RATE:
            result.verdict = "invalid"
            result.notes = [f"only {result.rate:.0f} acknowledged writes a second before the fault"]
            return
        injected = time.monotonic()
        try:
            await fault.inject(stage, random_)
        except AssertionError as exc:
            result.notes.append(f"{exc}")
        lifted = time.monotonic()
        result.fault_seconds = lifted - injected
        result.resumed_seconds = await _resumed(clients, lifted)
        if result.resumed_seconds is None:
            result.notes.append(f"a client had no write acknowledged for {_RESUME_SECONDS:.0f} s")
        else:
            await asyncio.sleep(random_.uniform(0.5, 1))
        await clients.stop()
        ids = {c.what["id"] for h in clients.histories for c in h.calls if c.op == "create"}
        async with connect(stage.addresses[-1], namespace=namespace) as channel:
            stored = await read_stored(Api(channel), ids | set(SHARED_WORKFLOWS))
        result.notes += check(clients.histories, stored)
        result.notes += await watcher.check(stored)
        result.notes += sorted(auditor.violations)[:20]
        if auditor.looks == 0:
            result.notes.append("I2 could not be seen: nobody could look at the tables")
        for server in stage.servers:
            result.notes += [f"I6 a server logged: {line}" for line in _errors(server.log())]
    finally:
        auditor.stop()
        clients.kill()
        await watcher.stop()
        await auditing
        _count(result, clients)
        if result.notes and result.verdict == "passed":
            result.verdict = "FAILED"


def _errors(log: str) -> list[str]:
    """What a server took for an error."""
    records = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [
        f"{record['message']}\n{record.get('exception', '')}"[:2000] for record in records
        if record["level"] == "error"
    ][:3]  # fmt: skip


async def _prepare(stage: Stage, namespace: str, watcher: Watcher) -> None:
    stage.schema = f"wfc_{namespace}" if namespace else "wfc"
    async with connect(stage.addresses[0]) as channel:
        api = Api(channel)
        if namespace:
            await api.store.CreateNamespace(store_pb2.CreateNamespaceRequest(name=namespace))
    await watcher.start()
    async with connect(stage.addresses[0], namespace=namespace) as channel:
        api = Api(channel)
        for id_ in SHARED_WORKFLOWS:
            await api.workflows.CreateNewWorkflow(
                workflow_pb2.CreateNewWorkflowRequest(instance=tagged(id_, f"create {id_}", 3))
            )
        for id_ in SHARED_SUBSCRIPTIONS:
            await api.subscriptions.CreateEventSubscription(
                subscription_pb2.CreateEventSubscriptionRequest(
                    subscription=make.subscription(
                        id=id_, workflow_id="nobody", event_name=EVENT_NAME
                    )
                )
            )


async def _warm_up(clients: Clients, random_: random.Random) -> float:
    """Wait until there is load, and then for a moment that the seed chooses. Returns the
    acknowledged writes a second of the last two seconds."""
    deadline = time.monotonic() + WARM_UP_SECONDS
    recent: list[float] = []
    rate = 0.0
    ready_for = random_.uniform(0.2, 1.0)
    reached: float | None = None
    while time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        by_client = clients.read_on()
        recent += [
            call.end for calls in by_client for call in calls
            if call.ok and call.end and call.op not in _READS
        ]  # fmt: skip
        now = time.monotonic()
        recent = [at for at in recent if at > now - 2]
        rate = len(recent) / 2
        if rate < LEAST_RATE:
            reached = None
        elif reached is None:
            reached = now
        elif now - reached > ready_for:
            break
    return rate


async def _resumed(clients: Clients, lifted: float) -> float | None:
    """The time until each client that lives had a write acknowledged that it began afterwards."""
    first: dict[int, float] = {}
    deadline = time.monotonic() + _RESUME_SECONDS
    while time.monotonic() < deadline:
        for i, calls in enumerate(clients.read_on()):
            for call in calls:
                if call.ok and call.op not in _READS and call.start >= lifted and call.end:
                    first.setdefault(i, call.end - lifted)
        if all(i in first or not clients.alive(i) for i in range(len(clients.histories))):
            return max(first.values())
        await asyncio.sleep(0.02)
    return None


def _count(result: Result, clients: Clients) -> None:
    codes: Counter[str] = Counter()
    for history in clients.histories:
        for call in history.calls:
            result.calls += 1
            if call.ok:
                result.ok += 1
                continue
            if call.maybe:
                result.maybe += 1
            else:
                result.errors += 1
            codes[f"{call.code or 'no return'} {call.reason}".strip()] += 1
    result.codes = dict(codes.most_common())
