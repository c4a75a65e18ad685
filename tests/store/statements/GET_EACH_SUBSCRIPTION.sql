SELECT s.id, s.workflow_id, s.step_id, s.execution_pointer_id, s.event_name, s.event_key,
        s.subscribe_as_of, s.subscription_data, s.external_token, s.external_worker_id,
        s.external_token_expiry, s.external_token_epoch, asked.n
FROM unnest($1::text[]) WITH ORDINALITY AS asked(id, n), LATERAL (
    SELECT * FROM wfc.event_subscriptions s
    WHERE s.id = asked.id AND (pg_column_size(s.subscription_data) > 4096
        OR pg_column_compression(s.subscription_data) IS NOT NULL) IS NOT TRUE
    LIMIT 1
) s;
