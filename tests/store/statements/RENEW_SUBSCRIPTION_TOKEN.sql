WITH renewed AS (
    UPDATE wfc.event_subscriptions
    SET external_token_expiry = now() + $4::bigint * interval '1 millisecond'
    WHERE id = $1 AND external_token = $2
        AND (external_token_expiry IS NULL OR external_token_expiry > now())
        AND ($3::bigint IS NULL OR external_token_epoch = $3)
    RETURNING external_token_expiry, external_token_epoch
)
SELECT (SELECT external_token_expiry FROM renewed), (SELECT external_token_epoch FROM renewed),
    EXISTS (SELECT FROM wfc.event_subscriptions WHERE id = $1);
