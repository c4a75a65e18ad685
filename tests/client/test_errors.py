"""Statuses become typed exceptions, by their reason and never by their words."""

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.client.fake_store import FakeStore, answers, fails, hangs
from tests.client.test_calls import EVENT
from wfe.persistence.v1 import event_pb2, store_pb2
from wfe.persistence.v1.error_reason_pb2 import ErrorReason
from wfe_persistence_client import (
    CommitOutcomeUnknown,
    DatabaseFull,
    DeadlineExceeded,
    ExecutionError,
    InvalidArgument,
    LeaseLost,
    NameTaken,
    NotFound,
    PermissionDenied,
    PersistenceError,
    PersistenceProvider,
    ResourceExhausted,
    RevisionMismatch,
    ServerError,
    TooLarge,
    TransactionConflict,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
    WorkflowNotFound,
    connect,
    transport,
)
from wfe_persistence_client import errors as errors_module

Status = grpc.StatusCode

STATUS_OF_COMMENT = {status.name: status for status in Status}


async def error_of(provider: PersistenceProvider) -> PersistenceError:
    with pytest.raises(PersistenceError) as caught:
        await provider.with_timeout(5).get_workflow_instance("w")
    return caught.value


def test_every_reason_has_its_exception() -> None:
    reasons = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.keys()}  # noqa: SIM118 - protobuf's wrapper is no mapping
    assert set(errors_module._BY_REASON) == reasons - {"UNSPECIFIED"}


def test_every_status_has_an_exception() -> None:
    assert set(errors_module._BY_STATUS) == set(Status) - {Status.OK}


@pytest.mark.parametrize("reason", sorted(errors_module._BY_REASON))
async def test_the_reason_decides(
    store: FakeStore, provider: PersistenceProvider, reason: str
) -> None:
    # The status is that of another exception on purpose.
    store.on("GetWorkflowInstance", fails(Status.OUT_OF_RANGE, reason))
    error = await error_of(provider)
    assert type(error) is errors_module._BY_REASON[reason]
    assert error.reason == reason
    assert error.status is Status.OUT_OF_RANGE
    assert isinstance(error.__cause__, grpc.aio.AioRpcError)
    assert str(error) == f"{reason}: words for people"


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (Status.NOT_FOUND, NotFound, ""),
        (Status.ABORTED, TransactionConflict, ""),
        # What gRPC itself and proxies make has a reason all the same.
        (Status.RESOURCE_EXHAUSTED, ResourceExhausted, "TRANSPORT_LIMIT"),
        (Status.DEADLINE_EXCEEDED, DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (Status.UNAVAILABLE, Unavailable, "SERVER_UNREACHABLE"),
        (Status.CANCELLED, Unavailable, "SERVER_UNREACHABLE"),
        (Status.UNAUTHENTICATED, Unauthenticated, "UNAUTHENTICATED"),
        (Status.PERMISSION_DENIED, PermissionDenied, "PERMISSION_DENIED"),
        (Status.UNIMPLEMENTED, Unimplemented, "UNIMPLEMENTED"),
        (Status.INTERNAL, ServerError, "INTERNAL"),
        (Status.UNKNOWN, ServerError, "INTERNAL"),
        (Status.DATA_LOSS, ServerError, "INTERNAL"),
    ],
)
async def test_without_a_reason_the_status_decides(
    store: FakeStore,
    provider: PersistenceProvider,
    status: grpc.StatusCode,
    kind: type[PersistenceError],
    reason: str,
) -> None:
    store.on("GetWorkflowInstance", fails(status))
    error = await error_of(provider)
    assert type(error) is kind
    assert (error.reason, error.metadata, error.violations) == (reason, {}, ())


def test_the_reasons_that_a_client_names_are_of_the_enum() -> None:
    names = {transport.reason_of(status, "")[0] for status in Status} - {""}
    assert {f"ERROR_REASON_{name}" for name in names} <= set(ErrorReason.keys())


async def test_a_request_beyond_the_limit_of_grpc_itself(tmp_path: Path) -> None:
    fake = FakeStore([("grpc.max_receive_message_length", 1000)])
    await fake.start(f"unix:{tmp_path}/small.sock")
    async with connect(fake.target, timeout=5) as provider:
        with pytest.raises(TooLarge) as caught:
            await provider.persist_errors([ExecutionError(workflow_id="w", message="x" * 2000)])
    await fake.stop()
    assert (caught.value.reason, caught.value.limit_bytes) == ("MESSAGE_TOO_LARGE", 1000)
    # It reached no handler.
    assert not caught.value.maybe_written


async def test_an_answer_beyond_the_limit_of_the_client(store: FakeStore) -> None:
    store.on("CreateEvent", answers(event_pb2.CreateEventResponse(id="x" * 2000)))
    async with connect(store.target, timeout=5, max_message_bytes=1000) as provider:
        with pytest.raises(TooLarge) as caught:
            await provider.create_event(EVENT)
    assert (caught.value.reason, caught.value.limit_bytes) == ("ANSWER_TOO_LARGE", 1000)
    # It was applied, as far as anybody knows.
    assert caught.value.maybe_written


@pytest.mark.parametrize("seconds", [1e-9, 1e-6, 1e-4, 1e-3])
async def test_a_deadline_that_has_passed_already_is_one_whoever_notices(
    store: FakeStore, provider: PersistenceProvider, seconds: float
) -> None:
    store.on("GetStoreInfo", hangs())
    store.on("PersistErrors", hangs())
    hurried = provider.with_timeout(seconds)
    for _ in range(50):
        for call in (hurried.get_store_info(), hurried.persist_errors([])):
            with pytest.raises(DeadlineExceeded) as caught:
                await call
            assert caught.value.reason == "DEADLINE_EXCEEDED"


