"""Any bytes at all: every method answers with OK or a documented error, and goes on serving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, Protocol

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import make
from tests.support.expect import Failure, read_failure
from tests.support.rpcs import LASTS, RPCS, Rpc, fields, is_map, look, put, valid_request
from tests.support.scene import never_due
from wfe.persistence.v1.command_pb2 import (
    ClaimCommandsRequest,
    ClaimCommandsResponse,
    CompleteCommandsRequest,
    ReleaseCommandsRequest,
    ScheduleCommandRequest,
)
from wfe.persistence.v1.event_pb2 import CreateEventsResponse, MarkEventProcessedRequest

# A property that fails is shrunk, which may take minutes.
pytestmark = pytest.mark.timeout(600)

# What bytes can bring about: the statuses, and the reasons for each.
DOCUMENTED: Final = {
    "INVALID_ARGUMENT": {"INVALID_FIELD", "MALFORMED_MESSAGE", "INVALID_PAGE_TOKEN"},
    "NOT_FOUND": {
        "WORKFLOW_NOT_FOUND",
        "EVENT_NOT_FOUND",
        "SUBSCRIPTION_NOT_FOUND",
        "POINTER_NOT_FOUND",
    },
    "ALREADY_EXISTS": {
        "WORKFLOW_ALREADY_EXISTS",
        "NAME_TAKEN",
        "EVENT_ALREADY_EXISTS",
        "SUBSCRIPTION_ALREADY_EXISTS",
        "REQUEST_ID_REUSED",
    },
    "ABORTED": {"REVISION_MISMATCH"},
    "FAILED_PRECONDITION": {"TOKEN_MISMATCH", "LEASE_LOST"},
    "RESOURCE_EXHAUSTED": {"MESSAGE_TOO_LARGE", "ANSWER_TOO_LARGE"},
}

# What bytes that are a message by chance could do harm with, in a store that others use too. These
# get only bytes that are none.
HARMFUL: Final = {
    "TruncateAll",
    "CreateNamespace",
    "DeleteNamespace",
    "CreateNamespaceSet",
    "GetNamespaceSet",  # whose scene takes a namespace each time
    "DeleteNamespaceSet",
    "MoveNamespace",
    "AbortMoveNamespace",
    "PurgeWorkflows",
    "PurgeEvents",
    "SetRetentionPolicy",
    "ImportRecords",
}
FUZZED: Final = [rpc for rpc in RPCS.values() if rpc.name not in HARMFUL]


class Call(Protocol):
    """Calls a method with bytes: the messages of the answer, or how it failed."""

    def __call__(self, rpc: Rpc, data: bytes) -> list[bytes] | Failure: ...


@pytest.fixture(scope="module")
def call(target: str) -> Iterator[Call]:
    options = [("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(target, options=options) as channel:
        # A method's callable costs more than a call.
        unary: Any = {rpc: channel.unary_unary(rpc.path) for rpc in RPCS.values()}
        stream: Any = {rpc: channel.unary_stream(rpc.path) for rpc in RPCS.values()}

        def call(rpc: Rpc, data: bytes) -> list[bytes] | Failure:
            try:
                if rpc.name in LASTS:
                    # It would go on for ever: the first message says that it has begun.
                    answers = stream[rpc](data)
                    first = next(answers)
                    answers.cancel()
                    return [first]
                return list(stream[rpc](data)) if rpc.streams else [unary[rpc](data)]
            except grpc.RpcError as exc:
                error: Any = exc
                return read_failure(error)

        yield call


@pytest.fixture(scope="module")
def requests(call: Call) -> dict[Rpc, Any]:
    """A valid request of each method, about what is in the store."""
    requests = {rpc: valid_request(rpc) for rpc in RPCS.values()}
    for rpc, request in requests.items():
        if rpc.name.startswith("PersistWorkflow") or str(rpc) == "CommitWorkflow":
            create(call, "CreateNewWorkflow", instance=never_due(id=request.instance.id))
        elif str(rpc) == "CommitWorkflow-patch":
            pointers = [make.pointer(id_) for id_ in request.patch.removed_pointer_ids]
            instance = never_due(id=request.patch.id, execution_pointers=pointers)
            create(call, "CreateNewWorkflow", instance=instance)
        elif rpc.name == "ListExecutionPointers":
            create(call, "CreateNewWorkflow", instance=never_due(id=request.workflow_id))
        elif rpc.name in ("GetWorkflowInstance", "DeleteWorkflow"):
            create(call, "CreateNewWorkflow", instance=never_due(id=request.id))
        elif rpc.name == "GetWorkflowInstanceByName":
            create(call, "CreateNewWorkflow", instance=never_due(id=request.name))
        elif "EventService" in rpc.path and hasattr(request, "id"):
            create(call, "CreateEvent", event=make.event(id=request.id, is_processed=True))
        elif "SubscriptionService" in rpc.path and hasattr(request, "id"):
            subscription = make.subscription(id=request.id)
            create(call, "CreateEventSubscription", subscription=subscription)
    return requests


def create(call: Call, name: str, **fields: Any) -> None:
    rpc = RPCS[name]
    assert not isinstance(call(rpc, rpc.request(**fields).SerializeToString()), Failure)


def is_message(rpc: Rpc, data: bytes) -> bool:
    """Whether bytes are a request of a method, as the Python library sees it."""
    with suppress(DecodeError):
        rpc.request.FromString(data)
        return True
    return False


def check(call: Call, rpc: Rpc, data: bytes) -> None:
    """Send bytes; the answer must fit them."""
    answer = call(rpc, data)
    if isinstance(answer, Failure):
        assert answer.code is not None
        assert answer.reason in DOCUMENTED.get(answer.code.name, ()), answer
        assert (answer.reason == "MALFORMED_MESSAGE") != is_message(rpc, data), answer
        return
    assert is_message(rpc, data)
    for message in answer:
        rpc.response.FromString(message)
    clean_up(call, rpc, data, answer)


def clean_up(call: Call, rpc: Rpc, data: bytes, answer: list[bytes]) -> None:
    """Leave nothing behind that other tests would come across."""
    if rpc.name == "ClaimCommands":
        claims = ClaimCommandsResponse.FromString(answer[0]).commands
        release(call, [claim.lease_token for claim in claims])
    elif rpc.name == "ScheduleCommand":
        command = ScheduleCommandRequest.FromString(data).command
        command.execute_time = -(2**63)
        call(rpc, ScheduleCommandRequest(command=command).SerializeToString())
        ask = ClaimCommandsRequest(as_of=make.FIRST_TIME, limit=1000)
        found = call(RPCS["ClaimCommands"], ask.SerializeToString())
        assert not isinstance(found, Failure)
        claims = ClaimCommandsResponse.FromString(found[0]).commands
        own = [claim.lease_token for claim in claims if claim.command == command]
        release(call, [claim.lease_token for claim in claims if claim.command != command])
        done = CompleteCommandsRequest(lease_tokens=own)
        call(RPCS["CompleteCommands"], done.SerializeToString())
    elif rpc.name == "CreateEvents":
        for result in CreateEventsResponse.FromString(answer[0]).results:
            mark = MarkEventProcessedRequest(id=result.created.id)
            call(RPCS["MarkEventProcessed"], mark.SerializeToString())
    elif rpc.name in ("CreateEvent", "MarkEventUnprocessed"):
        request = rpc.request.FromString(data)
        id_ = look(request, "event.id" if rpc.name == "CreateEvent" else "id")
        mark = MarkEventProcessedRequest(id=id_)
        call(RPCS["MarkEventProcessed"], mark.SerializeToString())


def release(call: Call, lease_tokens: list[str]) -> None:
    request = ReleaseCommandsRequest(lease_tokens=lease_tokens)
    call(RPCS["ReleaseCommands"], request.SerializeToString())


def serves(call: Call) -> None:
    """The server still answers."""
    assert not isinstance(call(RPCS["GetStoreInfo"], b""), Failure)


def refuses_as_malformed(call: Call, rpc: Rpc, data: bytes) -> None:
    assert not is_message(rpc, data), "these bytes could be sent by mistake"
    answer = call(rpc, data)
    assert isinstance(answer, Failure), "accepted"
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, answer
    assert answer.reason == "MALFORMED_MESSAGE", answer
    assert answer.retry_after is None


GARBAGE: Final = {
    "no tag": b"\xff" * 20,
    "wire type 6": b"\x0e\x01",
    "wire type 7": b"\x0f\x01",
    "length without its bytes": b"\x0a\x7fabc",
    "length beyond 2 GiB": b"\x0a\xff\xff\xff\xff\x0f",
    "varint without end": b"\x08\xff\xff",
    "varint of 11 bytes": b"\x08" + b"\xff" * 10 + b"\x01",
    "fixed64 cut off": b"\xf9\xff\x07\x01\x02",
    "end of no group": b"\x0c",
    "group without end": b"\x0b\x08\x01",
    "group ended as another": b"\x0b\x14",
    "groups 101 deep": b"\x0b" * 101 + b"\x0c" * 101,
    "groups 100000 deep": b"\x0b" * 100_000 + b"\x0c" * 100_000,
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "JSON": b'{"id": "x"}',
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=list(GARBAGE))
def test_garbage_is_malformed(call: Call, garbage: bytes) -> None:
    for rpc in RPCS.values():
        refuses_as_malformed(call, rpc, garbage)
    serves(call)


BAD_UTF8: Final = {
    "never in UTF-8": b"\xff\xfe",
    "surrogate": b"\xed\xa0\x80",
    "longer than need be": b"\xc0\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "cut off": b"ab\xe2\x82",
    "out of the blue": b"a\x80b",
}
MARK: Final = "\x02MARK\x03"


def with_bad_utf8(rpc: Rpc, path: str, bad: bytes, *, in_key: bool = False) -> bytes:
    """A valid request with these bytes in a text field, or in the key of a map."""
    request = valid_request(rpc)
    if in_key:
        look(request, path.partition('["')[0])[MARK] = "1"
    else:
        put(request, path, MARK)
    data: bytes = request.SerializeToString()
    assert data.count(MARK.encode()) == 1
    return data.replace(MARK.encode(), bad.ljust(len(MARK), b"x"))


@pytest.mark.parametrize("rpc", RPCS.values(), ids=str)
def test_bad_utf8_is_malformed_in_every_text(call: Call, rpc: Rpc) -> None:
    for path, field in fields(valid_request(rpc)):
        for bad in BAD_UTF8.values():
            if field.type == FieldDescriptor.TYPE_STRING or is_map(field):
                refuses_as_malformed(call, rpc, with_bad_utf8(rpc, path, bad))
            if is_map(field):
                refuses_as_malformed(call, rpc, with_bad_utf8(rpc, path, bad, in_key=True))
    serves(call)


@pytest.mark.parametrize("rpc", FUZZED, ids=str)
def test_no_bytes_at_all(call: Call, rpc: Rpc) -> None:
    check(call, rpc, b"")


@pytest.mark.parametrize("rpc", FUZZED, ids=str)
def test_message_cut_off_anywhere(call: Call, requests: dict[Rpc, Any], rpc: Rpc) -> None:
    data = requests[rpc].SerializeToString()
    step = max(1, len(data) // 50)
    for end in range(1, len(data), step):
        check(call, rpc, data[:end])
    serves(call)


def examples(number: int) -> settings:
    return settings(
        max_examples=number,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@pytest.mark.parametrize("rpc", FUZZED, ids=str)
@given(data=st.binary(max_size=200))
@examples(15)
def test_random_bytes(call: Call, rpc: Rpc, data: bytes) -> None:
    check(call, rpc, data)


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """These bytes after a few changes."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(changed)))
        length = draw(st.integers(0, 8))
        with_what = draw(
            st.binary(max_size=4)
            | st.sampled_from((b"\0", b"\xff" * 9 + b"\x01", b"\x7f", b"\x80", b"\xed\xa0\x80"))
            | st.just(bytes(changed[at : at + 40]) * 2)
        )
        changed[at : at + length] = with_what
    return bytes(changed)


@pytest.mark.parametrize("rpc", FUZZED, ids=str)
@given(data=st.data())
@examples(25)
def test_changed_message(
    call: Call, requests: dict[Rpc, Any], rpc: Rpc, data: st.DataObject
) -> None:
    check(call, rpc, data.draw(mutations(requests[rpc].SerializeToString())))


def test_server_still_serves(call: Call) -> None:
    serves(call)
