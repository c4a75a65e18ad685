"""The invariants: what the histories and the store must have in common.

I1  What was acknowledged is there, and what a status says was not written is not.
I2  A workflow is wholly of one write, with all effects of its commit, for every reader at any time.
I3  Holders of a subscription never overlap, by the database's clock.
I4  Leases of a command never overlap; a stale one completes nothing; enqueued = done + pending.
I5  A repeated request is made once and answered the same.
I6  Only the statuses of the contract, and none later than a second after its deadline.
I7  Who watches sees the last state of every workflow (`watcher.py`).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.faults.chaos.history import Call, History
from tests.faults.chaos.tags import (
    EVENT_NAME,
    QUEUE,
    SHARED_RESOURCES,
    SHARED_SUBSCRIPTIONS,
    SHARED_WORKFLOWS,
    tags_of,
)
from tests.support.api import Api
from wfe.persistence.v1 import command_pb2, event_pb2, subscription_pb2, workflow_pb2

# What any call may get while something is broken, by status. Only a status that gRPC or the client
# itself makes has no reason.
TROUBLE = {
    "UNAVAILABLE": {"", "DATABASE_UNAVAILABLE", "COMMIT_OUTCOME_UNKNOWN", "SHUTTING_DOWN"},
    "RESOURCE_EXHAUSTED": {"POOL_EXHAUSTED", "DATABASE_FULL", "NAMESPACE_BUSY", "TOO_MANY_CALLS"},
    "DEADLINE_EXCEEDED": {"", "DEADLINE_EXCEEDED"},
    "ABORTED": {"TRANSACTION_CONFLICT", "ROW_LOCKED"},
}
# What a call may get because others were faster.
OTHERS = {
    "commit": ("ABORTED", "REVISION_MISMATCH"),
    "let_go": ("FAILED_PRECONDITION", "TOKEN_MISMATCH"),
    "renew_hold": ("FAILED_PRECONDITION", "TOKEN_MISMATCH"),
    "renew_lock": ("FAILED_PRECONDITION", "LEASE_LOST"),
    "complete": ("FAILED_PRECONDITION", "LEASE_LOST"),
    "release": ("FAILED_PRECONDITION", "LEASE_LOST"),
    "renew": ("FAILED_PRECONDITION", "LEASE_LOST"),
}
LATE_SECONDS = 1.0
SERVER_DEADLINE = 4.0
"""The deadline of calls that have none of their own: the servers' --default-deadline."""
CLOCK_SECONDS = 1.0
"""How far the time of a claim may lie outside of its call, by the same machine's clock."""


@dataclass
class Stored:
    """What the service says is stored, after all clients have ended."""

    workflows: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    """Id → revision and tags; absent ones are missing."""
    events: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """Id → key and whether it is processed."""
    subscriptions: dict[str, str] = field(default_factory=dict)
    """Id → workflow."""
    commands: set[str] = field(default_factory=set)
    items: set[str] = field(default_factory=set)
    """The ids of the items that commits and new events have enqueued."""


async def read_stored(api: Api, workflow_ids: Iterable[str]) -> Stored:
    """Read everything through the service, as its users do."""
    stored = Stored()
    ids = list(workflow_ids)
    if ids:
        request = workflow_pb2.GetWorkflowInstancesRequest(ids=ids)
        async for answer in api.workflows.GetWorkflowInstances(request, timeout=30):
            instance = answer.instance
            stored.workflows[instance.id] = (instance.revision, tags_of(instance))
    token = ""
    while True:
        events = await api.events.ListEvents(
            event_pb2.ListEventsRequest(event_name=EVENT_NAME, page_size=1000, page_token=token)
        )
        stored.events |= {e.id: (e.event_key, e.is_processed) for e in events.events}
        if not (token := events.next_page_token):
            break
    while True:
        subscriptions = await api.subscriptions.ListSubscriptions(
            subscription_pb2.ListSubscriptionsRequest(
                event_name=EVENT_NAME, page_size=1000, page_token=token
            )
        )
        stored.subscriptions |= {s.id: s.workflow_id for s in subscriptions.subscriptions}
        if not (token := subscriptions.next_page_token):
            break
    while True:
        commands = await api.commands.ListCommands(
            command_pb2.ListCommandsRequest(page_size=1000, page_token=token)
        )
        stored.commands |= {c.command.data for c in commands.commands}
        if not (token := commands.next_page_token):
            break
    while True:
        items = await api.list_queue_items(queue=QUEUE, page_size=1000, page_token=token)
        stored.items |= {listed.item.id for listed in items.items}
        if not (token := items.next_page_token):
            return stored


