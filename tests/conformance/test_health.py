"""grpc.health.v1 and reflection: what tools ask a server before anything else."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.support.api import Api, connect
from tests.support.expect import fails
from wfe.persistence.v1 import command_pb2, event_pb2, store_pb2, subscription_pb2, workflow_pb2

FILES = [command_pb2, event_pb2, store_pb2, subscription_pb2, workflow_pb2]
SERVICES = {
    service.full_name: service
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
}
SERVING = health_pb2.HealthCheckResponse.SERVING


def _health(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_server_and_each_service_are_serving(api: Api, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await _health(api.channel).Check(request)).status == SERVING


async def test_unknown_service_is_not_found(api: Api) -> None:
    request = health_pb2.HealthCheckRequest(service="wfe.persistence.v1.NoService")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _health(api.channel).Check(request)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_watch_tells_the_status_at_once(target: str, service: str) -> None:
    async with connect(target) as channel:
        watch = _health(channel).Watch(health_pb2.HealthCheckRequest(service=service))
        assert (await watch.read()).status == SERVING
        watch.cancel()


async def test_a_request_must_be_small(api: Api) -> None:
    """Anybody may send one, before anybody knows who it is."""
    request = health_pb2.HealthCheckRequest(service="x" * 1025)
    for ask in (_health(api.channel).Check(request), _health(api.channel).Watch(request).read()):
        with fails("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"):
            await ask


@pytest.mark.parametrize("data", [b"\x0a\x05x", b"\x0a\x01\xff"])
async def test_a_request_that_is_none_is_refused(api: Api, data: bytes) -> None:
    check: Any = api.channel.unary_unary("/grpc.health.v1.Health/Check")
    with fails("INVALID_ARGUMENT", "MALFORMED_MESSAGE"):
        await check(data)


async def test_requests_that_do_not_come_make_room_for_others(target: str) -> None:
    async with connect(target) as channel:
        begin: Any = channel.stream_unary("/grpc.health.v1.Health/Check")
        waiting = []
        for _ in range(40):
            waiting.append(begin())
            # One more call: by its answer the server has seen the one before.
            answer = await _health(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == SERVING
        with fails("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS"):
            await waiting[0]
        assert not waiting[-1].done()
        for call in waiting:
            call.cancel()


def _reflection(channel: grpc.Channel) -> ProtoReflectionDescriptorDatabase:
    database = ProtoReflectionDescriptorDatabase(channel)
    try:
        database.get_services()
    except grpc.RpcError as exc:
        if exc.code() == grpc.StatusCode.UNIMPLEMENTED:
            pytest.skip("the target has no reflection")
        raise
    return database


def test_reflection_lists_all_services(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        listed = set(_reflection(channel).get_services())
    assert {*SERVICES, "grpc.health.v1.Health"} <= listed


@pytest.mark.parametrize("service", SERVICES)
def test_reflection_describes_each_service_as_the_protos_do(target: str, service: str) -> None:
    with grpc.insecure_channel(target) as channel:
        file = _reflection(channel).FindFileContainingSymbol(service)
    [described] = [s for s in file.service if f"{file.package}.{s.name}" == service]
    methods = {m.name: m.input_type.lstrip(".") for m in described.method}
    assert methods == {m.name: m.input_type.full_name for m in SERVICES[service].methods}
