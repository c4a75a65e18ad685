SELECT w.id, w.name, w.root_workflow_id, w.definition_id, w.version, w.description, w.reference,
        w.status, w.data, w.next_execution, w.create_time, w.complete_time, w.revision,
        CASE WHEN w.extension_attributes <> '{}' AND jsonb_typeof(w.extension_attributes) = 'object' THEN
            (SELECT jsonb_object_agg(key, value::text) FROM jsonb_each(w.extension_attributes)) END
FROM wfc.workflows w
WHERE w.id = $1;
