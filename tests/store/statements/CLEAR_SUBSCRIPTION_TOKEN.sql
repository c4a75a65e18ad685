WITH cleared AS (
    UPDATE wfc.event_subscriptions
    SET external_token = NULL, external_worker_id = NULL, external_token_expiry = NULL
    WHERE id = $1 AND external_token = $2 AND ($3::bigint IS NULL OR external_token_epoch = $3)
    RETURNING id
)
SELECT EXISTS (SELECT FROM cleared), EXISTS (SELECT FROM wfc.event_subscriptions WHERE id = $1);