def check(histories: list[History], stored: Stored) -> list[str]:
    """Every violation, each beginning with the invariant's name."""
    calls = [call for history in histories for call in history.calls]
    by_op: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_op[call.op].append(call)
    return [
        *_check_statuses(calls),
        *_check_deadlines(histories),
        *_check_repetitions(by_op),
        *_check_workflows(by_op, stored),
        *_check_commits(by_op, stored),
        *_check_events(by_op, stored),
        *_check_sequence(by_op["next_sequence"]),
        *_check_holds(by_op),
        *_check_locks(by_op),
        *_check_commands(by_op, stored),
    ]


def _check_statuses(calls: list[Call]) -> Iterator[str]:
    found: Counter[tuple[str, str, str]] = Counter()
    for call in calls:
        if not call.code or call.ok or call.code == "HUNG":
            continue
        if call.reason in TROUBLE.get(call.code, ()):
            continue
        if OTHERS.get(call.op) == (call.code, call.reason):
            continue
        found[call.op, call.code, call.reason] += 1
    for (op, code, reason), number in found.items():
        yield f"I6 {number} {op} got {code} {reason or '(no reason)'}"


def _check_deadlines(histories: list[History]) -> Iterator[str]:
    for history in histories:
        for call in history.calls:
            if call.end is None:
                continue
            limit = (call.deadline or SERVER_DEADLINE) + LATE_SECONDS
            took = call.end - call.start
            if took > limit and took - history.lag_during(call) > limit:
                yield f"I6 {call.op} took {took:.1f} s ({call.code or 'HUNG'} {call.reason})"


def _check_repetitions(by_op: dict[str, list[Call]]) -> Iterator[str]:
    for op, key in (("create", "id"), ("commit", "tag"), ("persist", "tag")):
        answers: dict[str, set[int]] = defaultdict(set)
        for call in by_op[op]:
            if call.ok:
                answers[call.what[key]].add(call.answer["revision"])
        for name, revisions in answers.items():
            if len(revisions) > 1:
                yield f"I5 {op} {name} was answered with revisions {sorted(revisions)}"
    epochs: dict[str, set[int]] = defaultdict(set)
    for call in by_op["hold"]:
        if call.ok and call.answer["acquired"]:
            epochs[call.what["claim"]].add(call.answer["epoch"])
    for token, different in epochs.items():
        if len(different) > 2:  # two: it expired between the two calls
            yield f"I5 token {token} has epochs {sorted(different)}"


