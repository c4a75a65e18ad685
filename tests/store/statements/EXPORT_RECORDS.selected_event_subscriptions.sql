SELECT r.id, r.workflow_id, r.step_id, r.execution_pointer_id, r.event_name, r.event_key,
        r.subscribe_as_of, r.subscription_data, r.external_token, r.external_worker_id,
        r.external_token_expiry, r.external_token_epoch, r.content_hash
FROM (
    SELECT t.id AS key FROM wfc.event_subscriptions t
    WHERE t.workflow_id IN (SELECT x.id FROM wfc.workflows x WHERE ($2::text[] IS NULL OR x.id = ANY ($2))
        AND ($3::text[] IS NULL OR x.status = ANY ($3))
        AND ($4::text[] IS NULL OR x.definition_id = ANY ($4))
        AND ($5::timestamptz IS NULL OR x.create_time >= $5)
        AND ($6::timestamptz IS NULL OR x.create_time < $6))
    ORDER BY t.id COLLATE "C"
    OFFSET $1
) k
JOIN LATERAL (SELECT * FROM wfc.event_subscriptions r WHERE r.id = k.key LIMIT 1) r ON TRUE
ORDER BY k.key COLLATE "C";
