SELECT r.id, r.workflow_id, r.step_id, r.execution_pointer_id, r.event_name, r.event_key,
        r.subscribe_as_of, r.subscription_data, r.external_token, r.external_worker_id,
        r.external_token_expiry, r.external_token_epoch, r.content_hash
FROM (
    SELECT t.id AS key FROM wfc.event_subscriptions t
    WHERE TRUE
    ORDER BY t.id COLLATE "C"
    OFFSET $1
) k
JOIN LATERAL (SELECT * FROM wfc.event_subscriptions r WHERE r.id = k.key LIMIT 1) r ON TRUE
ORDER BY k.key COLLATE "C";
