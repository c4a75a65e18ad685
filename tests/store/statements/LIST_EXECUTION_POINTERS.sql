SELECT p.id, p.step_id, p.active, p.status, p.sleep_until, p.persistence_data, p.start_time,
        p.end_time, p.event_name, p.event_key, p.event_published, p.event_data, p.step_name,
        p.retry_count, nullif(p.children, '[]'), p.context_item, p.predecessor_id, p.outcome,
        nullif(p.scope, '[]'),
        CASE WHEN p.extension_attributes <> '{}' AND jsonb_typeof(p.extension_attributes) = 'object' THEN
            (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each(p.extension_attributes)) END,
    p.ordinal, w.revision
FROM wfc.workflows w LEFT JOIN LATERAL (
    SELECT * FROM wfc.execution_pointers p
    WHERE p.workflow_id = w.id
    AND (p.ordinal, p.id) >= (coalesce($2::bigint, -9223372036854775808), coalesce($3::text, ''))
    AND ($3::text IS NULL OR (p.ordinal, p.id) <> ($2::bigint, $3::text))
    ORDER BY p.ordinal, p.id
    LIMIT $4
) p ON TRUE
WHERE w.id = $1
ORDER BY p.ordinal, p.id;