def _check_workflows(by_op: dict[str, list[Call]], stored: Stored) -> Iterator[str]:
    """One tag for each revision, whoever saw it; and never an older one than somebody had seen."""
    writes = [*by_op["create"], *by_op["commit"], *by_op["persist"]]
    tag_of: dict[tuple[str, int], str] = {}
    seen: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    """Workflow → calls that saw a revision: start, end, revision."""
    final: dict[str, int] = {}

    def observe(id_: str, revision: int, tag: str, how: str) -> Iterator[str]:
        known = tag_of.setdefault((id_, revision), tag)
        if known != tag:
            yield f"I2 {how} of {id_}: revision {revision} is {tag} and {known}"

    for call in writes:
        if call.ok:
            revision = call.answer["revision"]
            yield from observe(call.what["id"], revision, call.what["tag"], call.op)
            final[call.what["id"]] = max(final.get(call.what["id"], 0), revision)
    for call in by_op["load"]:
        if call.ok:
            id_, tags = call.what["id"], call.answer["tags"]
            if len(tags) != 1:
                yield f"I2 a reader of {id_} saw a mix of {tags}"
            yield from observe(id_, call.answer["revision"], tags[0], "load")
            assert call.end is not None
            seen[id_].append((call.start, call.end, call.answer["revision"]))
    for call in writes:
        # A repetition is answered with the revision of the first time: it has seen nothing newer.
        if call.ok and call.end is not None:
            seen[call.what["id"]].append((float("inf"), call.end, call.answer["revision"]))
    for id_, observations in seen.items():
        yield from _check_order(id_, observations)

    attempted: dict[str, set[str]] = defaultdict(set)
    for call in writes:
        if call.ok or call.maybe:
            attempted[call.what["id"]].add(call.what["tag"])
    for id_ in final:
        if id_ not in stored.workflows:
            yield f"I1 workflow {id_} was acknowledged and is absent"
    for id_, (revision, tags) in stored.workflows.items():
        if len(tags) != 1:
            yield f"I2 {id_} is a mix of {tags}"
        if revision < final.get(id_, 0):
            yield f"I1 {id_} has revision {revision}, {final[id_]} was acknowledged"
        yield from observe(id_, revision, tags[0], "the end")
        if tags[0] not in attempted[id_] and not tags[0].startswith("create "):
            yield f"I1 {id_} has a state that was never written: {tags[0]}"


def _check_order(id_: str, observations: list[tuple[float, float, int]]) -> Iterator[str]:
    """Who begins to read after somebody has seen a revision sees it or a later one."""
    ends = sorted((end, revision) for _, end, revision in observations)
    newest, at = 0, 0
    for start, _, revision in sorted(observations):
        while at < len(ends) and ends[at][0] <= start:
            newest = max(newest, ends[at][1])
            at += 1
        if start != float("inf") and revision < newest:
            yield f"I1 a reader of {id_} saw revision {revision} after {newest}"


def _check_commits(by_op: dict[str, list[Call]], stored: Stored) -> Iterator[str]:
    """A commit has all of its effects, or none; each was made once."""
    made: Counter[str] = Counter(
        key for id_, (key, _) in stored.events.items() if key in stored.workflows
    )
    persists: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for call in by_op["persist"]:
        acknowledged, maybe = persists[call.what["id"]]
        if call.ok:
            acknowledged.add(call.what["tag"])
        elif call.maybe:
            maybe.add(call.what["tag"])
    subscribed: dict[str, set[str]] = defaultdict(set)
    for subscription, workflow in stored.subscriptions.items():
        subscribed[workflow].add(subscription)
    for id_, (revision, tags) in stored.workflows.items():
        if id_ in persists:
            acknowledged, maybe = persists[id_]
            if not len(acknowledged) <= revision - 1 <= len(acknowledged | maybe):
                yield (
                    f"I5 {id_} was written {revision - 1} times by "
                    f"{len(acknowledged)} to {len(acknowledged | maybe)} requests"
                )
        elif not id_.startswith("persist-"):
            if made[id_] != revision - 1:
                yield f"I2 {id_} was written {revision - 1} times, with the events of {made[id_]}"
            alone = tags[0].startswith("create ") or id_ in SHARED_WORKFLOWS
            expected = set() if alone else {f"s {tags[0]}"}
            if subscribed[id_] != expected:
                yield f"I2 {id_} is of {tags} and has subscriptions {sorted(subscribed[id_])}"
    expected_by: dict[tuple[str, int], set[str]] = defaultdict(set)
    for call in by_op["commit"]:
        if call.ok:
            if call.answer["revision"] != call.what["expected"] + 1:
                yield f"I2 a commit at {call.what['expected']} made {call.answer['revision']}"
            expected_by[call.what["id"], call.what["expected"]].add(call.what["tag"])
    for (id_, revision), winners in expected_by.items():
        if len(winners) > 1:
            yield f"I2 {len(winners)} commits replaced revision {revision} of {id_}"


