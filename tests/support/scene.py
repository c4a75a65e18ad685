"""A request that would succeed, what it needs in the store, and what it may change there."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Self, TypeVar

import grpc
import pytest

from tests.support import make
from tests.support.api import Api
from tests.support.commands import OwnCommands, tokens
from tests.support.expect import Failure, read_failure
from tests.support.rpcs import Rpc, put, valid_request
from wfe.persistence.v1.store_pb2 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    GetStoreInfoRequest,
)
from wfe.persistence.v1.workflow_pb2 import WorkflowInstance, WorkflowStatus


def never_due(**fields: Any) -> WorkflowInstance:
    """A workflow that nobody comes across who does not know its id."""
    return make.instance(**({"status": WorkflowStatus.WORKFLOW_STATUS_SUSPENDED} | fields))


T = TypeVar("T")


async def found(call: Awaitable[T]) -> T | None:
    """What is answered; None: NOT_FOUND."""
    try:
        return await call
    except grpc.aio.AioRpcError as exc:
        if exc.code() != grpc.StatusCode.NOT_FOUND:
            raise
        return None


async def refusal(call: Awaitable[object]) -> tuple[Failure, str]:
    """How a call fails, and all the text that its error carries."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    trailing: Any = error.trailing_metadata() or ()
    blobs = [value if isinstance(value, bytes) else value.encode() for _, value in trailing]
    said = (error.details() or "") + "".join(blob.decode(errors="replace") for blob in blobs)
    return read_failure(error), said


def filled(start: str, filler: str, size: int) -> str:
    """A text that starts so and has so many bytes."""
    room = size - len(start.encode())
    width = len(filler.encode())
    return start + "x" * (room % width) + filler * (room // width)


def with_values(request: Any, *values: tuple[str, Any]) -> Any:
    """A copy of a request with these values in the fields of these paths."""
    copy = type(request)()
    copy.CopyFrom(request)
    for path, value in values:
        put(copy, path, value)
    return copy


def in_namespace(name: str) -> dict[str, Any]:
    """The options of a call to a namespace."""
    return {"metadata": (("wfe-namespace", name),)}


async def create_namespace(api: Api, name: str) -> None:
    """Create a namespace, if it can be deleted afterwards."""
    await skip_unless_namespaces_can_be_deleted(api)
    await api.store.CreateNamespace(CreateNamespaceRequest(name=name))


async def delete_namespace(api: Api, name: str) -> None:
    """Delete a namespace, if it is there."""
    await found(api.store.DeleteNamespace(DeleteNamespaceRequest(name=name, force=True)))


async def skip_unless_namespaces_can_be_deleted(api: Api) -> None:
    """Nothing may be left behind in the store of somebody else."""
    if not (await api.get_store_info()).capabilities.delete_namespace:
        pytest.skip("the target does not allow DeleteNamespace")


class Scene:
    """A request of an RPC, and all around it that makes it succeed. `async with` sets it up."""

    def __init__(self, api: Api, rpc: Rpc) -> None:
        self.api = api
        self.rpc = rpc
        self.request = valid_request(rpc)
        self.own = OwnCommands(api)

    async def __aenter__(self) -> Self:
        api, request = self.api, self.request
        match self.rpc.name:
            case "PersistWorkflow" | "PersistWorkflowWithSubscriptions":
                await api.create_new_workflow(never_due(id=request.instance.id))
            case "GetWorkflowInstance":
                await api.create_new_workflow(never_due(id=request.id))
            case "GetWorkflowInstanceByName":
                await api.create_new_workflow(never_due(name=request.name))
            case "GetWorkflowInstances":
                for id_ in request.ids:
                    await api.create_new_workflow(never_due(id=id_))
            case "GetEvent" | "MarkEventProcessed" | "MarkEventUnprocessed":
                await api.create_event(make.event(id=request.id, is_processed=True))
            case "GetSubscription" | "TerminateSubscription" | "SetSubscriptionToken":
                await api.create_event_subscription(make.subscription(id=request.id))
            case "ClearSubscriptionToken":
                await api.create_event_subscription(make.subscription(id=request.id))
                await api.set_subscription_token(request.id, request.token)
            case "ScheduleCommand":
                request.command.CopyFrom(self.own.new())
            case "ClaimCommands":
                await self.own.schedule()
            case "CompleteCommands" | "ReleaseCommands":
                for _ in request.lease_tokens:
                    await self.own.schedule()
                request.lease_tokens[:] = tokens(await self.own.claim())
            case "CreateNamespace":
                await skip_unless_namespaces_can_be_deleted(api)
            case "DeleteNamespace":
                await create_namespace(api, request.name)
        return self

    async def state(self) -> object:
        """What is stored of all that the request could change."""
        api, request = self.api, self.request
        match self.rpc.name:
            case "CreateNewWorkflow" | "PersistWorkflow" | "PersistWorkflowWithSubscriptions":
                subscriptions = getattr(request, "subscriptions", ())
                return (
                    await found(api.get_workflow_instance(request.instance.id)),
                    await found(api.get_workflow_instance_by_name(request.instance.name)),
                    [await found(api.get_subscription(each.id)) for each in subscriptions],
                )
            case "CreateEvent":
                return await found(api.get_event(request.event.id))
            case "MarkEventProcessed" | "MarkEventUnprocessed":
                return await api.get_event(request.id)
            case "CreateEventSubscription":
                return await found(api.get_subscription(request.subscription.id))
            case "TerminateSubscription" | "SetSubscriptionToken" | "ClearSubscriptionToken":
                return await api.get_subscription(request.id)
            case "ScheduleCommand" | "ClaimCommands" | "CompleteCommands" | "ReleaseCommands":
                due = tokens(await self.own.claim())
                await api.release_commands(*due)
                return len(due)
            case "PersistErrors":
                ids = [error.workflow_id for error in request.errors]
                return [list((await api.list_errors(workflow_id=id_)).errors) for id_ in ids]
            case "CreateNamespace" | "DeleteNamespace":
                ask = GetStoreInfoRequest()
                return await found(api.store.GetStoreInfo(ask, **in_namespace(request.name)))
        return None

    async def succeed(self) -> None:
        """Send the good request."""
        for answer in await self.rpc.call(self.api, self.request):
            if self.rpc.name == "ClaimCommands":
                await self.api.release_commands(*tokens(answer.commands))

    async def __aexit__(self, *_: object) -> None:
        if self.rpc.name == "MarkEventUnprocessed":
            await found(self.api.mark_event_processed(self.request.id))
        if "Command" in self.rpc.name:
            await self.own.finish()
        if self.rpc.name in ("CreateNamespace", "DeleteNamespace"):
            await delete_namespace(self.api, self.request.name)
