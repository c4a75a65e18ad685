SELECT p.id, p.step_id, p.active, p.status, p.sleep_until, p.persistence_data, p.start_time,
        p.end_time, p.event_name, p.event_key, p.event_published, p.event_data, p.step_name,
        p.retry_count, nullif(p.children, '[]'), p.context_item, p.predecessor_id, p.outcome,
        nullif(p.scope, '[]'),
        CASE WHEN p.extension_attributes <> '{}' AND jsonb_typeof(p.extension_attributes) = 'object' THEN
            (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each(p.extension_attributes)) END, p.ordinal, NULL::record
FROM wfc.execution_pointers p
WHERE p.workflow_id = (SELECT $1::text)
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
        NULL, NULL, NULL, NULL, NULL, NULL,
    ROW(
        w.id, w.name, w.root_workflow_id, w.definition_id, w.version, w.description, w.reference,
        w.status, w.data, w.next_execution, w.create_time, w.complete_time, w.revision,
        CASE WHEN w.extension_attributes <> '{}' AND jsonb_typeof(w.extension_attributes) = 'object' THEN
            (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each(w.extension_attributes)) END)
FROM wfc.workflows w
WHERE w.id = $1
ORDER BY ordinal NULLS LAST;
