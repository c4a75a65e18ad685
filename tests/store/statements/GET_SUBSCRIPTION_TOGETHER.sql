SELECT id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of,
        subscription_data, external_token, external_worker_id, external_token_expiry,
        external_token_epoch
FROM wfc.event_subscriptions
WHERE id = $1
    AND (pg_column_size(subscription_data) > 4096
        OR pg_column_compression(subscription_data) IS NOT NULL) IS NOT TRUE;
