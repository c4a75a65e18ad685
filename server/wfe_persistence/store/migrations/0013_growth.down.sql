CREATE INDEX {prefix}event_subscriptions_open
    ON wfc.event_subscriptions (event_name, event_key, subscribe_as_of, id)
    WHERE external_token IS NULL OR external_token_expiry IS NOT NULL;
CREATE INDEX {prefix}execution_errors_by_time ON wfc.execution_errors (error_time);
DROP INDEX wfc.workflows_by_complete_time, wfc.workflows_ended_early, wfc.workflows_by_version,
    wfc.workflows_ended_by_definition;
DROP INDEX wfc.events_by_name;
DROP INDEX wfc.event_subscriptions_unheld, wfc.event_subscriptions_unheld_by_name,
    wfc.event_subscriptions_by_expiry;
DROP INDEX wfc.scheduled_commands_free, wfc.scheduled_commands_by_expiry;
DROP INDEX wfc.execution_errors_by_time_and_id;
