WITH found AS MATERIALIZED (
    SELECT id, $2::text IS NULL OR (external_token = $2
        AND (external_token_expiry IS NULL OR external_token_expiry > now())
        AND ($3::bigint IS NULL OR external_token_epoch = $3)) IS TRUE AS fits
    FROM wfc.event_subscriptions WHERE id = $1 FOR UPDATE
), removed AS (
    DELETE FROM wfc.event_subscriptions
    WHERE id = ANY (ARRAY (SELECT id FROM found WHERE fits))
)
SELECT fits FROM found;
