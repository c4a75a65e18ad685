"""The rules for lifecycle events, and for what can be watched."""

from __future__ import annotations

from collections.abc import Sequence

from wfe.persistence.v1.lifecycle_pb2 import LifecycleEvent, WatchRequest
from wfe.persistence.v1.workflow_pb2 import (
    WatchedWorkflows,
    WatchWorkflowsRequest,
    WorkflowFilter,
    WorkflowStatus,
)
from wfe_persistence.rpc.check.bounds import (
    DEFAULT_HEARTBEAT_SECONDS,
    MAX_HEARTBEAT_SECONDS,
    MAX_LIFECYCLE_MESSAGE_BYTES,
)
from wfe_persistence.rpc.check.scalars import R, Scalars
from wfe_persistence.store.feed import Cursor
from wfe_persistence.store.records import LIFECYCLE_EVENT_TYPE, WORKFLOW_STATUS


class WatchingRules(Scalars):
    """The rules for the requests of LifecycleService, and of WatchWorkflows."""

    __slots__ = ()

    def lifecycle_events(self, field: str, events: Sequence[LifecycleEvent]) -> None:
        """Lifecycle events to publish."""
        if self.at_most("", field, events):
            self.each(field, events, self._lifecycle_event)

    def _lifecycle_event(self, e: LifecycleEvent, path: str) -> None:
        self.enum(path, "type", e.type, LIFECYCLE_EVENT_TYPE)
        self.id(path, "workflow_id", e.workflow_id)
        self.id(path, "workflow_definition_id", e.workflow_definition_id)
        self.number(path, "version", e.version)
        self.key(path, "reference", e.reference)
        self.required_time(path, "event_time", e)
        self.number(path, "step_id", e.step_id)
        self.key(path, "step_name", e.step_name)
        if len(e.message.encode()) > MAX_LIFECYCLE_MESSAGE_BYTES:
            self.add(
                path,
                "message",
                R.FIELD_VIOLATION_REASON_TOO_LONG,
                f"must be at most {MAX_LIFECYCLE_MESSAGE_BYTES} bytes",
            )

    def watch(self, request: WatchRequest | WatchWorkflowsRequest) -> tuple[Cursor | None, float]:
        """From where on to watch (None: from now), and the time between heartbeats in seconds."""
        if isinstance(request, WatchWorkflowsRequest):
            self._watched_workflows(request.filter, "filter")
        else:
            self.key("", "workflow_id", request.workflow_id)
            self.key("", "workflow_definition_id", request.workflow_definition_id)
            if self.at_most("", "types", request.types):
                for i, type_ in enumerate(request.types):
                    self.enum("", f"types[{i}]", type_, LIFECYCLE_EVENT_TYPE)
        after = Cursor.parse(request.after) if request.after else None
        if request.after and after is None:
            self.add("", "after", R.FIELD_VIOLATION_REASON_FORMAT, "is not a cursor of this method")
        if not request.HasField("heartbeat"):
            return after, DEFAULT_HEARTBEAT_SECONDS
        value = request.heartbeat
        seconds = value.seconds + value.nanos / 1e9
        if not (0 <= value.nanos < 10**9 and 1 <= seconds <= MAX_HEARTBEAT_SECONDS):
            self.add(
                "", "heartbeat", R.FIELD_VIOLATION_REASON_TIME_RANGE, "must be from 1 s to 60 s"
            )
        return after, seconds

    def statuses(self, path: str, statuses: Sequence[WorkflowStatus.ValueType]) -> None:
        """The statuses that workflows may have."""
        if self.at_most(path, "statuses", statuses):
            for i, status in enumerate(statuses):
                self.enum(path, f"statuses[{i}]", status, WORKFLOW_STATUS)

    def _watched_workflows(self, f: WatchedWorkflows, path: str) -> None:
        self.key(path, "workflow_id", f.workflow_id)
        self.of_header(f, path)

    def of_header(self, f: WatchedWorkflows | WorkflowFilter, path: str) -> None:
        """What all filters of workflows can ask of the header."""
        self.statuses(path, f.statuses)
        self.key(path, "workflow_definition_id", f.workflow_definition_id)
        if f.HasField("version"):
            self.number(path, "version", f.version)
        self.key(path, "reference", f.reference)
        self.key(path, "name_prefix", f.name_prefix)
        self.key(path, "root_workflow_id", f.root_workflow_id)
