WITH given AS MATERIALIZED (
    SELECT coalesce($4::timestamptz, now() + $5::bigint * interval '1 millisecond') AS expiry
), taken AS (
    UPDATE wfc.event_subscriptions s
    SET external_token = $2, external_worker_id = $3, external_token_expiry = g.expiry,
        external_token_epoch = CASE
            WHEN s.external_token = $2 AND coalesce(s.external_worker_id, '') = $3
                AND s.external_token_epoch > 0
                AND (s.external_token_expiry IS NULL OR s.external_token_expiry > now())
            THEN s.external_token_epoch ELSE nextval('wfc.claim_epochs') END
    FROM given g
    WHERE s.id = $1
        AND (g.expiry IS NULL OR g.expiry > now())
        AND (($6::bigint IS NULL
                AND (s.external_token IS NULL OR s.external_token_expiry <= now()))
            OR (s.external_token = $2 AND coalesce(s.external_worker_id, '') = $3
                AND ($6 IS NULL OR (s.external_token_epoch = $6
                    AND (s.external_token_expiry IS NULL OR s.external_token_expiry > now())))))
    RETURNING s.external_token_epoch, s.external_token_expiry
)
SELECT EXISTS (SELECT FROM taken),
    EXISTS (SELECT FROM wfc.event_subscriptions WHERE id = $1),
    $4 <= now(),
    (SELECT external_token_epoch FROM taken),
    (SELECT external_token_expiry FROM taken);
