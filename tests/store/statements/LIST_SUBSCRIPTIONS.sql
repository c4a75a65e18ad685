SELECT id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of,
        subscription_data, external_token, external_worker_id, external_token_expiry,
        external_token_epoch
FROM (
    SELECT * FROM (
    (
        SELECT * FROM wfc.event_subscriptions
        WHERE NOT $4::boolean AND ($1::text IS NULL OR workflow_id = $1)
            AND ($2::text IS NULL OR event_name = $2)
            AND ($3::text IS NULL OR event_key = $3)
            AND ($5::text IS NULL OR id > $5)
            AND external_token IS NULL
        ORDER BY id
        LIMIT $6
    ) UNION ALL (
        SELECT * FROM wfc.event_subscriptions
        WHERE NOT $4::boolean AND ($1::text IS NULL OR workflow_id = $1)
            AND ($2::text IS NULL OR event_name = $2)
            AND ($3::text IS NULL OR event_key = $3)
            AND ($5::text IS NULL OR id > $5)
            AND external_token IS NOT NULL AND external_token_expiry <= now()
        ORDER BY id
        LIMIT $6
    )
) s
    UNION ALL (
        SELECT * FROM wfc.event_subscriptions
        WHERE ($1::text IS NULL OR workflow_id = $1)
            AND ($2::text IS NULL OR event_name = $2)
            AND ($3::text IS NULL OR event_key = $3)
            AND ($5::text IS NULL OR id > $5)
            AND ($4 IS NULL OR ($4 AND external_token IS NOT NULL
                AND (external_token_expiry IS NULL OR external_token_expiry > now())))
        ORDER BY id
        LIMIT $6
    )
) s
ORDER BY id
LIMIT $6;
