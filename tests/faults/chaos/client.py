"""One client process: `python -m tests.faults.chaos.client --help`.

It keeps several tasks busy that write, hold and read, and records each call. SIGTERM lets it finish
what it has begun.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from google.protobuf.duration_pb2 import Duration

from tests.faults.chaos.calls import Calls
from tests.faults.chaos.history import Recorder
from tests.faults.chaos.tags import (
    EVENT_NAME,
    QUEUE,
    SHARED_RESOURCES,
    SHARED_SUBSCRIPTIONS,
    SHARED_WORKFLOWS,
    tagged,
    tagged_pointers,
    tags_of,
)
from tests.support import make
from tests.support.api import Api, connect
from wfe.persistence.v1 import command_pb2, event_pb2, lock_pb2, subscription_pb2, workflow_pb2


def _milliseconds(duration: float) -> Duration:
    seconds, milliseconds = divmod(round(duration * 1000), 1000)
    return Duration(seconds=seconds, nanos=milliseconds * 10**6)


def _seconds(time_: Any) -> float:
    return float(time_.seconds + time_.nanos / 1e9)


@dataclass
class Known:
    """What a client knows of a workflow."""

    id: str
    tag: str
    revision: int
    pointers: int


@dataclass
class _Chain:
    """The writes to a workflow of one's own, until it is left for a new one."""

    kind: str
    write: Callable[[Known], Awaitable[Known | None]]
    id: str = ""
    known: Known | None = None