def _check_events(by_op: dict[str, list[Call]], stored: Stored) -> Iterator[str]:
    attempts: dict[str, list[Call]] = defaultdict(list)
    for call in by_op["create_event"]:
        attempts[call.what["id"]].append(call)
    for call in by_op["commit"]:
        attempts[f"e {call.what['tag']}"].append(call)
    yield from _check_presence("event", attempts, stored.events)
    for id_ in stored.items ^ stored.events.keys():
        missing = "its item" if id_ in stored.events else "the event that it came with"
        yield f"I2 {id_} is stored without {missing}"
    marks: dict[str, list[Call]] = defaultdict(list)
    for call in by_op["mark_event"]:
        marks[call.what["id"]].append(call)
    for id_, (_, processed) in stored.events.items():
        tries = marks.get(id_, [])
        if any(c.ok for c in tries) and not processed:
            yield f"I1 {id_} was marked as processed and is not"
        if processed and not any(c.ok or c.maybe for c in tries):
            yield f"I1 {id_} is processed, although nobody was told so"


def _check_presence(
    kind: str, attempts: dict[str, list[Call]], stored: dict[str, Any]
) -> Iterator[str]:
    for id_, calls in attempts.items():
        if any(c.ok for c in calls):
            if id_ not in stored:
                yield f"I1 {kind} {id_} was acknowledged and is absent"
        elif id_ in stored and not any(c.maybe for c in calls):
            yield f"I1 {kind} {id_} exists, although all that was said is {calls[-1].reason}"


def _check_sequence(calls: list[Call]) -> Iterator[str]:
    numbers = Counter(call.answer["number"] for call in calls if call.ok)
    for number, times in numbers.items():
        if times > 1:
            yield f"I5 sequence number {number} was given {times} times"


@dataclass
class _Claim:
    """One holder's hold. Times since 1970, those of the database where it says them."""

    epoch: int
    begin: float
    extended: float
    """When it was claimed or renewed last."""
    expiry: float
    """As of then: a renewal may also bring it forward."""
    known: float
    """When the holder knew (the client's clock, which is that of the same machine)."""
    let_go: float = float("inf")
    """When the holder began to let go of it."""

    def extend(self, call: Call, expiry: float) -> None:
        """It was claimed again or renewed, and expires then."""
        at = expiry - call.what["duration"]
        if at >= self.extended:
            self.extended, self.expiry = at, expiry


def _check_holds(by_op: dict[str, list[Call]]) -> Iterator[str]:
    claims: dict[str, dict[str, _Claim]] = {id_: {} for id_ in SHARED_SUBSCRIPTIONS}
    for call in by_op["hold"]:
        if call.ok and call.answer["acquired"]:
            yield from _add_claim(
                claims[call.what["resource"]], call.what["claim"], call,
                call.answer["epoch"], call.answer["expiry"],
            )  # fmt: skip
    yield from _check_claims("I3", claims, by_op["renew_hold"], by_op["let_go"])


def _check_locks(by_op: dict[str, list[Call]]) -> Iterator[str]:
    claims: dict[str, dict[str, _Claim]] = {resource: {} for resource in SHARED_RESOURCES}
    for call in by_op["lock"]:
        if call.ok and call.answer["acquired"]:
            yield from _add_claim(
                claims[call.what["resource"]], call.answer["claim"], call,
                call.answer["epoch"], call.answer["expiry"],
            )  # fmt: skip
    # Releasing what is over is no error, and releases nothing.
    releases = [call for call in by_op["unlock"] if not call.ok or call.answer["released"]]
    yield from _check_claims("I3", claims, by_op["renew_lock"], releases)


