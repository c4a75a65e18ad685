SELECT r.error_time, r.workflow_id, r.execution_pointer_id, r.message,
    (SELECT count(*) FROM wfc.execution_errors s WHERE s.error_time = r.error_time AND s.workflow_id = r.workflow_id AND s.execution_pointer_id = r.execution_pointer_id AND s.message = r.message AND s.id < r.id)
FROM (
    SELECT * FROM wfc.execution_errors r WHERE r.workflow_id IN (SELECT x.id FROM wfc.workflows x WHERE ($2::text[] IS NULL OR x.id = ANY ($2))
        AND ($3::text[] IS NULL OR x.status = ANY ($3))
        AND ($4::text[] IS NULL OR x.definition_id = ANY ($4))
        AND ($5::timestamptz IS NULL OR x.create_time >= $5)
        AND ($6::timestamptz IS NULL OR x.create_time < $6)) ORDER BY r.id OFFSET $1
) r
ORDER BY r.id;
