SELECT p.id, p.step_id, p.active, p.status, p.sleep_until, p.persistence_data, p.start_time,
        p.end_time, p.event_name, p.event_key, p.event_published, p.event_data, p.step_name,
        p.retry_count, nullif(p.children, '[]'), p.context_item, p.predecessor_id, p.outcome,
        nullif(p.scope, '[]'),
        CASE WHEN p.extension_attributes <> '{}' AND jsonb_typeof(p.extension_attributes) = 'object' THEN
            (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each(p.extension_attributes)) END,
    w.id, w.name, w.root_workflow_id, w.definition_id, w.version,
        CASE WHEN row_number() OVER pointers = 1 THEN w.description END,
        CASE WHEN row_number() OVER pointers = 1 THEN w.reference END, w.status,
        CASE WHEN row_number() OVER pointers = 1 THEN w.data END, w.next_execution, w.create_time,
        w.complete_time, w.revision,
        CASE WHEN row_number() OVER pointers = 1 THEN CASE WHEN w.extension_attributes <> '{}' AND jsonb_typeof(w.extension_attributes) = 'object' THEN
            (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each(w.extension_attributes)) END END,
    asked.n
FROM jsonb_array_elements_text($1::jsonb) WITH ORDINALITY AS asked (id, n)
JOIN LATERAL (SELECT * FROM wfc.workflows w WHERE w.id = asked.id LIMIT 1) w ON TRUE
LEFT JOIN wfc.execution_pointers p ON FALSE
WINDOW pointers AS (PARTITION BY asked.n ORDER BY p.ordinal)
ORDER BY asked.n, p.ordinal;
