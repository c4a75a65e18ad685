"""Every RPC with every role, in the caller's namespace and in others: over the wire, from the
descriptors. Which role an RPC requires follows here from its name, not from the server's table."""

from __future__ import annotations

from typing import Any, Final

import grpc
import pytest

from tests.access.conftest import ABSENT, FOREIGN, OWN, GuardedServer, bearer
from tests.support.api import connect
from tests.support.expect import fails, read_failure
from tests.support.rpcs import LASTS, RPCS, Rpc, valid_request
from wfe.persistence.v1.store_pb2 import ListNamespacesRequest
from wfe_persistence.access.role import ROLES, Role

NAMED: Final = (
    "CreateNamespace", "DeleteNamespace", "MoveNamespace", "AbortMoveNamespace",
    "CreateNamespaceSet", "GetNamespaceSet", "DeleteNamespaceSet",
)  # fmt: skip
REFUSED: Final = ("UNAUTHENTICATED", "PERMISSION_DENIED")


def required_role(rpc: Rpc) -> Role:
    if rpc.name in ("TruncateAll", "MoveNamespace", "AbortMoveNamespace"):
        return Role.ADMIN
    if rpc.name.startswith(
        (
            "Delete",
            "Purge",
            "Break",
            "Requeue",
            "Configure",
            "CreateNamespace",
            "SetRet",
            "Run",
            "Import",
        )
    ):
        return Role.OPERATOR
    return (
        Role.READER
        if rpc.name.startswith(("Get", "List", "Count", "Watch", "WaitFor", "Export"))
        else Role.HOST
    )


async def outcome(
    channel: grpc.aio.Channel, rpc: Rpc, namespace: str, token: str | None
) -> tuple[str, str, str, bytes]:
    """Status, reason, text, and details of a call; those of OK are empty."""
    request = valid_request(rpc)
    if rpc.name in NAMED:
        request.name = namespace
    if rpc.name == "CreateNamespaceSet":
        request.members = 0  # nothing is to be left behind
    metadata = [("wfe-namespace", namespace), *([bearer(token)] if token else [])]
    method: Any = (channel.unary_stream if rpc.streams else channel.unary_unary)(rpc.path)
    call = method(request.SerializeToString(), metadata=metadata, timeout=20)
    try:
        if rpc.streams:
            async for _ in call:
                if rpc.name in LASTS:
                    call.cancel()
                    break
        else:
            await call
    except grpc.aio.AioRpcError as exc:
        failure = read_failure(exc)
        trailing: Any = exc.trailing_metadata() or ()
        details = next((v for k, v in trailing if k == "grpc-status-details-bin"), b"")
        return exc.code().name, failure.reason, failure.message, details
    return "OK", "", "", b""


@pytest.mark.parametrize("rpc", RPCS.values(), ids=str)
async def test_a_role_may_call_what_it_is_for_in_its_namespace_only(
    guarded: GuardedServer, rpc: Rpc
) -> None:
    listing = rpc.name in ("ListNamespaces", "ListDatabases")  # has no namespace
    async with connect(guarded.server.address) as channel:
        for name, role in ROLES.items():
            token = guarded.tokens[name]
            status, reason, text, _ = await outcome(channel, rpc, OWN, token)
            if role >= required_role(rpc):
                assert status not in REFUSED, (name, text)
            else:
                assert (status, reason) == ("PERMISSION_DENIED", "ACCESS_DENIED"), name
                assert required_role(rpc).label in text
            foreign = await outcome(channel, rpc, FOREIGN, token)
            absent = await outcome(channel, rpc, ABSENT, token)
            assert foreign == absent, name
            may_list = listing and role >= required_role(rpc)
            assert (foreign[0] == "PERMISSION_DENIED") == (not may_list), name
        for namespace in (OWN, FOREIGN, ABSENT):
            denied = await outcome(channel, rpc, namespace, guarded.tokens["stranger"])
            assert denied[:2] == ("PERMISSION_DENIED", "ACCESS_DENIED")
            without = await outcome(channel, rpc, namespace, None)
            assert without[:2] == ("UNAUTHENTICATED", "CREDENTIALS_REQUIRED")


async def test_namespaces_are_listed_to_those_who_may_read_in_them(guarded: GuardedServer) -> None:
    async with connect(guarded.server.address) as channel:
        method: Any = channel.unary_unary(
            "/wfe.persistence.v1.StoreService/ListNamespaces",
            ListNamespacesRequest.SerializeToString,
            RPCS["ListNamespaces"].response.FromString,
        )

        async def listed(name: str, **fields: Any) -> tuple[list[str], str]:
            answer = await method(
                ListNamespacesRequest(**fields), metadata=[bearer(guarded.tokens[name])]
            )
            return [namespace.name for namespace in answer.namespaces], answer.next_page_token

        everything, _ = await listed("root")
        assert everything == ["default", FOREIGN, OWN]
        assert await listed("reader") == ([OWN], "")
        # A full page says nothing of those that are left out.
        assert await listed("reader", page_size=1) == ([OWN], "")
        with fails("PERMISSION_DENIED", "ACCESS_DENIED"):
            await listed("stranger")


async def test_a_body_that_is_no_message_is_not_looked_at_before_the_caller_is_known(
    guarded: GuardedServer,
) -> None:
    async with connect(guarded.server.address) as channel:
        call: Any = channel.unary_unary("/wfe.persistence.v1.WorkflowService/PersistWorkflow")
        with fails("UNAUTHENTICATED", "CREDENTIALS_REQUIRED"):
            await call(b"\xff" * 9_000_000)
        with fails("PERMISSION_DENIED", "ACCESS_DENIED"):
            await call(
                b"\xff",
                metadata=[("wfe-namespace", OWN), bearer(guarded.tokens["reader"])],
            )
        # Nor does anybody wait for it: here it never comes.
        stream: Any = channel.stream_unary("/wfe.persistence.v1.WorkflowService/PersistWorkflow")
        with fails("UNAUTHENTICATED", "CREDENTIALS_REQUIRED"):
            await stream(timeout=10)
