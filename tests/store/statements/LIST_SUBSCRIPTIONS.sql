SELECT id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of,
        subscription_data, external_token, external_worker_id, external_token_expiry,
        external_token_epoch
FROM wfc.event_subscriptions
WHERE ($1::text IS NULL OR workflow_id = $1) AND ($2::text IS NULL OR event_name = $2)
    AND ($3::text IS NULL OR event_key = $3)
    AND ($4::boolean IS NULL OR $4 = (external_token IS NOT NULL
        AND (external_token_expiry IS NULL OR external_token_expiry > now())))
    AND ($5::text IS NULL OR id > $5)
ORDER BY id
LIMIT $6;
