WITH given AS MATERIALIZED (
    SELECT g.* FROM jsonb_to_recordset($1::jsonb) AS g(at int, content_hash text, external_token_epoch bigint,
        id text, workflow_id text, step_id int, execution_pointer_id text, event_name text,
        event_key text, subscribe_as_of timestamptz, subscription_data jsonb, external_token text,
        external_worker_id text, external_token_expiry timestamptz)
), created AS (
    INSERT INTO wfc.event_subscriptions (id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of,
        subscription_data, external_token, external_worker_id, external_token_expiry, content_hash, external_token_epoch)
    SELECT g.id, g.workflow_id, g.step_id, g.execution_pointer_id, g.event_name, g.event_key,
        g.subscribe_as_of, g.subscription_data -> 0, g.external_token, g.external_worker_id,
        g.external_token_expiry, decode(g.content_hash, 'hex'), coalesce(g.external_token_epoch, 0)
    FROM given g
    ORDER BY g.id
    ON CONFLICT DO NOTHING
    RETURNING id
)
SELECT g.at, s.same
FROM given g
LEFT JOIN LATERAL (
    SELECT ((g.workflow_id), (g.step_id), (g.execution_pointer_id), (g.event_name), (g.event_key), (g.subscribe_as_of), (g.subscription_data -> 0)::text, (g.external_token), (g.external_worker_id), (g.external_token_expiry), coalesce(g.external_token_epoch, 0), TRUE) IS NOT DISTINCT FROM (s.workflow_id, s.step_id, s.execution_pointer_id, s.event_name, s.event_key, s.subscribe_as_of, s.subscription_data::text, s.external_token, s.external_worker_id, s.external_token_expiry, s.external_token_epoch, TRUE) AS same
    FROM wfc.event_subscriptions s WHERE s.id = g.id LIMIT 1
) s ON TRUE
WHERE NOT EXISTS (SELECT FROM created s WHERE s.id = g.id);
