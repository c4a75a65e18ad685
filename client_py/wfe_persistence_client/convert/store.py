"""The error log, the store and its namespaces."""

from collections.abc import Sequence
from typing import Final

from wfe.persistence.v1 import store_pb2
from wfe_persistence_client import model
from wfe_persistence_client.convert.scalars import (
    time_from_proto,
    timedelta_from_proto,
    timestamp,
)
from wfe_persistence_client.hints import Fields
from wfe_persistence_client.misfit import build, each

_ERROR: Final = Fields(model.ExecutionError)


def errors_to_proto(values: Sequence[model.ExecutionError]) -> list[store_pb2.ExecutionError]:
    """Errors for the log as messages."""
    return each("errors", values, error_to_proto)


def error_to_proto(value: model.ExecutionError) -> store_pb2.ExecutionError:
    """An error for the log as a message."""
    _ERROR.check(value)
    return build(
        store_pb2.ExecutionError,
        error_time=timestamp("error_time", value.error_time),
        workflow_id=value.workflow_id,
        execution_pointer_id=value.execution_pointer_id,
        message=value.message,
    )


def error_from_proto(message: store_pb2.ExecutionError) -> model.ExecutionError:
    """A logged error from a message."""
    return model.ExecutionError(
        error_time=time_from_proto(message.error_time),
        workflow_id=message.workflow_id,
        execution_pointer_id=message.execution_pointer_id,
        message=message.message,
    )


def move_from_proto(message: store_pb2.MoveNamespaceResponse) -> model.NamespaceMove:
    """How far a move is, from a message."""
    return model.NamespaceMove(
        phase=model.MovePhase(message.phase),
        way=model.MoveWay(message.way) if message.way else None,
        obstacles=list(message.obstacles),
        pause=timedelta_from_proto(message.pause) if message.HasField("pause") else None,
        total_bytes=message.total_bytes,
        copied_bytes=message.copied_bytes,
        lag_bytes=message.lag_bytes,
    )


def store_info_from_proto(message: store_pb2.GetStoreInfoResponse) -> model.StoreInfo:
    """Information about a server and its store from a message."""
    return model.StoreInfo(
        server_version=message.server_version,
        postgres_version=message.postgres_version,
        namespace=message.namespace,
        schema=message.schema,
        schema_version=message.schema_version,
        latest_schema_version=message.latest_schema_version,
        capabilities=model.Capabilities(
            scheduled_commands=message.capabilities.scheduled_commands,
            truncate_all=message.capabilities.truncate_all,
            delete_namespace=message.capabilities.delete_namespace,
            create_namespace=message.capabilities.create_namespace,
            locks=message.capabilities.locks,
            queues=message.capabilities.queues,
            lifecycle=message.capabilities.lifecycle,
            watch_workflows=message.capabilities.watch_workflows,
            retention=message.capabilities.retention,
        ),
        max_message_bytes=message.max_message_bytes,
        database=message.database,
        request_retention=timedelta_from_proto(message.request_retention),
    )


def database_from_proto(message: store_pb2.Database) -> model.Database:
    """A database from a message."""
    return model.Database(
        name=message.name,
        labels=dict(label.split("=", 1) for label in message.labels),
        accepts_new=message.accepts_new,
        reachable=message.reachable,
        size_bytes=message.size_bytes,
        postgres_version=message.postgres_version,
    )


def namespace_from_proto(message: store_pb2.Namespace) -> model.Namespace:
    """A namespace from a message."""
    return model.Namespace(
        name=message.name,
        schema=message.schema,
        schema_version=message.schema_version,
        estimated_rows=message.estimated_rows,
        database=message.database,
        unavailable=message.unavailable,
    )


def namespace_set_from_proto(message: store_pb2.NamespaceSet) -> model.NamespaceSet:
    """A namespace set from a message."""
    return model.NamespaceSet(name=message.name, members=list(message.members))
