"""Retention policies and the storage report."""

from typing import Final

from wfe.persistence.v1 import store_pb2
from wfe_persistence_client import model
from wfe_persistence_client.convert.scalars import (
    optional_duration,
    time_from_proto,
    timedelta_from_proto,
)
from wfe_persistence_client.hints import Fields
from wfe_persistence_client.misfit import build, each

_POLICY: Final = Fields(model.RetentionPolicy)
_RULE: Final = Fields(model.WorkflowRetention)


def retention_policy_to_proto(value: model.RetentionPolicy) -> store_pb2.RetentionPolicy:
    """A retention policy as a message."""
    _POLICY.check(value)
    return build(
        store_pb2.RetentionPolicy,
        workflows=each("workflows", value.workflows, _rule_to_proto),
        processed_event_age=optional_duration(value.processed_event_age),
        error_age=optional_duration(value.error_age),
        overdue_command_age=optional_duration(value.overdue_command_age),
    )


def _rule_to_proto(value: model.WorkflowRetention) -> store_pb2.WorkflowRetention:
    _RULE.check(value)
    return build(
        store_pb2.WorkflowRetention,
        workflow_definition_id=value.workflow_definition_id,
        complete_age=optional_duration(value.complete_age),
        terminated_age=optional_duration(value.terminated_age),
    )


def retention_state_from_proto(
    message: store_pb2.GetRetentionPolicyResponse,
) -> model.RetentionState:
    """A retention policy, and what it has done, from a message."""
    policy = message.policy
    return model.RetentionState(
        policy=model.RetentionPolicy(
            workflows=[
                model.WorkflowRetention(
                    workflow_definition_id=rule.workflow_definition_id,
                    complete_age=timedelta_from_proto(rule.complete_age)
                    if rule.HasField("complete_age")
                    else None,
                    terminated_age=timedelta_from_proto(rule.terminated_age)
                    if rule.HasField("terminated_age")
                    else None,
                )
                for rule in policy.workflows
            ],
            processed_event_age=timedelta_from_proto(policy.processed_event_age)
            if policy.HasField("processed_event_age")
            else None,
            error_age=timedelta_from_proto(policy.error_age)
            if policy.HasField("error_age")
            else None,
            overdue_command_age=timedelta_from_proto(policy.overdue_command_age)
            if policy.HasField("overdue_command_age")
            else None,
        ),
        set_time=time_from_proto(message.set_time) if message.HasField("set_time") else None,
        deleted_rows=message.deleted_rows,
        complete_time=time_from_proto(message.complete_time)
        if message.HasField("complete_time")
        else None,
    )


def retention_counts_from_proto(message: store_pb2.RetentionCounts) -> model.RetentionCounts:
    """What a retention policy lets go, from a message."""
    return model.RetentionCounts(
        workflows=message.workflows,
        execution_pointers=message.execution_pointers,
        subscriptions=message.subscriptions,
        events=message.events,
        errors=message.errors,
        commands=message.commands,
        is_partial=message.is_partial,
    )


def storage_report_from_proto(message: store_pb2.GetStorageReportResponse) -> model.StorageReport:
    """A storage report from a message."""
    return model.StorageReport(
        tables=[
            model.TableStorage(
                name=table.name,
                estimated_rows=table.estimated_rows,
                dead_rows=table.dead_rows,
                table_bytes=table.table_bytes,
                index_bytes=table.index_bytes,
                bloat_bytes=table.bloat_bytes if table.HasField("bloat_bytes") else None,
            )
            for table in message.tables
        ],
        freed=retention_counts_from_proto(message.freed),
        freed_bytes=message.freed_bytes,
    )
