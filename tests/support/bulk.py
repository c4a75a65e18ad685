"""Streams of bulk requests, and the errors of their items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from tests.support.api import Api
from wfe.persistence.v1.error_reason_pb2 import ErrorReason, FieldViolationReason
from wfe.persistence.v1.event_pb2 import (
    CreateEventRequest,
    CreateEventsRequest,
    CreateEventsResult,
    Event,
)
from wfe.persistence.v1.item_error_pb2 import ItemError
from wfe.persistence.v1.workflow_pb2 import (
    CreateNewWorkflowRequest,
    CreateWorkflowsRequest,
    CreateWorkflowsResult,
    WorkflowInstance,
)

_CODES = {code.value[0]: code for code in grpc.StatusCode}


def as_status(error: ItemError, path: str = "") -> grpc.aio.AioRpcError:
    """The error of one item, as a call for it alone would fail. `path`: of the item."""
    info = error_details_pb2.ErrorInfo(
        reason=ErrorReason.Name(error.reason).removeprefix("ERROR_REASON_"),
        domain="wfe.persistence",
        metadata=error.metadata,
    )
    bad = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=path + violation.field,
                reason=FieldViolationReason.Name(violation.reason).removeprefix(
                    "FIELD_VIOLATION_REASON_"
                ),
                description=violation.description,
            )
            for violation in error.field_violations
        ]
    )
    status = status_pb2.Status(code=error.code, message=error.message)
    status.details.add().Pack(info)
    if error.field_violations:
        status.details.add().Pack(bad)
    if error.HasField("retry_delay"):
        retry = error_details_pb2.RetryInfo(retry_delay=error.retry_delay)
        status.details.add().Pack(retry)
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(
        _CODES[error.code], grpc.aio.Metadata(), trailing, details=error.message
    )


def raise_first_error(request: Any, response: Any) -> None:
    """Fail as a call for the first item that was refused would."""
    for n, result in enumerate(getattr(response, "results", ())):
        if result.HasField("error"):
            items = request.DESCRIPTOR.fields[0].name
            raise as_status(result.error, f"{items}[{n}].")


async def create_workflows(
    api: Api,
    *parts: Sequence[CreateNewWorkflowRequest | WorkflowInstance],
    request_id: str = "",
    **options: Any,
) -> list[CreateWorkflowsResult]:
    """Create workflows over one stream, each part as one request."""
    requests = [
        CreateWorkflowsRequest(
            workflows=[
                CreateNewWorkflowRequest(instance=each)
                if isinstance(each, WorkflowInstance)
                else each
                for each in part
            ],
            request_id=request_id,
        )
        for part in parts
    ]
    results: list[CreateWorkflowsResult] = []
    answered = 0
    async for answer in api.workflows.CreateWorkflows(iter(requests), **options):
        assert len(answer.results) == len(requests[answered].workflows)
        answered += 1
        results += answer.results
    assert answered == len(requests)
    return results


async def create_events(
    api: Api, *parts: Sequence[CreateEventRequest | Event], request_id: str = "", **options: Any
) -> list[CreateEventsResult]:
    """Create events over one stream, each part as one request."""
    requests = [
        CreateEventsRequest(
            events=[
                CreateEventRequest(event=each) if isinstance(each, Event) else each for each in part
            ],
            request_id=request_id,
        )
        for part in parts
    ]
    results: list[CreateEventsResult] = []
    answered = 0
    async for answer in api.events.CreateEvents(iter(requests), **options):
        assert len(answer.results) == len(requests[answered].events)
        answered += 1
        results += answer.results
    assert answered == len(requests)
    return results