class Client:
    """The tasks of one process, and what they share."""

    def __init__(self, calls: Calls, random_: random.Random) -> None:
        self._calls = calls
        self._random = random_
        self._events: list[str] = []

    async def run(self) -> None:
        """Until told to stop."""
        lag = asyncio.create_task(self._calls.watch_lag())
        roles = [self._write_own, self._write_own, self._write_own, self._write_shared,
                 self._hold, self._lock, self._work, self._read]  # fmt: skip
        await asyncio.gather(*(role() for role in roles))
        lag.cancel()

    # Workflows and events.

    async def _create_workflow(self, kind: str) -> Known | None:
        id_ = f"{kind}-{uuid.uuid4()}"
        tag, pointers = f"create {id_}", self._random.randint(2, 4)
        outcome = await self._calls.write_until_known(
            "create", lambda api: api.workflows.CreateNewWorkflow,
            workflow_pb2.CreateNewWorkflowRequest(instance=tagged(id_, tag, pointers)),
            {"id": id_, "tag": tag}, lambda answer: {"revision": answer.revision},
        )  # fmt: skip
        return Known(id_, tag, outcome.answer.revision, pointers) if outcome.ok else None

    async def _load(self, id_: str) -> Known | None:
        outcome = await self._calls.once(
            "load", lambda api: api.workflows.GetWorkflowInstance,
            workflow_pb2.GetWorkflowInstanceRequest(id=id_),
            {"id": id_},
            lambda answer: {
                "revision": answer.instance.revision, "tags": tags_of(answer.instance)
            },
        )  # fmt: skip
        if not outcome.ok:
            return None
        instance = outcome.answer.instance
        return Known(id_, tags_of(instance)[0], instance.revision, len(instance.execution_pointers))

    async def _commit(self, known: Known) -> Known | None:
        """The workflow's next state with all that belongs to it; None: it must be loaded again."""
        tag, pointers = str(uuid.uuid4()), self._random.randint(2, 4)
        request = workflow_pb2.CommitWorkflowRequest(
            expected_revision=known.revision,
            request_id=tag,
            create_events=[
                make.event(id=f"e {tag}", event_name=EVENT_NAME, event_key=known.id)
            ],
            schedule_commands=[make.command(data=f"c {tag}")],
            enqueue=[make.item(QUEUE, id=f"e {tag}")],
        )  # fmt: skip
        if known.id not in SHARED_WORKFLOWS:
            request.create_subscriptions.append(
                make.subscription(
                    id=f"s {tag}", workflow_id=known.id, event_name=EVENT_NAME,
                    subscription_data_json=json.dumps(tag),
                )
            )  # fmt: skip
            if not known.tag.startswith("create "):
                request.terminate_subscription_ids.append(f"s {known.tag}")
        if self._random.random() < 0.5:
            request.instance.CopyFrom(tagged(known.id, tag, pointers))
        else:
            pointers = known.pointers
            request.patch.CopyFrom(
                make.patch(
                    known.id,
                    data_json=json.dumps(tag),
                    execution_pointers=tagged_pointers(tag, pointers),
                )
            )
        outcome = await self._calls.write_until_known(
            "commit", lambda api: api.workflows.CommitWorkflow, request,
            {"id": known.id, "tag": tag, "expected": known.revision},
            lambda answer: {"revision": answer.revision},
        )  # fmt: skip
        if not outcome.ok:
            return None
        self._events.append(f"e {tag}")
        return Known(known.id, tag, outcome.answer.revision, pointers)

    async def _persist(self, known: Known) -> Known | None:
        tag, pointers = str(uuid.uuid4()), self._random.randint(2, 4)
        outcome = await self._calls.write_until_known(
            "persist", lambda api: api.workflows.PersistWorkflow,
            workflow_pb2.PersistWorkflowRequest(
                instance=tagged(known.id, tag, pointers), request_id=tag
            ),
            {"id": known.id, "tag": tag}, lambda answer: {"revision": answer.revision},
        )  # fmt: skip
        return Known(known.id, tag, outcome.answer.revision, pointers) if outcome.ok else None

    async def _create_event(self) -> None:
        id_ = f"e {uuid.uuid4()}"
        outcome = await self._calls.write_until_known(
            "create_event", lambda api: api.events.CreateEvent,
            event_pb2.CreateEventRequest(
                event=make.event(id=id_, event_name=EVENT_NAME, event_key="alone"),
                enqueue=[make.item(QUEUE, id="")],
            ),
            {"id": id_},
        )  # fmt: skip
        if outcome.ok:
            self._events.append(id_)

    async def _mark_event(self) -> None:
        id_ = self._random.choice(self._events[-20:])
        await self._calls.write(
            "mark_event", lambda api: api.events.MarkEventProcessed,
            event_pb2.MarkEventProcessedRequest(id=id_), {"id": id_},
        )  # fmt: skip

    async def _write_own(self) -> None:
        """Workflows that nobody else writes to, and events."""
        committed, persisted = _Chain("commit", self._commit), _Chain("persist", self._persist)
        while not self._calls.stopping:
            choice = self._random.random()
            if choice < 0.5:
                await self._extend(committed)
            elif choice < 0.7:
                await self._extend(persisted)
            elif choice < 0.9 or not self._events:
                await self._create_event()
            else:
                await self._mark_event()
            await self._calls.pace(0.02)

    async def _extend(self, chain: _Chain) -> None:
        known = chain.known
        if known is None and chain.id:
            known = await self._load(chain.id)
        elif known is None or self._random.random() < 0.04:
            known = await self._create_workflow(chain.kind) or known
        if known is not None:
            chain.id = known.id
            chain.known = await chain.write(known)

    async def _write_shared(self) -> None:
        """Workflows that others write to at the same time: only one of them can win."""
        while not self._calls.stopping:
            known = await self._load(self._random.choice(SHARED_WORKFLOWS))
            while known is not None and not self._calls.stopping:
                await self._calls.pace(0.01)
                known = await self._commit(known)
                if self._random.random() < 0.3:
                    break
            if self._random.random() < 0.2:
                await self._calls.once(
                    "next_sequence", lambda api: api.workflows.NextDefinitionSequence,
                    workflow_pb2.NextDefinitionSequenceRequest(definition_id=EVENT_NAME), {},
                    lambda answer: {"number": answer.number},
                )  # fmt: skip
            await self._calls.pace(0.03)

    # Claims.

    async def _hold(self) -> None:
        """Hold subscriptions, each for a moment, and let go of them or not."""
        while not self._calls.stopping:
            id_, token = self._random.choice(SHARED_SUBSCRIPTIONS), str(uuid.uuid4())
            duration = round(self._random.uniform(0.2, 0.8), 3)
            outcomes = await self._calls.write(
                "hold", lambda api: api.subscriptions.SetSubscriptionToken,
                subscription_pb2.SetSubscriptionTokenRequest(
                    id=id_, token=token, worker_id=self._calls.name,
                    duration=_milliseconds(duration),
                ),
                {"resource": id_, "claim": token, "duration": duration},
                lambda answer: {
                    "acquired": answer.acquired, "epoch": answer.epoch,
                    "expiry": _seconds(answer.expiry),
                },
            )  # fmt: skip
            held = [o.answer.epoch for o in outcomes if o.ok and o.answer.acquired]
            if held:
                await self._calls.pace(duration / 4)
                if self._random.random() < 0.3:
                    await self._renew_token(id_, token, held[0])
                if self._random.random() < 0.7:
                    await self._calls.write(
                        "let_go", lambda api: api.subscriptions.ClearSubscriptionToken,
                        subscription_pb2.ClearSubscriptionTokenRequest(
                            id=id_, token=token, epoch=held[0]
                        ),
                        {"claims": [token]},
                    )  # fmt: skip
            await self._calls.pace(0.05)

    async def _renew_token(self, id_: str, token: str, epoch: int) -> None:
        duration = round(self._random.uniform(0.2, 0.8), 3)
        await self._calls.write(
            "renew_hold", lambda api: api.subscriptions.RenewSubscriptionToken,
            subscription_pb2.RenewSubscriptionTokenRequest(
                id=id_, token=token, epoch=epoch, duration=_milliseconds(duration)
            ),
            {"claims": [token], "duration": duration},
            lambda answer: {"expiry": _seconds(answer.expiry)},
        )  # fmt: skip

    async def _lock(self) -> None:
        """Hold locks, each for a moment, and release them or not."""
        while not self._calls.stopping:
            resource = self._random.choice(SHARED_RESOURCES)
            duration = round(self._random.uniform(0.2, 0.8), 3)
            outcomes = await self._calls.write(
                "lock", lambda api: api.locks.AcquireLock,
                lock_pb2.AcquireLockRequest(
                    resource=resource, owner=self._calls.name, ttl=_milliseconds(duration),
                    wait=_milliseconds(0.3), request_id=str(uuid.uuid4()),
                ),
                {"resource": resource, "duration": duration},
                lambda answer: {
                    "acquired": answer.acquired, "claim": answer.token, "epoch": answer.epoch,
                    "expiry": _seconds(answer.expiry),
                },
            )  # fmt: skip
            for token in {o.answer.token for o in outcomes if o.ok and o.answer.acquired}:
                await self._calls.pace(duration / 4)
                if self._random.random() < 0.3:
                    await self._renew_lock(token)
                if self._random.random() < 0.7:
                    await self._calls.write(
                        "unlock", lambda api: api.locks.ReleaseLock,
                        lock_pb2.ReleaseLockRequest(token=token), {"claims": [token]},
                        lambda answer: {"released": answer.released},
                    )  # fmt: skip
            await self._calls.pace(0.05)

    async def _renew_lock(self, token: str) -> None:
        duration = round(self._random.uniform(0.2, 0.8), 3)
        await self._calls.write(
            "renew_lock", lambda api: api.locks.RenewLocks,
            lock_pb2.RenewLocksRequest(tokens=[token], ttl=_milliseconds(duration)),
            {"claims": [token], "duration": duration},
            lambda answer: {"expiry": _seconds(answer.expiry)},
        )  # fmt: skip

    async def _work(self) -> None:
        """Claim commands; complete, release or renew them, or let the lease expire."""
        commands = command_pb2
        while not self._calls.stopping:
            duration = round(self._random.uniform(0.3, 1.0), 3)
            outcomes = await self._calls.write(
                "claim", lambda api: api.commands.ClaimCommands,
                commands.ClaimCommandsRequest(
                    limit=20, lease_duration=_milliseconds(duration), worker_id=self._calls.name
                ),
                {"duration": duration},
                lambda answer: {
                    "claimed": [
                        [c.command.data, c.lease_token, c.epoch, _seconds(c.lease_expiry)]
                        for c in answer.commands
                    ]
                },
            )  # fmt: skip
            leases = [c.lease_token for o in outcomes if o.ok for c in o.answer.commands]
            if leases:
                await self._end_leases(leases, duration)
            await self._calls.pace(0.05)

    async def _end_leases(self, leases: list[str], duration: float) -> None:
        what = {"claims": leases}
        choice = self._random.random()
        if choice < 0.05:
            return
        if choice < 0.15:
            # Too late: others may have claimed the commands since.
            await asyncio.sleep(duration * self._random.uniform(1.0, 1.3))
            for lease in leases[:3]:
                await self._complete([lease])
            return
        await asyncio.sleep(duration * self._random.uniform(0.0, 0.5))
        if choice < 0.25:
            duration = round(self._random.uniform(0.3, 1.0), 3)
            await self._calls.write(
                "renew", lambda api: api.commands.RenewCommands,
                command_pb2.RenewCommandsRequest(
                    lease_tokens=leases, lease_duration=_milliseconds(duration)
                ),
                what | {"duration": duration},
                lambda answer: {"expiry": _seconds(answer.lease_expiry)},
            )  # fmt: skip
        if choice < 0.35:
            await self._calls.write(
                "release", lambda api: api.commands.ReleaseCommands,
                command_pb2.ReleaseCommandsRequest(lease_tokens=leases), what,
            )  # fmt: skip
        else:
            await self._complete(leases)

    async def _complete(self, leases: list[str]) -> None:
        await self._calls.write(
            "complete", lambda api: api.commands.CompleteCommands,
            command_pb2.CompleteCommandsRequest(lease_tokens=leases), {"claims": leases},
        )  # fmt: skip

    # Reads.

    async def _read(self) -> None:
        while not self._calls.stopping:
            await self._load(self._random.choice(SHARED_WORKFLOWS))
            if self._events:
                id_ = self._random.choice(self._events[-20:])
                await self._calls.once(
                    "get_event", lambda api: api.events.GetEvent,
                    event_pb2.GetEventRequest(id=id_), {"id": id_},
                )  # fmt: skip
            await self._calls.pace(0.04)


async def run(arguments: argparse.Namespace) -> None:
    """Until SIGTERM."""
    async with AsyncExitStack() as stack:
        apis = []
        for address in arguments.addresses:
            options = [
                ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.min_reconnect_backoff_ms", 1000),
            ]  # fmt: skip
            channel = connect(address, options, namespace=arguments.namespace)
            apis.append(Api(await stack.enter_async_context(channel)))
        random_ = random.Random(arguments.seed)
        calls = Calls(
            arguments.name, apis, Recorder(arguments.history), random_, twice=arguments.twice
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, calls.stop)
        await Client(calls, random_).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("addresses", nargs="+")
    parser.add_argument("--name", required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--namespace", default="")
    parser.add_argument("--twice", action="store_true", help="send every write twice at once")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the harness, which sends SIGTERM
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
