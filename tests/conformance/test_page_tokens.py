"""Page tokens: any but those that were given out for the query are refused."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.support import make
from tests.support.api import Api
from tests.support.commands import OwnCommands
from tests.support.expect import failure_of
from tests.support.queues import OwnQueue
from tests.support.rpcs import RPCS, Rpc, fields, look, valid_request
from tests.support.scene import create_namespace, delete_namespace, refusal, with_values
from wfe.persistence.v1.command_pb2 import CommandName
from wfe.persistence.v1.workflow_pb2 import WorkflowFilter, WorkflowStatus, WorkflowView

CANARY: Final = "canary-2b7e1516"

LISTS: Final = sorted(
    name for name, rpc in RPCS.items() if "page_token" in rpc.request.DESCRIPTOR.fields_by_name
)


@dataclass(frozen=True)
class Listing:
    """A list of more than one page, and the token of its second one."""

    rpc: Rpc
    query: Any
    token: str


@pytest.fixture(scope="module")
async def listings(api: Api) -> AsyncIterator[dict[str, Listing]]:
    """Each list that there is."""
    at, key, workflow = make.long_ago(), make.new_id("key"), make.new_id("workflow")
    due = [
        make.instance(next_execution=make.epoch_ms(at), workflow_definition_id=key)
        for _ in range(3)
    ]
    events = [make.event(event_time=at, event_key=key) for _ in range(3)]
    namespace = make.new_namespace()
    definition, name = make.new_id("definition"), make.new_id("name")
    ended = [
        make.full_instance(
            workflow_definition_id=definition, status=WorkflowStatus.WORKFLOW_STATUS_COMPLETE
        )
        for _ in range(3)
    ]
    for instance in ended:
        instance.ClearField("root_workflow_id")  # with it, a workflow is looked at with its root
    with_pointers = make.full_instance(status=WorkflowStatus.WORKFLOW_STATUS_SUSPENDED)
    for instance in (*due, *ended, with_pointers):
        await api.create_new_workflow(instance)
    for instance in ended:
        await api.create_event_subscription(
            make.subscription(workflow_id=instance.id, event_name=name, event_key=key)
        )
    processed = [make.event(event_name=name, event_key=key, is_processed=True) for _ in range(3)]
    for event in (*events, *processed):
        await api.create_event(event)
    for _ in range(3):
        await api.create_event_subscription(make.subscription(event_key=key, workflow_id=workflow))
        await api.persist_errors(make.error(workflow_id=workflow))
    commands = OwnCommands(api)
    for _ in range(3):
        await commands.schedule(command_name=CommandName.COMMAND_NAME_PROCESS_EVENT)
    locks = make.new_id("resource")
    tokens = [
        (await api.acquire_lock(f"{locks} {n}", ttl=Duration(seconds=3600))).token for n in range(3)
    ]
    queue = OwnQueue(api)
    for _ in range(3):
        await queue.enqueue()
    await create_namespace(api, namespace)
    queries: dict[str, dict[str, Any]] = {
        "GetRunnableInstances": {"as_at": at, "workflow_definition_ids": [key]},
        "GetRunnableEvents": {"as_at": at},
        "GetEvents": {
            "event_name": "order.paid",
            "event_key": key,
            "as_of": at,
            "event_time_from": make.FIRST_TIME,
        },
        "GetSubscriptions": {"event_name": "order.paid", "event_key": key, "as_of": make.time()},
        "ListErrors": {"workflow_id": workflow},
        "ListExecutionPointers": {"workflow_id": with_pointers.id},
        "ListWorkflows": {
            "filter": WorkflowFilter(
                statuses=[WorkflowStatus.WORKFLOW_STATUS_COMPLETE],
                workflow_definition_id=definition,
                waiting_event_name=name,
            ),
            "view": WorkflowView.WORKFLOW_VIEW_HEADER,
        },
        # Such a purge finds the same each time.
        "PurgeWorkflows": {
            "ended_before": make.time(3600),
            "statuses": [WorkflowStatus.WORKFLOW_STATUS_COMPLETE],
            "workflow_definition_id": definition,
            "dry_run": True,
        },
        "ListEvents": {"event_name": name, "event_key": key},
        "PurgeEvents": {
            "event_time_before": make.time(3600),
            "event_name": name,
            "dry_run": True,
        },
        "ListSubscriptions": {
            "workflow_id": workflow,
            "event_name": "order.paid",
            "event_key": key,
        },
        "ListCommands": {
            "command_name": CommandName.COMMAND_NAME_PROCESS_EVENT,
            "due_before": make.later(at, ms=1),
            "leased": False,
        },
        "ListLocks": {"resource_prefix": locks},
        "ListQueueItems": {"queue": queue.name},
        "GetQueueStats": {"queues": [queue.name, make.queue()]},
        "ListNamespaces": {},
    }
    listings = {}
    for name, given in queries.items():
        query = RPCS[name].request(**given, **{_size_field(name): 1})
        [answer] = await RPCS[name].call(api, query)
        assert answer.next_page_token
        listings[name] = Listing(RPCS[name], query, answer.next_page_token)
    yield listings
    await queue.clear()
    for instance in due:
        instance.status = WorkflowStatus.WORKFLOW_STATUS_COMPLETE
        await api.persist_workflow(instance)
    for event in events:
        await api.mark_event_processed(event.id)
    await commands.finish()
    for token in tokens:
        await api.release_lock(token)
    await delete_namespace(api, namespace)


def _size_field(name: str) -> str:
    """The field that says how large a page is: a purge's page is its budget."""
    return "max_rows" if name.startswith("Purge") else "page_size"


