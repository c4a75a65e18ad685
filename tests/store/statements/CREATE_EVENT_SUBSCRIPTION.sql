WITH given AS MATERIALIZED (
    SELECT g.*,
        sha256(convert_to(d.document::text, 'UTF8')) AS content_hash
    FROM (VALUES ($1::jsonb)) AS d(document),
        jsonb_to_record(d.document) AS g(
        id text, workflow_id text, step_id int, execution_pointer_id text, event_name text,
        event_key text, subscribe_as_of timestamptz, subscription_data jsonb, external_token text,
        external_worker_id text, external_token_expiry timestamptz)
), created AS (
    INSERT INTO wfc.event_subscriptions (
        id, workflow_id, step_id, execution_pointer_id, event_name, event_key, subscribe_as_of,
        subscription_data, external_token, external_worker_id, external_token_expiry,
        content_hash)
    SELECT g.id, g.workflow_id, g.step_id, g.execution_pointer_id, g.event_name, g.event_key,
        g.subscribe_as_of, g.subscription_data -> 0, g.external_token, g.external_worker_id,
        g.external_token_expiry,
        g.content_hash
    FROM given g
    WHERE TRUE
    ON CONFLICT (id) DO NOTHING
    RETURNING id, content_hash
)
SELECT EXISTS (SELECT FROM created),
    (SELECT coalesce(e.content_hash = g.content_hash, FALSE)
        FROM wfc.event_subscriptions e JOIN given g ON e.id = g.id);