def _check_commands(by_op: dict[str, list[Call]], stored: Stored) -> Iterator[str]:
    claims: dict[str, dict[str, _Claim]] = defaultdict(dict)
    command_of: dict[str, str] = {}
    for call in by_op["claim"]:
        for data, lease, epoch, expiry in call.answer.get("claimed", ()):
            command_of[lease] = data
            yield from _add_claim(claims[data], lease, call, epoch, expiry)
    ends = [*by_op["complete"], *by_op["release"]]
    yield from _check_claims("I4", claims, by_op["renew"], ends)

    completed: dict[str, list[Call]] = defaultdict(list)
    for call in by_op["complete"]:
        for lease in call.what["claims"]:
            completed[command_of[lease]].append(call)
    scheduled = {id_.replace("e ", "c ", 1) for id_, (key, _) in stored.events.items()
                 if key != "alone"}  # fmt: skip
    for data in scheduled:
        done = sum(call.ok for call in completed[data])
        if done > 1:
            yield f"I4 command {data} was completed {done} times"
        if done and data in stored.commands:
            yield f"I4 command {data} was completed and is pending"
        if data not in stored.commands and not any(c.ok or c.maybe for c in completed[data]):
            yield f"I4 command {data} was scheduled and is neither done nor pending"
    for data in {*stored.commands, *completed} - scheduled:
        yield f"I4 command {data} exists without its commit"


def _add_claim(
    claims: dict[str, _Claim], name: str, call: Call, epoch: int, expiry: float
) -> Iterator[str]:
    begin = expiry - call.what["duration"]
    assert call.wall_end is not None
    if not call.wall - CLOCK_SECONDS <= begin <= call.wall_end + CLOCK_SECONDS:
        yield f"I3 a claim of epoch {epoch} began {begin - call.wall:.1f} s after its call"
    claim = claims.setdefault(name, _Claim(epoch, begin, begin, expiry, call.wall_end))
    claim.begin = min(claim.begin, begin)
    claim.known = min(claim.known, call.wall_end)
    claim.extend(call, expiry)


def _check_claims(
    invariant: str, claims: dict[str, dict[str, _Claim]], renewals: list[Call], ends: list[Call]
) -> Iterator[str]:
    """Of two claims the first has ended, or its holder has begun to end it, when the second is
    known to its holder."""
    by_name = {name: claim for holders in claims.values() for name, claim in holders.items()}
    resource_of = {name: resource for resource, holders in claims.items() for name in holders}
    for call in renewals:
        for name in call.what["claims"]:
            if call.ok and name in by_name:
                by_name[name].extend(call, call.answer["expiry"])
    for call in renewals:
        for name in call.what["claims"]:
            if call.maybe and name in by_name:
                # It may have been brought forward by a renewal of which nobody knows.
                soonest = call.wall + call.what["duration"]
                by_name[name].expiry = min(by_name[name].expiry, soonest)
    for call in ends:
        for name in call.what["claims"]:
            if name in by_name and (call.ok or call.maybe):
                by_name[name].let_go = min(by_name[name].let_go, call.wall)
    for resource, holders in claims.items():
        ordered = sorted(holders.values(), key=lambda claim: claim.epoch)
        for first, second in itertools.pairwise(ordered):
            if second.begin < first.expiry - 1e-5 and second.known < first.let_go:
                yield (
                    f"{invariant} {resource} was held by epochs {first.epoch} and {second.epoch} "
                    f"for {first.expiry - second.begin:.2f} s at the same time"
                )
    for call in ends:
        if not call.ok:
            continue
        for name in call.what["claims"]:
            if name not in by_name:
                continue
            resource = resource_of[name]
            later = [c for c in claims[resource].values() if c.epoch > by_name[name].epoch]
            if any(c.known < call.wall and call.wall < c.let_go for c in later):
                yield f"{invariant} {resource} was let go by an epoch that was over"
