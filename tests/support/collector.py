"""A collector of traces, as far as servers can tell: it takes OTLP by HTTP or gRPC, and decodes
it."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """What was exported."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self.endpoint = ""
        self.received: list[bytes] = []
        self.headers: list[dict[str, str]] = []

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a server that exports to it, without delay."""
        return {
            "OTEL_EXPORTER_OTLP_PROTOCOL": self._protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def take(self, data: bytes, headers: dict[str, str]) -> bytes:
        """Take an export."""
        self.received.append(data)
        self.headers.append(headers)
        return ExportTraceServiceResponse().SerializeToString()

    @property
    def spans(self) -> list[Span]:
        """All spans."""
        return [
            span
            for data in self.received
            for of_resource in ExportTraceServiceRequest.FromString(data).resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    def named(self, method: str) -> list[Span]:
        """The spans of a method."""
        return [span for span in self.spans if span.name.endswith(f"/{method}")]

    @property
    def resource(self) -> dict[str, Any]:
        """The attributes of what the spans are of."""
        request = ExportTraceServiceRequest.FromString(self.received[0])
        return values(request.resource_spans[0].resource.attributes)


def values(attributes: Any) -> dict[str, Any]:
    """Attributes by name."""

    def value(pair: KeyValue) -> Any:
        return getattr(pair.value, str(pair.value.WhichOneof("value")))

    return {pair.key: value(pair) for pair in attributes}


@contextmanager
def collector(protocol: str) -> Iterator[Collector]:
    """A collector that takes OTLP by `grpc` or `http/protobuf`."""
    found = Collector(protocol)
    with (_grpc if protocol == "grpc" else _http)(found) as found.endpoint:
        yield found


@contextmanager
def _grpc(into: Collector) -> Iterator[str]:
    def export(data: bytes, context: grpc.ServicerContext) -> bytes:
        return into.take(data, {k: str(v) for k, v in context.invocation_metadata()})

    server = grpc.server(futures.ThreadPoolExecutor(2))
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    handler = grpc.method_handlers_generic_handler(
        service, {"Export": grpc.unary_unary_rpc_method_handler(export)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def _http(into: Collector) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            if self.path != "/v1/traces":
                self.send_error(404)
                return
            answer = into.take(data, {k.lower(): v for k, v in self.headers.items()})
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
