"""Traces: a span for every call, by the conventions of OpenTelemetry, exported by OTLP.

Only `--traces otlp` loads this module, and with it the packages of the extra `otel`. Where to
export, how to sample and the rest say the standard variables `OTEL_*`. Spans are exported in a
thread of the SDK's, so that no call waits for a collector; what can't be exported is dropped.

A span has what the log of calls has, and as little of what was sent: names of methods, statements
and reasons, numbers, the namespace, the principal and the caller's name for the call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import unquote
from uuid import uuid4

import grpc
from opentelemetry import propagate
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from wfe_persistence.errors import CannotServeError
from wfe_persistence.recurring import RecurringWarnings
from wfe_persistence.redaction import hide
from wfe_persistence.rpc.services import Method
from wfe_persistence.store.schema import Schema, is_namespace
from wfe_persistence.time_spent import TimeSpent

log = logging.getLogger(__name__)

_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_HEADERS: Final = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")
_DEFAULT_PROTOCOL: Final = "http/protobuf"  # that of the specification

# What of a server's status codes is an error of the server, by the conventions for gRPC. The others
# say that the caller has asked for what can't be.
_FAILURES: Final = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)

# How long a stop waits for a collector to take the last spans.
_STOP_SECONDS: Final = 3.0

Context = grpc.aio.ServicerContext[Any, Any]


class CallSpan:
    """The span of one call."""

    __slots__ = ("_span", "_traces")

    def __init__(self, traces: Traces, span: Span) -> None:
        self._traces = traces
        self._span = span

    def names(self) -> dict[str, str]:
        """What the call is called in the trace, for the log."""
        of = self._span.get_span_context()
        return {"trace_id": f"{of.trace_id:032x}", "span_id": f"{of.span_id:016x}"}

    def ended(
        self,
        code: str,
        reason: str,
        error: str,
        names: Mapping[str, str],
        spent: TimeSpent,
    ) -> None:
        """End the span. `reason` and `error`: of a call that failed; `names`: those that it has in
        the log."""
        span = self._span
        if span.is_recording():
            span.set_attributes(self._traces.attributes(code, reason, names, spent))
            if code in _FAILURES:
                span.set_status(Status(StatusCode.ERROR, f"{reason}: {error}" if reason else code))
        span.end()


class Traces:
    """The spans of a server that stores in this schema. `database`: the name in PostgreSQL of the
    database in which a namespace is; empty: it is not known.

    Raises CannotServeError for variables with which nothing can be exported.
    """

    def __init__(self, version: str, database: Callable[[str], str], schema: Schema) -> None:
        for name in _HEADERS:
            for header in os.environ.get(name, "").split(","):
                value = header.partition("=")[2].strip()
                hide(value)
                hide(unquote(value))
        self._complaints = _Complaints()
        try:
            exporter = _exporter()
            self._provider = TracerProvider(
                resource=_resource(version), shutdown_on_exit=False
            )  # its sampler and limits are those of the variables
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        except CannotServeError:
            raise
        except Exception as exc:  # whatever the SDK makes of a variable's value
            raise CannotServeError(f"traces: {type(exc).__name__}: {exc}") from exc
        self._tracer = self._provider.get_tracer("wfe_persistence", version)
        self._database = database
        self._schema = schema
        self._common: dict[str, AttributeValue] = {"rpc.system.name": "grpc"}

    def listening(self, address: str) -> None:
        """Spans are those of a server that listens there."""
        self._common |= _address(address)

    def begin(self, method: Method, context: Context) -> CallSpan:
        """The span of a call that begins now, in the trace that its metadata names."""
        parent = propagate.extract(dict(context.invocation_metadata() or ()))
        _, service, name = method.labels
        full = f"{service}/{name}"
        span = self._tracer.start_span(
            full, parent, SpanKind.SERVER, self._common | {"rpc.method": full}
        )
        if span.is_recording():
            span.set_attributes(_peer(context.peer()))
        return CallSpan(self, span)

    def attributes(
        self, code: str, reason: str, names: Mapping[str, str], spent: TimeSpent
    ) -> dict[str, AttributeValue]:
        """What is known of a call when it has ended."""
        known: dict[str, AttributeValue] = {"rpc.response.status_code": code}
        if code in _FAILURES:
            known["error.type"] = code
        if reason:
            known["wfe.reason"] = reason
        for name in names.keys() - {"trace_id", "span_id"}:
            known[f"wfe.{name}"] = names[name]
        for name, value in spent.parts().items():
            if name.endswith("_seconds") and name != "slowest_statement_seconds":
                known[f"wfe.{name}"] = value
        if spent.round_trips or spent.sqlstate:
            known |= {
                "db.system.name": "postgresql",
                "db.query.summary": spent.slowest_statement,
                "db.response.returned_rows": spent.rows,
                "wfe.round_trips": spent.round_trips,
                "wfe.retries": spent.retries,
            }
            if spent.sqlstate:
                known["db.response.status_code"] = spent.sqlstate
            if namespace := self._namespace(names.get("namespace", "")):
                known["db.namespace"] = namespace
        return known

    def _namespace(self, namespace: str) -> str:
        database = self._database(namespace)
        if not is_namespace(namespace):
            return database
        schema = self._schema.name_for(namespace)
        return f"{database}|{schema}" if database else schema

    async def close(self) -> None:
        """Export what there is, if the collector takes it now."""
        loop = asyncio.get_running_loop()
        closed = asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(closed.set)

        # Not one of the threads that are waited for at the end of the process.
        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await closed.wait()
        except TimeoutError:
            log.warning("traces: the collector did not take the last spans: they are dropped")
        self._complaints.close()


class _Complaints(logging.Handler):
    """What the SDK logs of an export that fails, a line a minute of each kind; and without it being
    written by the thread that exports."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._warnings = RecurringWarnings(log)
        self._loop = asyncio.get_running_loop()
        self._logger = logging.getLogger("opentelemetry")
        self._logger.propagate = False
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Log it once a minute."""
        message = f"traces: {record.getMessage()}"
        if record.exc_info and (exc := record.exc_info[1]):
            message = f"{message}: {type(exc).__name__}: {exc}"
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._warnings.warn, record.name, message)

    def close(self) -> None:
        """Leave the logger as it was."""
        self._logger.removeHandler(self)
        self._logger.propagate = True
        super().close()


def _exporter() -> SpanExporter:
    protocol = next(filter(None, map(os.environ.get, _PROTOCOLS)), _DEFAULT_PROTOCOL)
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter as HttpExporter,
        )

        return HttpExporter()
    raise CannotServeError(
        f"traces: {_PROTOCOLS[1]} is {protocol!r}; there are grpc and http/protobuf"
    )


def _resource(version: str) -> Resource:
    """What is traced: as the variables say, and what they leave open."""
    given = Resource.create()
    ours: dict[str, AttributeValue] = {
        "service.name": "wfe-persistence",
        "service.version": version,
        "service.instance.id": str(uuid4()),
    }
    unnamed = str(given.attributes.get("service.name", "")).startswith("unknown_service")
    attributes = {
        name: value
        for name, value in ours.items()
        if name not in given.attributes or (name == "service.name" and unnamed)
    }
    return given.merge(Resource(attributes))


def _address(listen: str) -> dict[str, AttributeValue]:
    if listen.startswith("unix:"):
        return {"server.address": listen.removeprefix("unix:"), "network.transport": "unix"}
    host, _, port = listen.rpartition(":")
    return {
        "server.address": host.strip("[]"),
        "server.port": int(port),
        "network.transport": "tcp",
    }


def _peer(peer: str) -> dict[str, AttributeValue]:
    """The client of a call as gRPC names it: `ipv4:127.0.0.1:1234`, `ipv6:%5B::1%5D:1234`."""
    kind, _, address = peer.partition(":")
    host, _, port = unquote(address).rpartition(":")
    if not kind.startswith("ip") or not port.isdecimal():
        return {}
    return {"client.address": host.strip("[]"), "client.port": int(port)}
