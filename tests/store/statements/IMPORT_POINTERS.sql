INSERT INTO wfc.execution_pointers (workflow_id, ordinal,
    id, step_id, active, status, sleep_until, persistence_data, start_time, end_time,
        event_name, event_key, event_published, event_data, step_name, retry_count, children,
        context_item, predecessor_id, outcome, scope, extension_attributes)
SELECT $1, p.ordinal,
    p.id, p.step_id, coalesce(p.active, FALSE), p.status, p.sleep_until,
        p.persistence_data -> 0, p.start_time, p.end_time, p.event_name, p.event_key,
        coalesce(p.event_published, FALSE), p.event_data -> 0, p.step_name,
        coalesce(p.retry_count, 0), coalesce(p.children, '[]'), p.context_item -> 0,
        p.predecessor_id, p.outcome -> 0, coalesce(p.scope, '[]'),
        coalesce(p.extension_attributes, '{}')
FROM jsonb_to_recordset($2::jsonb) AS p(ordinal bigint,
        id text, step_id int, active boolean, status text, sleep_until timestamptz,
        persistence_data jsonb, start_time timestamptz, end_time timestamptz, event_name text,
        event_key text, event_published boolean, event_data jsonb, step_name text, retry_count int,
        children jsonb, context_item jsonb, predecessor_id text, outcome jsonb, scope jsonb,
        extension_attributes jsonb)
ON CONFLICT DO NOTHING
RETURNING 1;
