WITH given AS MATERIALIZED (
    SELECT g.id, g.token, g.worker_id, g.epoch, g.n,
        coalesce(g.expiry, now() + g.duration * interval '1 millisecond') AS expiry
    FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::bigint[], $6::bigint[])
        WITH ORDINALITY AS g(id, token, worker_id, expiry, duration, epoch, n)
)
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
RETURNING TRUE, TRUE, FALSE, s.external_token_epoch, s.external_token_expiry, g.n;
