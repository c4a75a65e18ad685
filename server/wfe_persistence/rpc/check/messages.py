"""The rules for whole messages, one method a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from wfe.persistence.v1.command_pb2 import (
    BreakCommandLeaseRequest,
    ListCommandsRequest,
    ScheduledCommand,
)
from wfe.persistence.v1.event_pb2 import Event, GetEventsRequest, ListEventsRequest
from wfe.persistence.v1.store_pb2 import ExecutionError, RetentionPolicy
from wfe.persistence.v1.subscription_pb2 import (
    EventSubscription,
    GetFirstOpenSubscriptionRequest,
    GetSubscriptionsRequest,
    ListSubscriptionsRequest,
)
from wfe.persistence.v1.workflow_pb2 import (
    CommitWorkflowRequest,
    ExecutionPointer,
    PersistWorkflowRequest,
    PersistWorkflowWithSubscriptionsRequest,
    WorkflowFilter,
    WorkflowInstance,
    WorkflowPatch,
    WorkflowView,
)
from wfe_persistence.rpc.check.bounds import (
    ATTRIBUTE_BYTES,
    MAX_ATTRIBUTES,
    MAX_COMMAND_DATA_BYTES,
    MAX_HEADER_ATTRIBUTES_BYTES,
    MAX_RETENTION_RULES,
    MAX_REVISION,
)
from wfe_persistence.rpc.check.queues import QueueRules
from wfe_persistence.rpc.check.scalars import R
from wfe_persistence.rpc.check.watching import WatchingRules
from wfe_persistence.store.documents import HEADER_FIELDS
from wfe_persistence.store.records import (
    COMMAND_NAME,
    POINTER_STATUS,
    WORKFLOW_STATUS,
)

# The fields of a commit that do nothing beside storing the workflow's state.
_STATE_FIELDS = frozenset(
    {"instance", "patch", "expected_revision", "request_id", "skip_unawaited_events"}
)


class Check(QueueRules, WatchingRules):
    """Collects the violations of one request: call the rules, then `done()`.

    `path` is the path of the message in the request, for the paths of its fields.
    """

    __slots__ = ()

    def new_instance(self, w: WorkflowInstance, path: str) -> None:
        """A workflow to create; its id may be left to the server."""
        self.instance(w, path, new=True)

    def instance(self, w: WorkflowInstance, path: str, *, new: bool = False) -> None:
        """A workflow to write."""
        self.id(path, "id", w.id, required=not new)
        self.id(path, "name", w.name, required=False)
        if w.HasField("root_workflow_id"):
            self.key(path, "root_workflow_id", w.root_workflow_id)
        if w.HasField("reference"):
            self.key(path, "reference", w.reference)
        self.id(path, "workflow_definition_id", w.workflow_definition_id)
        self.number(path, "version", w.version)
        self.enum(path, "status", w.status, WORKFLOW_STATUS)
        self.json(path, "data_json", w.data_json, required=True)
        self.required_time(path, "create_time", w)
        if w.HasField("complete_time"):
            self.time(path, "complete_time", w.complete_time)
        if w.view not in (
            WorkflowView.WORKFLOW_VIEW_UNSPECIFIED,
            WorkflowView.WORKFLOW_VIEW_FULL,
        ):
            self.add(
                path,
                "view",
                R.FIELD_VIOLATION_REASON_ENUM_VALUE,
                "is a partial view; storing it would delete the rest: send a patch",
            )
        self._header_attributes(w, path)
        self.pointers(w.execution_pointers, path)

    def _header_attributes(self, w: WorkflowInstance, path: str) -> None:
        attributes = w.extension_attributes_json
        if not attributes:
            return
        found = len(self._violations)
        self._attributes(attributes, path)
        if len(self._violations) > found:
            return  # what is no JSON has no size
        size = sum(
            len(name.encode()) + self._stored_bytes(text) + ATTRIBUTE_BYTES
            for name, text in attributes.items()
        )
        if size > MAX_HEADER_ATTRIBUTES_BYTES:
            self.add(
                path,
                "extension_attributes_json",
                R.FIELD_VIOLATION_REASON_TOO_LONG,
                f"must have at most {MAX_HEADER_ATTRIBUTES_BYTES} bytes",
            )

    def pointers(self, pointers: Sequence[ExecutionPointer], path: str) -> None:
        """Execution pointers of one workflow."""
        for i, p in enumerate(pointers):
            self._pointer(p, f"{path}.execution_pointers[{i}]")
        self.distinct(path, "execution_pointers", "id", [p.id for p in pointers])

    def patch(self, patch: WorkflowPatch) -> None:
        """A patch of a workflow."""
        path = "patch"
        self.id(path, "id", patch.id)
        mask, w = patch.header_mask.paths, patch.header
        for i, name in enumerate(mask):
            if name not in HEADER_FIELDS:
                self.add(
                    path,
                    f"header_mask.paths[{i}]",
                    R.FIELD_VIOLATION_REASON_FORMAT,
                    "is not a header field that can be changed",
                )
        if mask:
            self.distinct(path, "header_mask.paths", "", mask)
            self._patched_header(w, f"{path}.header", set(mask))
        self.pointers(patch.execution_pointers, path)
        if not patch.removed_pointer_ids:
            return
        self.ids(path, "removed_pointer_ids", patch.removed_pointer_ids)
        self.distinct(path, "removed_pointer_ids", "", patch.removed_pointer_ids)
        given = {p.id for p in patch.execution_pointers}
        for i, id_ in enumerate(patch.removed_pointer_ids):
            if id_ in given:
                self.add(
                    path,
                    f"removed_pointer_ids[{i}]",
                    R.FIELD_VIOLATION_REASON_DUPLICATE,
                    "is also in execution_pointers",
                )

    def _patched_header(self, w: WorkflowInstance, head: str, mask: set[str]) -> None:
        """The fields of a header that a patch names."""
        if "name" in mask:
            self.id(head, "name", w.name, required=False)
        if "root_workflow_id" in mask:
            self.key(head, "root_workflow_id", w.root_workflow_id)
        if "reference" in mask:
            self.key(head, "reference", w.reference)
        if "workflow_definition_id" in mask:
            self.id(head, "workflow_definition_id", w.workflow_definition_id)
        if "version" in mask:
            self.number(head, "version", w.version)
        if "status" in mask:
            self.enum(head, "status", w.status, WORKFLOW_STATUS)
        if "data_json" in mask:
            self.json(head, "data_json", w.data_json, required=True)
        if "create_time" in mask:
            self.required_time(head, "create_time", w)
        if "complete_time" in mask:
            self.times(w, head, "complete_time")
        if "extension_attributes_json" in mask:
            self._header_attributes(w, head)

    def commit(self, request: CommitWorkflowRequest) -> None:
        """A commit: one step of an engine."""
        state = request.WhichOneof("state")
        if state == "instance":
            self.instance(request.instance, "instance")
        elif state == "patch":
            self.patch(request.patch)
            if not request.HasField("expected_revision"):
                self.add(
                    "",
                    "expected_revision",
                    R.FIELD_VIOLATION_REASON_REQUIRED,
                    "is required with a patch",
                )
        else:
            self.add(
                "", "state", R.FIELD_VIOLATION_REASON_REQUIRED, "instance or patch is required"
            )
        self.revision(request)
        self.request_id(request.request_id)
        # Most steps have none of the rest, and to look at each list takes half of the check.
        if not _STATE_FIELDS.issuperset(field.name for field, _ in request.ListFields()):
            self._effects(request, (request.instance if state == "instance" else request.patch).id)

    def _effects(self, request: CommitWorkflowRequest, id_: str) -> None:
        """What a commit of the workflow `id_` does beside storing its state."""
        if self.at_most("", "held_subscriptions", request.held_subscriptions):
            for i, claim in enumerate(request.held_subscriptions):
                path = f"held_subscriptions[{i}]"
                self.id(path, "subscription_id", claim.subscription_id)
                self.id(path, "token", claim.token)
                if claim.HasField("epoch"):
                    self.number(path, "epoch", claim.epoch, 1, MAX_REVISION)
        self.lease_tokens("held_lease_tokens", request.held_lease_tokens)
        self.lease_tokens("complete_lease_tokens", request.complete_lease_tokens)
        self.step(request, id_)
        if self.at_most("", "create_subscriptions", request.create_subscriptions):
            self.each("create_subscriptions", request.create_subscriptions, self.subscription)
            ids = [s.id for s in request.create_subscriptions]
            self.distinct("", "create_subscriptions", "id", ids)
        if self.at_most("", "terminate_subscription_ids", request.terminate_subscription_ids):
            self.ids("", "terminate_subscription_ids", request.terminate_subscription_ids)
            created = {s.id for s in request.create_subscriptions}
            for i, id_ in enumerate(request.terminate_subscription_ids):
                if id_ in created:
                    self.add(
                        "",
                        f"terminate_subscription_ids[{i}]",
                        R.FIELD_VIOLATION_REASON_DUPLICATE,
                        "is also in create_subscriptions",
                    )
            self.distinct("", "terminate_subscription_ids", "", request.terminate_subscription_ids)
        if self.at_most("", "create_events", request.create_events):
            self.each("create_events", request.create_events, self.event)
            self.distinct("", "create_events", "id", [e.id for e in request.create_events])
        if self.at_most("", "processed_event_ids", request.processed_event_ids):
            self.ids("", "processed_event_ids", request.processed_event_ids)
            self.distinct("", "processed_event_ids", "", request.processed_event_ids)
        if self.at_most("", "errors", request.errors):
            self.each("errors", request.errors, self.error)
        if self.at_most("", "schedule_commands", request.schedule_commands):
            self.each("schedule_commands", request.schedule_commands, self.command)
            names = [f"{c.command_name} {c.data}" for c in request.schedule_commands]
            self.distinct("", "schedule_commands", "", names)

    def step(
        self,
        request: CommitWorkflowRequest
        | PersistWorkflowRequest
        | PersistWorkflowWithSubscriptionsRequest,
        id_: str,
    ) -> None:
        """What belongs to a step whatever is written of the workflow, whose id is `id_`: locks,
        items of queues, lifecycle events."""
        self.lease_tokens("held_lock_tokens", request.held_lock_tokens)
        self.queue_items("enqueue", request.enqueue, stands_for=id_)
        self.acknowledgements(request.acknowledge)
        self.lifecycle_events("publish", request.publish)

    def filter(self, f: WorkflowFilter, path: str = "filter") -> None:
        """A filter of workflows."""
        self.of_header(f, path)
        self.times(
            f,
            path,
            "create_time_from",
            "create_time_before",
            "complete_time_from",
            "complete_time_before",
            "written_before",
            "due_before",
            "error_time_from",
        )
        self.key(path, "waiting_event_name", f.waiting_event_name)
        self.key(path, "waiting_event_key", f.waiting_event_key)
        if f.HasField("waiting_event_key") and not f.waiting_event_name:
            self.add(
                path,
                "waiting_event_name",
                R.FIELD_VIOLATION_REASON_REQUIRED,
                "is required with a waiting_event_key",
            )

    def event_lookup(
        self, request: GetEventsRequest | GetSubscriptionsRequest | GetFirstOpenSubscriptionRequest
    ) -> tuple[str, str, Timestamp | None]:
        """An event name, a key and a time to look up by; time None: the database's clock."""
        self.id("", "event_name", request.event_name)
        self.key("", "event_key", request.event_key)
        self.time("", "as_of", request.as_of)
        as_of = request.as_of if request.HasField("as_of") else None
        return request.event_name, request.event_key, as_of

    def event_key_with_name(self, request: ListEventsRequest | ListSubscriptionsRequest) -> None:
        """An event name and key to filter by, both optional; a key needs a name."""
        self.key("", "event_name", request.event_name)
        self.key("", "event_key", request.event_key)
        if request.HasField("event_key") and not request.event_name:
            self.add(
                "", "event_name", R.FIELD_VIOLATION_REASON_REQUIRED, "is required with an event_key"
            )

    def _pointer(self, p: ExecutionPointer, path: str) -> None:
        self.id(path, "id", p.id)
        self.number(path, "step_id", p.step_id)
        self.enum(path, "status", p.status, POINTER_STATUS)
        self.number(path, "retry_count", p.retry_count)
        for field in ("sleep_until", "start_time", "end_time"):
            if p.HasField(field):
                self.time(path, field, getattr(p, field))
        if p.HasField("event_name"):
            self.key(path, "event_name", p.event_name)
        if p.HasField("event_key"):
            self.key(path, "event_key", p.event_key)
        if p.HasField("predecessor_id"):
            self.key(path, "predecessor_id", p.predecessor_id)
        if p.HasField("persistence_data_json"):
            self.json(path, "persistence_data_json", p.persistence_data_json)
        if p.HasField("event_data_json"):
            self.json(path, "event_data_json", p.event_data_json)
        if p.HasField("context_item_json"):
            self.json(path, "context_item_json", p.context_item_json)
        if p.HasField("outcome_json"):
            self.json(path, "outcome_json", p.outcome_json)
        if p.children:
            self.ids(path, "children", p.children)
        if p.scope:
            self.ids(path, "scope", p.scope)
        if attributes := p.extension_attributes_json:
            self._attributes(attributes, path)

    def _attributes(self, attributes: Mapping[str, str], path: str) -> None:
        self._attributes_left -= len(attributes)
        if self._attributes_left < 0:
            self.add(
                path,
                "extension_attributes_json",
                R.FIELD_VIOLATION_REASON_NUMBER_RANGE,
                f"must have at most {MAX_ATTRIBUTES} items, together with those of other pointers",
            )
        else:
            for name, text in attributes.items():
                self.json(path, f'extension_attributes_json["{name}"]', text)

    def event(self, e: Event, path: str) -> None:
        """An event to write."""
        self.id(path, "id", e.id, required=False)
        self.id(path, "event_name", e.event_name)
        self.key(path, "event_key", e.event_key)
        self.json(path, "event_data_json", e.event_data_json, required=True)
        self.required_time(path, "event_time", e)

    def subscription(self, s: EventSubscription, path: str) -> None:
        """A subscription to write."""
        self.id(path, "id", s.id, required=False)
        self.id(path, "workflow_id", s.workflow_id)
        self.number(path, "step_id", s.step_id)
        self.key(path, "execution_pointer_id", s.execution_pointer_id)
        self.id(path, "event_name", s.event_name)
        self.key(path, "event_key", s.event_key)
        self.required_time(path, "subscribe_as_of", s)
        if s.HasField("subscription_data_json"):
            self.json(path, "subscription_data_json", s.subscription_data_json)
        if s.HasField("external_token"):
            self.id(path, "external_token", s.external_token)
        if s.HasField("external_worker_id"):
            self.key(path, "external_worker_id", s.external_worker_id)
        if s.HasField("external_token_expiry"):
            self.time(path, "external_token_expiry", s.external_token_expiry)

    def command(self, c: ScheduledCommand, path: str) -> None:
        """A command to schedule."""
        self.enum(path, "command_name", c.command_name, COMMAND_NAME)
        self._command_data(c.data, path)

    def named_command(self, request: BreakCommandLeaseRequest) -> None:
        """Which command is meant."""
        self.enum("", "command_name", request.command_name, COMMAND_NAME)
        self._command_data(request.data, "")

    def command_query(self, request: ListCommandsRequest) -> None:
        """Which commands to list; their data needs their name."""
        if request.command_name or request.HasField("data"):
            self.enum("", "command_name", request.command_name, COMMAND_NAME)
        self._command_data(request.data, "")
        self.times(request, "", "due_before")
        self.key("", "worker_id", request.worker_id)

    def _command_data(self, data: str, path: str) -> None:
        if len(data.encode()) > MAX_COMMAND_DATA_BYTES:
            self.add(
                path,
                "data",
                R.FIELD_VIOLATION_REASON_TOO_LONG,
                f"must be at most {MAX_COMMAND_DATA_BYTES} bytes",
            )

    def error(self, e: ExecutionError, path: str) -> None:
        """An error to log."""
        self.required_time(path, "error_time", e)
        self.id(path, "workflow_id", e.workflow_id)
        self.key(path, "execution_pointer_id", e.execution_pointer_id)

    def retention_policy(self, policy: RetentionPolicy, path: str = "policy") -> None:
        """A retention policy."""
        if self.at_most(path, "workflows", policy.workflows, MAX_RETENTION_RULES):
            definitions = [rule.workflow_definition_id for rule in policy.workflows]
            for i, rule in enumerate(policy.workflows):
                at = f"{path}.workflows[{i}]"
                self.id(at, "workflow_definition_id", definitions[i], required=False)
                self.ages(rule, at, "complete_age", "terminated_age")
            self.distinct(path, "workflows", "workflow_definition_id", definitions)
            if definitions.count("") > 1:
                last = len(definitions) - 1 - definitions[::-1].index("")
                self.add(
                    path,
                    f"workflows[{last}].workflow_definition_id",
                    R.FIELD_VIOLATION_REASON_DUPLICATE,
                    "is empty in another rule as well",
                )
        self.ages(policy, path, "processed_event_age", "error_age", "overdue_command_age")
