SELECT p.id, p.step_id, p.active, p.status, p.sleep_until, p.persistence_data, p.start_time,
        p.end_time, p.event_name, p.event_key, p.event_published, p.event_data, p.step_name,
        p.retry_count, nullif(p.children, '[]'), p.context_item, p.predecessor_id, p.outcome,
        nullif(p.scope, '[]'),
        CASE WHEN p.extension_attributes <> '{}' AND jsonb_typeof(p.extension_attributes) = 'object' THEN
            (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each(p.extension_attributes)) END,
    w.id, w.name, w.root_workflow_id, w.definition_id, w.version,
        CASE WHEN coalesce(p.at, 1) = 1 THEN w.description END,
        CASE WHEN coalesce(p.at, 1) = 1 THEN w.reference END, w.status,
        CASE WHEN coalesce(p.at, 1) = 1 THEN w.data END, w.next_execution, w.create_time,
        w.complete_time, w.revision,
        CASE WHEN coalesce(p.at, 1) = 1 THEN CASE WHEN w.extension_attributes <> '{}' AND jsonb_typeof(w.extension_attributes) = 'object' THEN
            (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each(w.extension_attributes)) END END,
    w.first_revision, w.content_hash
FROM (
    SELECT t.id AS key FROM wfc.workflows t
    WHERE TRUE
    ORDER BY t.id COLLATE "C"
    OFFSET $1
) k
JOIN LATERAL (SELECT * FROM wfc.workflows w WHERE w.id = k.key LIMIT 1) w ON TRUE
LEFT JOIN LATERAL (
    SELECT *, row_number() OVER (ORDER BY p.ordinal, p.id) AS at
    FROM wfc.execution_pointers p WHERE p.workflow_id = k.key
) p ON TRUE
ORDER BY k.key COLLATE "C", p.at;
