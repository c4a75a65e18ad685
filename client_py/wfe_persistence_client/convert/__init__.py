"""Conversion between the dataclasses and the protobuf messages.

A value that cannot be sent raises ValueError or TypeError with the name of the field; a
message that cannot be read raises `MalformedAnswer`.
"""

from wfe_persistence_client.convert.command import (
    claimed_command_from_proto,
    command_from_proto,
    command_name_to_proto,
    command_to_proto,
    lease_expiry_from_proto,
    lease_token,
    listed_command_from_proto,
)
from wfe_persistence_client.convert.event import event_from_proto, event_to_proto, events_to_proto
from wfe_persistence_client.convert.lifecycle import (
    lifecycle_event_to_proto,
    lifecycle_event_type_to_proto,
    lifecycle_events_to_proto,
    watched_event_from_proto,
)
from wfe_persistence_client.convert.lock import (
    acquired_lock_from_proto,
    expiry_from_proto,
    lock_from_proto,
)
from wfe_persistence_client.convert.queue import (
    acknowledgement_to_proto,
    acknowledgements_to_proto,
    dequeued_from_proto,
    item_state_to_proto,
    listed_item_from_proto,
    queue_item_to_proto,
    queue_items_to_proto,
    queue_kind_to_proto,
    queue_stats_from_proto,
    returned_items_to_proto,
)
from wfe_persistence_client.convert.retention import (
    retention_counts_from_proto,
    retention_policy_to_proto,
    retention_state_from_proto,
    storage_report_from_proto,
)
from wfe_persistence_client.convert.scalars import (
    duration,
    optional_duration,
    optional_timestamp,
    timestamp,
)
from wfe_persistence_client.convert.store import (
    database_from_proto,
    error_from_proto,
    error_to_proto,
    errors_to_proto,
    namespace_from_proto,
    namespace_set_from_proto,
    store_info_from_proto,
)
from wfe_persistence_client.convert.subscription import (
    check_claim,
    claim_from_proto,
    claim_to_proto,
    subscription_from_proto,
    subscription_to_proto,
    subscriptions_to_proto,
)
from wfe_persistence_client.convert.workflow import (
    change_from_proto,
    counts_from_proto,
    filter_to_proto,
    order_to_proto,
    patch_to_proto,
    pointer_from_proto,
    purged_from_proto,
    statuses_to_proto,
    view,
    workflow_from_proto,
    workflow_to_proto,
)

__all__ = [
    "acknowledgement_to_proto",
    "acknowledgements_to_proto",
    "acquired_lock_from_proto",
    "change_from_proto",
    "check_claim",
    "claim_from_proto",
    "claim_to_proto",
    "claimed_command_from_proto",
    "command_from_proto",
    "command_name_to_proto",
    "command_to_proto",
    "counts_from_proto",
    "database_from_proto",
    "dequeued_from_proto",
    "duration",
    "error_from_proto",
    "error_to_proto",
    "errors_to_proto",
    "event_from_proto",
    "event_to_proto",
    "events_to_proto",
    "expiry_from_proto",
    "filter_to_proto",
    "item_state_to_proto",
    "lease_expiry_from_proto",
    "lease_token",
    "lifecycle_event_to_proto",
    "lifecycle_event_type_to_proto",
    "lifecycle_events_to_proto",
    "listed_command_from_proto",
    "listed_item_from_proto",
    "lock_from_proto",
    "namespace_from_proto",
    "namespace_set_from_proto",
    "optional_duration",
    "optional_timestamp",
    "order_to_proto",
    "patch_to_proto",
    "pointer_from_proto",
    "purged_from_proto",
    "queue_item_to_proto",
    "queue_items_to_proto",
    "queue_kind_to_proto",
    "queue_stats_from_proto",
    "retention_counts_from_proto",
    "retention_policy_to_proto",
    "retention_state_from_proto",
    "returned_items_to_proto",
    "statuses_to_proto",
    "storage_report_from_proto",
    "store_info_from_proto",
    "subscription_from_proto",
    "subscription_to_proto",
    "subscriptions_to_proto",
    "timestamp",
    "view",
    "watched_event_from_proto",
    "workflow_from_proto",
    "workflow_to_proto",
]
