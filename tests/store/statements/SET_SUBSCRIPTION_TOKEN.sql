WITH given AS MATERIALIZED (
    SELECT $1::text AS id, $2::text AS token, $3::text AS worker_id, $6::bigint AS epoch,
        coalesce($4::timestamptz, now() + $5::bigint * interval '1 millisecond') AS expiry
), taken AS (
    UPDATE wfc.event_subscriptions s
    SET external_token = g.token, external_worker_id = g.worker_id,
        external_token_expiry = g.expiry,
        external_token_epoch = CASE
            WHEN s.external_token = g.token AND coalesce(s.external_worker_id, '') = g.worker_id
                AND s.external_token_epoch > 0
                AND (s.external_token_expiry IS NULL OR s.external_token_expiry > now())
            THEN s.external_token_epoch ELSE nextval('wfc.claim_epochs') END
    FROM given g
    WHERE s.id = g.id
        AND (g.expiry IS NULL OR g.expiry > now())
        AND ((g.epoch IS NULL
                AND (s.external_token IS NULL OR s.external_token_expiry <= now()))
            OR (s.external_token = g.token AND coalesce(s.external_worker_id, '') = g.worker_id
                AND (g.epoch IS NULL OR (s.external_token_epoch = g.epoch
                    AND (s.external_token_expiry IS NULL OR s.external_token_expiry > now())))))
    RETURNING s.external_token_epoch, s.external_token_expiry
)
SELECT EXISTS (SELECT FROM taken),
    EXISTS (SELECT FROM wfc.event_subscriptions WHERE id = $1),
    $4 <= now(),
    (SELECT external_token_epoch FROM taken),
    (SELECT external_token_expiry FROM taken);
