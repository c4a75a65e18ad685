SELECT id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of,
        subscription_data, external_token, external_worker_id, external_token_expiry,
        external_token_epoch
FROM (
    (
        SELECT * FROM wfc.event_subscriptions
        WHERE event_name = $1 AND event_key = $2
            AND subscribe_as_of <= coalesce($3::timestamptz, now()) AND (subscribe_as_of, id) >= (coalesce($4::timestamptz, '-infinity'), coalesce($5::text, ''))
    AND ($5::text IS NULL OR (subscribe_as_of, id) <> ($4::timestamptz, $5::text))
            AND external_token IS NULL
        ORDER BY subscribe_as_of, id
        LIMIT $6
    ) UNION ALL (
        SELECT * FROM wfc.event_subscriptions
        WHERE event_name = $1 AND event_key = $2
            AND subscribe_as_of <= coalesce($3::timestamptz, now()) AND (subscribe_as_of, id) >= (coalesce($4::timestamptz, '-infinity'), coalesce($5::text, ''))
    AND ($5::text IS NULL OR (subscribe_as_of, id) <> ($4::timestamptz, $5::text))
            AND external_token IS NOT NULL AND external_token_expiry <= now()
        ORDER BY subscribe_as_of, id
        LIMIT $6
    )
) s
ORDER BY subscribe_as_of, id
LIMIT $6;