def test_every_list_has_its_listing(listings: dict[str, Listing]) -> None:
    assert sorted(listings) == LISTS


async def _refuses_token(api: Api, listing: Listing, query: Any, token: str) -> None:
    request = with_values(query, ("page_token", token))
    failure, said = await refusal(listing.rpc.call(api, request))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT, failure
    assert failure.reason == "INVALID_PAGE_TOKEN", failure
    assert CANARY not in said
    without = await failure_of(listing.rpc.call(api, with_values(query, ("page_token", ""))))
    assert without is None or without.code is grpc.StatusCode.NOT_FOUND, without


@pytest.mark.parametrize("name", LISTS)
async def test_refusal_names_the_field(api: Api, listings: dict[str, Listing], name: str) -> None:
    request = with_values(listings[name].query, ("page_token", "x"))
    failure, _ = await refusal(listings[name].rpc.call(api, request))
    assert failure.violations == {"page_token": "FORMAT"}


GARBLED: Final[dict[str, Callable[[str], str]]] = {
    "a word": lambda _: CANARY,
    "a space": lambda _: " ",
    "no ASCII": lambda _: "é😀",
    "base64 of nothing": lambda _: "====",
    "100 kB": lambda _: "A" * 100_000,
    "SQL": lambda _: "' OR 1=1 --",
    "deep JSON": lambda _: base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    "null": lambda _: base64.urlsafe_b64encode(b"null").decode(),
    "cut off at the end": lambda token: token[:-4],
    "cut off at the start": lambda token: token[4:],
    "twice": lambda token: token * 2,
    "with more behind": lambda token: f"{token}AAAA",
    "in other case": str.swapcase,
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("garble", GARBLED.values(), ids=list(GARBLED))
async def test_garbled_page_token_is_refused(
    api: Api, listings: dict[str, Listing], name: str, garble: Callable[[str], str]
) -> None:
    listing = listings[name]
    await _refuses_token(api, listing, listing.query, garble(listing.token))


def _altered(token: str) -> Iterator[tuple[str, str]]:
    """Tokens that differ from this one in a single place, and what was altered."""
    # The last character may have bits that mean nothing.
    for i, character in enumerate(token[:-1]):
        yield f"character {i}", token[:i] + ("A" if character != "A" else "B") + token[i + 1 :]
    # Most tokens are something behind base64: bytes or text.
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        return
    forged = []
    for i in range(len(data)):
        for byte in b"\x00\x7f\xff":
            forged.append((f"byte {i}: {byte}", data[:i] + bytes([byte]) + data[i + 1 :]))
    for match in re.finditer(rb"-?\d+", data):
        for number in (0, 1, 2**62, -(2**62), 2**63 - 1, -(2**63), 2**63, 10**30):
            other = data[: match.start()] + b"%d" % number + data[match.end() :]
            forged.append((f"number {match.start()}: {number}", other))
    for what, other in forged:
        if other != data:
            yield what, base64.urlsafe_b64encode(other).decode().rstrip("=")


@pytest.mark.parametrize("name", LISTS)
async def test_page_token_altered_anywhere_is_refused(
    api: Api, listings: dict[str, Listing], name: str
) -> None:
    listing, not_refused = listings[name], {}
    for what, token in _altered(listing.token):
        request = with_values(listing.query, ("page_token", token))
        failure = await failure_of(listing.rpc.call(api, request))
        if failure is None or failure.reason != "INVALID_PAGE_TOKEN":
            not_refused[what] = failure and failure.reason
    assert not not_refused


@pytest.mark.parametrize("name", LISTS)
async def test_page_token_of_another_list_is_refused(
    api: Api, listings: dict[str, Listing], name: str
) -> None:
    for other in listings.keys() - {name}:
        await _refuses_token(api, listings[name], listings[name].query, listings[other].token)


# What may differ from page to page.
NOT_OF_THE_QUERY: Final = ("page_size", "page_token", "max_rows", "expected_revision")
REQUIRED: Final = (("PurgeWorkflows", "ended_before"), ("PurgeEvents", "event_time_before"))
_TERMINATED: Final = WorkflowStatus.WORKFLOW_STATUS_TERMINATED


def _other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, Timestamp):
        return make.later(value, us=1)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value - 1 if value else 1
    return value + "x"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        # A list stands for itself: its items are altered, and it is emptied.
        (name, path.removesuffix("[1]"))
        for name in LISTS
        for path, field in fields(valid_request(RPCS[name]))
        if field.name not in NOT_OF_THE_QUERY and field.name != "filter"
    ],
)
async def test_page_token_of_another_query_is_refused(
    api: Api, listings: dict[str, Listing], name: str, path: str
) -> None:
    listing = listings[name]
    value = look(listing.query, path)
    if path.endswith("statuses"):
        altered = with_values(listing.query, (f"{path}[0]", _TERMINATED))
    elif path.endswith(("_ids", "queues")):
        altered = with_values(listing.query, (f"{path}[0]", _other(value[0])))
    else:
        altered = with_values(listing.query, (path, _other(value)))
    await _refuses_token(api, listing, altered, listing.token)
    absent = with_values(listing.query, (path, None))
    is_given = isinstance(value, Timestamp) and absent != listing.query
    if is_given and (name, path) not in REQUIRED:
        await _refuses_token(api, listing, absent, listing.token)


@pytest.mark.parametrize("name", LISTS)
async def test_page_token_is_good_for_another_page_size(
    api: Api, listings: dict[str, Listing], name: str
) -> None:
    listing = listings[name]
    for size in (0, 2, 2**31 - 1):
        query = with_values(listing.query, ("page_token", listing.token), (_size_field(name), size))
        await listing.rpc.call(api, query)


async def test_page_token_is_good_for_another_expected_revision(
    api: Api, listings: dict[str, Listing]
) -> None:
    listing = listings["ListExecutionPointers"]
    revision = (await api.get_workflow_instance(listing.query.workflow_id)).revision
    second = with_values(
        listing.query, ("page_token", listing.token), ("expected_revision", revision)
    )
    [answer] = await listing.rpc.call(api, second)
    assert len(answer.execution_pointers) == 1
