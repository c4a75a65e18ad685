"""Who may not read any more is told no more: streams that go on end soon after the role is gone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.access.conftest import OWN, POLICY, GuardedServer, bearer
from tests.access.test_changes import accepted
from tests.support.api import Api, connect
from tests.support.expect import fails
from wfe.persistence.v1.lifecycle_pb2 import WatchRequest
from wfe.persistence.v1.workflow_pb2 import WatchWorkflowsRequest
from wfe_persistence.access import tokens

HEARTBEAT = Duration(seconds=1)


def watch(api: Api, rpc: str, token: str) -> Any:
    metadata = [("wfe-namespace", OWN), bearer(token)]
    if rpc == "Watch":
        return api.lifecycle.Watch(WatchRequest(heartbeat=HEARTBEAT), metadata=metadata)
    return api.workflows.WatchWorkflows(
        WatchWorkflowsRequest(heartbeat=HEARTBEAT), metadata=metadata
    )


@pytest.mark.parametrize(("rpc", "how"), [("Watch", "policy"), ("WatchWorkflows", "token")])
async def test_a_stream_ends_with_the_role(guarded: GuardedServer, rpc: str, how: str) -> None:
    token = guarded.create("reader")
    async with connect(guarded.server.address) as channel:
        api = Api(channel)
        await accepted(api, token)
        responses = aiter(watch(api, rpc, token))
        cursors = [(await anext(responses)).cursor]
        if how == "policy":
            without = POLICY.replace('"token:reader"', '"token:nobody"')
            assert without != POLICY
            guarded.policy_file.write_text(without)
            expected = fails("PERMISSION_DENIED", "ACCESS_DENIED")
        else:
            entry = tokens.parse_tokens(guarded.token_file.read_bytes()).find(token)
            assert entry is not None
            tokens.revoke_tokens(guarded.token_file, [entry.id])
            expected = fails("UNAUTHENTICATED", "CREDENTIALS_INVALID")
        try:
            with expected as failure:
                async with asyncio.timeout(30):
                    while True:
                        cursors.append((await anext(responses)).cursor)
        finally:
            guarded.policy_file.write_text(POLICY)
        # Whoever gets the role back goes on there.
        assert failure.metadata["cursor"] == cursors[-1]