async def test_a_reason_of_another_domain_does_not_count(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on(
        "GetWorkflowInstance",
        fails(Status.NOT_FOUND, "WORKFLOW_NOT_FOUND", domain="googleapis.com"),
    )
    error = await error_of(provider)
    assert type(error) is NotFound
    assert error.reason == ""


async def test_a_reason_newer_than_this_client_goes_by_its_status(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    store.on("GetWorkflowInstance", fails(Status.NOT_FOUND, "SOMETHING_NEW"))
    error = await error_of(provider)
    assert type(error) is NotFound
    assert error.reason == "SOMETHING_NEW"


async def test_details_that_are_no_message_are_passed_over(
    store: FakeStore, provider: PersistenceProvider
) -> None:
    async def step(request: Any, context: Any) -> Any:
        await context.abort(
            Status.NOT_FOUND, "words", (("grpc-status-details-bin", b"\xff\xff\xff"),)
        )

    store.on("GetWorkflowInstance", step)
    assert type(await error_of(provider)) is NotFound


async def test_violations(store: FakeStore, provider: PersistenceProvider) -> None:
    path = "instance.execution_pointers[3].outcome_json"
    store.on(
        "GetWorkflowInstance",
        fails(
            Status.INVALID_ARGUMENT,
            "INVALID_FIELD",
            violations=[(path, "JSON_TOO_DEEP", "too deep"), ("id", "REQUIRED", "is required")],
        ),
    )
    error = await error_of(provider)
    assert type(error) is InvalidArgument
    assert error.violations == (
        Violation(path, "JSON_TOO_DEEP", "too deep"),
        Violation("id", "REQUIRED", "is required"),
    )
    assert f"{path}: JSON_TOO_DEEP" in str(error)


async def test_retry_info(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on("GetWorkflowInstance", fails(Status.NOT_FOUND, "WORKFLOW_NOT_FOUND", retry_after=1.5))
    error = await error_of(provider)
    assert type(error) is WorkflowNotFound
    assert error.retry_after == 1.5


async def test_what_the_metadata_says(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on(
        "GetWorkflowInstance",
        fails(Status.ABORTED, "REVISION_MISMATCH", metadata={"revision": "7"}),
        fails(Status.FAILED_PRECONDITION, "LEASE_LOST", metadata={"lease_tokens": "a,b"}),
        fails(Status.ALREADY_EXISTS, "NAME_TAKEN", metadata={"field": "instance.name"}),
        fails(Status.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE", metadata={"limit_bytes": "42"}),
    )
    revision = await error_of(provider)
    assert isinstance(revision, RevisionMismatch)
    assert revision.revision == 7
    lease = await error_of(provider)
    assert isinstance(lease, LeaseLost)
    assert lease.lease_tokens == ("a", "b")
    name = await error_of(provider)
    assert isinstance(name, NameTaken)
    assert name.field == "instance.name"
    large = await error_of(provider)
    assert isinstance(large, TooLarge)
    assert large.limit_bytes == 42


def test_missing_metadata_is_no_second_error() -> None:
    assert RevisionMismatch("words").revision == 0
    assert LeaseLost("words").lease_tokens == ()
    assert (PermissionDenied("words").principal, PermissionDenied("words").role) == ("", "")
    assert NameTaken("words").field == ""
    assert TooLarge("words", metadata={"limit_bytes": "many"}).limit_bytes == 0


def test_a_stream_that_ended_while_a_request_was_sent_is_worth_another_attempt() -> None:
    assert transport.reason_of(Status.INTERNAL, "Internal error from Core") == (
        "SERVER_UNREACHABLE",
        {},
    )


def test_what_may_be_written_is_a_kind_of_unavailable() -> None:
    assert issubclass(CommitOutcomeUnknown, Unavailable)
    assert issubclass(DatabaseFull, ResourceExhausted)


@pytest.mark.parametrize(
    ("status", "reason", "maybe_written"),
    [
        (Status.INVALID_ARGUMENT, "INVALID_FIELD", False),
        (Status.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", False),
        (Status.DEADLINE_EXCEEDED, None, True),
        (Status.INTERNAL, "INTERNAL", True),
        (Status.RESOURCE_EXHAUSTED, None, True),
        (Status.UNAUTHENTICATED, None, False),
        (Status.UNAUTHENTICATED, "CREDENTIALS_EXPIRED", False),
        (Status.PERMISSION_DENIED, "ACCESS_DENIED", False),
        (Status.UNIMPLEMENTED, None, False),
    ],
)
async def test_errors_of_writes_say_whether_they_may_have_been_made(
    store: FakeStore,
    provider: PersistenceProvider,
    status: grpc.StatusCode,
    reason: str | None,
    maybe_written: bool,
) -> None:
    store.on("PersistErrors", fails(status, reason))
    with pytest.raises(PersistenceError) as caught:
        await provider.persist_errors([])
    assert caught.value.maybe_written is maybe_written
    # A read never writes.
    store.on("GetStoreInfo", fails(status, reason))
    with pytest.raises(PersistenceError) as caught:
        await provider.get_store_info()
    assert caught.value.maybe_written is False


async def test_no_error_no_exception(store: FakeStore, provider: PersistenceProvider) -> None:
    store.on("GetStoreInfo", answers(store_pb2.GetStoreInfoResponse(namespace="n")))
    assert (await provider.get_store_info()).namespace == "n"
