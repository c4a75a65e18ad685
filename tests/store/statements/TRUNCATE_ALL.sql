TRUNCATE wfc.workflows, wfc.execution_pointers, wfc.events, wfc.event_subscriptions,
        wfc.scheduled_commands, wfc.queue_items, wfc.queues, wfc.execution_errors,
        wfc.definition_sequences, wfc.requests, wfc.locks, wfc.lifecycle_events,
        wfc.lifecycle_feed, wfc.workflow_changes, wfc.workflow_feed, wfc.sweeps,
        wfc.retention_rules, wfc.name_holders
    CASCADE;
